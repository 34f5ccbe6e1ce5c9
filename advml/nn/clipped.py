"""The sum of per-example gradients, each clipped to the norm C (Abadi et al. 2016, algorithm 1):

    Σ_i g_i min(1, C / ‖g_i‖),   g_i the gradient of example i's loss, ‖·‖ the 2-norm over all parameters together

`loop` differentiates example by example: the reference, for any network. `closed` needs one backward pass for a whole
batch. From the inputs of each layer and the gradients Δ at its output (`advml.nn.watch`) it takes each example's norm,
and then one product per layer of the inputs with Δ multiplied by the clipping factors (Bu et al. 2023, "Book-keeping"):

    linear, [B, in] → [B, out]     ‖δ aᵀ‖² = ‖δ‖² ‖a‖² (Goodfellow 2015): no example's gradient is ever written down
    linear on [B, ..., in] and     g = Δ Uᵀ over L places, U its patches: by itself, or where L is small by its Gram
    convolution                    matrices, ‖Δ Uᵀ‖² = Σ (ΔᵀΔ ∘ UᵀU) ("ghost norm", Li et al. 2022)
    batch norm in evaluation       of the scale Σ_l δ_l x̂_l with x̂ the normalised input, of the shift Σ_l δ_l
    mode, layer and group norm

Batch norm in training mode mixes examples: no example has a gradient of its own, and both engines refuse it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from advml.contracts import Batch, Network
from advml.nn.abilities import Unsuited
from advml.nn.losses import Loss
from advml.nn.per_example import EXAMPLES, Engine, trainable
from advml.nn.privacy import clip_factors
from advml.nn.products import add_outer, keep_freed_memory
from advml.nn.watch import Call, Watch

CHUNK = 1 << 20  # numbers in the products of the examples that are worked on at once: they stay in cache


class Clipped(NamedTuple):
    """`sums` of clipped gradients by parameter, the norm of each example's gradient before [N], the `loss` summed."""

    sums: dict[str, Tensor]
    norms: Tensor
    loss: Tensor


def clipped_sums(
    network: Network,
    batches: Callable[[int | None], Iterable[Batch]],
    loss: Loss,
    clip: float,
    engine: Engine = "auto",
) -> Clipped:
    """Σ over the examples of all batches together of their clipped gradients; zeros where there is no example.

    `batches(limit)` gives the examples, at most `limit` at once (`advml.nn.per_example.in_batches`): how they are
    divided changes nothing but the order of additions. `loss` is a mean over examples. `clip` may be infinite. The
    network is used in the mode that it is in; dropout draws its own mask for each example.

    An example whose gradient has no finite norm counts as zeros: a NaN in the sum would tell that it was there.
    """
    if any(isinstance(module, _BatchNorm) and module.training for module in network.modules()):
        raise ValueError("batch norm in training mode mixes examples: none has a gradient of its own")
    if engine != "loop":
        try:
            convolves = any(isinstance(module, nn.Conv2d) for module in network.modules())
            return _closed(network, batches(EXAMPLES if convolves else None), loss, clip)
        except Unsuited:
            if engine == "closed":
                raise
    return _loop(network, batches(None), loss, clip)


def _loop(network: Network, batches: Iterable[Batch], loss: Loss, clip: float) -> Clipped:
    """Example by example."""
    parameters, total = trainable(network)
    weights, sums = list(parameters.values()), list(total.values())
    norms, whole = [weights[0].new_zeros(0)], weights[0].new_zeros(())
    for batch in batches:
        for row in range(len(batch.target)):
            one = _rows(batch, slice(row, row + 1))
            value = loss(network(one.inputs), one)
            found = list(torch.autograd.grad(value, weights, materialize_grads=True))
            norm = torch.stack([part.norm() for part in found]).norm()
            factor, finite = clip_factors(norm, clip), norm.isfinite()
            torch._foreach_add_(sums, [torch.where(finite, part * factor, 0.0) for part in found])
            norms.append(norm.view(1))
            whole = whole + value.detach()
    return Clipped(total, torch.cat(norms), whole)


def _rows(batch: Batch, own: slice | Tensor) -> Batch:
    """A batch of some of its examples."""
    mask = batch.mask[own] if batch.mask is not None and batch.mask.dim() == 2 else batch.mask
    return Batch({name: values[own] for name, values in batch.inputs.items()}, batch.target[own], mask)


