"""Batch norm (Ioffe and Szegedy 2015) by the batch at hand, twice differentiable, for many copies at once by vmap.

torch's own has wrong second derivatives under vmap (torch 2.13), and written as means it takes forty passes over the
numbers where this takes a dozen: torch's kernels for forward and backward, and between them what is left of the
second derivative, a sum of g, v and x with a factor for each channel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_KERNEL = torch.ops.aten.native_batch_norm_backward


def batch_norm(values: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """y = γ (x − μ) / √(σ² + ε) + β, values [B, C, ...] → the same shape; weight γ and bias β [C], None for 1 and 0.

    μ and σ² (without Bessel's correction) are those of each channel. Twice differentiable in values, weight and bias.
    """
    channels = values.shape[1]
    weight = values.new_ones(channels) if weight is None else weight
    bias = values.new_zeros(channels) if bias is None else bias
    normal: Tensor = _BatchNorm.apply(values, weight, bias, eps)[0]  # type: ignore[no-untyped-call]
    return normal


class _BatchNorm(torch.autograd.Function):
    """(y, μ, 1/√(σ² + ε)) of x, γ, β."""

    @staticmethod
    def forward(values: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        return torch.native_batch_norm(values, weight, bias, None, None, True, 0.0, eps)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        values, weight, _, ctx.eps = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(values, weight, *output[1:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return *_Backward.apply(gradients[0], *ctx.saved_tensors, ctx.eps), None  # type: ignore[no-untyped-call]

    @staticmethod
    def vmap(info: Any, dims: tuple[int | None, ...], *inputs: Any) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """All copies' channels side by side, [B, R · C, ...], as a convolution in groups has given them."""
        (values, weight, bias, eps), copies = inputs, info.batch_size
        values = _side_by_side(values, dims[0], copies, at=1)
        weight, bias = (_side_by_side(of, dim, copies, at=0) for of, dim in zip((weight, bias), dims[1:3], strict=True))
        normal, mean, scale = _BatchNorm.apply(values, weight, bias, eps)  # type: ignore[no-untyped-call]
        return (normal.unflatten(1, (copies, -1)), mean.view(copies, -1), scale.view(copies, -1)), (1, 0, 0)


def _side_by_side(values: Tensor, dim: int | None, copies: int, at: int) -> Tensor:
    """`copies` of a tensor, in its dimension `dim` or all the same (None), in one dimension with the one at `at`."""
    if dim is None:
        shape = [*values.shape[:at], copies, *values.shape[at:]]
        return values.unsqueeze(at).expand(shape).flatten(at, at + 1)
    return values.movedim(dim, at).flatten(at, at + 1)


class _Backward(torch.autograd.Function):
    """The derivatives by x, γ and β for g = ∂L/∂y: (γ r (g − ḡ − x̂ q), N q, N ḡ).

    r = 1/√(σ² + ε), x̂ = r (x − μ), q = mean(g x̂), the mean over a channel's N numbers. What it is differentiated by
    counts μ and r as functions of x.
    """

    @staticmethod
    def forward(
        given: Tensor, values: Tensor, weight: Tensor, mean: Tensor, scale: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        found: tuple[Tensor, Tensor, Tensor] = _KERNEL(
            given, values, weight, None, None, mean, scale, True, eps, [True] * 3
        )
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        *tensors, ctx.eps = inputs
        ctx.save_for_backward(*tensors, *output[1:])

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return *_Second.apply(*gradients, *ctx.saved_tensors, ctx.eps), None, None, None  # type: ignore[no-untyped-call]


class _Second(torch.autograd.Function):
    """The derivatives of F = ⟨v, ∂L/∂x⟩ + ⟨a, ∂L/∂γ⟩ + ⟨b, ∂L/∂β⟩ by g, x and γ; itself not differentiable.

    With p = mean(v x̂) and s = ⟨v, g⟩ − N (v̄ ḡ + p q):
    ∂F/∂g = γ r (v − v̄ − x̂ p) + a x̂ + b, ∂F/∂γ = r s, and ∂F/∂x = r (u − ū − x̂ mean(u x̂)) − x̂ γ r² s / N with
    u = ∂F/∂x̂ = (a − γ r p) g − γ r q v: two times the backward kernel itself, for v and for u.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        v, a, b, g, x, weight, mean, r, sum_gx, sum_g, eps = inputs
        count, shape = x.numel() // x.shape[1], (1, -1, *[1] * (x.dim() - 2))

        to_g, sum_vx, sum_v = _KERNEL(v, x, weight, None, None, mean, r, True, eps, [True] * 3)
        to_g.add_(x * (a * r).view(shape)).add_((b - a * r * mean).view(shape))

        s = (v * g).sum([0, *range(2, x.dim())]) - (sum_v * sum_g + sum_vx * sum_gx) / count
        u = g * (a - weight * r * sum_vx / count).view(shape)
        u.addcmul_(v, (-weight * r * sum_gx / count).view(shape))
        to_x = _KERNEL(u, x, None, None, None, mean, r, True, eps, [True, False, False])[0]
        slope = -weight * s * r.pow(3) / count
        to_x.add_(x * slope.view(shape)).sub_((slope * mean).view(shape))
        return to_g, to_x, r * s

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise RuntimeError("batch_norm: differentiable twice, not three times")
