"""Rounds and bytes to a target, and pictures of a federated run."""

from __future__ import annotations

from collections.abc import Sequence

from advml.artifacts import Artifact, Curve, Heatmap
from advml.contracts import Objective, Record
from advml.data.clients import Clients

DRAWN = 100  # clients in the picture of the partition

Points = list[tuple[float, float]]


def reached(value: float, targets: Sequence[float], metric: str) -> bool:
    """Has the value passed all targets?"""
    return all(value >= target if metric == "accuracy" else value <= target for target in targets)


def crossing(points: Sequence[tuple[float, float]], target: float, mode: str = "max") -> float | None:
    """Where a curve (x, value) reaches the target: made monotone, then linear between points (McMahan et al. 2017).

    None where it never does.
    """
    sign = 1 if mode == "max" else -1
    before: tuple[float, float] | None = None
    for x, value in points:
        best = value * sign if before is None else max(before[1], value * sign)
        if best >= target * sign:
            if before is None:
                return x
            return before[0] + (x - before[0]) * (target * sign - before[1]) / (best - before[1])
        before = (x, best)
    return None


def curve_points(records: Sequence[Record], curve: str, objective: Objective) -> Points:
    """(rounds, accuracy or mse of the global network): what the step's records hold under `curve`, or evaluations.

    The objective says which, and on which split: a personal one is another quantity, not to be compared with these.
    """
    metric = _global(objective)
    if curve != "none":
        key = f"{curve}_{metric}"
        found = [(record["step"], record.get(key)) for record in records if record["split"] == "train"]
    else:
        found = [
            (record["step"], record.get(metric))
            for record in records
            if record["split"] == objective.split and "state" not in record
        ]
    return [(float(step), float(value)) for step, value in found if value is not None]


def _global(objective: Objective) -> str:
    return "mse" if objective.mode == "min" else "accuracy"


def rounds_to_targets(
    records: Sequence[Record], targets: Sequence[float], curve: str, objective: Objective
) -> dict[str, float | None]:
    """`rounds_to_T` for each target T, and `rounds_to_target` for the last of them."""
    points = curve_points(records, curve, objective)
    found = {f"rounds_to_{target:g}": crossing(points, target, objective.mode) for target in targets}
    return found | ({"rounds_to_target": list(found.values())[-1]} if found else {})


def by_rounds(records: Sequence[Record], curve: str, objective: Objective) -> dict[str, Artifact]:
    """`by_rounds` and `by_bytes`: the curve over rounds, and over the megabytes sent in both directions."""
    points = curve_points(records, curve, objective)
    sent, total = {0: 0.0}, 0.0
    for record in records:
        if record["split"] == "train":
            total += (record.get("bytes_up") or 0) + (record.get("bytes_down") or 0)
            sent[record["step"]] = total / 1e6
    if len(points) < 2:
        return {}
    metric = _global(objective) if curve == "none" else f"{curve} {_global(objective)}"
    x, y = [step for step, _ in points], [value for _, value in points]
    found: dict[str, Artifact] = {"by_rounds": Curve(x, {metric: y}, "rounds", metric, "Progress by rounds")}
    if total:
        megabytes = [sent[int(step)] for step in x]
        found["by_bytes"] = Curve(megabytes, {metric: y}, "MB up and down", metric, "Progress by bytes sent")
    return found


def partition(view: Clients) -> dict[str, Artifact]:
    """`partition`: how many training examples of each label each client has; the first hundred clients."""
    table = view.table()
    if table is None:
        return {}
    rows = table[:DRAWN].tolist()
    names = [str(client) for client in range(len(rows))]
    labels = [str(label) for label in range(table.shape[1])]
    title = "Training examples by client and label"
    title += f" (the first {DRAWN} of {len(table):,} clients)" if len(table) > DRAWN else ""
    return {"partition": Heatmap(rows, names, labels, "client", "label", title, "examples", 0)}
