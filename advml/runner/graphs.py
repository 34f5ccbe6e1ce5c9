"""Directed graphs drawn from left to right: the cells that an architecture search found."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from advml.artifacts import Graph

Edge = tuple[int, int, str]
Point = tuple[float, float]
Curve = tuple[Point, Point, Point]
"""Of an edge: begin, control point, end."""
PLATE = {"boxstyle": "round,pad=0.12", "facecolor": "white", "edgecolor": "none", "alpha": 0.85}  # behind a label
BOX = {"boxstyle": "round,pad=0.35", "facecolor": "#eef2f6", "edgecolor": "#445566"}  # of a node
WIDTH, HEIGHT = 2.2, 1.05  # inches between two columns, and between two rows
LABEL = 0.82, 0.17  # inches that a label takes with its plate
ALONG = [0.2 + 0.05 * number for number in range(13)]  # where on its edge a label may stand


def graph_figure(picture: Graph, colours: Sequence[str]) -> Figure:
    """All graphs below each other to one scale, with the same colour for the same label."""
    labels = sorted({label for edges in picture.edges.values() for _, _, label in edges})
    loud = [label for label in labels if label not in picture.quiet]
    colour = {label: colours[number % len(colours)] for number, label in enumerate(loud)}
    places = {name: layout(len(nodes), picture.edges[name]) for name, nodes in picture.nodes.items()}
    frames = {name: _frame(of, _curves(picture.edges[name], of)) for name, of in places.items()}
    heights = [0.4 + HEIGHT * (high - low) for _, _, low, high in frames.values()]
    width = WIDTH * max(right - left for left, right, _, _ in frames.values())
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    grid = figure.subplots(len(places), 1, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axes, (name, nodes) in zip(grid.flat, picture.nodes.items(), strict=True):
        _draw(axes, nodes, picture.edges[name], places[name], colour)
        left, right, low, high = frames[name]
        axes.set(xlim=(left, right), ylim=(low, high))
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


def _frame(places: Sequence[Point], curves: Sequence[tuple[Curve, float]]) -> tuple[float, float, float, float]:
    """Left, right, bottom and top of what is drawn, with room for boxes and labels at the margin."""
    columns = [x for x, _ in places]
    rows = [y for _, y in places] + [on_curve(curve, t / 20)[1] for curve, _ in curves for t in range(21)]
    return min(columns) - 0.45, max(columns) + 0.45, min(rows) - 0.25, max(rows) + 0.25


def _draw(
    axes: Axes, nodes: Sequence[str], edges: Sequence[Edge], places: Sequence[tuple[float, float]],
    colour: dict[str, str],
) -> None:  # fmt: skip
    axes.set_aspect(HEIGHT / WIDTH)  # so that `_curves` are where matplotlib draws them
    curves = _curves(edges, places)
    for (one, other, label), (_, bend) in zip(edges, curves, strict=True):
        arrow = FancyArrowPatch(
            places[one], places[other], connectionstyle=f"arc3,rad={bend}", arrowstyle="-|>", mutation_scale=11,
            shrinkA=0, shrinkB=7 + 2.4 * len(nodes[other]),  # from below one box to the edge of the other
            color=colour.get(label, "#999999"), linewidth=1.4 if label in colour else 0.8,
        )  # fmt: skip
        axes.add_patch(arrow)
    loud = [number for number, (_, _, label) in enumerate(edges) if label in colour]
    for number, (x, y) in label_places([curve for curve, _ in curves], loud, places).items():
        label = edges[number][2]
        axes.text(x, y, label, fontsize=7, ha="center", va="center", color=colour[label], bbox=PLATE)
    for name, (x, y) in zip(nodes, places, strict=True):
        axes.text(x, y, name, ha="center", va="center", fontsize=8, bbox=BOX)
    axes.set_axis_off()


def _curves(edges: Sequence[Edge], places: Sequence[Point]) -> list[tuple[Curve, float]]:
    """Each edge and its bend: straight to the next column, otherwise an arc. `bend` counts in inches, as the screen."""
    seen: dict[tuple[int, int], int] = {}
    curves = []
    for one, other, _ in edges:
        again = seen[one, other] = seen.get((one, other), 0) + 1  # several edges between the same two nodes
        (x0, y0), (x1, y1) = places[one], places[other]
        bend = 0.0 if x1 - x0 < 1.5 and again == 1 else 0.25 * (1 if (one + other + again) % 2 else -1) * again
        beside = bend * (y1 - y0) * HEIGHT / WIDTH, -bend * (x1 - x0) * WIDTH / HEIGHT
        curves.append((((x0, y0), ((x0 + x1) / 2 + beside[0], (y0 + y1) / 2 + beside[1]), (x1, y1)), bend))
    return curves


def on_curve(curve: Curve, t: float) -> Point:
    """A point of the quadratic Bézier curve, t from 0 to 1."""
    x, y = ((1 - t) ** 2 * a + 2 * t * (1 - t) * b + t**2 * c for a, b, c in zip(*curve, strict=True))
    return x, y


def label_places(curves: Sequence[Curve], loud: Sequence[int], nodes: Sequence[Point]) -> dict[int, Point]:
    """Number of an edge → where on it its label stands: not on other labels and nodes, rather not on other edges.

    One after another, each where it does the least harm; of equals, nearest to the middle of its edge.
    """
    found: dict[int, Point] = {}
    for number in loud:
        lines = [on_curve(other, t / 20) for at, other in enumerate(curves) if at != number for t in range(1, 20)]
        taken = [*found.values(), *nodes]

        def harm(t: float, own: Curve = curves[number], taken: Sequence[Point] = taken,
                 lines: Sequence[Point] = lines) -> float:  # fmt: skip
            here = on_curve(own, t)
            hidden = sum(_overlap(here, (x, y), 0.6) > 0 for x, y in lines)
            return 40 * sum(_overlap(here, other, 1.0) for other in taken) + hidden + 2 * abs(t - 0.5)

        found[number] = on_curve(curves[number], min(ALONG, key=harm))
    return found


def _overlap(one: Point, other: Point, size: float) -> float:
    """The share of a label's plate that a plate at another place would cover; `size` makes both smaller."""
    across = 1 - abs(one[0] - other[0]) * WIDTH / (size * LABEL[0])
    down = 1 - abs(one[1] - other[1]) * HEIGHT / (size * LABEL[1])
    return max(0.0, across) * max(0.0, down)
