"""Search spaces: codes and genotypes are one to one, changes are single changes, equal cells have one code."""

from collections import Counter
from itertools import permutations, product
from math import comb

import pytest
import torch

from advml.errors import ConfigError
from advml.nn.cells.genotype import PUBLISHED, Cell, Edge, Genotype
from advml.nn.cells.nasbench201 import canonical_code, from_number, number, to_string, unique_string
from advml.nn.cells.spaces import DartsCells, EnasMicro, NasBench201

FEW = ["none", "skip_connect", "sep_conv_3x3"]
SPACES = [DartsCells(), DartsCells(2, FEW), EnasMicro(), EnasMicro(2), NasBench201()]
every_space = pytest.mark.parametrize("space", SPACES, ids=lambda space: f"{space.name}-{len(space.choices)}")


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@every_space
def test_codes_and_genotypes_are_one_to_one(space):
    rng = seeded()
    for _ in range(20):
        code = space.sample(rng)
        assert all(0 <= value < count for value, count in zip(code, space.choices, strict=True))
        assert space.encode(space.genotype(code)) == code
        assert space.from_dict(space.to_dict(code)) == code
    assert len(space.labels) == len(space.choices)


@every_space
def test_neighbours_are_each_others_neighbours_and_mutations_are_drawn_from_them(space):
    rng = seeded(1)
    code = space.sample(rng)
    near = space.neighbours(code)
    assert len(set(near)) == len(near)
    assert code not in near
    for other in near[::7]:
        assert code in space.neighbours(other)
        assert space.encode(space.genotype(other)) == other
    assert {space.mutate(code, rng) for _ in range(10)} <= set(near)
    assert space.mutate(code, seeded(5)) == space.mutate(code, seeded(5))


def test_how_many_there_are():
    pairs = [comb(2 + node, 2) for node in range(4)]
    assert DartsCells().size == (pairs[0] * pairs[1] * pairs[2] * pairs[3] * 7**8) ** 2  # about 10^18, as in the paper
    assert EnasMicro().size == (2 * 3 * 4 * 5 * 6 * 5**5) ** 4
    assert NasBench201().size == 15_625
    assert len(NasBench201().neighbours((0,) * 6)) == 24


def test_a_neighbour_in_the_darts_space_is_one_operation_or_one_source_away():
    space = DartsCells()
    code = space.sample(seeded(3))

    def edges(one):
        cells = space.genotype(one).cells
        nodes = [(kind, number, node) for kind in cells for number, node in enumerate(cells[kind].nodes)]
        return Counter((kind, number, edge) for kind, number, node in nodes for edge in node)

    # 16 edges with 6 other operations; node 1, 2, 3 with 1, 2, 3 other sources for each of its two edges.
    near = space.neighbours(code)
    assert len(near) == 16 * 6 + 2 * 2 * (1 + 2 + 3)
    for other in near:
        ((gone, _),) = (edges(code) - edges(other)).items()
        ((new, _),) = (edges(other) - edges(code)).items()
        assert gone[:2] == new[:2]
        assert (gone[2].source == new[2].source) != (gone[2].operation == new[2].operation)


def test_samples_are_even():
    space = EnasMicro(1, ["sep_conv_3x3", "skip_connect"])
    rng = seeded(2)
    drawn = Counter(space.sample(rng) for _ in range(8000))
    assert len(drawn) == space.size == 256
    assert sum((count - 31.25) ** 2 / 31.25 for count in drawn.values()) < 340  # χ² with 255 degrees: beyond 1 in 4,000


def test_published_genotypes_are_in_the_darts_space():
    for genotype in PUBLISHED.values():
        again = DartsCells().genotype(DartsCells().encode(genotype))
        for kind, cell in genotype.cells.items():
            assert [set(node) for node in again.cells[kind].nodes] == [set(node) for node in cell.nodes]


def test_genotypes_of_elsewhere_are_refused():
    v2 = PUBLISHED["DARTS_V2"]
    twice = Genotype("darts_cells", Cell.of([("skip_connect", 0), ("skip_connect", 0)] * 4), v2.reduce)
    for space, genotype in (
        (NasBench201(), v2), (EnasMicro(4), v2), (DartsCells(3), v2), (DartsCells(5), v2), (DartsCells(), twice),
        (DartsCells(4, ["skip_connect"]), v2), (DartsCells(), NasBench201().genotype((0,) * 6)),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match="is none of the"):
            space.encode(genotype)


def test_sizes_of_small_spaces():
    assert [DartsCells(2).size, EnasMicro(2).size] == [(3 * 7**4) ** 2, (6 * 5**2) ** 4]


