"""The operations on the edges of searched cells, as modules [B, C, H, W] → [B, C', H / stride, W / stride].

Sides are rounded up by stride 2. Convolutions come as ReLU, convolution, batch norm, without bias. `affine`: do the
norms have learned scale and shift (not during a search, where a scale could undo an operation's weight)?
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advml.errors import ConfigError, did_you_mean


class Zero(nn.Module):
    """`none`: zeros of the right size. Carries no gradient."""

    def __init__(self, stride: int) -> None:
        super().__init__()
        self.stride = stride

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, C, H, W] → zeros."""
        if self.stride > 1:
            inputs = inputs[:, :, :: self.stride, :: self.stride]
        return inputs * 0


class FactorizedReduce(nn.Module):
    """Halves an image without losing pixels: one half of the channels reads even, the other half odd pixels.

    Of an odd side the last pixel has no odd neighbour: zeros stand there. On even sides it is that of DARTS.
    """

    def __init__(self, channels_in: int, channels_out: int, affine: bool) -> None:
        super().__init__()
        self.even = nn.Conv2d(channels_in, channels_out // 2, 1, stride=2, bias=False)
        self.odd = nn.Conv2d(channels_in, channels_out - channels_out // 2, 1, stride=2, bias=False)
        self.norm = nn.BatchNorm2d(channels_out, affine=affine)

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C', ⌈H/2⌉, ⌈W/2⌉]."""
        inputs = F.relu(inputs)
        height, width = inputs.shape[2:]
        shifted = F.pad(inputs, (0, width % 2, 0, height % 2))[:, :, 1:, 1:]
        maps: Tensor = self.norm(torch.cat([self.even(inputs), self.odd(shifted)], 1))
        return maps


def relu_conv_norm(channels_in: int, channels_out: int, kernel: int, stride: int, affine: bool) -> nn.Sequential:
    """ReLU, a dense convolution, batch norm."""
    return nn.Sequential(
        nn.ReLU(),
        nn.Conv2d(channels_in, channels_out, kernel, stride=stride, padding=kernel // 2, bias=False),
        nn.BatchNorm2d(channels_out, affine=affine),
    )


def _separable(
    channels_in: int, channels_out: int, kernel: int, stride: int, dilation: int, affine: bool
) -> list[nn.Module]:
    """ReLU, one filter for each channel, a 1×1 convolution, batch norm."""
    padding = dilation * (kernel // 2)
    depthwise = nn.Conv2d(
        channels_in, channels_in, kernel, stride, padding, dilation=dilation, groups=channels_in, bias=False
    )
    pointwise = nn.Conv2d(channels_in, channels_out, 1, bias=False)
    return [nn.ReLU(), depthwise, pointwise, nn.BatchNorm2d(channels_out, affine=affine)]


def sep_conv(channels_in: int, channels_out: int, kernel: int, stride: int, affine: bool) -> nn.Sequential:
    """Two separable convolutions in a row; the first has the stride."""
    first = _separable(channels_in, channels_in, kernel, stride, 1, affine)
    return nn.Sequential(*first, *_separable(channels_in, channels_out, kernel, 1, 1, affine))


def dil_conv(channels_in: int, channels_out: int, kernel: int, stride: int, affine: bool) -> nn.Sequential:
    """One separable convolution whose filter skips every other pixel (dilation 2)."""
    return nn.Sequential(*_separable(channels_in, channels_out, kernel, stride, 2, affine))


class Resize(nn.Module):
    """A 1×1 convolution that gives pooling and skipping another number of channels, where they need one."""

    def __init__(self, inner: nn.Module, channels_in: int, channels_out: int, affine: bool) -> None:
        super().__init__()
        self.fit, self.inner = relu_conv_norm(channels_in, channels_out, 1, 1, affine), inner

    def forward(self, inputs: Tensor) -> Tensor:
        """Channels first, then the operation."""
        maps: Tensor = self.inner(self.fit(inputs))
        return maps


def _pool(kind: str, stride: int) -> nn.Module:
    if kind == "max":
        return nn.MaxPool2d(3, stride, padding=1)
    return nn.AvgPool2d(3, stride, padding=1, count_include_pad=False)


def operation(name: str, channels_in: int, channels_out: int, stride: int, affine: bool) -> nn.Module:
    """The operation called `name`. Raises ConfigError for an unknown name."""
    match name:
        case "none":
            return Zero(stride)
        case "skip_connect" if stride > 1:
            return FactorizedReduce(channels_in, channels_out, affine)
        case "skip_connect" | "max_pool_3x3" | "avg_pool_3x3":
            inner = nn.Identity() if name == "skip_connect" else _pool(name[:3], stride)
            same = channels_in == channels_out
            return inner if same else Resize(inner, channels_in, channels_out, affine)
        case "sep_conv_3x3" | "sep_conv_5x5" | "sep_conv_7x7":
            return sep_conv(channels_in, channels_out, int(name[-1]), stride, affine)
        case "dil_conv_3x3" | "dil_conv_5x5":
            return dil_conv(channels_in, channels_out, int(name[-1]), stride, affine)
        case "nor_conv_1x1" | "nor_conv_3x3":
            return relu_conv_norm(channels_in, channels_out, int(name[-1]), stride, affine)
    raise ConfigError(f"{name}: unknown operation{did_you_mean(name, KNOWN)}; there are {', '.join(KNOWN)}")


KNOWN = (
    "none", "skip_connect", "max_pool_3x3", "avg_pool_3x3", "sep_conv_3x3", "sep_conv_5x5", "sep_conv_7x7",
    "dil_conv_3x3", "dil_conv_5x5", "nor_conv_1x1", "nor_conv_3x3",
)  # fmt: skip
"""All names that `operation` knows."""
