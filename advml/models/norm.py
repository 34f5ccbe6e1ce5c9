"""The norms that follow a convolution, by name."""

from __future__ import annotations

from typing import Literal

from torch import nn

Norm2d = Literal["none", "batch", "group", "layer"]


def group_count(channels: int, groups: int) -> int:
    """The largest divisor of `channels` that is not above `groups`."""
    return max(count for count in range(1, min(channels, groups) + 1) if channels % count == 0)


def norm2d(kind: Norm2d, channels: int, groups: int) -> nn.Module:
    """The norm `kind` for maps [B, channels, H, W]; all but `none` end in a learned affine map per channel.

    `batch`: over B, H, W of each channel (Ioffe and Szegedy 2015), with running averages for evaluation: the one
    kind that mixes examples, so it has no per-example gradients. `group`: over H, W and the channels of a group, for
    each example (Wu and He 2018), in `group_count(channels, groups)` groups. `layer`: the same with one group, that
    is over C, H, W (Ba et al. 2016). `none`: the identity.
    """
    match kind:
        case "none":
            return nn.Identity()
        case "batch":
            return nn.BatchNorm2d(channels)
        case "group":
            return nn.GroupNorm(group_count(channels, groups), channels)
        case "layer":
            return nn.GroupNorm(1, channels)
