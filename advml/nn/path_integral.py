"""How much each parameter's way through a task lowered the loss (Zenke et al. 2017, "Continual learning through
synaptic intelligence", section 3).

Along the way, Σ_k ∫ g_k dθ_k is the change of the loss, g its gradient. ω_k is parameter k's share of the decrease:
from update to update

    ω_k ← ω_k − g_k Δθ_k        g at the parameters before the update, Δθ all that the update does to them,

and at the end of a task, during which the parameter moved by Δ_k in all, equation 5 gives its importance

    ω_k / (Δ_k² + ξ)            ξ > 0, so that what hardly moved is not divided by zero.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class PathIntegral:
    """ω of the trainable parameters of a network, by name: call `before` and `after` around each update."""

    def __init__(self, network: nn.Module) -> None:
        self.parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.omega = {name: torch.zeros_like(p, requires_grad=False) for name, p in self.parameters.items()}
        self._gradients: list[Tensor] = []
        self._places: list[Tensor] = []

    @torch.no_grad()
    def before(self) -> None:
        """Note the parameters and their gradients as they are now: what follows may clip these or add to them."""
        places = [p.detach() for p in self.parameters.values()]
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters.values()]
        if not self._places:
            self._places, self._gradients = ([torch.empty_like(p) for p in places] for _ in range(2))
        torch._foreach_copy_(self._places, places)
        torch._foreach_copy_(self._gradients, gradients)

    @torch.no_grad()
    def after(self) -> None:
        """ω ← ω − g Δθ, with Δθ from where `before` was called to here."""
        torch._foreach_sub_(self._places, [p.detach() for p in self.parameters.values()])  # −Δθ
        torch._foreach_addcmul_(list(self.omega.values()), self._gradients, self._places)

    @torch.no_grad()
    def finish(self, start: Mapping[str, Tensor], damping: float) -> dict[str, Tensor]:
        """The importance of each parameter for the task that began at `start`; ω is zero afterwards."""
        found = {}
        for name, parameter in self.parameters.items():
            found[name] = importance(self.omega[name], parameter - start[name], damping)
            self.omega[name].zero_()
        return found

    def load(self, omega: Mapping[str, Tensor]) -> None:
        """Continue from this ω, copied to where the parameters are."""
        self.omega = {name: omega[name].to(p, copy=True) for name, p in self.parameters.items()}


def importance(omega: Tensor, moved: Tensor, damping: float) -> Tensor:
    """ω / (moved² + damping), all of one shape: a task's summand in equation 5.

    Negative where a parameter was carried uphill, as by momentum or weight decay.
    """
    return omega / (moved * moved + damping)


def at_least_zero(importance: Tensor, total: Tensor) -> Tensor:
    """The importance cut such that `total` ≥ 0, that of earlier tasks, does not become negative by adding it.

    The authors' code does so; the paper does not say it. A negative sum would push the parameter away, without bound.
    """
    return importance.maximum(-total)
