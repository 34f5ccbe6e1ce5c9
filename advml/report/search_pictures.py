"""Pictures of a search with matplotlib: every configuration as a line through its settings; what each key mattered."""

from __future__ import annotations

import matplotlib as mpl
import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patheffects import Normal, withStroke
from matplotlib.ticker import LogLocator, MaxNLocator

from advml.report.keys import heading, shown
from advml.report.landscape import ENOUGH, FOLDS, SHUFFLES, TREES, Axis, Landscape, Matrix, axis_of, importance
from advml.report.layout import STYLE, Picture, caption
from advml.report.metrics import Metric, axis_title
from advml.runner import figures

SPREAD = 0.05  # of an axis: how far lines through the same choice are drawn apart
TICKS, FEW, LABELS = 5, 6, 12  # on an axis: of many numbers, of few (each has its own), of choices
GAP = 0.06  # of an axis: between two labels
BOX = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75}


def draw_parallel(found: Landscape, metric: Metric) -> Picture:
    """A vertical axis for each key and one for the result; a line for each configuration, dark where it is good."""
    last = axis_of(metric.name, found.results.tolist()) or Axis(metric.name, found.results)
    axes_of = [*found.axes, last]
    goodness = found.results if metric.mode != "min" else -found.results
    order = np.argsort(goodness, kind="stable")  # the best is drawn last, over the others
    rank = np.empty(len(order))
    rank[order] = np.linspace(-1, 1, len(order)) if len(order) > 1 else 0
    heights = np.column_stack([_heights(axis, rank) for axis in axes_of])
    full = [place for place in order if not found.pruned[place]]
    colours = _colours()
    shade = ranks(goodness)  # a few hopeless ones would otherwise make all others look alike
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(1.6 + 1.5 * len(axes_of), 4.2), layout="constrained")
        axes = figure.add_subplot()
        places = range(len(axes_of))
        for number in order:
            if found.pruned[number]:
                axes.plot(places, heights[number], color="#777777", linewidth=0.8, linestyle=(0, (3, 2)), alpha=0.7)
        for number in full:
            axes.plot(places, heights[number], color=colours(shade[number]), linewidth=1.1, alpha=0.9)
        if full and metric.mode is not None:
            axes.plot(places, heights[full[-1]], color=colours(1.0), linewidth=3, zorder=5,
                      path_effects=[withStroke(linewidth=4.5, foreground="white"), Normal()])  # fmt: skip
        for place, axis in enumerate(axes_of):
            _scale(axes, place, axis, right=axis is last)
        axes.set_xlim(-0.45, len(axes_of) - 0.6)
        axes.set_ylim(-0.07, 1.07)
        axes.set_yticks([])
        axes.set_xticks(places, [_title(axis.key) for axis in axes_of])
        axes.xaxis.tick_top()
        axes.tick_params(axis="x", length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        bar = figure.colorbar(ScalarMappable(Normalize(0, 1), colours), ax=axes, fraction=0.04, pad=0.01,
                              label=f"{axis_title(metric.name)}\ncoloured by rank")  # fmt: skip
        quarters = np.linspace(0, 1, 5)
        values = np.quantile(goodness, quarters) * (-1 if metric.mode == "min" else 1)
        bar.set_ticks(list(quarters), labels=[f"{value:.3g}" for value in values])
        caption(figure, found.groups, _about(found, metric))
        return figures.rendered(figure)


def draw_importance(found: Landscape, metric: Metric) -> Picture | None:
    """A bar for each key, the most important on top; None where configurations are too few or all results equal."""
    full = ~found.pruned
    results = found.results[full]
    if len(results) < ENOUGH or np.ptp(results) == 0:
        return None
    inputs = np.column_stack([axis.scaled[full] for axis in found.axes])
    judged = importance([axis.key for axis in found.axes], inputs, results)
    means = judged.drops.mean(axis=0)
    folds = judged.drops.reshape(FOLDS, SHUFFLES, -1).mean(axis=1)
    order = np.argsort(means)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4, 1.5 + 0.42 * len(order)), layout="constrained")
        axes = figure.add_subplot()
        for place, key in enumerate(order):
            axes.barh(place, means[key], height=0.55, color="#9CC9E6", edgecolor="#00476F", linewidth=0.8)
            axes.plot([folds[:, key].min(), folds[:, key].max()], [place, place], color="black", linewidth=1.4)
            number = f"{means[key]:.2f}".replace("-", "−")
            axes.text(1.02, place, number, transform=axes.get_yaxis_transform(), va="center")
        axes.axvline(0, color="black", linewidth=0.8)
        axes.set_yticks(range(len(order)), [heading(judged.keys[key]) for key in order])
        axes.tick_params(axis="y", length=0)
        axes.xaxis.set_major_locator(MaxNLocator(6))
        axes.grid(alpha=0.3, axis="x")
        axes.set_axisbelow(True)
        axes.set_xlabel(f"importance for {metric.name.replace('/', ' ').replace('_', ' ')}: fall of R² when shuffled")
        caption(figure, found.groups, _method(found, judged.r2, len(results)))
        return figures.rendered(figure)


