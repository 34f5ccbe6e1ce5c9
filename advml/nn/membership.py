"""Was this example trained on? The attack by a threshold on the loss (Yeom et al. 2018), and how well it does.

An example is guessed to be a member where its score is high: the log-odds of its class, log(p / (1 − p)), which falls
as the loss −log p rises, and tells losses apart that are zero to float32. Reported are the area under the ROC curve and
the true positive rate at a low false positive rate, at which an attack harms (Carlini et al. 2022), each with a 95 %
interval. A weak attack that fails proves no privacy: a stronger one might not fail.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from advml.contracts import Network, Split
from advml.nn.evaluation import predict

FALSE_POSITIVES = 0.01  # the rate at which true positives are counted
NORMAL = 1.959964  # the 97.5 % point of the standard normal


class Interval(NamedTuple):
    """An estimate and its 95 % interval."""

    value: float
    low: float
    high: float


def auc(members: Tensor, others: Tensor) -> Interval:
    """The chance that a member scores above one that is none, ties counted half: scores [M] and [N].

    The interval from DeLong's variance (1988), that of each score's own share of wins: var_m / M + var_n / N.
    """
    wins = _wins(members, others)
    losses = 1 - _wins(others, members)
    value = float(wins.mean())
    spread = math.sqrt(_variance(wins) / len(wins) + _variance(losses) / len(losses))
    return Interval(value, max(0.0, value - NORMAL * spread), min(1.0, value + NORMAL * spread))


def _wins(ours: Tensor, theirs: Tensor) -> Tensor:
    """For each of `ours` the share of `theirs` that it beats, ties counted half: float64."""
    ranked = theirs.double().sort().values
    below = torch.searchsorted(ranked, ours.double(), right=False)
    up_to = torch.searchsorted(ranked, ours.double(), right=True)
    return (below + up_to).double() / (2 * len(ranked))


def _variance(values: Tensor) -> float:
    return float(values.var()) if len(values) > 1 else 0.0


def true_positives(members: Tensor, others: Tensor, false_positives: float) -> Interval:
    """The share of members above a threshold that at most the share `false_positives` of the others exceed.

    Wilson's interval for that share, the threshold taken as given: it is estimated on the others too, so that the
    interval is a little too narrow.
    """
    allowed = math.floor(false_positives * len(others) + 1e-9)
    ranked = others.double().sort(descending=True).values
    threshold = ranked[allowed] if allowed < len(ranked) else ranked.new_tensor(-math.inf)
    return wilson(int((members.double() > threshold).sum()), len(members))


def wilson(successes: int, count: int) -> Interval:
    """Wilson's interval of a share."""
    share, z2 = successes / count, NORMAL**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = NORMAL / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return Interval(share, min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half)))


def log_odds(logits: Tensor, target: Tensor) -> Tensor:
    """z_y − log Σ_{c ≠ y} e^{z_c} of each example, float64 [N], for logits [N, C]."""
    logits, own = logits.double(), target.unsqueeze(1)
    return logits.gather(1, own).squeeze(1) - logits.scatter(1, own, -math.inf).logsumexp(1)


def attacked(
    network: Network, members: Split, others: Split, autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
) -> dict[str, float]:
    """How well the loss tells trained examples from others, of classes: `attack_auc`, `attack_tpr` at 1 % false
    positives, and of each the ends of its 95 % interval, `…_low` and `…_high`.
    """
    ours, theirs = (
        log_odds(predict(network, split, autocast=autocast), split.target).cpu() for split in (members, others)
    )
    found = {"attack_auc": auc(ours, theirs), "attack_tpr": true_positives(ours, theirs, FALSE_POSITIVES)}
    ends = {name: {"": one.value, "_low": one.low, "_high": one.high} for name, one in found.items()}
    return {name + end: value for name, each in ends.items() for end, value in each.items()}
