"""Pictures of adaptation: the score after each step, and the functions fitted to a few points."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from advml.artifacts import Curve
from advml.contracts import Batch, Record
from advml.data.episodes import Episodes, Tasks

DRAWN = 3  # test tasks whose fitted functions are drawn
POINTS = 101  # of a function's range


def adaptation_curve(
    records: Sequence[Record], metric: str, steps_asked: Callable[[int], Sequence[int]] = range
) -> Mapping[str, Curve]:
    """`adaptation`: the mean of the metric over the test tasks after each step, of the last state, with its 95 %
    interval; of errors, the mean and the median. `steps_asked`: that of `MetaLearner`.
    """
    tests = [record for record in records if record["split"] == "test" and record.get("state") != "best"]
    newest = tests[-1] if tests else {}
    means = [value for name, value in newest.items() if name.startswith(f"{metric}/step")]
    widths = [value for name, value in newest.items() if name.startswith(f"{metric}_ci/step")]
    medians = [value for name, value in newest.items() if name.startswith(f"{metric}_median/step")]
    if not means or (not medians and None in (*means, *widths)):
        return {}
    title, x_title = "Adaptation to test tasks", "steps of adaptation"
    if medians:  # a line has gaps where steps diverge
        lines: dict[str, Sequence[float | None]] = {"mean": means, "median": medians}
        log = min((value for value in (*means, *medians) if value is not None), default=0.0) > 0
        return {"adaptation": Curve(steps_asked(len(means)), lines, x_title, metric, title, log=log)}
    low, high = ([mean + sign * width for mean, width in zip(means, widths, strict=True)] for sign in (-1, 1))
    lines = {"mean": means, "lower 95 %": low, "upper 95 %": high}
    return {"adaptation": Curve(steps_asked(len(means)), lines, x_title, metric, title)}


def fits(
    view: Episodes, predictions: Callable[[Tasks], Tensor], steps_asked: Callable[[int], Sequence[int]] = range
) -> Mapping[str, Curve]:
    """`fit1`, …: of the first test tasks the true function, the support, what is fitted before and after adaptation.

    Only for functions of one number. `predictions`, `steps_asked`: those of `MetaLearner`.
    """
    found = {}
    for number in range(min(DRAWN, view.count("test"))):
        truth = view.curve("test", number, POINTS)
        if truth is None or truth[0].shape[1] != 1:
            return {}
        support = view.fixed("test", number, number + 1).support
        name = next(iter(support.inputs))
        at, values = support.inputs[name][0], support.target[0]
        # The grid and the support together, in order: a curve has one axis.
        x, y = torch.cat([truth[0], at]), torch.cat([truth[1], values])
        order = x[:, 0].argsort(stable=True)
        x, y = x[order], y[order]
        numbered = zip(order.tolist(), y[:, 0].tolist(), strict=True)
        given = [value if index >= POINTS else None for index, value in numbered]
        rows = predictions(Tasks(support, Batch({name: x.unsqueeze(0)}, y.unsqueeze(0))))[:, 0].flatten(1)
        lines: dict[str, Sequence[float | None]] = {"true": y[:, 0].tolist(), "support": given}
        lines["before"] = rows[0].tolist()
        if len(rows) > 2:
            lines["after 1 step"] = rows[1].tolist()
        if len(rows) > 1:
            lines[f"after {steps_asked(len(rows))[-1]} steps"] = rows[-1].tolist()
        title = f"Test task {number + 1}"
        found[f"fit{number + 1}"] = Curve(x[:, 0].tolist(), lines, "x", "y", title, points=("support",))
    return found
