"""Learning curves as numbers: what was measured when, over steps, work or seconds, with a band over seeds."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from advml.report.gather import Group, Run, overlap
from advml.report.stats import t_interval

AXES = {
    "step": "step",
    "samples": "training examples processed",
    "updates": "optimiser updates",
    "gradients": "gradients (one example through one copy of the network)",
    "seconds": "training time (s)",
}
"""What a curve can run over → the title of that axis."""

AGAINST = {**AXES, "parameters": "parameters of the network"}
"""What results can be set against."""

GRID = 60  # points at which curves over seconds are compared: no two runs measure at the same moment
ENOUGH_FOR_T = 3

Kind = Literal["t", "range", "none"]


@dataclass(frozen=True)
class Band:
    """The mean of n runs at each x, and around it the 95 % t-interval of the mean, or with n < 3 minimum to maximum."""

    x: Sequence[float]
    mean: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    n: int
    kind: Kind


def points(records: Sequence[Mapping[str, Any]], metric: str) -> dict[int, float]:
    """Step → value of `split/name`, without those measured on the best state; undefined values are left out."""
    split, _, name = metric.partition("/")
    return {
        record["step"]: value
        for record in records
        if record.get("split") == split
        and record.get("state") != "best"
        and isinstance(value := record.get(name), int | float)
        and math.isfinite(value)
    }


def series(run: Run, metric: str, axis: str) -> list[tuple[float, float]]:
    """(x, value) of a run in the order of its steps.

    Work is recorded for the whole run: it is spread evenly over its steps, which is exact where steps are alike.
    Seconds come from timing.jsonl, all attempts together.
    """
    found = points(run.folder.records(), metric)
    if axis == "step":
        return [(float(step), value) for step, value in sorted(found.items())]
    if axis == "seconds":
        clock = seconds(run)
        return [(clock[step], value) for step, value in sorted(found.items()) if step in clock]
    steps, spent = run.numbers.get("steps"), run.numbers.get(axis)
    if not steps or spent is None:
        return []
    return [(step * spent / steps, value) for step, value in sorted(found.items())]


def seconds(run: Run) -> dict[int, float]:
    """Step → seconds of training until its end; where a step was done twice, its last time counts."""
    clock = {0: 0.0}
    try:
        lines = (run.folder / "timing.jsonl").read_text().splitlines()
    except (OSError, UnicodeDecodeError):
        return clock
    for line in lines:
        try:
            entry = json.loads(line)
            clock[int(entry["step"])] = float(entry["total"])
        except (ValueError, KeyError, TypeError):
            continue  # cut off by a crash
    return clock


def band(group: Group, metric: str, axis: str) -> Band | None:
    """The curve of a configuration over its seeds, at the places that all of them reached; None without any.

    Over seconds, runs are interpolated linearly on a grid up to the end of the shortest.
    """
    curves = [curve for run in group.runs.values() if (curve := series(run, metric, axis))]
    if not curves:
        return None
    if axis == "seconds":
        first, last = max(curve[0][0] for curve in curves), min(curve[-1][0] for curve in curves)
        places = list(np.linspace(first, last, GRID)) if last > first else []
        columns = [np.interp(places, [x for x, _ in curve], [y for _, y in curve]).tolist() for curve in curves]
    else:
        tables = [dict(curve) for curve in curves]
        places = [x for x in tables[0] if all(x in table for table in tables)]
        columns = [[table[x] for x in places] for table in tables]
    split = metric.partition("/")[0]
    return band_of([float(x) for x in places], columns, overlap([group], split)) if places else None


def band_of(x: Sequence[float], columns: Sequence[Sequence[float]], shared: float = 0.0) -> Band:
    """Mean and band of several runs, given as one column of values for each; `shared` as `overlap` in `t_interval`."""
    at = list(zip(*columns, strict=True))
    mean = [float(np.mean(values)) for values in at]
    if len(columns) >= ENOUGH_FOR_T:
        halves = [t_interval(values, shared).half or 0.0 for values in at]
        low = [middle - half for middle, half in zip(mean, halves, strict=True)]
        high = [middle + half for middle, half in zip(mean, halves, strict=True)]
        return Band(x, mean, low, high, len(columns), "t")
    kind: Kind = "range" if len(columns) > 1 else "none"
    return Band(x, mean, [min(values) for values in at], [max(values) for values in at], len(columns), kind)


def boundaries(group: Group) -> list[tuple[str, int]]:
    """Phase → its last step, in order, where all runs of a configuration agree on them; otherwise nothing."""
    found = []
    for run in group.runs.values():
        last: dict[str, int] = {}
        for record in run.folder.records():
            if record.get("split") == "train":
                last[str(record.get("phase"))] = record["step"]
        found.append(list(last.items()))
    return found[0] if found and all(one == found[0] for one in found) else []
