"""Graphs as artifacts: their edges as a table, and drawn."""

import re

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import FancyArrowPatch

from advml.artifacts import Graph
from advml.runner import artifacts, figures
from advml.runner.folder import RunFolder
from advml.runner.graphs import graph_figure, layout

CELLS = Graph(
    {"normal": ["cell k−2", "cell k−1", "0", "1", "output"], "reduce": ["in", "out"]},
    {"normal": [(0, 2, "sep_conv_3x3"), (1, 2, "skip_connect"), (2, 3, "skip_connect"), (1, 3, "max_pool_3x3"),
                (2, 4, ""), (3, 4, "")], "reduce": [(0, 1, "a $x$ b"), (0, 1, "skip_connect")]},
    "Cells",
)  # fmt: skip


def test_edges_point_to_the_right():
    for name, nodes in CELLS.nodes.items():
        places = layout(len(nodes), CELLS.edges[name])
        assert all(places[a][0] < places[b][0] for a, b, _ in CELLS.edges[name])
        assert len(set(places)) == len(nodes)


def test_a_table_of_edges_and_a_picture(tmp_path):
    (tmp_path / "figures").mkdir()
    artifacts.write(RunFolder(tmp_path), {"cells": CELLS}, draw=True)
    rows = artifacts.read_csv(tmp_path / "artifacts/cells.csv")
    assert rows[0] == ["graph", "from", "to", "label"]
    assert rows[1] == ["normal", "cell k−2", "0", "sep_conv_3x3"]
    assert len(rows) == 9
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {"cells.png", "cells.svg"}
    texts = re.findall(r"<!-- (.*?) -->", (tmp_path / "figures/cells.svg").read_text())
    assert {"cell k−2", "output", "sep_conv_3x3", "skip_connect", "normal", "reduce", "Cells"} <= set(texts)
    assert texts.count("skip_connect") == 3


def test_equal_graphs_give_equal_bytes():
    assert figures.draw(CELLS) == figures.draw(CELLS)


# Liu et al. 2019, figures 4 and 5: nodes 2 to 5 read two states each, all are concatenated
DARTS = {
    "normal": [(0, 2, "sep"), (1, 2, "sep"), (0, 3, "sep"), (1, 3, "sep"), (1, 4, "sep"), (0, 4, "skip"),
               (0, 5, "skip"), (2, 5, "dil")],
    "reduce": [(0, 2, "max"), (1, 2, "max"), (2, 3, "skip"), (1, 3, "max"), (0, 4, "max"), (2, 4, "skip"),
               (2, 5, "skip"), (1, 5, "max")],
}  # fmt: skip
FULL = {"sep": "sep_conv_3x3", "skip": "skip_connect", "dil": "dil_conv_3x3", "max": "max_pool_3x3"}
T = np.linspace(0, 1, 500)[:, None]


@pytest.mark.parametrize("kind", DARTS)
def test_labels_stand_on_their_edges_and_not_on_each_other(kind):
    edges = [(one, other, FULL[label]) for one, other, label in DARTS[kind]]
    out = [(node, 6, "") for node in range(2, 6)]
    nodes = ["cell k−2", "cell k−1", "0", "1", "2", "3", "output"]
    figure = graph_figure(Graph({kind: nodes}, {kind: [*edges, *out]}), figures.COLOURS)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    (axes,) = figure.axes
    arrows = [patch for patch in axes.patches if isinstance(patch, FancyArrowPatch)]
    labels = [text for text in axes.texts if text.get_text() in FULL.values()]
    assert len(labels) == len(edges)
    for arrow, label in zip(arrows, labels, strict=False):
        begin, control, end = axes.transData.transform(arrow.get_path().vertices[:3])  # as matplotlib bends it
        line = (1 - T) ** 2 * begin + 2 * T * (1 - T) * control + T**2 * end
        at = axes.transData.transform(label.get_position())
        assert np.linalg.norm(line - at, axis=1).min() < 2  # pixels; a plate is 12 high
        assert axes.bbox.y0 < line[:, 1].min() < line[:, 1].max() < axes.bbox.y1  # nothing is cut off
    boxes = [label.get_window_extent(canvas.get_renderer()) for label in labels]
    others = [text.get_window_extent() for text in axes.texts if text not in labels]
    assert not [1 for at, one in enumerate(boxes) for other in [*boxes[:at], *others] if one.overlaps(other)]
