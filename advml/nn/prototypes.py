"""Classes by their prototypes, and how near a query is (Snell et al. 2017, "Prototypical networks").

Leading axes are tasks side by side: written [..., S, F] below, S examples of F features each.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Distance = Literal["euclidean", "cosine"]


def memberships(labels: Tensor, ways: int, dtype: torch.dtype) -> Tensor:
    """Who belongs to which class: labels int64 [..., S] → zeros and ones [..., ways, S]."""
    return (labels.unsqueeze(-2) == torch.arange(ways, device=labels.device).unsqueeze(-1)).to(dtype)


def prototypes(features: Tensor, labels: Tensor, ways: int) -> Tensor:
    """The mean of each class, equation 1: c_k = 1/|S_k| Σ_{i in S_k} f(x_i).

    features [..., S, F], labels int64 [..., S] → [..., ways, F]. Every class must have an example.
    """
    # A product of matrices: adding by index has no deterministic form on CUDA.
    belongs = memberships(labels, ways, features.dtype)
    return belongs @ features / belongs.sum(-1, keepdim=True)


def squared_distances(queries: Tensor, centres: Tensor) -> Tensor:
    """‖q_i − c_k‖² for queries [..., Q, F] and centres [..., K, F]: [..., Q, K].

    As ‖q‖² − 2 q·c + ‖c‖², which needs no [Q, K, F] numbers, after both were moved so that the centres' mean is the
    origin: the three terms are then no larger than the distances are, and little is lost when they cancel.
    """
    origin = centres.mean(-2, keepdim=True)
    queries, centres = queries - origin, centres - origin
    lengths = queries.square().sum(-1, keepdim=True) + centres.square().sum(-1).unsqueeze(-2)
    return lengths - 2 * queries @ centres.mT


def cosines(queries: Tensor, centres: Tensor) -> Tensor:
    """q_i · c_k / (‖q_i‖ ‖c_k‖) for queries [..., Q, F] and centres [..., K, F]: [..., Q, K]; 0 where either is 0."""
    return F.normalize(queries, dim=-1) @ F.normalize(centres, dim=-1).mT


def metric_logits(queries: Tensor, centres: Tensor, distance: Distance, scale: float = 1.0) -> Tensor:
    """Equation 2's logits [..., Q, K]: −d(q_i, c_k), times `scale`.

    d is the squared Euclidean distance, a Bregman divergence, for which class means are the best prototypes (section
    2.3), or one minus the cosine.
    """
    if distance == "euclidean":
        return -scale * squared_distances(queries, centres)
    return scale * (cosines(queries, centres) - 1)


def nearest_logits(logits: Tensor, labels: Tensor, ways: int) -> Tensor:
    """The largest of each class, [..., Q, ways], of logits [..., Q, S] of S support examples with labels [..., S].

    Of negative distances: its argmax is the class of the nearest support example.
    """
    belongs = memberships(labels, ways, torch.bool).unsqueeze(-3)  # [..., 1, ways, S]
    return logits.unsqueeze(-2).masked_fill(~belongs, -torch.inf).amax(-1)
