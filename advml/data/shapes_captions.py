"""Shapes and captions: small pictures of one shape, and what somebody says about one; made on the spot.

A meaning is a shape, a colour, a place and a size: 4 · 4 · 4 · 2 = 128. A picture of it is drawn with jitter and pixel
noise; a caption is drawn from a small grammar with synonyms and two orders of words, and may lose words that matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from advml.config import CountFloat, Fraction, settings
from advml.contracts import Classes, Spec, Split, Stream
from advml.data.source import Loaded, Source, SplitSettings
from advml.errors import ConfigError

SIDE = 16
COUNTS = (4, 4, 4, 2)
"""How many shapes, colours, places and sizes there are; the number of a meaning counts in these digits."""
MEANINGS = 128
WORDS: tuple[tuple[tuple[str, ...], ...], ...] = (
    (("circle", "disc"), ("square", "box"), ("triangle", "wedge"), ("cross", "plus")),
    (("red", "crimson"), ("green", "emerald"), ("blue", "navy"), ("yellow", "golden")),
    (("upper left", "top left"), ("upper right", "top right"), ("lower left", "bottom left"),
     ("lower right", "bottom right")),
    (("small", "tiny", "little"), ("large", "big", "huge")),
)  # fmt: skip
COLOURS = torch.tensor([[0.85, 0.15, 0.15], [0.15, 0.75, 0.2], [0.2, 0.3, 0.9], [0.85, 0.8, 0.15]])
CENTRES = torch.tensor([[4.5, 4.5], [4.5, 11.5], [11.5, 4.5], [11.5, 11.5]])  # row, column
RADII = torch.tensor([2.0, 3.4])
FRAMES: tuple[tuple[str, ...], ...] = (
    ("a", "SIZE", "COLOUR", "SHAPE", "in", "the", "PLACE"),
    ("there", "is", "a", "SIZE", "COLOUR", "SHAPE", "in", "the", "PLACE", "corner"),
    ("in", "the", "PLACE", "corner", "there", "is", "a", "SIZE", "COLOUR", "SHAPE"),
    ("the", "SHAPE", "in", "the", "PLACE", "is", "SIZE", "and", "COLOUR"),
    ("COLOUR", "SHAPE", "SIZE", "PLACE"),
)
SLOTS = ("SHAPE", "COLOUR", "PLACE", "SIZE")
LENGTH = 11  # the longest frame has ten words, and a place has two
PADDING, UNKNOWN = "<padding>", "<unknown>"


def vocabulary() -> tuple[str, ...]:
    """All words of captions, after the signs for padding (0) and for a word that cannot be made out (1)."""
    spoken = {word for kinds in WORDS for names in kinds for name in names for word in name.split()}
    plain = {word for frame in FRAMES for word in frame if word not in SLOTS}
    return (PADDING, UNKNOWN, *sorted(spoken | plain))


PLACE_OF = {word: number for number, word in enumerate(vocabulary())}


@settings
class ShapesCaptionsSettings(SplitSettings):
    """What is asked about the pairs, how many there are, and how hard they are to make out."""

    task: Literal["matches", "retrieve"]
    examples: Annotated[int, Ge(20)]
    pixel_noise: CountFloat
    lost_words: Fraction


def attributes(meaning: Tensor) -> Tensor:
    """Meanings int64 [N] → their shape, colour, place and size, int64 [N, 4]."""
    found = []
    for count in reversed(COUNTS):
        found.append(meaning % count)
        meaning = meaning // count
    return torch.stack(found[::-1], 1)


def meaning_of(parts: Tensor) -> Tensor:
    """The inverse of `attributes`."""
    meaning = torch.zeros(len(parts), dtype=torch.int64)
    for column, count in enumerate(COUNTS):
        meaning = meaning * count + parts[:, column]
    return meaning


def draw_pictures(meaning: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """Pictures of the meanings, uint8 [N, 3, 16, 16]: grey ground, a shape up to a pixel off its place, Gaussian noise.

    A pixel belongs to the shape if its centre does. `noise`: standard deviation, white is 1.
    """
    parts = attributes(meaning)
    count = len(meaning)
    jitter = 2 * torch.rand(count, 2, generator=generator) - 1
    stretch = 0.9 + 0.2 * torch.rand(count, 1, 1, generator=generator)
    ground = 0.35 + 0.2 * torch.rand(count, 1, 1, 1, generator=generator)
    shade = 0.8 + 0.2 * torch.rand(count, 1, generator=generator)
    blur = torch.randn(count, 3, SIDE, SIDE, generator=generator)
    centre = CENTRES[parts[:, 2]] + jitter - 1
    at = torch.arange(SIDE, dtype=torch.float32)
    down = (at.reshape(1, -1, 1) - centre[:, 0].reshape(-1, 1, 1)) / (RADII[parts[:, 3]].reshape(-1, 1, 1) * stretch)
    right = (at.reshape(1, 1, -1) - centre[:, 1].reshape(-1, 1, 1)) / (RADII[parts[:, 3]].reshape(-1, 1, 1) * stretch)
    down, right = torch.broadcast_tensors(down, right)
    box = torch.maximum(down.abs(), right.abs())
    kinds = torch.stack([
        down.square() + right.square() <= 1,
        box <= 0.9,
        (down <= 0.9) & (2 * right.abs() <= down + 1.1),
        (box <= 1.1) & (torch.minimum(down.abs(), right.abs()) <= 0.35),
    ])  # fmt: skip
    inside = kinds[parts[:, 0], torch.arange(count)].unsqueeze(1)
    colour = (COLOURS[parts[:, 1]] * shade).reshape(count, 3, 1, 1)
    picture = torch.where(inside, colour, ground)
    return ((picture + noise * blur).clamp(0, 1) * 255).round().to(torch.uint8)


def say(meaning: Tensor, lost: float, generator: torch.Generator) -> Tensor:
    """Captions of the meanings as tokens, uint8 [N, 11], 0 after the last word.

    The frame and each synonym are drawn evenly. A part of the meaning is lost with probability `lost`: its words are
    <unknown>.
    """
    drawn = torch.rand(len(meaning), 1 + 2 * len(SLOTS), generator=generator).tolist()
    rows = []
    for parts, chances in zip(attributes(meaning).tolist(), drawn, strict=True):
        frame = FRAMES[int(chances[0] * len(FRAMES))]
        names = {}
        for slot, (name, part) in enumerate(zip(SLOTS, parts, strict=True)):
            synonyms = WORDS[slot][part]
            words = synonyms[int(chances[1 + slot] * len(synonyms))].split()
            hidden = chances[1 + len(SLOTS) + slot] < lost
            names[name] = [UNKNOWN] * len(words) if hidden else words
        rows.append(encode([word for piece in frame for word in names.get(piece, [piece])]))
    return torch.tensor(rows, dtype=torch.uint8).reshape(-1, LENGTH)


def encode(words: Sequence[str]) -> list[int]:
    """Words of the vocabulary → tokens, padded to the length of all captions."""
    return [PLACE_OF[word] for word in words] + [0] * (LENGTH - len(words))


def prompts() -> dict[str, Tensor]:
    """A plain caption of each meaning, in order: text [128, 11] and its mask."""
    rows = []
    for parts in attributes(torch.arange(MEANINGS)).tolist():
        names = {name: WORDS[slot][part][0].split() for slot, (name, part) in enumerate(zip(SLOTS, parts, strict=True))}
        rows.append(encode([word for piece in FRAMES[0] for word in names.get(piece, [piece])]))
    text = torch.tensor(rows, dtype=torch.uint8)
    return {"text": text, "text_mask": text != 0}


def balanced_pairs(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """(what is shown, what is said, do they match), int64 [count] each; `count` is a multiple of 4.

    They come in fours: for two meanings a and b that differ in one part or more, (a, a) and (b, b) match, (a, b) and
    (b, a) do not. So among pictures of a meaning, and among captions of one, exactly half match: neither tells.
    How many parts differ is drawn first, 1 to 4 alike, so that one is as frequent as four.
    """
    fours = count // 4
    first = torch.randint(MEANINGS, (fours,), generator=generator)
    differing = torch.randint(1, len(COUNTS) + 1, (fours, 1), generator=generator)
    order = torch.rand(fours, len(COUNTS), generator=generator).argsort(1).argsort(1)
    sizes = torch.tensor(COUNTS)
    # A step of 1 to n − 1 around a circle of n leads to any other value, each as likely.
    steps = 1 + (torch.rand(fours, len(COUNTS), generator=generator) * (sizes - 1)).long()
    second = meaning_of((attributes(first) + torch.where(order < differing, steps, 0)) % sizes)
    shown = torch.stack([first, second, first, second], 1).flatten()
    said = torch.stack([first, second, second, first], 1).flatten()
    return shown, said, (shown == said).long()


class ShapesCaptions:
    """Pictures of shapes with captions.

    Task `matches`: does the caption tell what the picture shows? Exactly half do, whatever is shown and whatever is
    said. Task `retrieve`: all pairs match, and the target is the meaning, so that several pairs may share one. The
    group of an example is the meaning of its picture.
    """

    settings: ClassVar[type] = ShapesCaptionsSettings

    def __init__(self, settings: ShapesCaptionsSettings) -> None:
        self.config = settings

    def spec(self) -> Spec:
        """A picture and a caption → do they match (2), or what they mean (128)."""
        inputs = {"image": (3, SIDE, SIDE), "text": (LENGTH,), "text_mask": (LENGTH,)}
        streams = {"image": Stream("image"), "text": Stream("tokens", "text_mask")}
        matched = self.config.task == "retrieve"
        target = Classes(MEANINGS if matched else 2)
        return Spec(inputs, target, tokens={"text": len(PLACE_OF)}, streams=streams, matched=matched)

    def load(self, source: Source) -> Loaded:
        """Make train, valid and test, each of whole fours of pairs, by keys of their own."""
        total = self.config.examples // 4
        test = round(total * self.config.test)
        valid = round((total - test) * self.config.valid)
        made, record = {}, {}
        for name, fours in (("train", total - test - valid), ("valid", valid), ("test", test)):
            made[name], record[name] = self._made(name, 4 * fours, source)
        if not len(made["train"]):
            raise ConfigError("dataset: no training example is left after dataset.test and dataset.valid")
        described = prompts() if self.config.task == "retrieve" else {}
        told: dict[str, Any] = {"vocabulary": list(PLACE_OF), "pairs": record}
        return Loaded(made["train"], made["test"], scale=255, record=told, valid=made["valid"], prompts=described)

    def _made(self, name: str, count: int, source: Source) -> tuple[Split, dict[str, Any]]:
        """Examples, and the hash of which meanings they have."""
        draw = source.rng("data", "shapes_captions", self.config.task, name)
        if self.config.task == "matches":
            shown, said, target = balanced_pairs(count, draw)
        else:
            shown = said = target = torch.randint(MEANINGS, (count,), generator=draw)
        text = say(said, self.config.lost_words, draw)
        images = draw_pictures(shown, self.config.pixel_noise, draw)
        pairs = torch.stack([shown, said, target], 1)
        digest = hashlib.sha256(pairs.numpy().tobytes()).hexdigest()
        inputs = {"image": images, "text": text, "text_mask": text != 0}
        return Split(inputs, target, shown, meaning=shown), {"count": count, "sha256": digest}