def test_the_order_of_nodes_and_of_halves_does_not_matter():
    darts, enas = DartsCells(), EnasMicro()
    first, second = ("skip_connect", 0), ("sep_conv_3x3", 1)
    third, fourth = ("max_pool_3x3", 0), ("dil_conv_3x3", 1)
    # Nodes 0 and 1 read inputs only and change places; node 2 reads node 0, then node 1.
    one = Cell.of([first, second, third, fourth, ("skip_connect", 2), first, first, ("skip_connect", 4)])
    two = Cell.of([third, fourth, first, second, first, ("skip_connect", 3), ("skip_connect", 4), first])
    other = Cell.of([third, fourth, first, second, first, ("skip_connect", 2), ("skip_connect", 4), first])
    codes = [darts.encode(Genotype("darts_cells", cell, cell)) for cell in (one, two, other)]
    assert codes[0] != codes[1]
    assert darts.canonical(codes[0]) == darts.canonical(codes[1]) != darts.canonical(codes[2])
    rng = seeded(4)
    for _ in range(5):
        code = enas.sample(rng)
        swapped = [code[at + offset] for at in range(0, len(code), 4) for offset in (1, 0, 3, 2)]
        assert enas.canonical(tuple(swapped)) == enas.canonical(code) == enas.canonical(enas.canonical(code))


@pytest.mark.parametrize(
    "space", [DartsCells(3), EnasMicro(3), DartsCells(4, ["skip_connect"]), EnasMicro(4, ["skip_connect"])]
)
def test_the_canonical_code_is_the_smallest_of_all_orders_of_nodes(space):
    """By trying them all, edges of a node in both orders too."""

    def orders(cell):
        for order in permutations(range(space.nodes)):
            number = {0: 0, 1: 1} | {2 + node: 2 + place for place, node in enumerate(order)}
            nodes = [[Edge(one, number[source]) for one, source in cell.nodes[node]] for node in order]
            if all(edge.source < 2 + place for place, node in enumerate(nodes) for edge in node):
                for swaps in product((False, True), repeat=space.nodes):
                    moved = [node[::-1] if swap else node for node, swap in zip(nodes, swaps, strict=True)]
                    whole = Cell(tuple(map(tuple, moved)), cell.concat)
                    if all(one.source <= two.source for one, two in moved):
                        yield space.encode(Genotype(space.name, whole, whole))[: len(space.choices) // 2]

    rng = seeded(7)
    for _ in range(20):
        code = space.sample(rng)
        genotype = space.genotype(code)
        assert space.canonical(code) == min(orders(genotype.normal)) + min(orders(genotype.reduce))


def test_a_cell_of_many_nodes_has_a_canonical_code_at_once():
    space = DartsCells(10)
    code = space.sample(seeded(0))
    assert space.canonical(space.canonical(code)) == space.canonical(code)


def test_loose_ends_are_what_enas_concatenates():
    space = EnasMicro(3)
    half = (0, 1, 0, 1, 2, 0, 4, 0, 1, 1, 2, 3)  # block 1 reads block 0 (state 2); nothing reads blocks 1 and 2
    cell = space.genotype(half + half).normal
    assert cell.concat == (3, 4)
    assert cell.nodes[1] == (Edge("skip_connect", 2), Edge("sep_conv_3x3", 0))


def test_nas_bench_201_has_6466_cells_and_isomorphs_share_a_code():
    codes = list(product(range(5), repeat=6))
    assert [number(code) for code in codes] == list(range(15_625))
    assert all(from_number(number(code)) == code for code in codes[::97])
    classes = Counter(canonical_code(code) for code in codes)
    assert len(classes) == 6466
    assert sum(classes.values()) == 15_625
    # none, skip, 1×1, 3×3, pool = 0 … 4. Two ways to say: the sum of a 1×1 and a 3×3 convolution, and nothing else.
    text = "#+(0)@nor_conv_1x1+(0)@nor_conv_3x3"
    assert unique_string((2, 0, 0, 3, 1, 0)) == unique_string((3, 0, 0, 2, 1, 0)) == text
    # What is behind a cut-off state does not matter.
    assert canonical_code((0, 3, 4, 1, 2, 1)) == canonical_code((0, 3, 2, 1, 3, 1))
    assert to_string((0, 1, 2, 3, 4, 0)) == (
        "|none~0|+|skip_connect~0|nor_conv_1x1~1|+|nor_conv_3x3~0|avg_pool_3x3~1|none~2|"
    )
