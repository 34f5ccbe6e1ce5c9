"""A quadratic penalty around parameters that were good for earlier tasks, at the cost of a single one.

The sum over tasks t of ½ (θ − θ_t)ᵀ F_t (θ − θ_t), with diagonal F_t ≥ 0, is again one quadratic: with A = Σ F_t
and m the mean of the θ_t weighted by F_t it is ½ Σ [A (θ − m)² + c], where c = Σ F_t (θ_t − m)². Mean and c go on from
task to task like a weighted mean and variance: no large numbers are subtracted from each other, time and memory do not
grow with the tasks, and m is rounded no more than θ itself is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn


class Anchor:
    """The collapsed penalty over the trainable parameters of a network, by name.

    The head is there from the start: rows of outputs whose task is still to come have a Fisher of zero, so no penalty.
    """

    def __init__(self, network: nn.Module) -> None:
        self.parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
        zeros = {name: torch.zeros_like(p, requires_grad=False) for name, p in self.parameters.items()}
        self.importance = zeros  # A
        self.centre = {name: p.detach().clone() for name, p in self.parameters.items()}  # m
        self.constant = {name: torch.zeros_like(value) for name, value in zeros.items()}  # c, per parameter
        self.empty = True

    @torch.no_grad()
    def consolidate(self, fisher: Mapping[str, Tensor], *, online: bool = False, decay: float = 1.0) -> None:
        """Add a task's importance around the parameters as they are now.

        Separate anchors (Kirkpatrick et al. 2017): every task keeps its own centre; `decay` scales all earlier ones,
        and `fisher` must not be negative. Online (Schwarz et al. 2018): A ← decay · A + F, and the newest parameters
        are the centre of it all.
        """
        for name, parameter in self.parameters.items():
            earlier, now = decay * self.importance[name], parameter.detach().clone()
            total = earlier + fisher[name]
            if not online:
                share = torch.where(total > 0, fisher[name] / total, 1.0)
                spread = earlier * share * (now - self.centre[name]).square()
                self.constant[name] = decay * self.constant[name] + spread
                now = torch.lerp(self.centre[name], now, share)
            self.importance[name], self.centre[name] = total, now
        self.empty = False

    @torch.no_grad()
    def add_gradient(self, strength: float) -> None:
        """Add strength · A (θ − m) to the gradients in place: two passes for any number of tasks."""
        if self.empty or strength == 0:
            return
        gradients = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        if not gradients:
            return
        parameters: list[Tensor] = [self.parameters[name] for name in gradients]
        pull = torch._foreach_sub(parameters, [self.centre[name] for name in gradients])
        importance = [self.importance[name] for name in gradients]
        torch._foreach_addcmul_(list(gradients.values()), pull, importance, value=strength)

    @torch.no_grad()
    def value(self, strength: float) -> Tensor:
        """The penalty, a 0-d tensor: strength · Σ_t ½ (θ − θ_t)ᵀ F_t (θ − θ_t)."""
        total = next(iter(self.parameters.values())).new_zeros(())
        for name, parameter in self.parameters.items():
            away = parameter - self.centre[name]
            total = total + (self.importance[name] * away * away + self.constant[name]).sum()
        return 0.5 * strength * total

    def tensors(self) -> list[Tensor]:
        """All that is kept, which is nothing before the first `consolidate`."""
        kinds = [self.importance, self.centre, self.constant]
        return [] if self.empty else [value for kind in kinds for value in kind.values()]

    def state_dict(self) -> dict[str, Any]:
        """Tensors by kind and name."""
        kinds = ("importance", "centre", "constant")
        return {"empty": self.empty, **{kind: dict(getattr(self, kind)) for kind in kinds}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave, moved to where the parameters are."""
        self.empty = state["empty"]
        for kind in ("importance", "centre", "constant"):
            own = {name: state[kind][name].to(parameter, copy=True) for name, parameter in self.parameters.items()}
            setattr(self, kind, own)
