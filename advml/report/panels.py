"""How many configurations share a picture: panels of at most seven lines, and a style for each line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any

from advml.report.gather import Gathered, Group
from advml.report.keys import ABSENT, of_problem
from advml.report.metrics import Metric, interval_of
from advml.report.tables import label_of, labelled_groups

LINES = 7  # as many as there are colours that colour-blind eyes tell apart
MOST_PANELS = 9


@dataclass(frozen=True)
class Line:
    """A configuration in a panel. `style` is the same for the same label in all panels of a picture."""

    label: str
    style: int
    group: Group


@dataclass(frozen=True)
class Panel:
    """Configurations that are drawn over each other. `left_out`: how many more there was no room for."""

    title: str
    lines: Sequence[Line]
    left_out: int = 0

    @property
    def problem(self) -> str:
        """Panels of the same problem are drawn to the same scale."""
        return self.lines[0].group.problem


def panels(gathered: Gathered, metric: Metric, most: int = LINES) -> list[Panel]:
    """The configurations that have the metric, in panels.

    Data sets and views have panels of their own. Where more than `most` lines are left, those keys make panels that
    give the fewest; and where none suffice, the best by the metric's final mean are drawn.
    """
    labelled, keys, _ = labelled_groups(gathered)
    rows = [(group, values) for group, values in labelled if interval_of(group, metric.name) is not None]
    problem = [key for key in keys if of_problem(key)]
    split = _splitting(rows, problem, [key for key in keys if key not in problem], most)
    bundles: dict[str, list[tuple[Group, dict[str, Any]]]] = {}
    for group, values in rows:
        title = label_of(group, {key: values[key] for key in split}) if split else ""
        bundles.setdefault(title, []).append((group, values))
    naming = [key for key in keys if key not in split and any(_varies(key, bundle) for bundle in bundles.values())]
    bundles = {title: [(group, {key: values[key] for key in naming}) for group, values in bundle]
               for title, bundle in bundles.items()}  # fmt: skip
    made: list[Panel] = []
    every: dict[str, int] = {}  # numbered as they are drawn: few lines have different colours, however many there are
    for title, bundle in bundles.items():
        if len(made) == MOST_PANELS:
            made[-1] = replace(made[-1], left_out=made[-1].left_out + len(bundle))
            continue
        kept = _kept(bundle, metric, most)
        labels = [label_of(group, values) for group, values in kept]
        lines = [
            Line(label, every.setdefault(label, len(every)), group)
            for label, (group, _) in zip(labels, kept, strict=True)
        ]
        made.append(Panel(title, lines, len(bundle) - len(kept)))
    return made


def _varies(key: str, bundle: Sequence[tuple[Group, Mapping[str, Any]]]) -> bool:
    return len({str(values[key]) for _, values in bundle}) > 1


def _splitting(
    rows: Sequence[tuple[Group, Mapping[str, Any]]], problem: list[str], others: Sequence[str], most: int
) -> list[str]:
    """The keys whose values make panels: those of the problem, and as few more as needed, if any help.

    Three more at most: of subsets there are 2ᵏ, and of panels few.
    """
    for count in range(min(len(others), 4)):
        able = []
        for extra in combinations(others, count):
            sizes: dict[tuple[str, ...], int] = {}
            for _, values in rows:
                place = tuple(str(values[key]) for key in (*problem, *extra))
                sizes[place] = sizes.get(place, 0) + 1
            if max(sizes.values(), default=0) <= most and len(sizes) <= MOST_PANELS:
                able.append((len(sizes), extra))
        if able:
            return [*problem, *min(able)[1]]
    return problem


def _kept(
    bundle: Sequence[tuple[Group, dict[str, Any]]], metric: Metric, most: int
) -> Sequence[tuple[Group, dict[str, Any]]]:
    """The best `most` of a bundle, in their old order."""
    if len(bundle) <= most:
        return bundle
    sign = -1.0 if metric.mode == "max" else 1.0
    means = [interval.mean for group, _ in bundle if (interval := interval_of(group, metric.name)) is not None]
    places = sorted(range(len(bundle)), key=lambda place: sign * means[place])[:most]
    return [bundle[place] for place in sorted(places)]


def two_keys(rows: Sequence[Mapping[str, Any]], keys: Sequence[str]) -> tuple[str, str] | None:
    """The two keys that make the fullest grid of at least 2 × 2, most values first; None where there is none.

    A grid counts if at least half of its places are taken and no row lacks one of the keys.
    """
    best: tuple[int, tuple[str, str]] | None = None
    for pair in combinations(keys, 2):
        if any(row[key] == ABSENT for row in rows for key in pair):
            continue
        sizes = [len({str(row[key]) for row in rows}) for key in pair]
        taken = len({tuple(str(row[key]) for key in pair) for row in rows})
        if min(sizes) < 2 or 2 * taken < sizes[0] * sizes[1]:
            continue
        wide = pair if sizes[1] >= sizes[0] else (pair[1], pair[0])
        if best is None or taken > best[0]:
            best = (taken, wide)
    return None if best is None else best[1]
