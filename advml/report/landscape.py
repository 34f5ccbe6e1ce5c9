"""Which keys a search turned, what came out, and how much each of them mattered: the numbers behind two pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from advml.report.gather import Gathered
from advml.report.keys import ABSENT, ordered, shown
from advml.report.metrics import Metric, interval_of
from advml.report.tables import labelled_groups
from advml.runner.observers import was_pruned

DECADES = 1.0  # positive numbers that span more powers of ten than this are shown and judged on a log scale
ENOUGH = 8  # configurations below which importance would be noise
FOLDS, SHUFFLES, TREES = 5, 10, 200
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Axis:
    """A key, as a number in each configuration. `labels`: of a key of choices, whose numbers are its places in them."""

    key: str
    values: Matrix
    log: bool = False
    labels: tuple[str, ...] = ()

    @property
    def scaled(self) -> Matrix:
        """The values as they are drawn: their logarithm on a log scale."""
        return np.log10(self.values) if self.log else self.values


@dataclass(frozen=True)
class Landscape:
    """Configurations with their results: means of a metric over seeds. `pruned` says which had a run that was."""

    axes: Sequence[Axis]
    results: Matrix
    pruned: NDArray[np.bool_]
    runs: int
    left_out: int


def landscape(gathered: Gathered, metric: Metric) -> Landscape | None:
    """All configurations that have the metric, by the keys that tell them apart; None if there are none or no keys."""
    labelled, keys, _ = labelled_groups(gathered)
    rows = [(group, values, found) for group, values in labelled if (found := interval_of(group, metric.name))]
    axes = [axis for key in keys if len((axis := axis_of(key, [values[key] for _, values, _ in rows])).distinct()) > 1] \
        if False else _axes(keys, [values for _, values, _ in rows])
    if not axes:
        return None
    pruned = [any(was_pruned(run.result.get("stopped_by")) for run in group.runs.values()) for group, _, _ in rows]
    runs = sum(len(group.runs) for group, _, _ in rows)
    return Landscape(axes, np.array([found.mean for _, _, found in rows]), np.array(pruned), runs, len(labelled) - len(rows))
