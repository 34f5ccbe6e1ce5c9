"""The shape of a problem: named inputs without the batch axis, what is predicted, and which inputs are modalities."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch


@dataclass(frozen=True)
class Classes:
    """One of `count` classes: int64 targets [N], networks give `count` logits."""

    count: int


@dataclass(frozen=True)
class Real:
    """Real numbers: floating targets [N, *shape], networks give the same shape."""

    shape: tuple[int, ...]


@dataclass(frozen=True)
class Tokens:
    """A sequence of tokens out of a vocabulary of `count`."""

    count: int


@dataclass(frozen=True)
class Nothing:
    """No target, or no data at all."""


Target = Classes | Real | Tokens | Nothing


@dataclass(frozen=True)
class Stream:
    """One modality of a problem of several: what kind of input it is, and which inputs say what of it is there.

    `mask`: the bool input [T] that tells real frames or words (True) from padding; `present`: the bool input [] that
    tells whether an example has the modality at all. None: nothing is padded, nothing is ever missing.
    """

    kind: Literal["image", "frames", "tokens"]
    mask: str | None = None
    present: str | None = None


@dataclass(frozen=True)
class Spec:
    """The shape of a problem: named inputs without the batch axis, and the target. Known without reading a file.

    `tokens`: input → size of its vocabulary, where inputs are whole numbers that stand for characters or words.
    `streams`: input → what modality it is, in data of several; masks are inputs too, and no streams.
    Not compared: `groups`, name → number of classes that follow each other (parts of a series, alphabets);
    `class_splits`, train, valid, test → its classes, where the source fixes it; `drawn`: no examples; `matched`: the
    modalities of an example belong together (where they do not, whether they do is what is asked).
    """

    inputs: Mapping[str, tuple[int, ...]]
    target: Target
    groups: Mapping[str, int] = field(default_factory=dict, compare=False)
    class_splits: Mapping[str, tuple[int, ...]] = field(default_factory=dict, compare=False)
    drawn: bool = field(default=False, compare=False)
    matched: bool = field(default=True, compare=False)
    tokens: Mapping[str, int] = field(default_factory=dict)
    streams: Mapping[str, Stream] = field(default_factory=dict)

    @property
    def outputs(self) -> int:
        """How many numbers a network gives for one example."""
        match self.target:
            case Classes(count) | Tokens(count):
                return count
            case Real(shape):
                return int(torch.Size(shape).numel())
            case Nothing():
                return 0

    @property
    def image(self) -> tuple[int, int, int] | None:
        """(channels, height, width) if there is one input and it is an image; otherwise None."""
        shapes = list(self.inputs.values())
        if len(shapes) != 1 or len(shapes[0]) != 3:
            return None
        channels, height, width = shapes[0]
        return channels, height, width

    @property
    def helpers(self) -> tuple[str, ...]:
        """The inputs that only say what of another input is there: masks and presences."""
        named = (name for stream in self.streams.values() for name in (stream.mask, stream.present))
        return tuple(name for name in named if name is not None)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for files; `from_dict` is its inverse."""
        kind = type(self.target).__name__
        detail = list(self.target.shape) if isinstance(self.target, Real) else getattr(self.target, "count", None)
        plain = {"inputs": {name: list(shape) for name, shape in self.inputs.items()}, "target": [kind, detail]}
        streams = {name: [stream.kind, stream.mask, stream.present] for name, stream in self.streams.items()}
        optional = {"tokens": dict(self.tokens), "streams": streams}
        return plain | {name: value for name, value in optional.items() if value}

    @staticmethod
    def from_dict(plain: Mapping[str, Any]) -> Spec:
        """The Spec that `to_dict` wrote."""
        kind, detail = plain["target"]
        counted: dict[str, type[Classes | Tokens]] = {"Classes": Classes, "Tokens": Tokens}
        target = Nothing() if detail is None else Real(tuple(detail)) if kind == "Real" else counted[kind](detail)
        inputs, tokens = plain["inputs"], plain.get("tokens", {})
        streams = {name: Stream(*fields) for name, fields in plain.get("streams", {}).items()}
        return Spec({name: tuple(shape) for name, shape in inputs.items()}, target, tokens=tokens, streams=streams)
