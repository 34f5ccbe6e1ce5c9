"""Which weights to keep."""

from __future__ import annotations

import torch
from torch import Tensor


def magnitude_mask(weight: Tensor, eligible: Tensor, fraction: float) -> Tensor:
    """The eligible weights that are left when those of smallest magnitude are pruned (Mallya and Lazebnik 2018, §3).

    `weight` and `eligible` (bool) have the same shape, and so has the answer (bool). Of n eligible weights exactly
    ⌊fraction · n⌋ are pruned; of equally large ones those that come first. Nothing waits for the device.
    """
    magnitude = torch.where(eligible, weight.detach().abs(), float("inf")).flatten()
    order = magnitude.argsort(stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    pruned = (eligible.sum().to(torch.float64) * fraction).floor()
    return eligible & (rank >= pruned).view_as(eligible)
