"""The backbone of few-shot learning: equal convolutional blocks, each halving the image."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from advml.config import Fraction, PositiveInt, settings
from advml.contracts import Network, Nothing, Spec
from advml.models.norm import Norm2d, group_count, norm2d


@settings
class Conv4Settings:
    """Number and width of the blocks, how they shrink the image and how the last one is read."""

    channels: PositiveInt
    blocks: PositiveInt
    norm: Norm2d
    groups: PositiveInt
    downsample: Literal["pool", "stride"]
    dropout: Fraction
    readout: Literal["flatten", "mean"]


def block_sizes(height: int, width: int, settings: Conv4Settings) -> list[tuple[int, int]]:
    """The size of the image before each block and after the last.

    The rule: a block halves the image only while both sides are at least 2; after that it keeps the size. Pooling
    rounds halves down, strides round them up.
    """
    sizes = [(height, width)]
    for _ in range(settings.blocks):
        if min(height, width) >= 2:
            extra = settings.downsample == "stride"
            height, width = (height + extra) // 2, (width + extra) // 2
        sizes.append((height, width))
    return sizes


class Conv4(Network):
    """`blocks` × [3×3 convolution, norm, ReLU, halving], then a linear head.

    `pool` halves by 2×2 max pooling at the end of the block (Vinyals et al. 2016; Snell et al. 2017), `stride` by a
    convolution of stride 2 (Finn et al. 2017 on Omniglot, read out by the mean). See `block_sizes` for small images.
    Dropout acts at the end of each block.
    """

    settings: ClassVar[type] = Conv4Settings

    @classmethod
    def check(cls, spec: Spec, settings: Any) -> str | None:
        """Serves one image of any size and any target but none; a norm over single values would erase the signal."""
        shape = spec.image
        if shape is None or min(shape) < 1:
            return "one image input [channels, height, width]"
        if settings.norm in ("group", "layer") and _values_per_group(shape[1], shape[2], settings) < 2:
            return "more than one value in each group of its norm: fewer groups or blocks, more channels, larger images"
        return "a data set with a target" if isinstance(spec.target, Nothing) else None

    def __init__(self, spec: Spec, settings: Conv4Settings) -> None:
        super().__init__()
        ((width, rows, columns),) = spec.inputs.values()
        self.mean = settings.readout == "mean"
        layers: list[nn.Module] = []
        for before, after in pairwise(block_sizes(rows, columns, settings)):
            halves = before != after
            stride = 2 if halves and settings.downsample == "stride" else 1
            layers += [
                nn.Conv2d(width, settings.channels, 3, stride=stride, padding=1),
                norm2d(settings.norm, settings.channels, settings.groups),
                nn.ReLU(),
            ]
            if halves and settings.downsample == "pool":
                layers.append(nn.MaxPool2d(2))
            if settings.dropout:
                layers.append(nn.Dropout(settings.dropout))
            width, (rows, columns) = settings.channels, after
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width if self.mean else width * rows * columns, spec.outputs)

    def features(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """One image [B, C, H, W] → [B, channels] (mean over the remaining H, W) or [B, channels · H · W] (flatten)."""
        (image,) = inputs.values()
        maps: Tensor = self.body(image)
        # Not adaptive pooling, which has no deterministic backward on CUDA.
        return maps.mean((2, 3)) if self.mean else maps.flatten(1)


def _values_per_group(height: int, width: int, settings: Conv4Settings) -> int:
    """How many numbers the last block's norm averages over; earlier blocks have no fewer."""
    sizes = block_sizes(height, width, settings)
    # A pool comes after the norm of its block, a stride before it.
    rows, columns = sizes[-1] if settings.downsample == "stride" else sizes[-2]
    groups = 1 if settings.norm == "layer" else group_count(settings.channels, settings.groups)
    return settings.channels // groups * rows * columns