def _closed(network: Network, batches: Iterable[Batch], loss: Loss, clip: float) -> Clipped:
    """Batch by batch. Autograd carries no gradient to any parameter in this: one that gets a gradient nevertheless is
    used in another way than by its layer's call.
    """
    parameters, total = trainable(network)
    keep_freed_memory()
    watch = Watch(network, _Notes())
    first = next(iter(parameters.values()))
    norms, whole = [first.new_zeros(0)], first.new_zeros(())

    def norms_of(batch: Batch) -> tuple[Tensor, Tensor]:
        """The norm of each example's gradient [B], and the loss summed; the calls of layers stay in `watch`."""
        outputs = watch.outputs(network, batch.inputs)
        leaf = outputs.detach().requires_grad_()
        value = loss(leaf, batch) * len(batch.target)  # the sum over examples: each row of its gradient is one's own
        (direction,) = torch.autograd.grad(value, leaf)
        sources = [watch.source, *parameters.values()]
        if any(part is not None for part in torch.autograd.grad(outputs, sources, direction, allow_unused=True)):
            raise Unsuited("engine closed needs parameters to be used by their layer's call only")
        squares = torch.zeros_like(direction[:, 0])
        for name, call in watch.calls.items():
            squares += call.squares(f"{name}.weight" in total, f"{name}.bias" in total)
        return squares.sqrt_(), value.detach()

    for batch in batches:
        norm, value = norms_of(batch)
        norms.append(norm)
        whole = whole + value
        finite = norm.isfinite()
        if not bool(finite.all()):  # zero times NaN is NaN: without those examples, once more
            if not bool(finite.any()):
                continue
            norm, _ = norms_of(_rows(batch, finite))
        factors = clip_factors(norm, clip)
        for name, call in watch.calls.items():
            call.collect(total.get(f"{name}.weight"), total.get(f"{name}.bias"), factors)
    return Clipped(total, torch.cat(norms), whole)


# --- calls of layers: what was seen on the way there, what comes back, what follows (see advml.nn.watch) -----------


class _Call(Call, Protocol):
    """The call of one layer in one batch."""

    def squares(self, weight: bool, bias: bool) -> Tensor | float:
        """Σ of the squares of each example's gradient [B], of those of the two parameters that are trained."""

    def collect(self, weight: Tensor | None, bias: Tensor | None, factors: Tensor) -> None:
        """Add Σ factor · gradient, factors [B], to the sums of the parameters."""


class _Linear:
    """z = W a + b on [B, in]."""

    def __init__(self, inputs: Tensor) -> None:
        self.inputs = inputs.detach()
        self.delta: Tensor | None = None

    def add(self, delta: Tensor) -> None:
        self.delta = delta

    def squares(self, weight: bool, bias: bool) -> Tensor | float:
        if self.delta is None:
            return 0.0
        seen = self.inputs.square().sum(1) if weight else self.inputs.new_zeros(())
        return self.delta.square().sum(1) * (seen + 1 if bias else seen)

    def collect(self, weight: Tensor | None, bias: Tensor | None, factors: Tensor) -> None:
        if self.delta is None:
            return
        delta = self.delta * factors.unsqueeze(1)
        if weight is not None:
            add_outer(weight, delta, self.inputs)
        if bias is not None:
            bias += delta.sum(0)


