"""A genotype: which operations on which edges make up a cell. Plain data, hashable, readable as JSON.

States of a cell are numbered: first its inputs (two, or one in NAS-Bench-201), then its nodes in order. A node is the
sum of its edges, each an operation on an earlier state; the cell's output is the concatenation of some states.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from advml.errors import ConfigError, did_you_mean

VERSION = 1
FORMAT = "advml genotype"

DARTS_OPERATIONS = (
    "none",
    "max_pool_3x3",
    "avg_pool_3x3",
    "skip_connect",
    "sep_conv_3x3",
    "sep_conv_5x5",
    "dil_conv_3x3",
    "dil_conv_5x5",
)
ENAS_OPERATIONS = ("sep_conv_3x3", "sep_conv_5x5", "avg_pool_3x3", "max_pool_3x3", "skip_connect")
NASBENCH201_OPERATIONS = ("none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
SPACES: Mapping[str, tuple[str, ...]] = {
    "darts_cells": DARTS_OPERATIONS,
    "enas_micro": ENAS_OPERATIONS,
    "nasbench201": NASBENCH201_OPERATIONS,
}
"""Space → the operations that its cells may have, in the order in which they are numbered."""


class Edge(NamedTuple):
    """An operation and the number of the state that it reads."""

    operation: str
    source: int


@dataclass(frozen=True)
class Cell:
    """`nodes`: the edges into each node, in order; `concat`: the states that the output consists of."""

    nodes: tuple[tuple[Edge, ...], ...]
    concat: tuple[int, ...]
    inputs: int = 2

    @staticmethod
    def of(edges: Sequence[tuple[str, int]], concat: Sequence[int] | None = None) -> Cell:
        """A cell of two inputs with two edges a node, given in a row; by default all nodes are concatenated."""
        pairs = tuple((Edge(*edges[at]), Edge(*edges[at + 1])) for at in range(0, len(edges), 2))
        return Cell(pairs, tuple(range(2, 2 + len(pairs)) if concat is None else concat))

    def count(self, operation: str) -> int:
        """How many edges have the operation: of skip_connect, a sign of collapse."""
        return sum(edge.operation == operation for node in self.nodes for edge in node)


@dataclass(frozen=True)
class Genotype:
    """The cells of a network: `normal`, and `reduce` where cells that halve the image have their own."""

    space: str
    normal: Cell
    reduce: Cell | None = None

    @property
    def cells(self) -> dict[str, Cell]:
        """Kind → cell."""
        return {"normal": self.normal} | ({} if self.reduce is None else {"reduce": self.reduce})

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and strings for a file; `from_dict` is its inverse."""
        cells = {
            kind: {
                "inputs": cell.inputs,
                "nodes": [[list(edge) for edge in node] for node in cell.nodes],
                "concat": list(cell.concat),
            }
            for kind, cell in self.cells.items()
        }
        return {"format": FORMAT, "version": VERSION, "space": self.space, "cells": cells}

    @staticmethod
    def from_dict(plain: Any, where: str = "genotype") -> Genotype:
        """The genotype that `to_dict` wrote. Raises ConfigError, one line that begins with `where`."""
        if not isinstance(plain, Mapping) or plain.get("format") != FORMAT:
            raise ConfigError(f"{where}: is no genotype (expected an object with format: {FORMAT!r})")
        if plain.get("version") != VERSION:
            raise ConfigError(f"{where}: version {plain.get('version')!r}, but this advml reads version {VERSION}")
        space, cells = str(plain.get("space")), plain.get("cells")
        if space not in SPACES:
            raise ConfigError(f"{where}: unknown space {space!r}{did_you_mean(space, SPACES)}")
        kinds = ("normal",) if space == "nasbench201" else ("normal", "reduce")
        if not isinstance(cells, Mapping) or set(cells) != set(kinds):
            raise ConfigError(f"{where}: cells must be {' and '.join(kinds)}")
        read = [_cell(cells[kind], space, f"{where}: {kind} cell") for kind in kinds]
        return Genotype(space, *read)


