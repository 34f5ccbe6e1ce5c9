"""Who takes part in a round, with what weight, and the sum of what they send: McMahan et al. 2017, algorithm 1.

w ← w + Σ_{k∈S} p_k (w_k − w),   p_k = n_k / Σ_{j∈S} n_j   over the clients S of the round.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor

Weighting = Literal["samples", "uniform"]


def cohort_size(clients: int, fraction: float) -> int:
    """m = max(round(C · K), 1)."""
    return max(round(fraction * clients), 1)


def cohort(clients: int, fraction: float, generator: torch.Generator) -> list[int]:
    """max(round(C · K), 1) of the clients 0 … K − 1, uniformly without replacement, in ascending order."""
    size = cohort_size(clients, fraction)
    return sorted(torch.randperm(clients, generator=generator)[:size].tolist())


def masses(sizes: Tensor, weighting: Weighting) -> Tensor:
    """What each client counts, float64 [m]: its number of examples, or one."""
    return sizes.double() if weighting == "samples" else torch.ones(len(sizes), dtype=torch.float64)


def shares(sizes: Tensor, weighting: Weighting) -> Tensor:
    """p_k = n_k / Σ_j n_j, or 1/m, float64 [m], of the clients with these numbers of examples."""
    counted = masses(sizes, weighting)
    return counted / counted.sum()


class WeightedSum:
    """Σ_k p_k v_k, added client by client in the order in which they come, whatever their division into chunks."""

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}

    @torch.no_grad()
    def add(self, clients: Sequence[int], values: Mapping[str, Tensor], weights: Tensor) -> None:
        """Add values [r, *shape] of r clients with weights [r] (on the CPU)."""
        if not self.sums:
            self.sums = {name: torch.zeros_like(value[0]) for name, value in values.items()}
        totals, rows = list(self.sums.values()), [values[name].unbind() for name in self.sums]
        for row, weight in enumerate(weights.tolist()):
            torch._foreach_add_(totals, [value[row] for value in rows], alpha=weight)

    def total(self) -> dict[str, Tensor]:
        """The sum, name → [*shape]; empty where nobody sent anything."""
        return self.sums
