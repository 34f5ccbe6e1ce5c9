"""Learning rates by epochs."""

from __future__ import annotations

import math


def cosine(first: float, last: float, fraction: float) -> float:
    """From `first` to `last` along half a cosine."""
    return last + (first - last) * (1 + math.cos(math.pi * fraction)) / 2


def restarts(first: float, last: float, epoch: int, length: int, factor: int) -> float:
    """Half cosines of `length`, `length` · `factor`, … epochs, each from `first` towards `last` (SGDR, Loshchilov and
    Hutter 2017).
    """
    while epoch >= length:
        epoch, length = epoch - length, length * factor
    return cosine(first, last, epoch / length)
