"""Gradients that do not work against another gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


@torch.no_grad()
def project_gradient(gradients: Sequence[Tensor], reference: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """The gradient closest to g that does not increase the reference loss to first order, and whether g would have.

    Chaudhry et al. 2019, "Efficient lifelong learning with A-GEM", equation 11, with g and g_ref the two lists taken as
    one vector each:  g̃ = g − (g·g_ref / g_ref·g_ref) g_ref  where g·g_ref < 0, and otherwise g itself, bit for bit. So
    g̃·g_ref ≥ 0 up to rounding. The second result is a 0-d bool; nothing waits for the device.
    """
    product = torch.stack([torch.dot(g.flatten(), r.flatten()) for g, r in zip(gradients, reference, strict=True)])
    square = torch.stack([torch.dot(r.flatten(), r.flatten()) for r in reference])
    along, length = product.sum(), square.sum()
    against = (along < 0) & (length > 0)  # a length of zero leaves nothing to project on
    moved = torch._foreach_mul(list(reference), along / length)
    moved = torch._foreach_sub(list(gradients), moved)
    return [torch.where(against, new, old) for new, old in zip(moved, gradients, strict=True)], against
