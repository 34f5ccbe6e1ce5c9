"""Norms of many copies of a network side by side; of batch norms with running averages and without."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from advml.nn.batch_norm import batch_norm


@dataclass
class Seen:
    """Whose statistics batch norms use: those of the first so many examples; None = of all.

    `weight` [R, B]: what each counts in them, in rows that sum to 1; only `Batched` heeds it. None = all alike.
    """

    first: int | None = None
    weight: Tensor | None = None


class Normalised(nn.Module):
    """Batch norm (Ioffe and Szegedy 2015) by the examples at hand, under the parameter names of the norm it replaces.

    y = γ (x − μ) / √(σ² + ε) + β with the mean μ and the variance σ² of each channel over examples and places.
    """

    def __init__(self, norm: _BatchNorm, seen: Seen, native: bool) -> None:
        super().__init__()
        self.weight, self.bias, self.affine = norm.weight, norm.bias, norm.affine
        self.eps, self.seen, self.native = norm.eps, seen, native

    def forward(self, values: Tensor) -> Tensor:
        """[B, C, ...] → the same shape."""
        if self.native and self.seen.first is None:
            # As rows of channels, no copy with channels last: torch's second derivatives take half the time so.
            rows = values.movedim(1, -1)
            flat = rows.reshape(-1, rows.shape[-1])
            flat = F.batch_norm(flat, None, None, self.weight, self.bias, training=True, eps=self.eps)
            return flat.view(rows.shape).movedim(-1, 1)
        if self.seen.first is None:
            return batch_norm(values, self.weight, self.bias, self.eps)
        shape = (1, -1, *[1] * (values.dim() - 2))
        normal = normalised(values, self.seen.first, (0, *range(2, values.dim())), self.eps)
        return normal * self.weight.view(shape) + self.bias.view(shape) if self.affine else normal


class Grouped(nn.Module):
    """Group norm (Wu and He 2018) under the parameter names of the norm it replaces, written as means.

    Under vmap torch's own asks how values lie in memory, which fails where channels are last (torch 2.13).
    """

    def __init__(self, norm: nn.GroupNorm) -> None:
        super().__init__()
        self.weight, self.bias, self.groups, self.eps = norm.weight, norm.bias, norm.num_groups, norm.eps

    def forward(self, values: Tensor) -> Tensor:
        """[B, C, ...] → the same shape."""
        rows = values.reshape(len(values), self.groups, -1)
        normal = normalised(rows, None, (2,), self.eps).view(values.shape)
        shape = (1, -1, *[1] * (values.dim() - 2))
        return normal if self.weight is None else normal * self.weight.view(shape) + self.bias.view(shape)


def normalised(values: Tensor, first: int | None, axes: tuple[int, ...], eps: float) -> Tensor:
    """(x − μ) / √(σ² + ε), μ and σ² over `axes`, of which the foremost counts examples: over its `first` ones only.

    Written as means: torch's batch norm has no `first`.
    """
    seen = values if first is None else values.narrow(axes[0], 0, first)
    mean = seen.mean(axes, keepdim=True)
    variance = (seen - mean).square().mean(axes, keepdim=True)
    return (values - mean) * torch.rsqrt(variance + eps)


def remembered(
    rows: Tensor, norm: nn.BatchNorm1d, name: str, values: Mapping[str, Tensor], weight: Tensor | None
) -> Tensor:
    """rows [R, B, F] normalised by themselves in training, which moves the running averages [R, F]; else by those.

    `weight` [R, B]: 1/n for the n examples of a copy, 0 for padding; None where there is none.
    """
    assert norm.momentum is not None
    mean, variance = values[f"{name}.running_mean"], values[f"{name}.running_var"]
    if not norm.training:
        return (rows - mean.unsqueeze(1)) * torch.rsqrt(variance.unsqueeze(1) + norm.eps)
    if rows.shape[1] < 2:
        raise ValueError("batch norm: a single example has no variance")
    if weight is None:
        weight = rows.new_full(rows.shape[:2], 1 / rows.shape[1])
    counted = weight.unsqueeze(2)
    middle = (counted * rows).sum(1, keepdim=True)
    spread = (counted * (rows - middle).square()).sum(1, keepdim=True)
    with torch.no_grad():
        mean.lerp_(middle.squeeze(1), norm.momentum)
        variance.lerp_(spread.squeeze(1) / (1 - weight.amax(1, keepdim=True)), norm.momentum)  # n/(n − 1) times
        values[f"{name}.num_batches_tracked"].add_(1)
    return (rows - middle) * torch.rsqrt(spread + norm.eps)
