"""A linear layer whose products of matrices are left to whatever computes them fastest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import has_torch_function

from advml.nn.products import onednn, suits_onednn

ENOUGH = 1 << 23
"""Multiplications of a call from which oneDNN is at least a quarter faster with its gradients (measured on Zen 5)."""


class Affine(nn.Linear):
    """torch's linear layer, with oneDNN behind it where that is faster: see `suits_onednn`.

    Nobody else need know: under autocast and torch.func, while a graph is traced, and where a mode watches the calls of
    torch's functions (advml/nn/watch.py), it is torch's own.
    """

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., in] → [..., out]."""
        if _is_served(inputs, self.weight):
            return _product(inputs, self.weight, self.bias)
        return nn.functional.linear(inputs, self.weight, self.bias)


def _is_served(inputs: Tensor, weight: Tensor) -> bool:
    if torch.compiler.is_compiling() or inputs.dim() != 2 or len(inputs) * weight.numel() < ENOUGH:
        return False  # first of all: a traced graph must not depend on how many examples there are
    if inputs.dtype != torch.float32 or not suits_onednn(weight) or torch.is_autocast_enabled("cpu"):
        return False
    watched = has_torch_function((inputs, weight)) or torch._C._get_tracing_state()
    return not (watched or torch._C._are_functorch_transforms_active())


class _Product(torch.autograd.Function):
    """a Wᵀ + b for a [B, in], W [out, in], differentiable as often as one likes.

    torch.func would want `setup_context`, for which torch looks at signatures at each call, a tenth of a millisecond.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """[B, out]."""
        ctx.save_for_backward(a, weight)
        return onednn(a, weight, bias)

    @staticmethod
    def backward(ctx: Any, delta: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Δ W, Δᵀ a, Δᵀ 1."""
        a, weight = ctx.saved_tensors
        of_a, of_weight, of_bias = ctx.needs_input_grad
        return (
            _product(delta, weight.T, None) if of_a else None,
            _product(delta.T, a.T, None) if of_weight else None,
            delta.sum(0) if of_bias else None,
        )


def _product(a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    found: Tensor = _Product.apply(a, weight, bias)  # type: ignore[no-untyped-call]
    return found
