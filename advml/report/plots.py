"""Which pictures a set of runs asks for, by kind; each under the name of its file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from advml.errors import ConfigError
from advml.report.curves import AXES
from advml.report.gather import Gathered
from advml.report.heat import accuracy_maps, metric_maps
from advml.report.landscape import ENOUGH, landscape
from advml.report.layout import Picture, heatmaps
from advml.report.metrics import Metric, choose, interval_of, reached_by, spent_by
from advml.report.panels import panels
from advml.report.pictures import draw_bars, draw_budget, draw_curves
from advml.report.search_pictures import draw_importance, draw_parallel

KINDS = ("curves", "bars", "heatmap", "budget", "parallel", "importance")
BARS = 30  # bars in one panel
OF_SEARCHES = ("parallel", "importance")  # drawn unasked only where several keys were turned


def draw(
    gathered: Gathered, kinds: Sequence[str] = (), metrics: Sequence[str] = (), axis: str | None = None
) -> dict[str, Picture]:
    """Name → PNG and SVG of every kind asked for, by default of all that make sense.

    Raises ConfigError for an unknown metric, and for a kind asked for by name that these runs cannot fill.
    """
    makers = {"curves": _curves, "bars": _bars, "heatmap": _heat, "budget": _budget, "parallel": _parallel,
              "importance": _importance}  # fmt: skip
    made: dict[str, Picture] = {}
    mistakes = []
    for kind in kinds or KINDS:
        if not kinds and kind in OF_SEARCHES and not searched(gathered):
            continue
        found = dict(makers[kind](gathered, metrics, axis))
        if kinds and not found:
            mistakes.append(f"kind={kind}: {WHY_NOT[kind]}")
        made |= found
    if mistakes:
        raise ConfigError(mistakes)
    return made


WHY_NOT = {
    "curves": "no run measured this metric at three places or more",
    "bars": "no run has this metric",
    "heatmap": "needs two differing keys that make a grid, or runs with an accuracy matrix",
    "budget": "these runs did not count this work",
    "parallel": "needs keys that differ, of one data set and view",
    "importance": f"needs {ENOUGH} configurations of one data set and view, not pruned, with different results",
}


def _curves(gathered: Gathered, metrics: Sequence[str], axis: str | None) -> Iterator[tuple[str, Picture]]:
    if axis is not None and axis not in AXES:
        raise ConfigError(f"x={axis}: does not change along a curve; use kind=budget")
    for metric in curve_metrics(gathered, metrics):
        picture = draw_curves(panels(gathered, metric), metric, axis or "step")
        if picture is not None:
            yield f"curves_{_file(metric)}{f'_{axis}' if axis and axis != 'step' else ''}", picture


def curve_metrics(gathered: Gathered, asked: Sequence[str]) -> list[Metric]:
    """What was asked for; by default the objectives and the training loss, where they were recorded."""
    if asked:
        return choose(gathered, asked)
    objectives = [metric for metric in choose(gathered) if not metric.name.startswith("test/")]
    with_loss = any("train/loss" in run.numbers for group in gathered.groups for run in group.runs.values())
    return [*objectives, *(choose(gathered, ["train/loss"]) if with_loss else [])]


def _bars(gathered: Gathered, metrics: Sequence[str], axis: str | None) -> Iterator[tuple[str, Picture]]:
    for metric in choose(gathered, metrics):
        if drawn := panels(gathered, metric, BARS):
            short = sum(reached_by(group, metric.name) is not None for group in gathered.groups)
            yield f"bars_{_file(metric)}", draw_bars(drawn, metric, short)


def _heat(gathered: Gathered, metrics: Sequence[str], axis: str | None) -> Iterator[tuple[str, Picture]]:
    for metric in choose(gathered, metrics):
        if maps := metric_maps(gathered, metric):
            counts = {interval.n for group in gathered.groups if (interval := interval_of(group, metric.name))}
            about = "one seed" if counts == {1} else f"mean over {_range(counts)} seeds"
            yield f"heatmap_{_file(metric)}", heatmaps(maps, gathered.groups, about)
    if maps := accuracy_maps(gathered):
        about = "accuracy on each task as training goes on, mean over seeds"
        yield "accuracy_matrices", heatmaps(maps, gathered.groups, about)


def _budget(gathered: Gathered, metrics: Sequence[str], axis: str | None) -> Iterator[tuple[str, Picture]]:
    if sum(bool(group.runs) for group in gathered.groups) < 2:
        return
    axes = [axis] if axis and axis != "step" else [*_varying(gathered), "seconds", *_sizes(gathered)]
    for metric in choose(gathered, metrics):
        for each in axes:
            picture = draw_budget(panels(gathered, metric), metric, each)
            if picture is not None:
                yield f"budget_{_file(metric)}_{each}", picture


def searched(gathered: Gathered) -> bool:
    """Do enough configurations differ in several keys that it is worth asking which of them matter?"""
    found = [landscape(gathered, metric) for metric in _objectives(gathered, ())]
    return any(one is not None and len(one.axes) > 1 and len(one.results) >= ENOUGH for one in found)


def _objectives(gathered: Gathered, asked: Sequence[str]) -> list[Metric]:
    """What was asked for; by default the objectives: a search that looks at the test split is none."""
    return [metric for metric in choose(gathered, asked) if asked or not metric.name.startswith("test/")]


def _parallel(gathered: Gathered, metrics: Sequence[str], axis: str | None) -> Iterator[tuple[str, Picture]]:
    for metric in _objectives(gathered, metrics):
        if (found := landscape(gathered, metric)) is not None:
            yield f"parallel_{_file(metric)}", draw_parallel(found, metric)


def _importance(gathered: Gathered, metrics: Sequence[str], axis: str | None) -> Iterator[tuple[str, Picture]]:
    for metric in _objectives(gathered, metrics):
        found = landscape(gathered, metric)
        if found is not None and (picture := draw_importance(found, metric)) is not None:
            yield f"importance_{_file(metric)}", picture


def _varying(gathered: Gathered) -> list[str]:
    """The first counter of work that differs between configurations."""
    return next(([counter] for counter in ("samples", "gradients", "updates") if _differs(gathered, counter)), [])


def _sizes(gathered: Gathered) -> list[str]:
    """The network's size, if it is what was searched for."""
    derived = any("derived_parameters" in run.numbers for group in gathered.groups for run in group.runs.values())
    return ["parameters"] if derived and _differs(gathered, "parameters") else []


def _differs(gathered: Gathered, axis: str) -> bool:
    """By more than a twentieth between configurations of one problem?"""
    means: dict[str, list[float]] = {}
    for group in gathered.groups:
        if (interval := spent_by(group, axis)) is not None:
            means.setdefault(group.problem, []).append(interval.mean)
    return any(max(of) > 1.05 * min(of) for of in means.values())


def _range(counts: set[int]) -> str:
    return str(min(counts)) if len(counts) == 1 else f"{min(counts)} to {max(counts)}"


def _file(metric: Metric) -> str:
    return metric.name.replace("/", "_")
