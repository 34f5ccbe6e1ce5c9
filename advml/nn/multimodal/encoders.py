"""From one modality to a sequence of vectors: images, frames of sound and words, each by an encoder of its kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advml.config import Fraction, PositiveInt, settings
from advml.contracts import Spec, Stream
from advml.nn.multimodal.attention import masked_mean
from advml.nn.multimodal.blocks import SelfBlock

INITIAL = 0.02  # standard deviation of what is learned from nothing: positions, modality tokens


@settings
class TowerSettings:
    """Keys of every model of several modalities: configs/model/_base/towers.yaml. Inherit from it."""

    width: PositiveInt
    heads: PositiveInt
    hidden: PositiveInt
    depth: PositiveInt
    image: Literal["patches", "convolution"]
    patch: PositiveInt
    frames: PositiveInt
    dropout: Fraction
    unimodal_heads: bool

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"heads: must divide width={self.width}, into as many parts")
        if self.image == "convolution" and self.width % 2:
            raise ValueError("width: image=convolution needs an even one, for half as many channels in between")


def streams_of(spec: Spec) -> dict[str, Stream]:
    """The modalities of a spec; where it names none, those that its inputs look like. Empty: an input looks like none.

    [channels, height, width] is an image, [length, features] are frames, tokens in a row are tokens.
    """
    if spec.streams:
        return dict(spec.streams)
    found: dict[str, Stream] = {}
    for name, shape in spec.inputs.items():
        if name in spec.tokens:
            if len(shape) != 1:
                return {}
            found[name] = Stream("tokens")
        elif len(shape) == 3:
            found[name] = Stream("image")
        elif len(shape) == 2:
            found[name] = Stream("frames")
        else:
            return {}
    return found


class Patches(nn.Module):
    """An image in squares, each an affine map of its pixels (Dosovitskiy et al. 2021); zeros fill up the last."""

    def __init__(self, shape: Sequence[int], width: int, patch: int) -> None:
        super().__init__()
        channels, height, breadth = shape
        self.patch = patch
        self.grid = (-(-height // patch), -(-breadth // patch))
        self.missing = (self.grid[0] * patch - height, self.grid[1] * patch - breadth)
        self.length = self.grid[0] * self.grid[1]
        self.affine = nn.Linear(channels * patch * patch, width)

    def forward(self, image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """[B, C, H, W] → [B, rows · columns, D]."""
        rows, columns = self.missing
        if rows or columns:
            image = F.pad(image, (0, columns, 0, rows))
        squares = image.unflatten(3, (-1, self.patch)).unflatten(2, (-1, self.patch)).permute(0, 2, 4, 1, 3, 5)
        tokens: Tensor = self.affine(squares.flatten(3).flatten(1, 2))
        return tokens, None


class Convolutions(nn.Module):
    """Two 3×3 convolutions of stride 2; each place of the last map is a token."""

    def __init__(self, shape: Sequence[int], width: int) -> None:
        super().__init__()
        channels, height, breadth = shape
        self.grid = (-(-height // 4), -(-breadth // 4))
        self.length = self.grid[0] * self.grid[1]
        self.body = nn.Sequential(
            nn.Conv2d(channels, width // 2, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(width // 2, width, 3, stride=2, padding=1),
        )

    def forward(self, image: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """[B, C, H, W] → [B, ⌈H/4⌉ · ⌈W/4⌉, D]."""
        maps: Tensor = self.body(image)
        return maps.flatten(2).transpose(1, 2), None


class Frames(nn.Module):
    """Sound as frames of a spectrum, a few of them in a row to a token; what is padding counts as zeros."""

    def __init__(self, shape: Sequence[int], width: int, together: int) -> None:
        super().__init__()
        length, features = shape
        self.together = together
        self.length = -(-length // together)
        self.short = self.length * together - length
        self.affine = nn.Linear(together * features, width)

    def forward(self, frames: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """[B, T, features], mask [B, T] → [B, ⌈T/together⌉, D]; a token is real if one of its frames is."""
        if mask is not None:
            frames = frames.masked_fill(~mask.unsqueeze(-1), 0.0)
        if self.short:
            frames = F.pad(frames, (0, 0, 0, self.short))
            mask = None if mask is None else F.pad(mask, (0, self.short))
        tokens: Tensor = self.affine(frames.unflatten(1, (-1, self.together)).flatten(2))
        return tokens, None if mask is None else mask.unflatten(1, (-1, self.together)).any(-1)


class Words(nn.Module):
    """A learned vector for each word (or character) of the vocabulary."""

    def __init__(self, shape: Sequence[int], width: int, vocabulary: int) -> None:
        super().__init__()
        (self.length,) = shape
        self.vectors = nn.Embedding(vocabulary, width)

    def forward(self, words: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """[B, T] of any type of numbers → [B, T, D]; what is padding is not even looked up."""
        words = words.long()
        if mask is not None:
            words = words.masked_fill(~mask, 0)
        tokens: Tensor = self.vectors(words)
        return tokens, mask


def embedding_of(stream: Stream, shape: Sequence[int], vocabulary: int, config: TowerSettings) -> nn.Module:
    """The first layer of an encoder, by the kind of its stream."""
    match stream.kind:
        case "image" if config.image == "patches":
            return Patches(shape, config.width, config.patch)
        case "image":
            return Convolutions(shape, config.width)
        case "frames":
            return Frames(shape, config.width, config.frames)
        case "tokens":
            return Words(shape, config.width, vocabulary)


class Tower(nn.Module):
    """The encoder of one modality: its embedding, positions, a modality token in front, transformer blocks, a norm.

    The modality token (place 0) is real in every example, so that attention always has something to look at. The norm
    belongs to `pooled`; `forward` gives the stream before it, as further blocks want it. `depth` 0: embedding only.
    """

    def __init__(
        self, stream: Stream, shape: Sequence[int], vocabulary: int, config: TowerSettings, depth: int | None = None
    ) -> None:
        super().__init__()
        depth = config.depth if depth is None else depth
        width = config.width
        self.embedding = embedding_of(stream, shape, vocabulary, config)
        self.position = nn.Parameter(torch.randn(int(self.embedding.length), width) * INITIAL)  # type: ignore[arg-type]
        self.modality = nn.Parameter(torch.randn(width) * INITIAL)  # what marks all tokens of this modality
        self.token = nn.Parameter(torch.randn(width) * INITIAL)
        blocks = (SelfBlock(width, config.heads, config.hidden, config.dropout) for _ in range(depth))
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width) if depth else nn.Identity()

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns that the tokens after the first stand for, where they are places of an image."""
        grid: tuple[int, int] | None = getattr(self.embedding, "grid", None)
        return grid

    def forward(self, values: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """One input [B, ...], mask [B, T] or None → tokens [B, 1 + T', D] and which are real, [B, 1 + T'] or None."""
        content, real = self.embedding(values, mask)
        first = self.token.expand(content.shape[0], 1, -1)  # its len() would fix the batch in a program
        tokens = torch.cat([first, content + self.position], 1) + self.modality
        if real is not None:
            real = torch.cat([real.new_ones(real.shape[0], 1), real], 1)
        for block in self.blocks:
            tokens = block(tokens, real)
        return tokens, real

    def pooled(self, tokens: Tensor, mask: Tensor | None) -> Tensor:
        """The mean of the real tokens after the norm: [B, T, D] → [B, D]."""
        return masked_mean(self.norm(tokens), mask)