class _Shared:
    """A weight that serves many places: patches U [B, G · in, L] of G groups, Δ [B, G · out, L].

    Each example's product Δ Uᵀ costs L · out · in multiplications, its Gram matrices L² (out + in). Products are kept
    for `collect`: where they are chosen they are no larger than Δ and U.
    """

    def __init__(self, inputs: Tensor, groups: int, patches: Callable[[Tensor], Tensor]) -> None:
        self.inputs, self.groups, self.patches = inputs.detach(), groups, patches
        self.delta: Tensor | None = None
        self.products: Tensor | None = None  # [B, G · out · in]

    def add(self, delta: Tensor) -> None:
        self.delta = delta.flatten(2)

    def squares(self, weight: bool, bias: bool) -> Tensor | float:
        if self.delta is None:
            return 0.0
        squares = self.delta.sum(2).square().sum(1) if bias else self.delta.new_zeros(len(self.delta))
        return squares + self._of_weight(self.delta) if weight else squares

    def _of_weight(self, delta: Tensor) -> Tensor:
        """‖Δ Uᵀ‖² of each example, [B]."""
        count, places = len(delta), delta.shape[2]
        found: list[Tensor] = []
        for seen, back in self._chunks(delta):
            inner, outer = seen.shape[2], back.shape[2]
            if places * (inner + outer) < inner * outer:
                seen, back = seen.flatten(0, 1), back.flatten(0, 1)  # [b · G, ·, L]
                gram = torch.bmm(seen.transpose(1, 2), seen)
                squares = gram.mul_(torch.bmm(back.transpose(1, 2), back)).sum((1, 2))
                # Products of one sign or the other may cancel to just below 0.
                found.append(squares.view(-1, self.groups).sum(1).clamp_min_(0.0))
                continue
            products = torch.bmm(back.flatten(0, 1), seen.flatten(0, 1).transpose(1, 2)).view(len(seen), -1)
            if self.products is None:
                self.products = delta.new_empty(count, products.shape[1])
            start = sum(map(len, found))
            self.products[start : start + len(products)] = products
            found.append(torch.linalg.vector_norm(products, dim=1).square())
        return torch.cat(found)

    def _chunks(self, delta: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """(U [b, G, in, L], Δ [b, G, out, L]) of a few examples at a time."""
        count, channels, places = delta.shape
        size = count
        if count > 1:
            width = self.patches(self.inputs[:1]).shape[1]
            size = max(1, CHUNK // (places * max(width, channels)))
        for start in range(0, count, size):
            seen = self.patches(self.inputs[start : start + size])
            yield (
                seen.reshape(len(seen), self.groups, -1, places),
                delta[start : start + size].reshape(len(seen), self.groups, -1, places),
            )

    def collect(self, weight: Tensor | None, bias: Tensor | None, factors: Tensor) -> None:
        if self.delta is None:
            return
        delta = self.delta * factors.view(-1, 1, 1)
        if bias is not None:
            bias += delta.sum((0, 2))
        if weight is None:
            return
        if self.products is not None:
            weight += (factors @ self.products).view_as(weight)
            return
        sums = weight.new_zeros(self.groups, len(weight) // self.groups, weight[0].numel())
        for seen, back in self._chunks(delta):
            rows = seen.permute(1, 0, 3, 2).flatten(1, 2)  # [G, b · L, in]
            sums.baddbmm_(back.permute(1, 2, 0, 3).flatten(2), rows)
        weight += sums.view_as(weight)


class _Scale:
    """z = γ x̂ + β, γ and β over the dimensions `kept` of an example: x̂ [B, ...]."""

    def __init__(self, normalised: Tensor, kept: tuple[int, ...]) -> None:
        self.normalised = normalised.detach()
        self.over = tuple(dim for dim in range(1, normalised.dim()) if dim not in kept)
        self.scale: Tensor | None = None  # of each example, [B, ...]
        self.shift: Tensor | None = None

    def add(self, delta: Tensor) -> None:
        self.scale, self.shift = self._sum(delta * self.normalised), self._sum(delta)

    def _sum(self, values: Tensor) -> Tensor:
        return values.sum(self.over) if self.over else values

    def squares(self, weight: bool, bias: bool) -> Tensor | float:
        chosen = [part for part, trained in ((self.scale, weight), (self.shift, bias)) if trained and part is not None]
        return sum((part.flatten(1).square().sum(1) for part in chosen), start=0.0)

    def collect(self, weight: Tensor | None, bias: Tensor | None, factors: Tensor) -> None:
        for total, part in ((weight, self.scale), (bias, self.shift)):
            if total is not None and part is not None:
                total += torch.tensordot(factors, part, 1)


class _Notes:
    """What `Watch` notes: what clipped sums need."""

    def linear(self, inputs: Tensor) -> _Call:
        return _Linear(inputs)

    def shared(self, inputs: Tensor, groups: int, patches: Callable[[Tensor], Tensor]) -> _Call:
        return _Shared(inputs, groups, patches)

    def scale(self, normalised: Tensor, kept: tuple[int, ...]) -> _Call:
        return _Scale(normalised, kept)
