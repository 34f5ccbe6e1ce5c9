"""Contrastive losses between two modalities, with several positives where meanings repeat, and how retrieval is scored.

Throughout: one, other [B, D] of unit length, row i of both from example i; positives bool [B, B], positives[i, j] says
that one_i and other_j mean the same. The diagonal is always true.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def same_meaning(one: Tensor, other: Tensor) -> Tensor:
    """Which rows belong together: meanings int64 [N] and [M] → bool [N, M]."""
    return one.unsqueeze(1) == other.unsqueeze(0)


def info_nce(one: Tensor, other: Tensor, log_scale: Tensor, positives: Tensor) -> Tensor:
    """InfoNCE in both directions (Radford et al. 2021), each row's target spread evenly over its positives.

    logits = e^s · one · otherᵀ; loss = ½ [mean_i −Σ_j q_ij log softmax_j(logits_ij) + the same of the transpose],
    q_ij = positives_ij / Σ_j positives_ij. With the diagonal alone it is CLIP's loss; a repeated meaning is no
    negative. 0-d.
    """
    logits = log_scale.exp() * one @ other.T
    return (_spread_cross_entropy(logits, positives) + _spread_cross_entropy(logits.T, positives.T)) / 2


def _spread_cross_entropy(logits: Tensor, positives: Tensor) -> Tensor:
    """Cross-entropy of rows against even targets over their positives; logits, positives [N, M]."""
    target = positives.to(logits.dtype)
    return -(target / target.sum(1, keepdim=True) * logits.log_softmax(1)).sum(1).mean()


def sigmoid_loss(one: Tensor, other: Tensor, log_scale: Tensor, bias: Tensor, positives: Tensor) -> Tensor:
    """Each pair a yes or no of its own (Zhai et al. 2023, eq. 1): −1/B Σ_ij log σ(z_ij (e^s one_i · other_j + b)).

    z_ij = 1 where positives_ij, −1 elsewhere. The bias starts far below 0, since most pairs are no match. 0-d.
    """
    logits = log_scale.exp() * one @ other.T + bias
    signs = positives.to(logits.dtype) * 2 - 1
    return -F.logsigmoid(signs * logits).sum() / len(one)


def recall_at(scores: Tensor, positives: Tensor, ranks: tuple[int, ...]) -> dict[int, Tensor]:
    """The share of queries with a positive among their k best; scores, positives [queries, gallery].

    Equal scores count against the query: a positive's place is the number of others that score as high or higher and
    are no positive. So a network that gives one score to all finds nothing. Queries without a positive are left out;
    NaN where no other is left, and where a score is no number.
    """
    scores = scores.detach().double()
    best = scores.masked_fill(~positives, float("-inf")).amax(1, keepdim=True)
    ahead = ((scores >= best) & ~positives).sum(1)
    asked = positives.any(1)
    undefined = scores.isnan().any()
    return {
        k: torch.where(undefined, torch.nan, ((ahead < k) & asked).double().sum() / asked.double().sum()) for k in ranks
    }


def median_rank(scores: Tensor, positives: Tensor) -> Tensor:
    """The middle, over queries, of the place (from 1) of their best positive; ties and NaN as in `recall_at`. 0-d."""
    scores = scores.detach().double()
    best = scores.masked_fill(~positives, float("-inf")).amax(1, keepdim=True)
    places = 1 + ((scores >= best) & ~positives).sum(1).double()
    middle = torch.where(positives.any(1), places, torch.nan).nanmedian()
    return torch.where(scores.isnan().any(), torch.nan, middle)
