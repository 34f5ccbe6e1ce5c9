"""Pictures of artifacts with matplotlib: readable in grey, by colour-blind eyes, and in a paper."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import MaxNLocator

from advml.artifacts import Curve, Drawing, Graph, Heatmap, Histogram
from advml.runner.graphs import graph_figure

# Okabe and Ito's palette for colour-blind readers; markers and dashes tell lines apart in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
STYLE: Any = {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "svg.hashsalt": "advml"}

PAGE = 7.5  # inches that a matrix without numbers takes at most, to each side
MOST_NAMES = 40  # of rows or columns that are written


def plain(text: str) -> str:
    """Text that matplotlib writes as it is: two dollar signs in a name would otherwise be a formula, or an error."""
    return text.replace("$", r"\$")


def draw(picture: Heatmap | Curve | Histogram | Graph | Drawing) -> dict[str, bytes]:
    """Suffix → bytes of the file: PNG and SVG, without dates in them, so that equal data give equal files."""
    with mpl.rc_context(STYLE):
        match picture:
            case Heatmap():
                return rendered(_heatmap(picture))
            case Graph():
                return rendered(graph_figure(picture, COLOURS))
            case Drawing():
                return rendered(picture.figure())
            case Histogram():
                return rendered(_histogram(picture))
            case Curve():
                return rendered(_curve(picture))


def rendered(figure: Figure) -> dict[str, bytes]:
    """A figure as PNG and SVG; to be called inside `rc_context(STYLE)`, in which the figure was made."""
    return {"png": _rendered(figure, "png", {}), "svg": _rendered(figure, "svg", {"Date": None})}


def _rendered(figure: Figure, suffix: str, metadata: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format=suffix, dpi=150, bbox_inches="tight", metadata=metadata)
    return buffer.getvalue()


def _heatmap(picture: Heatmap) -> Figure:
    figure = Figure(figsize=heatmap_size(picture))
    axes = figure.add_subplot()
    image = heatmap_on(axes, picture)
    figure.colorbar(image, ax=axes, label=picture.unit, fraction=0.046, pad=0.04)
    return figure


def heatmap_size(picture: Heatmap) -> tuple[float, float]:
    """Width and height in inches at which the numbers in the cells can be read; without numbers at most a page."""
    width, height = 0.62 * max(len(picture.columns), 4), 0.46 * max(len(picture.rows), 3)
    if not has_numbers(picture):
        width, height = min(width, PAGE), min(height, PAGE)
    return 1.6 + width, 1.2 + height


def has_numbers(picture: Heatmap) -> bool:
    """Are there few enough cells to write a number into each?"""
    return len(picture.rows) * len(picture.columns) <= 400


def _some(names: Sequence[str]) -> tuple[list[int], list[str]]:
    """Places and names of an axis: every one, or every so many where there are more than can be read."""
    step = -(-len(names) // MOST_NAMES)
    places = list(range(0, len(names), step))
    return places, [plain(names[place]) for place in places]


def heatmap_on(axes: Axes, picture: Heatmap) -> AxesImage:
    """Draw a matrix without its colour bar, with its numbers where there are not too many."""
    numbers = [[float("nan") if value is None else value for value in row] for row in picture.values]
    defined = [value for row in picture.values for value in row if value is not None]
    low, high = picture.limits or ((min(defined), max(defined)) if defined else (0.0, 1.0))
    image = axes.imshow(numbers, cmap="cividis", aspect="auto", vmin=low, vmax=high)
    longest = max(map(len, picture.columns))
    axes.set_xticks(*_some(picture.columns))
    if longest > 6:
        axes.tick_params(axis="x", rotation=35)
        for label in axes.get_xticklabels():
            label.set(ha="right", rotation_mode="anchor")
    axes.set_yticks(*_some(picture.rows))
    axes.set_xlabel(plain(picture.column_title))
    axes.set_ylabel(plain(picture.row_title))
    axes.set_title(plain(picture.title))
    for spine in axes.spines.values():
        spine.set_visible(False)
    if has_numbers(picture):
        middle = (low + high) / 2
        for y, row in enumerate(picture.values):
            for x, value in enumerate(row):
                text = "–" if value is None else f"{value:.{picture.decimals}f}"
                dark = value is not None and value < middle
                axes.text(x, y, text, ha="center", va="center", fontsize=8, color="white" if dark else "black")
    return image


def _histogram(picture: Histogram) -> Figure:
    """A row of bars for each group, all to the same scale; the axis ends a bin beyond the outermost bars."""
    figure = Figure(figsize=(5.6, 1.3 + 1.8 * len(picture.counts)), layout="constrained")
    panels = figure.subplots(len(picture.counts), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    width = picture.edges[1] - picture.edges[0]
    taken = [place for counts in picture.counts.values() for place, count in enumerate(counts) if count]
    for number, (axes, (name, counts)) in enumerate(zip(panels, picture.counts.items(), strict=True)):
        axes.bar(picture.edges[:-1], counts, width, align="edge", color=COLOURS[number % len(COLOURS)],
                 edgecolor="white", linewidth=0.8)  # fmt: skip
        axes.yaxis.set_major_locator(MaxNLocator("auto", integer=True))
        axes.set_ylabel(picture.y_title)
        axes.set_axisbelow(True)
        axes.grid(alpha=0.3, axis="y")
        axes.set_title(plain(name), fontsize=10, loc="left")
    if taken:
        first, last = max(min(taken) - 1, 0), min(max(taken) + 2, len(picture.edges) - 1)
        panels[0].set_xlim(picture.edges[first], picture.edges[last])
    panels[-1].set_xlabel(picture.x_title)
    figure.suptitle(picture.title, fontsize=12)
    return figure


def _curve(picture: Curve) -> Figure:
    many = len(picture.lines) > 5  # then their names stand beside the axes, not on the lines
    figure = Figure(figsize=(7.2 if many else 5.6, 3.4))
    axes = figure.add_subplot()
    for number, (name, line) in enumerate(picture.lines.items()):
        points = [(x, y) for x, y in zip(picture.x, line, strict=True) if y is not None]
        marker = MARKERS[(number + number // len(COLOURS)) % len(MARKERS)]  # the eighth: the first colour
        axes.plot(
            [x for x, _ in points], [y for _, y in points], label=name,
            color=COLOURS[number % len(COLOURS)],
            linestyle="" if name in picture.points else DASHES[number % len(DASHES)],
            marker=marker if len(points) <= 30 or name in picture.points else None,
            markersize=4,
        )  # fmt: skip
    if picture.log:
        axes.set_yscale("log")
    if all(float(x).is_integer() for x in picture.x):  # there is no step 2.5
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
    values = [y for line in picture.lines.values() for y in line if y is not None]
    if values and not picture.log and all(float(y).is_integer() for y in values):  # nor half a client
        axes.yaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.set_xlabel(picture.x_title)
    axes.set_ylabel(picture.y_title)
    axes.set_title(picture.title)
    axes.grid(alpha=0.3)
    if many:
        axes.legend(frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    else:
        axes.legend(frameon=False)
    return figure
