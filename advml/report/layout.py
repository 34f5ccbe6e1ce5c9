"""How pictures of many runs are laid out: panels, one legend for all, a caption that says how to read them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from textwrap import fill
from typing import Any, Literal

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from advml.artifacts import Heatmap
from advml.report.gather import Group
from advml.report.panels import Panel
from advml.runner import figures

Picture = dict[str, bytes]
"""Suffix → bytes of the file."""

STYLE: Any = {**figures.STYLE, "axes.titlesize": 10, "legend.fontsize": 9}
COLUMNS = 3  # panels side by side
WIDEST = 46  # letters in a line of a label
LETTERS = 14  # of a legend, on an inch


def style_of(number: int) -> dict[str, Any]:
    """Colour and marker of the lines with this number: 49 of them differ, in grey by marker."""
    colour, marker = number % 7, (number + number // 7) % 7
    return {"color": figures.COLOURS[colour], "marker": figures.MARKERS[marker]}


def wrapped(label: str) -> str:
    """A label in lines that leave room for the picture."""
    return figures.plain(fill(label, WIDEST, break_long_words=False))


def panelled(
    panels: Sequence[Panel], draw: Callable[[Axes, Panel], None], x_title: str, y_title: str, about: str
) -> Picture:
    """Panels side by side, those of one problem to the same scale, with one legend below and the caption above."""
    columns = min(COLUMNS, len(panels))
    rows = -(-len(panels) // columns)
    width, height = (5.4, 3.2) if len(panels) == 1 else (3.9, 2.8)
    labels = [wrapped(line.label) for panel in panels for line in panel.lines]
    longest = max(len(line) for label in labels for line in label.splitlines())
    many = max(1, min(len(set(labels)), int(columns * width * LETTERS / (longest + 9))))
    legend_rows = -(-sum(label.count("\n") + 1 for label in set(labels)) // many)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(columns * width, rows * height + 0.19 * legend_rows + 0.8), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        drawn = list(zip(grid.flat, panels, strict=False))
        for number, (axes, panel) in enumerate(drawn):
            draw(axes, panel)
            _finish(axes, panel, "both")
            axes.set_xlabel(x_title if number + columns >= len(panels) else "")
            axes.set_ylabel("" if number % columns else y_title)
        for axes in list(grid.flat)[len(panels) :]:
            axes.remove()
        _same_scale(drawn)
        handles: dict[str, Any] = {}
        for axes, _ in drawn:
            handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        figure.legend(list(handles.values()), [wrapped(label) for label in handles], loc="outside lower center",
                      frameon=False, ncols=many, handlelength=3)  # fmt: skip
        caption(figure, [line.group for panel in panels for line in panel.lines], about)
        return figures.rendered(figure)


def stacked(panels: Sequence[Panel], draw: Callable[[Axes, Panel], None], x_title: str, about: str) -> Picture:
    """Panels below each other, each as high as its lines are many; the labels stand at the left."""
    counts = [len(panel.lines) for panel in panels]
    labels = [wrapped(line.label) for panel in panels for line in panel.lines]
    longest = max(len(line) for label in labels for line in label.splitlines())
    deepest = max(label.count("\n") + 1 for label in labels)
    height = sum(counts) * max(0.42, 0.2 * deepest) + 0.5 * len(panels) + 0.9
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(4.8 + 0.075 * longest, height), layout="constrained")
        grid = figure.subplots(len(panels), 1, squeeze=False, gridspec_kw={"height_ratios": counts})
        for number, (axes, panel) in enumerate(zip(grid.flat, panels, strict=True)):
            draw(axes, panel)
            axes.set_yticks(range(len(panel.lines)), [wrapped(line.label) for line in panel.lines])
            axes.set_ylim(len(panel.lines) - 0.4, -0.6)
            axes.tick_params(axis="y", length=0)
            _finish(axes, panel, "x")
            axes.set_xlabel(x_title if number == len(panels) - 1 else "")
        caption(figure, [line.group for panel in panels for line in panel.lines], about)
        return figures.rendered(figure)


def heatmaps(maps: Sequence[Heatmap], groups: Sequence[Group], about: str) -> Picture:
    """Matrices side by side under one colour scale, which all of them must name in `limits`."""
    columns = min(COLUMNS, len(maps))
    rows = -(-len(maps) // columns)
    widths, heights = zip(*(figures.heatmap_size(one) for one in maps), strict=True)
    alike = all(list(one.rows) == list(maps[0].rows) for one in maps)  # then only the first of a line names them
    width = max(widths) + (columns - 1) * (max(widths) - 1.4 if alike else max(widths)) + 0.4
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, rows * (max(heights) + 0.3) + 0.3), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False)
        image: Any = None
        for number, (axes, one) in enumerate(zip(grid.flat, maps, strict=False)):
            image = figures.heatmap_on(axes, one)
            if alike and number % columns:
                axes.set_yticklabels([])
                axes.set_ylabel("")
        for axes in list(grid.flat)[len(maps) :]:
            axes.remove()
        figure.colorbar(image, ax=list(grid.flat)[: len(maps)], label=maps[0].unit, fraction=0.05, pad=0.02, shrink=0.9)
        caption(figure, groups, about)
        return figures.rendered(figure)


def _finish(axes: Axes, panel: Panel, lines: Literal["x", "both"]) -> None:
    axes.grid(alpha=0.3, axis=lines)
    axes.set_axisbelow(True)
    axes.set_title(figures.plain(panel.title))


def _same_scale(drawn: Sequence[tuple[Axes, Panel]]) -> None:
    """Panels of the same problem get the same y-axis."""
    for problem in {panel.problem for _, panel in drawn}:
        of = [axes for axes, panel in drawn if panel.problem == problem]
        low, high = min(axes.get_ylim()[0] for axes in of), max(axes.get_ylim()[1] for axes in of)
        for axes in of:
            axes.set_ylim(low, high)


def caption(figure: Figure, groups: Sequence[Group], about: str) -> None:
    """Above the panels, no wider than they are: what all runs have in common, and how to read the picture."""
    blocks = ("dataset", "view", "method", "model")
    names = [{group.settings.get(f"{block}.name") for group in groups} for block in blocks]
    common = " · ".join(str(next(iter(of))) for of in names if len(of) == 1 and of != {"plain"} and of != {None})
    lines = [fill(text, int(figure.get_figwidth() * 13)) for text in (common, about) if text]
    figure.suptitle(figures.plain("\n".join(lines)), fontsize=9, color="#333333")
