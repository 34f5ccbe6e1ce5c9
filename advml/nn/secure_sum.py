"""A sum of whole numbers of which no single term is seen (Bonawitz et al. 2017), played through in one process.

Client i turns its numbers into whole ones modulo 2^b (fixed point) and adds masks:

    y_i = x_i + PRG(b_i) + Σ_{j > i} PRG(s_ij) − Σ_{j < i} PRG(s_ij)        mod 2^b

The masks of a pair cancel in Σ y_i. The server is told b_i of those whose y_i came, and s_ij between those and the ones
that dropped out, takes these masks off, and is left with Σ x_i: the very sum of whole numbers, in any order.

This tells what secure summation costs and does to the numbers. It protects nobody: all keys come from the run's seed,
and no key is exchanged or shared among clients; whoever runs it sees everything.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated

import torch
from annotated_types import Interval
from torch import Tensor

from advml.config import PositiveInt, settings
from advml.errors import AdvmlError

Key = Callable[..., torch.Generator]
"""key("pair", i, j) or key("own", i) → the generator of that mask, in the same state whenever asked."""


@settings
class SecureSettings:
    """The keys of the block `secure_aggregation` in configs/method/_base/federated.yaml."""

    enabled: bool
    bits: Annotated[int, Interval(ge=16, le=62)]
    fraction_bits: Annotated[int, Interval(ge=1, le=52)]
    neighbours: PositiveInt | None

    def __post_init__(self) -> None:
        if self.enabled and self.fraction_bits > self.bits - 8:
            raise ValueError(f"fraction_bits: leave 8 of {self.bits} bits or more for what is before the point")


# --- fixed point ---------------------------------------------------------------------------------------------------


def bound(bits: int, fraction_bits: int, terms: int) -> float:
    """The largest size of a value of which `terms`, with weights that add up to 1, cannot overflow b bits.

    Each weighted term is rounded by half a unit at most: 2^(b−1) − 1 − terms units are left for the sum itself.
    """
    return math.ldexp(2 ** (bits - 1) - 1 - terms, -fraction_bits)


def encode(values: Tensor, fraction_bits: int) -> Tensor:
    """round(v · 2^f) as int64."""
    return values.double().mul(2**fraction_bits).round().to(torch.int64)


def decode(whole: Tensor, bits: int, fraction_bits: int, dtype: torch.dtype) -> Tensor:
    """The numbers behind whole ones modulo 2^b, of which the upper half stands for negative ones."""
    return signed(whole, bits).double().div(2**fraction_bits).to(dtype)


def reduced(whole: Tensor, bits: int) -> Tensor:
    """Modulo 2^b: from 0 to 2^b − 1. What int64 itself wraps around at, 2^64, is a multiple of it."""
    return whole.bitwise_and(2**bits - 1)


def signed(whole: Tensor, bits: int) -> Tensor:
    """The same modulo 2^b, from −2^(b−1) to 2^(b−1) − 1."""
    whole = reduced(whole, bits)
    return torch.where(whole >= 2 ** (bits - 1), whole - 2**bits, whole)


# --- masks ---------------------------------------------------------------------------------------------------------


def partners(position: int, cohort: int, neighbours: int | None) -> list[int]:
    """With whom the client at `position` of a cohort shares masks, as positions, ascending.

    None: with all others. Else with so many, rounded up to an even number, nearest on a ring (Bell et al. 2020: some
    log n are enough for large cohorts), and again with all where there are no more.
    """
    if neighbours is None or neighbours + 1 >= cohort:
        return [other for other in range(cohort) if other != position]
    half = -(-neighbours // 2)
    ring = {(position + step) % cohort for step in range(-half, half + 1)}
    return sorted(ring - {position})


def mask(generator: torch.Generator, shapes: Mapping[str, torch.Size], bits: int) -> dict[str, Tensor]:
    """Uniform on 0 … 2^b − 1, for every name in its order."""
    return {name: torch.randint(2**bits, shape, generator=generator) for name, shape in shapes.items()}


class SecureSum:
    """Σ_k w_k v_k over the clients of a cohort that are added, the others having dropped out after masks were agreed.

    `cohort`: all who agreed on masks, in order. Values larger than `bound` are cut off there, and counted: whole
    numbers that wrap around would be worse.
    """

    def __init__(self, cohort: Sequence[int], config: SecureSettings, key: Key) -> None:
        self.cohort, self.config, self.key = list(cohort), config, key
        self.place = {client: position for position, client in enumerate(self.cohort)}
        self.came: list[int] = []  # positions
        self.sums: dict[str, Tensor] = {}
        self.types: dict[str, torch.dtype] = {}
        self.cut = 0  # numbers that were too large
        self.limit = bound(config.bits, config.fraction_bits, len(self.cohort))

    def add(self, clients: Sequence[int], values: Mapping[str, Tensor], weights: Tensor) -> None:
        """Receive what `clients` send for their values, name → [R, *shape], with weights [R]."""
        for row, client in enumerate(clients):
            own = {name: value[row] for name, value in values.items()}
            self.receive(self.place[client], self.message(self.place[client], own, float(weights[row])))
        self.types |= {name: value.dtype for name, value in values.items()}

    def message(self, position: int, values: Mapping[str, Tensor], weight: float) -> dict[str, Tensor]:
        """What a client sends, name → whole numbers modulo 2^b: its weighted values under its masks."""
        sent = self.whole(values, weight)
        shapes = {name: number.shape for name, number in sent.items()}
        self._move(sent, self._own(position, shapes), 1)
        for other in partners(position, len(self.cohort), self.config.neighbours):
            self._move(sent, self._pair(position, other, shapes), 1 if other > position else -1)
        return {name: reduced(number, self.config.bits) for name, number in sent.items()}

    def whole(self, values: Mapping[str, Tensor], weight: float) -> dict[str, Tensor]:
        """A client's weighted values in fixed point, without masks. Raises AdvmlError for values that are no numbers.

        The weights add up to 1, so that values within the bound leave a sum within it.
        """
        found = {}
        for name, value in values.items():
            if not bool(value.isfinite().all()):
                raise AdvmlError("secure_aggregation: a client's update is not finite; lower method.lr")
            wide = value.double()  # in float32 the bound itself would be rounded, up to what wraps around
            self.cut += int((wide.abs() > self.limit).sum())
            found[name] = encode(wide.clamp(-self.limit, self.limit) * weight, self.config.fraction_bits)
        return found

    def receive(self, position: int, message: Mapping[str, Tensor]) -> None:
        """Add up; the order does not matter to whole numbers."""
        self.came.append(position)
        self.sums = {name: self.sums[name] + sent if self.sums else sent for name, sent in message.items()}

    def total(self) -> dict[str, Tensor]:
        """The sum, from fixed point to the type that the values had, masks off; empty where nobody came."""
        bits, point = self.config.bits, self.config.fraction_bits
        whole = self.whole_total()
        return {name: decode(number, bits, point, self.types[name]) for name, number in whole.items()}

    def whole_total(self) -> dict[str, Tensor]:
        """The sum in fixed point, from −2^(b−1) to 2^(b−1) − 1, after the masks that did not cancel are taken off."""
        if not self.came:
            return {}
        left = {name: number.clone() for name, number in self.sums.items()}
        shapes = {name: number.shape for name, number in left.items()}
        for generator, sign in self.uncancelled():
            self._move(left, mask(generator, shapes, self.config.bits), -sign)
        return {name: signed(number, self.config.bits) for name, number in left.items()}

    def uncancelled(self) -> Iterator[tuple[torch.Generator, int]]:
        """The generators that clients reveal to the server, and the sign of their mask in the sum."""
        here = set(self.came)
        for position in sorted(here):
            yield self.key("own", self.cohort[position]), 1
            for other in partners(position, len(self.cohort), self.config.neighbours):
                if other not in here:
                    yield self._pair_key(position, other), 1 if other > position else -1

    def _own(self, position: int, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
        return mask(self.key("own", self.cohort[position]), shapes, self.config.bits)

    def _pair(self, position: int, other: int, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
        return mask(self._pair_key(position, other), shapes, self.config.bits)

    def _pair_key(self, position: int, other: int) -> torch.Generator:
        first, second = sorted((position, other))
        return self.key("pair", self.cohort[first], self.cohort[second])

    @staticmethod
    def _move(numbers: dict[str, Tensor], masks: Mapping[str, Tensor], sign: int) -> None:
        for name, number in masks.items():
            numbers[name] += sign * number.to(numbers[name].device)


def message_bytes(numbers: Iterable[int], bits: int) -> int:
    """Bytes of a masked message: every number has all b bits, in each tensor rounded up to whole bytes."""
    return sum(-(-count * bits // 8) for count in numbers)
