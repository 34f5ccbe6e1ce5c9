"""A quadratic penalty around parameters that were good for earlier tasks, at the cost of a single one.

The sum over earlier tasks t of ½ (θ − θ_t)ᵀ F_t (θ − θ_t), with diagonal F_t, is again one quadratic. With A = Σ F_t,
the newest parameters θ* as its centre and b = Σ F_t (θ_t − θ*), its gradient is A (θ − θ*) − b, and its value
½ Σ [A (θ − θ*)² − 2 b (θ − θ*) + c] with c = Σ F_t (θ_t − θ*)². Kept relative to θ*, differences of nearly equal
numbers never meet a large A; nothing is divided, since A has zeros; time and memory do not grow with the tasks.
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
        self.centre = {name: p.detach().clone() for name, p in self.parameters.items()}  # θ*
        self.offset = {name: torch.zeros_like(value) for name, value in zeros.items()}  # b
        self.constant = {name: torch.zeros_like(value) for name, value in zeros.items()}  # c, per parameter
        self.empty = True

    @torch.no_grad()
    def consolidate(self, fisher: Mapping[str, Tensor], *, online: bool = False, decay: float = 1.0) -> None:
        """Add a task's importance around the parameters as they are now.

        Separate anchors (Kirkpatrick et al. 2017): every task keeps its own centre; `decay` scales all earlier ones.
        Online (Schwarz et al. 2018): A ← decay · A + F, and the newest parameters are the centre of it all.
        """
        for name, parameter in self.parameters.items():
            now = parameter.detach().clone()
            if online:
                self.importance[name] = decay * self.importance[name] + fisher[name]
            else:
                moved = self.centre[name] - now
                c, b, a = (decay * values[name] for values in (self.constant, self.offset, self.importance))
                self.constant[name] = c + 2 * b * moved + a * moved * moved
                self.offset[name] = b + a * moved
                self.importance[name] = a + fisher[name]
            self.centre[name] = now
        self.empty = False

    @torch.no_grad()
    def add_gradient(self, strength: float) -> None:
        """Add strength · [A (θ − θ*) − b] to the gradients in place: four fused operations for any number of tasks."""
        if self.empty or strength == 0:
            return
        gradients = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        if not gradients:
            return
        parameters: list[Tensor] = [self.parameters[name] for name in gradients]
        pull = list(torch._foreach_sub(parameters, [self.centre[name] for name in gradients]))
        torch._foreach_mul_(pull, [self.importance[name] for name in gradients])
        torch._foreach_sub_(pull, [self.offset[name] for name in gradients])
        torch._foreach_add_(list(gradients.values()), pull, alpha=strength)

    @torch.no_grad()
    def value(self, strength: float) -> Tensor:
        """The penalty, a 0-d tensor: strength · Σ_t ½ (θ − θ_t)ᵀ F_t (θ − θ_t)."""
        total = next(iter(self.parameters.values())).new_zeros(())
        for name, parameter in self.parameters.items():
            away = parameter - self.centre[name]
            quadratic = self.importance[name] * away * away - 2 * self.offset[name] * away + self.constant[name]
            total = total + quadratic.sum()
        return 0.5 * strength * total

    def tensors(self) -> list[Tensor]:
        """All that is kept, which is nothing before the first `consolidate`."""
        kinds = [self.importance, self.centre, self.offset, self.constant]
        return [] if self.empty else [value for kind in kinds for value in kind.values()]

    def state_dict(self) -> dict[str, Any]:
        """Tensors by kind and name."""
        kinds = ("importance", "centre", "offset", "constant")
        return {"empty": self.empty, **{kind: dict(getattr(self, kind)) for kind in kinds}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave, moved to where the parameters are."""
        self.empty = state["empty"]
        for kind in ("importance", "centre", "offset", "constant"):
            own = {name: state[kind][name].to(parameter, copy=True) for name, parameter in self.parameters.items()}
            setattr(self, kind, own)
