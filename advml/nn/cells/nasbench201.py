"""The cells of NAS-Bench-201 as numbers and as strings (Dong and Yang 2020).

A code holds the operations of the edges 1←0, 2←0, 2←1, 3←0, 3←1, 3←2, numbered as in the benchmark:
none, skip_connect, nor_conv_1x1, nor_conv_3x3, avg_pool_3x3.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from itertools import product

from advml.errors import ConfigError
from advml.nn.cells.genotype import NASBENCH201_OPERATIONS

NODES = 3
CODES = 5**6
_EDGE = re.compile(r"([a-z0-9_]+)~(\d)")


def number(code: Sequence[int]) -> int:
    """The place of a code among all 15,625: Σ code[i] · 5^(5−i)."""
    place = 0
    for value in code:
        place = 5 * place + value
    return place


def from_number(place: int) -> tuple[int, ...]:
    """The code at a place: the inverse of `number`."""
    return tuple(place // 5**power % 5 for power in range(5, -1, -1))


def to_string(code: Sequence[int]) -> str:
    """|operation~source|+|…~0|…~1|+|…~0|…~1|…~2|, as the benchmark writes a cell."""
    names = iter(NASBENCH201_OPERATIONS[value] for value in code)
    nodes = ("".join(f"{next(names)}~{source}|" for source in range(node)) for node in range(1, NODES + 1))
    return "+".join("|" + node for node in nodes)


def from_string(text: str) -> tuple[int, ...]:
    """The code of a cell written by the benchmark. Raises ConfigError, one line."""
    found = _EDGE.findall(text)
    unknown = [operation for operation, _ in found if operation not in NASBENCH201_OPERATIONS]
    if unknown:
        known = ", ".join(NASBENCH201_OPERATIONS)
        raise ConfigError(f"NAS-Bench-201 cell {text!r}: unknown operation {unknown[0]}; there are {known}")
    code = tuple(NASBENCH201_OPERATIONS.index(operation) for operation, _ in found)
    if len(code) != 6 or to_string(code) != text:
        raise ConfigError(f"{text!r}: is no NAS-Bench-201 cell, written like {to_string((3,) * 6)}")
    return code


def unique_string(code: Sequence[int]) -> str:
    """The text that equals that of all cells which the benchmark takes for the same: 6,466 texts for 15,625 codes.

    Its rule: `none`, and whatever reads a state that is only #, is #; skip_connect is what it reads; a node is the
    sorted sum of its edges. So the order of sums does not matter, nor do skips, nor states that nothing reaches; #
    itself stays in a sum, and a sum of several # is not #.
    """
    states = ["0"]
    edges = iter(NASBENCH201_OPERATIONS[value] for value in code)
    for node in range(1, NODES + 1):
        terms = []
        for source in range(node):
            operation, read = next(edges), states[source]
            if operation == "none" or read == "#":
                terms.append("#")
            else:
                terms.append(read if operation == "skip_connect" else f"({read})@{operation}")
        states.append("+".join(sorted(terms)))
    return states[-1]


@cache
def _smallest() -> dict[str, tuple[int, ...]]:
    """Unique text → its smallest code, over all codes in ascending order."""
    smallest: dict[str, tuple[int, ...]] = {}
    for code in product(range(5), repeat=6):
        smallest.setdefault(unique_string(code), code)
    return smallest


def canonical_code(code: Sequence[int]) -> tuple[int, ...]:
    """The smallest of the codes with the same unique text."""
    return _smallest()[unique_string(code)]


def multiply_adds(code: Sequence[int], channels: int = 16, cells: int = 5, side: int = 32, classes: int = 10) -> int:
    """Those of a forward pass of the benchmark's network: three stages of `cells` cells on images [3, side, side].

    From stage to stage the channels double and the area is a quarter: a 1×1 convolution costs the same in each,
    channels² · area, a 3×3 one nine times that.
    """
    one = channels**2 * side**2
    kernels = {"nor_conv_1x1": 1, "nor_conv_3x3": 9}
    edges = sum(kernels.get(NASBENCH201_OPERATIONS[value], 0) for value in code)
    stem = 27 * channels * side**2
    # A residual block: 3×3 from C to 2C and from 2C to 2C, 1×1 from C to 2C, on a quarter of the area.
    halvings = 2 * (9 * one // 2 + 9 * one + one // 2)
    return stem + 3 * cells * edges * one + halvings + 4 * channels * classes
