"""Which keys a search turned, what came out, and how much each of them mattered: the numbers behind two pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from advml.report.gather import Gathered, Group
from advml.report.keys import ordered, shown
from advml.report.metrics import Metric, interval_of
from advml.report.tables import labelled_groups
from advml.runner.observers import was_pruned

SPAN = 8  # positive numbers whose largest is so many times the smallest are shown and judged on a log scale
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
    groups: Sequence[Group]
    pruned: NDArray[np.bool_]
    runs: int


def landscape(gathered: Gathered, metric: Metric) -> Landscape | None:
    """All configurations that have the metric, by the keys that tell them apart.

    None if there are no such keys, or several data sets or views: their results have no common scale.
    """
    labelled, keys, _ = labelled_groups(gathered)
    rows = [(group, values, found) for group, values in labelled if (found := interval_of(group, metric.name))]
    axes = [axis for key in keys if (axis := axis_of(key, [values[key] for _, values, _ in rows])) is not None]
    if not axes or len({group.problem for group, _, _ in rows}) > 1:
        return None
    pruned = [any(was_pruned(run.result.get("stopped_by")) for run in group.runs.values()) for group, _, _ in rows]
    runs = sum(len(group.runs) for group, _, _ in rows)
    results = np.array([found.mean for _, _, found in rows])
    return Landscape(axes, results, [group for group, _, _ in rows], np.array(pruned), runs)


def axis_of(key: str, values: Sequence[Any]) -> Axis | None:
    """A key as an axis: of numbers if all values are, otherwise of choices. None if all values are equal."""
    if len({shown(value) for value in values}) < 2:
        return None
    if all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        numbers = np.array(values, dtype=float)
        low, high = numbers.min(), numbers.max()
        return Axis(key, numbers, log=bool(low > 0 and high / low >= SPAN))
    places = {shown(value): place for place, value in enumerate(sorted(set(map(_text, values)), key=ordered))}
    return Axis(key, np.array([places[shown(_text(value))] for value in values], dtype=float), labels=tuple(places))


def _text(value: Any) -> Any:
    """Numbers stay numbers, so that they are ordered by size; the rest becomes text."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else shown(value)


@dataclass(frozen=True)
class Importance:
    """`drops[fold × shuffle, key]`: by how much R² on unseen configurations falls if the key is shuffled among them.

    `r2`: what the model explains of unseen configurations at all.
    """

    keys: tuple[str, ...]
    drops: Matrix
    r2: float


def importance(keys: Sequence[str], inputs: Matrix, results: Matrix) -> Importance:
    """Permutation importance (Breiman 2001) of a random forest, on configurations that it has not seen.

    `inputs` [n, keys], `results` [n]. The forest is fitted on four fifths of the configurations, and R² measured on
    the rest before and after shuffling one column of it; so for each fifth, several times. Unlike importance within
    the forest it does not favour keys with many values. What the best of two keys that go together took, the other
    does not get: the parts are of this model, not of nature.
    """
    from sklearn.ensemble import RandomForestRegressor

    rng = np.random.default_rng(0)
    folds = np.array_split(rng.permutation(len(results)), FOLDS)
    total = float(((results - results.mean()) ** 2).mean())
    drops, errors = [], np.zeros(len(results))
    for number, test in enumerate(folds):
        train = np.setdiff1d(np.arange(len(results)), test)
        forest = RandomForestRegressor(TREES, random_state=number).fit(inputs[train], results[train])
        errors[test] = (forest.predict(inputs[test]) - results[test]) ** 2
        columns = inputs.shape[1]
        shuffled = np.tile(inputs[test], (SHUFFLES, columns, 1, 1))
        for time, column in np.ndindex(SHUFFLES, columns):
            shuffled[time, column, :, column] = inputs[rng.choice(len(results), len(test)), column]
        guessed = forest.predict(shuffled.reshape(-1, columns)).reshape(SHUFFLES, columns, -1)  # a call costs most
        after = (guessed - results[test]) ** 2
        drops.append((after - errors[test]).mean(axis=2) / total)
    return Importance(tuple(keys), np.concatenate(drops), 1 - float(errors.mean()) / total)
