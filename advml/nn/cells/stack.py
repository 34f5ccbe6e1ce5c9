"""What supernets and the networks of a genotype share: a stem, a stack of cells with reductions, inputs made to fit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from advml.contracts import Nothing, Spec
from advml.nn.cells.operations import FactorizedReduce, relu_conv_norm

Kind = Literal["normal", "reduce"]
STEM = 3
"""The stem gives three times the channels of the first cell."""


def misfit(spec: Spec, reductions: int, key: str = "model.reductions") -> str | None:
    """Why cells with so many reductions cannot serve a spec: what they need, for the user. None if they can."""
    shape = spec.image
    if shape is None:
        return "one image input [channels, height, width]"
    least = 2**reductions if reductions < 2 else 2 ** (reductions - 1) + 1
    if min(shape[1:]) < least:
        return f"one image of at least {least}×{least} for its {reductions} reductions (or a smaller {key})"
    return "a data set with a target" if isinstance(spec.target, Nothing) else None


def reduction_places(cells: int, reductions: int) -> tuple[int, ...]:
    """Which cells halve the image: evenly spaced, with two of them at one and two thirds as in DARTS."""
    return tuple((1 + number) * cells // (1 + reductions) for number in range(reductions))


def kinds_of(cells: int, reductions: int) -> set[Kind]:
    """The kinds of cells that such a stack has."""
    reduced = reduction_places(cells, reductions)
    return {"reduce" if number in reduced else "normal" for number in range(cells)}


def reduced(side: int, times: int) -> int:
    """A side in pixels after so many reductions: halved each time, rounded up."""
    return -(-side // (1 << times))


@dataclass(frozen=True)
class Place:
    """One cell of the stack: its kind and width, the channels of its two inputs, whether the cell before halved."""

    kind: Kind
    channels: int
    inputs: tuple[int, int]
    after_reduction: bool


def places(cells: int, channels: int, reductions: int, outputs: Mapping[str, int]) -> list[Place]:
    """The stack from bottom to top. `outputs`: kind → how many states a cell concatenates. Reductions double C."""
    reduced = reduction_places(cells, reductions)
    older = newer = STEM * channels
    stack: list[Place] = []
    for number in range(cells):
        kind: Kind = "reduce" if number in reduced else "normal"
        channels *= 1 + (kind == "reduce")
        after = bool(stack) and stack[-1].kind == "reduce"
        stack.append(Place(kind, channels, (older, newer), after))
        older, newer = newer, outputs[kind] * channels
    return stack


def stem(channels_in: int, channels: int) -> nn.Sequential:
    """Pixels → three times the channels of the first cell."""
    width = STEM * channels
    return nn.Sequential(nn.Conv2d(channels_in, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))


class Preprocess(nn.ModuleList):
    """Brings both inputs of a cell to its channels, and the older one to the size of the newer.

    `halve`: both are halved too, for cells whose operations have no stride (ENAS).
    """

    def __init__(self, place: Place, affine: bool, halve: bool) -> None:
        reduces = halve and place.kind == "reduce"
        super().__init__(
            _to_width(width, place.channels, halvings, affine)
            for width, halvings in zip(place.inputs, (place.after_reduction + reduces, +reduces), strict=True)
        )

    def forward(self, older: Tensor, newer: Tensor) -> list[Tensor]:
        """The first two states of the cell."""
        return [fit(state) for fit, state in zip(self, (older, newer), strict=True)]


def _to_width(channels_in: int, channels: int, halvings: int, affine: bool) -> nn.Module:
    if not halvings:
        return relu_conv_norm(channels_in, channels, 1, 1, affine)
    first = FactorizedReduce(channels_in, channels, affine)
    more = [FactorizedReduce(channels, channels, affine) for _ in range(halvings - 1)]
    return nn.Sequential(first, *more) if more else first
