"""Preparations: stored values → network input, a batch at a time. Constants are fitted on the training split only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from advml.contracts import Prepare

Normalise = Literal["standard", "unit", "none"]


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
        return values.flatten(1)[:, self.order].reshape(values.shape)

    def to(self, device: torch.device, dtype: torch.dtype) -> Reorder:
        """The same order, on `device`."""
        return Reorder(self.order.to(device))

    def state(self) -> dict[str, Any]:
        """For `restore`."""
        return {"kind": "reorder", "order": self.order.cpu()}


def restore(state: Mapping[str, Any]) -> Prepare:
    """The preparation whose `state()` this is."""
    if state["kind"] == "affine":
        return Affine(state["factor"], state["offset"])
    return Reorder(state["order"])


def fit(values: Tensor, kind: Normalise, scale: float | None) -> Affine:
    """Fit a normalisation to the training examples `values` [N, ...].

    `standard`: zero mean, unit variance, per channel for images [N, C, H, W], per feature otherwise; a constant
    channel is only centred. `unit`: into [0, 1], by the known `scale` of the source (255 for pixels) or else by the
    training minimum and maximum. `none`: the stored numbers as they are, as floats.
    """
    exact = values.double()
    axes, shape = ((0, 2, 3), (1, -1, 1, 1)) if values.dim() == 4 else ((0,), (1, *values.shape[1:]))
    low, spread = torch.zeros((), dtype=torch.float64), torch.ones((), dtype=torch.float64)
    if kind == "standard":
        low, spread = exact.mean(axes).reshape(shape), exact.std(axes, correction=0).reshape(shape)
    elif kind == "unit" and scale is not None:
        spread = spread * scale
    elif kind == "unit":
        low = exact.amin(axes).reshape(shape)
        spread = exact.amax(axes).reshape(shape) - low
    factor = 1 / torch.where(spread > 0, spread, 1)
    return Affine(factor, -low * factor)
