"""Preparations: stored values → network input, a batch at a time. Constants are fitted on the training split only."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from advml.contracts import Prepare

Normalise = Literal["standard", "unit", "angles", "none"]

AT_ONCE = 2**18  # numbers that `fit` holds in float64 at a time: 2 MB, which stay in the cache


@dataclass(frozen=True)
class Affine:
    """x · factor + offset, in the type of the constants; they broadcast against [B, ...]."""

    factor: Tensor
    offset: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        return torch.addcmul(self.offset, values.to(self.factor.dtype), self.factor)

    def to(self, device: torch.device, dtype: torch.dtype) -> Affine:
        """The same map with its constants on `device` in `dtype`."""
        return Affine(self.factor.to(device, dtype), self.offset.to(device, dtype))

    def state(self) -> dict[str, Any]:
        """For `restore`."""
        return {"kind": "affine", "factor": self.factor.cpu(), "offset": self.offset.cpu()}


@dataclass(frozen=True)
class Reorder:
    """The elements of each example in another order (permuted MNIST): order is int64 [number of elements]."""

    order: Tensor

    def __call__(self, values: Tensor) -> Tensor:
        return values.flatten(1).index_select(1, self.order).reshape(values.shape)  # faster than indexing

    def to(self, device: torch.device, dtype: torch.dtype) -> Reorder:
        """The same order, on `device`."""
        return Reorder(self.order.to(device))

    def state(self) -> dict[str, Any]:
        """For `restore`."""
        return {"kind": "reorder", "order": self.order.cpu()}


@dataclass(frozen=True)
class Pad:
    """Images [B, C, H, W] with `border` rows and columns of zeros on each side."""

    border: int

    def __call__(self, values: Tensor) -> Tensor:
        return F.pad(values, [self.border] * 4)

    def to(self, device: torch.device, dtype: torch.dtype) -> Pad:
        """The same border."""
        return self

    def state(self) -> dict[str, Any]:
        """For `restore`."""
        return {"kind": "pad", "border": self.border}


@dataclass(frozen=True)
class Rotate:
    """Images [B, C, H, W] turned counter-clockwise by `degrees` about their centre, bilinear, zero outside."""

    degrees: float
    dtype: torch.dtype = torch.float32

    def __call__(self, values: Tensor) -> Tensor:
        images = values.to(self.dtype)
        turn = torch.tensor(self.degrees, dtype=torch.float64).deg2rad()
        cos, sin = float(turn.cos()), float(turn.sin())
        height, width = images.shape[-2:]
        # Coordinates run from −1 to 1 on both axes, y downwards; a side's length scales the other axis' share.
        matrix = images.new_zeros(2, 3)
        matrix.diagonal().fill_(cos)  # numbers, not a tensor of them: a GPU need not be waited for
        matrix[0, 1].fill_(-sin * height / width)
        matrix[1, 0].fill_(sin * width / height)
        grid = F.affine_grid(matrix.expand(len(images), 2, 3), list(images.shape), align_corners=False)
        return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)

    def to(self, device: torch.device, dtype: torch.dtype) -> Rotate:
        """The same turn, of images in `dtype`."""
        return Rotate(self.degrees, dtype)

    def state(self) -> dict[str, Any]:
        """For `restore`."""
        return {"kind": "rotate", "degrees": self.degrees}


@dataclass(frozen=True)
class Project:
    """Examples, flattened, times a matrix [F, N], plus an offset [N]: principal components and their scale.

    `shape`: of an example before, with F numbers.
    """

    weight: Tensor
    offset: Tensor
    shape: tuple[int, ...]

    def __call__(self, values: Tensor) -> Tensor:
        return torch.addmm(self.offset, values.flatten(1).to(self.weight.dtype), self.weight)

    def to(self, device: torch.device, dtype: torch.dtype) -> Project:
        """The same map with its constants on `device` in `dtype`."""
        return Project(self.weight.to(device, dtype), self.offset.to(device, dtype), self.shape)

    def state(self) -> dict[str, Any]:
        """For `restore`."""
        return {"kind": "project", "weight": self.weight.cpu(), "offset": self.offset.cpu(), "shape": list(self.shape)}


def restore(state: Mapping[str, Any]) -> Prepare:
    """The preparation whose `state()` this is."""
    if state["kind"] == "project":
        return Project(state["weight"], state["offset"], tuple(state["shape"]))
    if state["kind"] == "affine":
        return Affine(state["factor"], state["offset"])
    if state["kind"] == "pad":
        return Pad(state["border"])
    if state["kind"] == "rotate":
        return Rotate(state["degrees"])
    return Reorder(state["order"])


def fit(values: Tensor, kind: Normalise, scale: float | None) -> Affine:
    """Fit a normalisation to the training examples `values` [N, ...].

    `standard`: zero mean, unit variance, per channel for images [N, C, H, W], per feature otherwise; a constant
    channel is only centred. `unit`: into [0, 1], by the known `scale` of the source (255 for pixels) or else by the
    training minimum and maximum. `angles`: the same, into [0, π]. `none`: the stored numbers as they are, as floats.
    """
    if kind == "angles":
        unit = fit(values, "unit", scale)
        return Affine(unit.factor * math.pi, unit.offset * math.pi)
    if kind == "none" or (kind == "unit" and scale is not None):
        known = 1.0 if kind == "none" or scale is None else scale
        return Affine(torch.tensor(1 / known, dtype=torch.float64), torch.zeros((), dtype=torch.float64))
    axes = (0, 2, 3) if values.dim() == 4 else (0,)
    low, high = (extreme.double() for extreme in (values.amin(axes, keepdim=True), values.amax(axes, keepdim=True)))
    middle, spread = (low, high - low) if kind == "unit" else _moments(values, axes)
    # Not by the spread: that of 0.1, 0.1, 0.1 is 1e-17, from rounding.
    constant = low == high
    factor = 1 / torch.where(constant, 1, spread)
    return Affine(factor, -torch.where(constant, low, middle) * factor)


def _moments(values: Tensor, axes: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation over `axes` (kept, of length 1), in float64, some examples at a time."""
    parts = values.split(max(1, AT_ONCE // values[0].numel()))
    total = torch.zeros_like(values[:1].double().sum(axes, keepdim=True))
    squares, count = total.clone(), values.numel() // total.numel()
    # Added up in place: small results kept between large ones would leave holes in the memory, and it would grow.
    for part in parts:
        total += part.double().sum(axes, keepdim=True)
    mean = total / count
    for part in parts:
        squares += part.double().sub(mean).square_().sum(axes, keepdim=True)
    return mean, (squares / count).sqrt()
