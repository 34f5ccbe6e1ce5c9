"""Numbers out of an accuracy matrix R: R[i][j] is the accuracy on task j after training on task i.

`before[j]` is the accuracy on task j before any training. Definitions: Lopez-Paz and Ranzato 2017 (ACC, BWT, FWT),
Chaudhry et al. 2018 (forgetting), Riemer et al. 2019 (learning accuracy).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from advml.contracts import Phase, Record

Matrix = Sequence[Sequence[float]]


def accuracy_matrix(records: Sequence[Record], phases: Sequence[Phase], tasks: Sequence[str]) -> dict[str, list[float]]:
    """Rows of R by phase name, "start" first: the test accuracies recorded at each phase's end.

    A run that was stopped early has fewer rows.
    """
    rows: dict[str, list[float]] = {}
    for record in records:
        if record["split"] == "test" and "state" not in record:
            rows[record["phase"]] = [record[f"accuracy/{task}"] for task in tasks]
    return {name: rows[name] for name in ("start", *(phase.name for phase in phases)) if name in rows}


def average_accuracy(matrix: Matrix) -> float:
    """ACC: the mean of the last row."""
    return fmean(matrix[-1])


def backward_transfer(matrix: Matrix) -> float:
    """BWT: mean over all tasks but the last of R[T][j] − R[j][j]; negative = forgetting."""
    return fmean(matrix[-1][j] - matrix[j][j] for j in range(len(matrix) - 1))


def forward_transfer(matrix: Matrix, before: Sequence[float]) -> float:
    """FWT: mean over all tasks but the first of R[j − 1][j] − before[j]."""
    return fmean(matrix[j - 1][j] - before[j] for j in range(1, len(matrix)))


def forgetting(matrix: Matrix) -> float:
    """Mean over all tasks but the last of the best accuracy since it was learnt minus the final one."""
    last = len(matrix) - 1
    return fmean(max(matrix[i][j] for i in range(j, last)) - matrix[last][j] for j in range(last))


def learning_accuracy(matrix: Matrix) -> float:
    """Mean of the diagonal: the accuracy on each task right after it was learnt."""
    return fmean(matrix[j][j] for j in range(len(matrix)))


def summarise(matrix: Matrix, before: Sequence[float] | None) -> Mapping[str, float | None]:
    """All of them for a complete square matrix with at least two tasks; FWT is None without `before`."""
    return {
        "average_accuracy": average_accuracy(matrix),
        "backward_transfer": backward_transfer(matrix),
        "forward_transfer": None if before is None else forward_transfer(matrix, before),
        "forgetting": forgetting(matrix),
        "learning_accuracy": learning_accuracy(matrix),
    }
