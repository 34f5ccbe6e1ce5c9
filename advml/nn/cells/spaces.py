"""Search spaces behind one interface, so that a search algorithm knows none of them.

An architecture is a code: a tuple of whole numbers, `code[i]` below `choices[i]`, every such tuple being a valid
architecture. Codes are what searches draw, change and remember; a genotype is what a network is built from.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from math import prod
from typing import Any, ClassVar

import torch

from advml.errors import ConfigError
from advml.nn.cells.genotype import DARTS_OPERATIONS, ENAS_OPERATIONS, SPACES, Cell, Edge, Genotype
from advml.nn.cells.nasbench201 import canonical_code

Code = tuple[int, ...]
KINDS = ("normal", "reduce")


class Space:
    """What every space offers. Randomness comes from a CPU generator that the caller gives.

    `choices`: how many values each position of a code has; `labels`: what each position decides, for people.
    """

    name: ClassVar[str]
    choices: tuple[int, ...]
    labels: tuple[str, ...]

    @property
    def size(self) -> int:
        """How many codes there are."""
        return prod(self.choices)

    def sample(self, generator: torch.Generator) -> Code:
        """A code drawn evenly."""
        draws = torch.rand(len(self.choices), generator=generator, dtype=torch.float64).tolist()
        return tuple(int(draw * count) for draw, count in zip(draws, self.choices, strict=True))

    def neighbours(self, code: Code) -> list[Code]:
        """All codes one change away, each once, in a fixed order."""
        return [
            (*code[:at], value, *code[at + 1 :])
            for at, count in enumerate(self.choices)
            for value in range(count)
            if value != code[at]
        ]

    def mutate(self, code: Code, generator: torch.Generator) -> Code:
        """A neighbour, drawn evenly. A code with a single choice everywhere is its own."""
        near = self.neighbours(code)
        return near[int(torch.randint(len(near), (), generator=generator))] if near else code

    def canonical(self, code: Code) -> Code:
        """The same code for all codes whose networks compute the same functions up to the order of channels."""
        raise NotImplementedError

    def genotype(self, code: Code) -> Genotype:
        """The cells that a code stands for."""
        raise NotImplementedError

    def encode(self, genotype: Genotype) -> Code:
        """The code of a genotype of this space: the inverse of `genotype`. Raises ConfigError for one of another."""
        raise NotImplementedError

    def to_dict(self, code: Code) -> dict[str, Any]:
        """Plain data of the genotype; `from_dict` is its inverse."""
        return self.genotype(code).to_dict()

    def from_dict(self, plain: Any) -> Code:
        """The code of a genotype as plain data."""
        return self.encode(Genotype.from_dict(plain))

    def _refuse(self, genotype: Genotype) -> ConfigError:
        return ConfigError(f"genotype of {genotype.space}: is none of the {self.size:,} in this {self.name} space")


class _Cells(Space):
    """Spaces of a normal and a reduction cell, coded one after the other with the same choices."""

    def __init__(self, nodes: int, operations: Sequence[str]) -> None:
        self.nodes, self.operations = nodes, tuple(operations)

    def genotype(self, code: Code) -> Genotype:
        half = len(code) // 2
        return Genotype(self.name, self._cell(code[:half]), self._cell(code[half:]))

    def encode(self, genotype: Genotype) -> Code:
        cells = [genotype.cells.get(kind) for kind in KINDS]
        try:
            code = tuple(value for cell in cells if cell is not None for value in self._code(cell))
        except (ValueError, IndexError):
            raise self._refuse(genotype) from None
        if genotype.space != self.name or len(code) != len(self.choices):
            raise self._refuse(genotype)
        return code

    def canonical(self, code: Code) -> Code:
        half = len(code) // 2
        return self._smallest(code[:half]) + self._smallest(code[half:])

    def _smallest(self, code: Code) -> Code:
        """The smallest code of a cell with its nodes in any order that keeps sources before those who read them.

        Node by node: of all ways to go on, those whose next part of the code is smallest.
        """
        nodes = self._cell(code).nodes
        orders: list[tuple[int, ...]] = [()]
        found: Code = ()
        for place in range(self.nodes):
            ways = []
            for order in orders:
                number = {0: 0, 1: 1} | {2 + node: 2 + at for at, node in enumerate(order)}
                for node, edges in enumerate(nodes):
                    if node not in order and all(edge.source in number for edge in edges):
                        moved = [Edge(edge.operation, number[edge.source]) for edge in edges]
                        ways.append((self._part(place, sorted(moved, key=self._rank)), (*order, node)))
            part = min(part for part, _ in ways)
            orders = [order for other, order in ways if other == part]
            found += part
        return found

    def _rank(self, edge: Edge) -> tuple[int, int]:
        return edge.source, self.operations.index(edge.operation)

    def _code(self, cell: Cell) -> Code:
        if len(cell.nodes) != self.nodes:
            raise ValueError
        return tuple(value for place, edges in enumerate(cell.nodes) for value in self._part(place, edges))

    def _cell(self, code: Code) -> Cell:
        raise NotImplementedError

    def _part(self, place: int, edges: Sequence[Edge]) -> Code:
        """The code of node number `place`. Raises ValueError or IndexError for one that is not of the space."""
        raise NotImplementedError


class DartsCells(_Cells):
    """DARTS (Liu et al. 2019): each node reads two different earlier states, all nodes are concatenated.

    A code holds for each node (which pair of sources, operation on the smaller source, operation on the larger one).
    `none` is no choice here: it exists only during a search by gradients.
    """

    name = "darts_cells"

    def __init__(self, nodes: int = 4, operations: Sequence[str] = DARTS_OPERATIONS) -> None:
        super().__init__(nodes, [operation for operation in operations if operation != "none"])
        self._pairs = [list(combinations(range(2 + node), 2)) for node in range(nodes)]
        count = len(self.operations)
        self.choices = 2 * tuple(value for pairs in self._pairs for value in (len(pairs), count, count))
        what = ("sources", "first operation", "second operation")
        self.labels = tuple(f"{kind} node {node} {part}" for kind in KINDS for node in range(nodes) for part in what)

    def _cell(self, code: Code) -> Cell:
        nodes = []
        for node, pairs in enumerate(self._pairs):
            pair, first, second = code[3 * node : 3 * node + 3]
            low, high = pairs[pair]
            nodes.append((Edge(self.operations[first], low), Edge(self.operations[second], high)))
        return Cell(tuple(nodes), tuple(range(2, 2 + self.nodes)))

    def _part(self, place: int, edges: Sequence[Edge]) -> Code:
        low, high = sorted(edges, key=lambda edge: edge.source)
        sources = self._pairs[place].index((low.source, high.source))
        return sources, self.operations.index(low.operation), self.operations.index(high.operation)

    def neighbours(self, code: Code) -> list[Code]:
        """Another operation on one edge, or another source for one edge, which keeps its operation."""
        near = []
        for at in range(0, len(code), 3):
            pairs = self._pairs[at // 3 % self.nodes]
            (low, high), first, second = pairs[code[at]], code[at + 1], code[at + 2]
            nodes = [(code[at], other, second) for other in range(len(self.operations)) if other != first]
            nodes += [(code[at], first, other) for other in range(len(self.operations)) if other != second]
            for kept, operation, moved in ((high, second, first), (low, first, second)):
                for source in range(2 + at // 3 % self.nodes):
                    if source not in (low, high):
                        (a, x), (b, y) = sorted(((kept, operation), (source, moved)))
                        nodes.append((pairs.index((a, b)), x, y))
            near += [(*code[:at], *node, *code[at + 3 :]) for node in nodes]
        return near


class EnasMicro(_Cells):
    """The micro space of ENAS (Pham et al. 2018): blocks of two operations on two earlier states, maybe the same one.

    A code holds for each block (first source, second source, first operation, second operation): the order in which
    the controller decides. States that no block reads are concatenated.
    """

    name = "enas_micro"

    def __init__(self, nodes: int = 5, operations: Sequence[str] = ENAS_OPERATIONS) -> None:
        super().__init__(nodes, operations)
        count = len(self.operations)
        self.choices = 2 * tuple(value for node in range(nodes) for value in (2 + node, 2 + node, count, count))
        what = ("first source", "second source", "first operation", "second operation")
        self.labels = tuple(f"{kind} block {node} {part}" for kind in KINDS for node in range(nodes) for part in what)

    def _cell(self, code: Code) -> Cell:
        nodes = []
        for node in range(self.nodes):
            one, two, first, second = code[4 * node : 4 * node + 4]
            nodes.append((Edge(self.operations[first], one), Edge(self.operations[second], two)))
        return Cell(tuple(nodes), loose_ends(nodes))

    def _part(self, place: int, edges: Sequence[Edge]) -> Code:
        one, two = edges
        return one.source, two.source, self.operations.index(one.operation), self.operations.index(two.operation)


def loose_ends(nodes: Sequence[Sequence[Edge]]) -> tuple[int, ...]:
    """The nodes of a cell with two inputs that no other node reads; numbered as states."""
    read = {edge.source for node in nodes for edge in node}
    return tuple(state for state in range(2, 2 + len(nodes)) if state not in read)


class NasBench201(Space):
    """NAS-Bench-201 (Dong and Yang 2020): three nodes, each reading all earlier states: 6 edges of 5 operations.

    A code holds the operations of the edges in the order of the benchmark's strings: 1←0, 2←0, 2←1, 3←0, 3←1, 3←2.
    """

    name = "nasbench201"
    choices = (5,) * 6
    labels = ("edge 1←0", "edge 2←0", "edge 2←1", "edge 3←0", "edge 3←1", "edge 3←2")
    operations = SPACES["nasbench201"]

    def genotype(self, code: Code) -> Genotype:
        names = [self.operations[value] for value in code]
        nodes = tuple(
            tuple(Edge(names[node * (node + 1) // 2 + source], source) for source in range(node + 1))
            for node in range(3)
        )
        return Genotype(self.name, Cell(nodes, (3,), inputs=1))

    def encode(self, genotype: Genotype) -> Code:
        code = tuple(
            self.operations.index(edge.operation)
            for node in genotype.normal.nodes
            for edge in sorted(node, key=lambda edge: edge.source)
            if edge.operation in self.operations
        )
        if genotype.space != self.name or len(code) != 6:
            raise self._refuse(genotype)
        return code

    def canonical(self, code: Code) -> Code:
        """The smallest code with the same function: what `none` cuts off and the order of sums do not matter."""
        return canonical_code(code)
