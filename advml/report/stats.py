"""Intervals and paired tests over seeds, as pure functions. Only `scipy.special` is imported, which is quick."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from scipy.special import (  # type: ignore[import-untyped]
    stdtr,  # the distribution function of Student's t
    stdtrit,  # and its inverse
)

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """The mean of n numbers, their standard deviation, and half the width of the mean's t-interval.

    With one number there is neither spread nor interval: `sd` and `half` are None.
    """

    n: int
    mean: float
    sd: float | None
    half: float | None

    @property
    def low(self) -> float | None:
        """The lower end."""
        return None if self.half is None else self.mean - self.half

    @property
    def high(self) -> float | None:
        """The upper end."""
        return None if self.half is None else self.mean + self.half


@dataclass(frozen=True)
class Paired:
    """The mean difference of n pairs, its t-interval, and the two-sided p-value of "there is no difference"."""

    interval: Interval
    p: float | None


def t_interval(values: Sequence[float], overlap: float = 0.0, confidence: float = CONFIDENCE) -> Interval:
    """Mean ± t_{n−1, (1+confidence)/2} · s · √(1/n + overlap), s with n − 1 in the denominator.

    `overlap` = 0 for independent runs: Student's interval. Where every run drew its own training and test examples
    from one small table, the runs share most of them, and 1/n makes the interval far too narrow: the corrected
    resampled t of Nadeau and Bengio 2003 ("Inference for the generalization error") adds overlap = n_test / n_train.
    """
    n = len(values)
    if n == 0:
        raise ValueError("an interval needs at least one number")
    mean = fmean(values)
    if n == 1:
        return Interval(1, mean, None, None)
    sd = stdev(values)
    quantile = float(stdtrit(n - 1, (1 + confidence) / 2))
    return Interval(n, mean, sd, quantile * sd * math.sqrt(1 / n + overlap))


def paired_t(
    left: Sequence[float], right: Sequence[float], overlap: float = 0.0, confidence: float = CONFIDENCE
) -> Paired:
    """The paired t-test of left[i] − right[i], with n − 1 degrees of freedom; `overlap` as in `t_interval`.

    Differences that are all zero give p = 1, all equal and not zero p = 0 (t is infinite); one pair gives no p.
    """
    differences = [a - b for a, b in zip(left, right, strict=True)]
    interval = t_interval(differences, overlap, confidence)
    if interval.sd is None:
        return Paired(interval, None)
    if interval.sd == 0:
        return Paired(interval, 1.0 if interval.mean == 0 else 0.0)
    t = interval.mean / (interval.sd * math.sqrt(1 / interval.n + overlap))
    return Paired(interval, 2 * float(stdtr(interval.n - 1, -abs(t))))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm 1979: p-values adjusted for their number, in the given order; reject where adjusted p < α.

    The k-th smallest of m (k from 0) becomes the largest of (m − j) · p_(j) for j ≤ k, at most 1.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, place in enumerate(sorted(range(len(p_values)), key=lambda place: p_values[place])):
        largest = max(largest, (len(p_values) - rank) * p_values[place])
        adjusted[place] = min(1.0, largest)
    return adjusted