def _cell(plain: Any, space: str, where: str) -> Cell:
    try:
        inputs, concat = plain["inputs"], tuple(plain["concat"])
        nodes = tuple(tuple(Edge(*edge) for edge in node) for node in plain["nodes"])
    except (TypeError, KeyError) as error:
        raise ConfigError(f"{where}: needs inputs, nodes (lists of [operation, source]) and concat") from error
    if type(inputs) is not int or inputs != (1 if space == "nasbench201" else 2):
        raise ConfigError(f"{where}: has {inputs!r} inputs, not those of {space}")
    for number, node in enumerate(nodes):
        for operation, source in node:
            if operation not in SPACES[space]:
                hint = did_you_mean(str(operation), SPACES[space])
                raise ConfigError(f"{where}: unknown operation {operation!r} in {space}{hint}")
            if not _is_state(source, inputs + number):
                raise ConfigError(f"{where}: node {number} reads state {source!r}, which is not before it")
    if not nodes or not all(nodes) or not concat or not all(_is_state(state, inputs + len(nodes)) for state in concat):
        raise ConfigError(f"{where}: needs edges into every node and an output of states that exist")
    if min(concat) < inputs or len(set(concat)) < len(concat):
        raise ConfigError(f"{where}: its output must be nodes, each once, not the states {list(concat)}")
    full = [list(range(state)) for state in (1, 2, 3)]
    if space == "nasbench201" and (concat != (3,) or [[edge.source for edge in node] for node in nodes] != full):
        raise ConfigError(
            f"{where}: must have three nodes that each read all states before, the last of them its output"
        )
    return Cell(nodes, concat, inputs)


def _is_state(number: Any, count: int) -> bool:
    return isinstance(number, int) and not isinstance(number, bool) and 0 <= number < count


def read_genotype(path: str | Path) -> Genotype:
    """The genotype in a JSON file. Raises ConfigError, one line with the path."""
    try:
        plain = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except ValueError:
        raise ConfigError(f"{path}: is no JSON file") from None
    return Genotype.from_dict(plain, str(path))


# Facts from the authors' repositories: quark0/darts (DARTS_V1, DARTS_V2), yuhuixu1993/PC-DARTS (PC_DARTS, of CIFAR-10),
# chenxin061/pdarts (P_DARTS).
PUBLISHED: Mapping[str, Genotype] = {
    "DARTS_V1": Genotype(
        "darts_cells",
        Cell.of([
            ("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("skip_connect", 0), ("sep_conv_3x3", 1),
            ("skip_connect", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("skip_connect", 2),
        ]),
        Cell.of([
            ("max_pool_3x3", 0), ("max_pool_3x3", 1), ("skip_connect", 2), ("max_pool_3x3", 0),
            ("max_pool_3x3", 0), ("skip_connect", 2), ("skip_connect", 2), ("avg_pool_3x3", 0),
        ]),
    ),
    "DARTS_V2": Genotype(
        "darts_cells",
        Cell.of([
            ("sep_conv_3x3", 0), ("sep_conv_3x3", 1), ("sep_conv_3x3", 0), ("sep_conv_3x3", 1),
            ("sep_conv_3x3", 1), ("skip_connect", 0), ("skip_connect", 0), ("dil_conv_3x3", 2),
        ]),
        Cell.of([
            ("max_pool_3x3", 0), ("max_pool_3x3", 1), ("skip_connect", 2), ("max_pool_3x3", 1),
            ("max_pool_3x3", 0), ("skip_connect", 2), ("skip_connect", 2), ("max_pool_3x3", 1),
        ]),
    ),
    "PC_DARTS": Genotype(
        "darts_cells",
        Cell.of([
            ("sep_conv_3x3", 1), ("skip_connect", 0), ("sep_conv_3x3", 0), ("dil_conv_3x3", 1),
            ("sep_conv_5x5", 0), ("sep_conv_3x3", 1), ("avg_pool_3x3", 0), ("dil_conv_3x3", 1),
        ]),
        Cell.of([
            ("sep_conv_5x5", 1), ("max_pool_3x3", 0), ("sep_conv_5x5", 1), ("sep_conv_5x5", 2),
            ("sep_conv_3x3", 0), ("sep_conv_3x3", 3), ("sep_conv_3x3", 1), ("sep_conv_3x3", 2),
        ]),
    ),
    "P_DARTS": Genotype(
        "darts_cells",
        Cell.of([
            ("skip_connect", 0), ("dil_conv_3x3", 1), ("skip_connect", 0), ("sep_conv_3x3", 1),
            ("sep_conv_3x3", 1), ("sep_conv_3x3", 3), ("sep_conv_3x3", 0), ("dil_conv_5x5", 4),
        ]),
        Cell.of([
            ("avg_pool_3x3", 0), ("sep_conv_5x5", 1), ("sep_conv_3x3", 0), ("dil_conv_5x5", 2),
            ("max_pool_3x3", 0), ("dil_conv_3x3", 1), ("dil_conv_3x3", 1), ("dil_conv_5x5", 3),
        ]),
    ),
}  # fmt: skip


def published(name: str) -> Genotype:
    """A genotype of the literature by name."""
    if name not in PUBLISHED:
        raise ConfigError(f"{name}: no published genotype of this name{did_you_mean(name, PUBLISHED)}")
    return PUBLISHED[name]
