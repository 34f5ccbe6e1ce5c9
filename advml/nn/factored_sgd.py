"""Plain gradient descent on one network, its large linear layers moved by the factors of their gradients.

Of z = a Wᵀ + b the gradient by W is Δᵀ a, with Δ = ∂loss/∂z. As a matrix it is as large as W, and with few examples a
step spends most of its time writing it, reading it again and moving W by it. Here Δ and a are kept, and after the
backward pass  W ← β W − η Δᵀ a  is one call. All other parameters are differentiated as ever.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from advml.contracts import Batch
from advml.nn.example_losses import ExampleLosses
from advml.nn.products import product, product_back
from advml.nn.replicas import Parameters, Replicas

Factors = list[tuple[Tensor, Tensor]]
"""Δ [B, out] and a [B, in] of each call of a layer; the gradient by its weight is the sum of all Δᵀ a."""

LARGE = 1 << 17
"""Numbers in a weight from which it is worth while: half a megabyte in float32, a good part of a core's own cache."""


class _Affine(torch.autograd.Function):
    """z = a Wᵀ + b, differentiable in a and b; for W its backward pass adds (Δ, a) to `factors`.

    `source` makes z require a gradient where neither a nor b does.
    """

    @staticmethod
    def forward(
        ctx: Any, a: Tensor, weight: Tensor, bias: Tensor | None, source: Tensor, factors: Factors
    ) -> Tensor:
        ctx.save_for_backward(a, weight)
        ctx.factors = factors
        return product(a, weight, bias)

    @staticmethod
    def backward(ctx: Any, *deltas: Tensor) -> tuple[Tensor | None, None, Tensor | None, None, None]:
        (delta,), (a, weight) = deltas, ctx.saved_tensors
        ctx.factors.append((delta, a))
        of_a, _, of_bias, *_ = ctx.needs_input_grad
        return product_back(delta, weight) if of_a else None, None, delta.sum(0) if of_bias else None, None, None


class _Factoring(TorchFunctionMode):
    """Within it linear layers tell the factors of their gradients by `weights`, [1, out, in]; autograd has none."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.weights = {value.data_ptr(): (name, value) for name, value in weights.items()}
        self.factors: dict[str, Factors] = {name: [] for name in weights}
        self.source = torch.zeros((), requires_grad=True)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._linear(*args, **(kwargs or {})) if func is F.linear else func(*args, **(kwargs or {}))

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        name, whole = self.weights.get(weight.data_ptr(), ("", None))
        other = whole is None or weight.shape != whole.shape[1:]
        if other or input.dim() != 2 or torch.is_autocast_enabled(input.device.type):
            return F.linear(input, weight, bias)
        own = weight.detach()
        found: Tensor = _Affine.apply(input, own, bias, self.source, self.factors[name])  # type: ignore[no-untyped-call]
        return found


class FactoredSgd:
    """w ← w − η (∇loss(w) + strength · w + offset) for a single copy; the same numbers as by differentiation alone."""

    def __init__(
        self, replicas: Replicas, values: Parameters, trained: Sequence[str], losses: ExampleLosses, lr: float,
        strength: float, offset: Mapping[str, Tensor] | None,
    ) -> None:  # fmt: skip
        self.replicas, self.losses = replicas, losses
        self.lr, self.strength, self.offset = lr, strength, offset
        self.parameters = {name: nn.Parameter(values[name]) for name in trained}
        self.values = {**values, **self.parameters}
        self.large = {name: value for name, value in self.parameters.items() if value.numel() >= LARGE}

    @staticmethod
    def serves(replicas: Replicas, copies: int) -> bool:
        """Is it one copy, and has the network a linear layer that is large?"""
        layers = (module for module in replicas.network.modules() if isinstance(module, nn.Linear))
        return replicas.engine == "loop" and copies == 1 and any(layer.weight.numel() >= LARGE for layer in layers)

    def narrow(self, active: int) -> None:
        """There is one copy from beginning to end."""

    def step(self, batch: Batch, weight: Tensor | None) -> Tensor:
        """One update; the mean loss of the copy before it, [1]."""
        with torch.enable_grad():
            with _Factoring(self.large) as factoring:
                outputs = self.replicas.outputs(self.values, batch.inputs, dropout=True)
            each = self.losses(outputs, batch.target)
            found = each.mean(1) if weight is None else (each * weight).sum(1)
            gradients = torch.autograd.grad(found.sum(), list(self.parameters.values()), allow_unused=True)
        with torch.no_grad():
            for (name, value), gradient in zip(self.parameters.items(), gradients, strict=True):
                self._move(name, value, gradient, factoring.factors.get(name, []))
        return found.detach()

    def _move(self, name: str, value: Tensor, gradient: Tensor | None, factors: Factors) -> None:
        """Besides its factors a large weight has a gradient if something else than a linear layer reads it."""
        if (kept := 1 - self.lr * self.strength) != 1:
            value.mul_(kept)
        if gradient is not None:
            value.sub_(gradient, alpha=self.lr)
        for delta, a in factors:
            value[0].addmm_(delta.T, a, alpha=-self.lr)
        if self.offset is not None:
            value.sub_(self.offset[name], alpha=self.lr)