# --- parts --------------------------------------------------------------------------------------------------------


def ranks(values: Matrix) -> Matrix:
    """The place of each value among all, from 0 (lowest) to 1; equal values share the mean of their places."""
    _, which, counts = np.unique(values, return_inverse=True, return_counts=True)
    places = np.cumsum(counts) - (counts + 1) / 2
    shared: Matrix = places[which] / max(1, len(values) - 1)
    return shared


def _heights(axis: Axis, rank: Matrix) -> Matrix:
    """Where the lines cross an axis, from 0 to 1; those through the same choice a little apart, the better above."""
    scaled = axis.scaled
    low, high = scaled.min(), scaled.max()
    heights: Matrix = (scaled - low) / (high - low) if high > low else np.full(len(scaled), 0.5)
    return heights + rank * min(SPREAD, 0.3 / len(axis.labels)) * 0.8 if axis.labels else heights


def _scale(axes: Axes, place: int, axis: Axis, right: bool) -> None:
    """The axis itself: a line, and what its heights mean."""
    axes.axvline(place, color="black", linewidth=1, zorder=3)
    low, high = float(axis.values.min()), float(axis.values.max())
    if axis.labels:
        step = -(-len(axis.labels) // LABELS)
        ticks = {float(number): label for number, label in enumerate(axis.labels) if number % step == 0}
    else:
        locator = LogLocator(numticks=TICKS) if axis.log else MaxNLocator(TICKS, steps=[1, 2, 2.5, 5, 10])
        many = [float(tick) for tick in locator.tick_values(low, high) if low <= tick <= high]
        ticks = {tick: shown(float(f"{tick:.6g}")) for tick in _few(axis) or many or [low, high]}
    for value, label in ticks.items():
        at, bottom, top = np.log10([value, low, high]) if axis.log else (value, low, high)
        height = float((at - bottom) / (top - bottom)) if high > low else 0.5
        side = 1 if right else -1
        axes.plot([place, place + side * 0.03], [height, height], color="black", linewidth=1, zorder=3)
        text = label if len(label) <= 16 else f"{label[:15]}…"
        axes.text(place + side * 0.05, height, text, ha="left" if right else "right", va="center", fontsize=8, bbox=BOX,
                  zorder=6)  # fmt: skip


def _few(axis: Axis) -> list[float]:
    """All values, where they are so few, short and far apart that each can be written at its place; otherwise none."""
    values, scaled = np.unique(axis.values), np.unique(axis.scaled)
    short = all(len(shown(float(value))) <= 6 for value in values)
    if len(values) > FEW or not short or np.diff(scaled).min(initial=np.inf) < GAP * np.ptp(scaled):
        return []
    return [float(value) for value in values]


def _title(key: str) -> str:
    """A key in two lines: its block, and its name."""
    block, dot, name = heading(key).replace("/", ".").rpartition(".")
    return f"{block}{dot}\n{name}" if dot else f"\n{name}"


def _colours() -> Colormap:
    """Cividis without its brightest end, which nobody sees on white; good results (1) are dark, in grey too."""
    return ListedColormap(colormaps["cividis"](np.linspace(0.85, 0, 256)))


def _about(found: Landscape, metric: Metric) -> str:
    pruned = int(found.pruned.sum())
    best = "; thick: the best" if metric.mode is not None and pruned < len(found.results) else ""
    dashed = f"; dashed: {pruned} that were pruned, with their last value" if pruned else ""
    return f"{len(found.results)} configurations, {found.runs} runs{best}{dashed}"


def _method(found: Landscape, r2: float, count: int) -> str:
    seeds = sorted({seed for group in found.groups for seed in group.runs})
    left = f" ({int(found.pruned.sum())} pruned ones are left out)" if found.pruned.any() else ""
    explains = (
        f"the forest explains R² = {r2:.2f} of what it has not seen"
        if r2 > 0
        else "the forest explains nothing of what it has not seen, so that these bars mean nothing"
    )
    return (
        f"permutation importance of a random forest ({TREES} trees, {FOLDS} folds, {SHUFFLES} shuffles; line: lowest "
        f"to highest fold); {explains}; {count} configurations{left}, {len(seeds)} seed{'s' * (len(seeds) > 1)}; "
        f"{'so few say little' if count < 50 else 'of these ranges, in this sampling'}"
    )
