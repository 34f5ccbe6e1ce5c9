"""The server's optimiser in federated learning: Reddi et al. 2021, "Adaptive Federated Optimization", algorithm 2.

It moves the global network along Δ, the weighted mean of the clients' changes, as if −Δ were a gradient.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

Rule = Literal["sgd", "adam", "yogi", "adagrad"]


class ServerOptimiser:
    """sgd:  m ← β m + Δ;  w ← w + η m   (FedAvgM, Hsu et al. 2019; β = 0, η = 1 is FedAvg).

    The others:  m ← β₁ m + (1 − β₁) Δ;  w ← w + η m / (√v + τ), no bias corrected, v from τ² on:
    adagrad  v ← v + Δ²;  yogi  v ← v − (1 − β₂) Δ² sign(v − Δ²);  adam  v ← β₂ v + (1 − β₂) Δ².
    """

    def __init__(self, rule: Rule, lr: float, momentum: float, betas: tuple[float, float], tau: float) -> None:
        self.rule, self.lr, self.momentum, self.betas, self.tau = rule, lr, momentum, betas, tau
        self.mean: dict[str, Tensor] = {}
        self.square: dict[str, Tensor] = {}

    @torch.no_grad()
    def step(self, values: Mapping[str, Tensor], change: Mapping[str, Tensor]) -> None:
        """Move `values` in place along `change`, both name → [*shape]."""
        for name, value in values.items():
            value.add_(self.direction(name, change[name]), alpha=self.lr)

    def direction(self, name: str, change: Tensor) -> Tensor:
        """What the value is moved by, up to the rate; remembers."""
        if self.rule == "sgd":
            if not self.momentum:
                return change
            self.mean[name] = self.mean[name].mul_(self.momentum).add_(change) if name in self.mean else change.clone()
            return self.mean[name]
        first, second = self.betas
        mean = self.mean.setdefault(name, torch.zeros_like(change))
        square = self.square.setdefault(name, torch.full_like(change, self.tau**2))
        mean.mul_(first).add_(change, alpha=1 - first)
        squared = change.square()
        if self.rule == "adagrad":
            square.add_(squared)
        elif self.rule == "yogi":
            square.sub_(squared * torch.sign(square - squared), alpha=1 - second)
        else:
            square.mul_(second).add_(squared, alpha=1 - second)
        return mean / (square.sqrt() + self.tau)

    def state_dict(self) -> dict[str, Any]:
        """What it remembers; the live tensors."""
        return {"mean": dict(self.mean), "square": dict(self.square)}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Continue from what `state_dict` gave."""
        self.mean, self.square = (
            {name: value.to(device, copy=True) for name, value in state[key].items()} for key in ("mean", "square")
        )
