"""Products of experts: what several classifiers know, each from its own modality, as one distribution."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def log_prior(target: Tensor, classes: int, smoothing: float = 1.0) -> Tensor:
    """log p(y) from counts, with `smoothing` added to each (Laplace); target int64 [N] → [classes], float64."""
    hit = target.unsqueeze(1) == torch.arange(classes, device=target.device)
    counts = hit.sum(0).double() + smoothing
    return (counts / counts.sum()).log()


def product_of_experts(logits: Sequence[Tensor], prior: Tensor, present: Sequence[Tensor | None]) -> Tensor:
    """log p(y | x_1 … x_M) where the x_m are independent given y: Σ_m log p(y | x_m) − (M − 1) log p(y), renormalised.

    logits: [B, C] of each expert; prior: log p(y) [C]; present: bool [B] of each, None = all there. A modality that
    is missing drops its factor, M being the number of those present: Bayes' rule with what was seen. With none the
    prior remains. → [B, C], rows of logarithms of probabilities.
    """
    total = prior.to(logits[0]).expand_as(logits[0])
    for expert, there in zip(logits, present, strict=True):
        ratio = expert.log_softmax(1) - prior.to(expert)
        total = total + (ratio if there is None else torch.where(there.unsqueeze(1), ratio, 0.0))
    return total.log_softmax(1)
