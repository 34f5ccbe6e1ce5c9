"""Matrices of many runs: a metric over two keys, and the mean accuracy matrix of continual learning."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from advml.artifacts import Heatmap
from advml.report.gather import Gathered
from advml.report.keys import of_problem, ordered, shown
from advml.report.metrics import Metric, axis_title, interval_of
from advml.report.panels import two_keys
from advml.report.tables import label_of, labelled_groups
from advml.runner.artifacts import read_csv

MOST = 9  # matrices in one picture
MATRIX = "artifacts/accuracy_matrix.csv"


def metric_maps(gathered: Gathered, metric: Metric) -> list[Heatmap]:
    """The mean of a metric over the two keys that have the fullest grid, one map for each choice of the other keys."""
    labelled, keys, _ = labelled_groups(gathered)
    rows = [(group, values) for group, values in labelled if interval_of(group, metric.name) is not None]
    values_only = [values for _, values in rows]
    pair = two_keys(values_only, [key for key in keys if not of_problem(key)]) or two_keys(values_only, keys)
    if pair is None:
        return []
    down, across = pair
    lines, columns = (sorted({shown(v[key]): v[key] for _, v in rows}.items(), key=lambda one: ordered(one[1]))
                      for key in pair)  # fmt: skip
    bundles: dict[str, dict[tuple[str, str], float]] = {}
    for group, values in rows:
        others = {key: value for key, value in values.items() if key not in pair}
        interval = interval_of(group, metric.name)
        assert interval is not None
        title = label_of(group, others) if others else ""
        bundles.setdefault(title, {})[shown(values[down]), shown(values[across])] = interval.mean
    every = [value for means in bundles.values() for value in means.values()]
    limits = (min(every), max(every))
    return [
        Heatmap(
            [[means.get((line, column)) for column, _ in columns] for line, _ in lines],
            [line for line, _ in lines], [column for column, _ in columns],
            down.removesuffix(".name"), across.removesuffix(".name"), title, axis_title(metric.name),
            _decimals(limits), limits,
        )
        for title, means in list(bundles.items())[:MOST]
    ]  # fmt: skip


def accuracy_maps(gathered: Gathered) -> list[Heatmap]:
    """The mean over seeds of artifacts/accuracy_matrix.csv, one map for each configuration that has it."""
    labelled, _, _ = labelled_groups(gathered)
    found = []
    for group, values in labelled:
        matrices = [matrix for run in group.runs.values() if (matrix := _read(run.folder / MATRIX)) is not None]
        if matrices:
            found.append(mean_map(label_of(group, values), matrices))
    return [one for one in found if one is not None][:MOST]


def mean_map(name: str, matrices: Sequence[list[list[str]]]) -> Heatmap | None:
    """The mean of equally large accuracy matrices of CSV, one a seed; None where seeds have different tasks."""
    title = f"{name} ({len(matrices)} seed{'s' if len(matrices) > 1 else ''})"
    first = matrices[0]
    if any([len(row) for row in one] != [len(row) for row in first] for one in matrices):
        return None
    numbers = [[_mean([one[y][x] for one in matrices]) for x in range(1, len(first[0]))] for y in range(1, len(first))]
    heads = [[one[0][x] for one in matrices] for x in range(1, len(first[0]))]
    columns = [names[0] if len(set(names)) == 1 else names[0].partition(" (")[0] for names in heads]
    down, _, across = first[0][0].partition(" \\ ")
    return Heatmap(numbers, [row[0] for row in first[1:]], columns, down, across, title, "test accuracy (fraction)",
                   decimals=2, limits=(0.0, 1.0))  # fmt: skip


def _mean(texts: Sequence[str]) -> float | None:
    """The mean of cells; None where one of them is empty."""
    return None if "" in texts else fmean(float(text) for text in texts)


def _read(path: Any) -> list[list[str]] | None:
    """The rows of a matrix that is there and whole."""
    try:
        rows = read_csv(path)
        [float(text) for row in rows[1:] for text in row[1:] if text]
    except (OSError, ValueError):
        return None
    return rows if len(rows) > 1 and len({len(row) for row in rows}) == 1 and len(rows[0]) > 1 else None


def _decimals(limits: tuple[float, float]) -> int:
    """Enough to tell the ends of the scale apart, and no more than fit into a cell."""
    size = max(map(abs, limits))
    return 3 if size < 10 else 1 if size < 1000 else 0
