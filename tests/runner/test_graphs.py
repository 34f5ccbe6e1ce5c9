"""Graphs as artifacts: their edges as a table, and drawn."""

import re

from advml.artifacts import Graph
from advml.runner import artifacts, figures
from advml.runner.folder import RunFolder
from advml.runner.graphs import layout

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
