"""Numbers that some runs do not have: rounds to a target that was never reached.

To leave such runs out of a mean would flatter: those that are left out are the slowest. So there is a mean only where
all runs have the number; otherwise how many do, and the median over all runs, the others counted as larger than any.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True)
class Reached:
    """`count` runs out of `of` have the number, fewer than all; the `median` counts the others as larger than any.

    `median` is None where it falls among those, and where a number is undefined for another reason.
    """

    count: int
    of: int
    median: float | None

    @property
    def word(self) -> str:
        """`2 of 5`."""
        return f"{self.count} of {self.of}"


def is_goal(metric: str) -> bool:
    """Does the name count what it took to get somewhere (rounds_to_0.97)? Then none means: not reached."""
    return "_to_" in metric.rpartition("/")[2]


def reached(metric: str, values: Sequence[float | None]) -> Reached | None:
    """How many of the runs' numbers there are; None where there are all."""
    there = [value for value in values if value is not None]
    if len(there) == len(values):
        return None
    middle = math.inf
    if is_goal(metric):
        middle = median([math.inf if value is None else value for value in values])
    return Reached(len(there), len(values), middle if math.isfinite(middle) else None)


def absent(metric: str) -> str:
    """What no number is called."""
    return "not reached" if is_goal(metric) else "undefined"


def said(metric: str, found: Reached, shown: str) -> str:
    """`60 median (reached by 3 of 5)`, `not reached (2 of 5)`; `shown`: the median in figures."""
    if found.median is not None:
        return f"{shown} median (reached by {found.word})"
    return f"{absent(metric)} ({found.word})" if is_goal(metric) else f"undefined (there is {found.word})"
