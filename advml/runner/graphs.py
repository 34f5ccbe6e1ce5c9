"""Directed graphs drawn from left to right: the cells that an architecture search found."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from advml.artifacts import Graph

Edge = tuple[int, int, str]
PLATE = {"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}  # behind a label
BOX = {"boxstyle": "round,pad=0.35", "facecolor": "#eef2f6", "edgecolor": "#445566"}  # of a node
WIDTH, HEIGHT = 2.2, 1.05  # inches between two columns, and between two rows


def graph_figure(picture: Graph, colours: Sequence[str]) -> Figure:
    """All graphs below each other to one scale, with the same colour for the same label."""
    labels = sorted({label for edges in picture.edges.values() for _, _, label in edges})
    loud = [label for label in labels if label not in picture.quiet]
    colour = {label: colours[number % len(colours)] for number, label in enumerate(loud)}
    places = {name: layout(len(nodes), picture.edges[name]) for name, nodes in picture.nodes.items()}
    spans = {name: _span(of) for name, of in places.items()}
    figure = Figure(
        figsize=(1.2 + WIDTH * max(wide for wide, _ in spans.values()),
                 sum(0.9 + HEIGHT * high for _, high in spans.values())),
        layout="constrained",
    )  # fmt: skip
    heights = [0.9 + HEIGHT * high for _, high in spans.values()]
    grid = figure.subplots(len(places), 1, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axes, (name, nodes) in zip(grid.flat, picture.nodes.items(), strict=True):
        _draw(axes, nodes, picture.edges[name], places[name], colour)
        axes.set_title(name, fontsize=10, loc="left")
    if picture.title:
        figure.suptitle(picture.title)
    return figure


def layout(count: int, edges: Sequence[Edge]) -> list[tuple[float, float]]:
    """(column, row) of each node: the column is the length of the longest path to it; rows of a column are centred."""
    column = [0] * count
    for one, other, _ in sorted(edges, key=lambda edge: edge[1]):
        column[other] = max(column[other], column[one] + 1)
    where = [(0.0, 0.0)] * count
    for at in set(column):
        members = [node for node in range(count) if column[node] == at]
        for place, node in enumerate(members):
            # Columns are shifted a little against each other, so that long edges pass between nodes.
            where[node] = (float(at), (len(members) - 1) / 2 - place + 0.18 * (at % 2))
    return where


def _span(places: Sequence[tuple[float, float]]) -> tuple[float, float]:
    columns, rows = [x for x, _ in places], [y for _, y in places]
    return max(columns) - min(columns), max(rows) - min(rows) + 0.8


def _draw(
    axes: Axes, nodes: Sequence[str], edges: Sequence[Edge], places: Sequence[tuple[float, float]],
    colour: dict[str, str],
) -> None:  # fmt: skip
    seen: dict[tuple[int, int], int] = {}
    for one, other, label in edges:
        again = seen[one, other] = seen.get((one, other), 0) + 1  # several edges between the same two nodes
        (x0, y0), (x1, y1) = places[one], places[other]
        bend = 0.0 if x1 - x0 < 1.5 and again == 1 else 0.25 * (1 if (one + other + again) % 2 else -1) * again
        arrow = FancyArrowPatch(
            places[one], places[other], connectionstyle=f"arc3,rad={bend}", arrowstyle="-|>", mutation_scale=11,
            shrinkA=0, shrinkB=7 + 2.4 * len(nodes[other]),  # from below one box to the edge of the other
            color=colour.get(label, "#999999"), linewidth=1.4 if label in colour else 0.8,
        )  # fmt: skip
        axes.add_patch(arrow)
        if label in colour:
            # On a quadratic curve whose control point stands beside the middle of the line; not in its middle, where
            # two edges that cross would write over each other.
            middle = (x0 + x1) / 2 + bend * (y1 - y0), (y0 + y1) / 2 - bend * (x1 - x0)
            t = 0.36 if y1 < y0 else 0.6
            x, y = (
                (1 - t) ** 2 * begin + 2 * t * (1 - t) * control + t**2 * end
                for begin, control, end in zip((x0, y0), middle, (x1, y1), strict=True)
            )
            axes.text(x, y, label, fontsize=7, ha="center", va="center", color=colour[label], bbox=PLATE)
    for name, (x, y) in zip(nodes, places, strict=True):
        axes.text(x, y, name, ha="center", va="center", fontsize=8, bbox=BOX)
    columns, rows = [x for x, _ in places], [y for _, y in places]
    axes.set_xlim(min(columns) - 0.45, max(columns) + 0.45)
    axes.set_ylim(min(rows) - 0.6, max(rows) + 0.6)
    axes.set_axis_off()
