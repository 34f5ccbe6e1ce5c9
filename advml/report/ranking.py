"""Who is better: the best mean, paired differences over common seeds, and what cannot be told apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from advml.report.gather import Group, overlap, split_of
from advml.report.metrics import Metric, interval_of, values_by_seed
from advml.report.stats import CONFIDENCE, Paired, holm, paired_t

ENOUGH = 3  # seeds that two rows must share before one may be called better

Mark = Literal["", "best", "tied"]
Numbered = Mapping[int, Group]
"""Row number → configuration."""


@dataclass(frozen=True)
class Difference:
    """A row minus a reference row over the seeds that both have, for one metric.

    `paired` is None without a common seed; `p_holm`, corrected for all rows compared with this reference, is None
    with fewer than ENOUGH.
    """

    metric: str
    row: int
    reference: int
    seeds: int
    paired: Paired | None
    p_holm: float | None


def by_problem(rows: Numbered) -> list[Numbered]:
    """Rows with the same data set and view: only these are compared with each other."""
    problems: dict[str, dict[int, Group]] = {}
    for number, group in rows.items():
        problems.setdefault(group.problem, {})[number] = group
    return list(problems.values())


def best_row(rows: Numbered, metric: Metric) -> int | None:
    """The row with the best mean among those with enough seeds; None unless there are two of them to choose from."""
    means = {}
    for number, group in rows.items():
        interval = interval_of(group, metric.name)
        if interval is not None and interval.n >= ENOUGH:
            means[number] = interval.mean
    if metric.mode is None or len(means) < 2:
        return None
    return (max if metric.mode == "max" else min)(means, key=lambda number: means[number])


def differences_from(rows: Numbered, metric: Metric, reference: int) -> list[Difference]:
    """Each row minus the reference, in the order of the rows; tests are Holm-corrected together."""
    theirs = values_by_seed(rows[reference], metric.name)
    found = []
    for number, group in rows.items():
        ours = values_by_seed(group, metric.name)
        common = [seed for seed in ours if seed in theirs]
        shared = overlap([group, rows[reference]], split_of(metric.name))
        paired = paired_t([ours[s] for s in common], [theirs[s] for s in common], shared) if common else None
        if number != reference:
            found.append((number, len(common), paired))
    tested = [number for number, seeds, paired in found if paired is not None and seeds >= ENOUGH]
    p_values = [paired.p for number, _, paired in found if paired is not None and number in tested]
    corrected = dict(zip(tested, holm([p for p in p_values if p is not None]), strict=True))
    return [
        Difference(metric.name, number, reference, seeds, paired, corrected.get(number))
        for number, seeds, paired in found
    ]


def marks(differences: Sequence[Difference]) -> dict[int, Mark]:
    """Row → mark, from the differences to the best row: itself, and those not distinguishable from it."""
    tested = [one for one in differences if one.p_holm is not None]
    tied: dict[int, Mark] = {one.row: "tied" for one in tested if (one.p_holm or 0.0) >= 1 - CONFIDENCE}
    return tied | {one.reference: "best" for one in tested}
