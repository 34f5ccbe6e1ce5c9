"""Sums over examples of each example's gradient, folded: squared (Fisher information) or its magnitude (sensitivity).

`loop` differentiates example by example and serves any network. `closed` needs one backward pass for a whole batch:
autograd gives Δ = ∂(score)/∂z at the output z of each layer, and from Δ and the layer's inputs an example's gradient
follows by hand, for every layer that keeps examples apart and is called once:

    linear, [B, in] → [B, out]     δ aᵀ. As fold(uv) = fold(u) fold(v), the sum is fold(Δ)ᵀ fold(A): one product
    linear on [B, ..., in] and     the sum of δ_l u_lᵀ over the places l that share the weight: a product ΔᵀU for each
    convolution, U its patches     example, folded and summed chunk by chunk
    batch norm in evaluation       of the scale Σ_l δ_l x̂_l with x̂ the normalised input, of the shift Σ_l δ_l
    mode, layer and group norm
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from advml.contracts import Batch, Network, Split
from advml.nn.abilities import Unsuited
from advml.nn.products import add_outer, keep_freed_memory
from advml.nn.watch import Call, Watch

Engine = Literal["auto", "loop", "closed"]
Directions = Callable[[Tensor, Tensor], Iterator[Tensor]]
"""(outputs [B, C], target [B]) → gradients of scores with respect to the outputs, [B, C] each."""
Fold = Callable[[Tensor], Tensor]
"""`torch.square` or `torch.abs`: elementwise, with fold(uv) = fold(u) fold(v)."""

EXAMPLES = 50  # of a convolutional network at once: beyond, nothing gets faster and deltas fill the memory
CHUNK = 1 << 20  # numbers in the gradients of the examples that are held at once: they stay in cache


def folded_sums(
    network: Network,
    batches: Callable[[int | None], Iterable[Batch]],
    directions: Directions,
    fold: Fold,
    engine: Engine = "auto",
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Σ over examples and directions of fold(gradient), for every trainable parameter by name.

    `batches(limit)` gives the examples, at most `limit` at once; `generator` is what `directions` draws from, so that
    the loop draws the same if the closed form gives up. The network should be in evaluation mode and gradients enabled.
    """
    if engine != "loop":
        begun = None if generator is None else generator.get_state()
        try:
            convolves = any(isinstance(module, nn.Conv2d) for module in network.modules())
            return _closed(network, batches(EXAMPLES if convolves else None), directions, fold)
        except Unsuited:
            if engine == "closed":
                raise
            if generator is not None and begun is not None:
                generator.set_state(begun)
    return _loop(network, batches(None), directions, fold)


def in_batches(
    split: Split, index: Tensor | None, batch_size: int
) -> tuple[Callable[[int | None], Iterable[Batch]], int]:
    """Batches of the examples at `index` (int64 [N]; None = all) as `folded_sums` takes them; how many examples."""
    whole = None if index is None else index.to(split.device)
    count = len(split) if whole is None else len(whole)

    def batches(limit: int | None) -> Iterator[Batch]:
        size = batch_size if limit is None else min(limit, batch_size)
        for start in range(0, count, size):
            part = slice(start, start + size)
            yield split.batch(part if whole is None else whole[part])  # a slice copies nothing

    return batches, count


def trainable(network: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, Tensor]]:
    """The parameters to differentiate, and zeros to add to."""
    parameters = {name: value for name, value in network.named_parameters() if value.requires_grad}
    return parameters, {name: torch.zeros_like(value) for name, value in parameters.items()}


def gradient(outputs: Tensor, of: list[nn.Parameter], direction: Tensor) -> list[Tensor]:
    """∂(Σ direction · outputs) / ∂`of`, zeros where nothing depends; the graph stays for the next direction."""
    return list(torch.autograd.grad(outputs, of, direction, retain_graph=True, materialize_grads=True))


def _loop(network: Network, batches: Iterable[Batch], directions: Directions, fold: Fold) -> dict[str, Tensor]:
    """Example by example: the reference, and the way for any network.

    Each batch has sums of its own: thousands of small terms added to one large sum would round off.
    """
    parameters, total = trainable(network)
    weights = list(parameters.values())
    for batch in batches:
        sums = [torch.zeros_like(value) for value in weights]
        for row in range(len(batch.target)):
            outputs = network({name: values[row : row + 1] for name, values in batch.inputs.items()})
            for direction in directions(outputs.detach(), batch.target[row : row + 1]):
                found = gradient(outputs, weights, direction)
                if fold is torch.square:
                    torch._foreach_addcmul_(sums, found, found)
                else:
                    torch._foreach_add_(sums, [fold(value) for value in found])
        torch._foreach_add_(list(total.values()), sums)
    return total


def _closed(network: Network, batches: Iterable[Batch], directions: Directions, fold: Fold) -> dict[str, Tensor]:
    """Batch by batch. Autograd carries no gradient to any parameter in this, since calls are done without them: one
    that gets a gradient nevertheless is used in another way than by its layer's call.
    """
    parameters, total = trainable(network)
    keep_freed_memory()
    watch = Watch(network, _Folding(fold))
    for batch in batches:
        outputs = watch.outputs(network, batch.inputs)
        for direction in directions(outputs.detach(), batch.target):
            sources = [watch.source, *parameters.values()]
            found = torch.autograd.grad(outputs, sources, direction, retain_graph=True, allow_unused=True)
            if any(value is not None for value in found):
                raise Unsuited("engine closed needs parameters to be used by their layer's call only")
        for name, call in watch.calls.items():
            call.collect(total.get(f"{name}.weight"), total.get(f"{name}.bias"))
    return total


# --- calls of layers: what was seen on the way there, what comes back, what follows (see advml.nn.watch) -----------


class _Call(Call, Protocol):
    """The call of one layer in one batch."""

    def collect(self, weight: Tensor | None, bias: Tensor | None) -> None:
        """Add the sums over examples and directions to those of the parameters."""


class _Linear:
    """z = W a + b on [B, in]: fold(A), and fold(Δ) summed over the directions so far."""

    def __init__(self, fold: Fold, inputs: Tensor) -> None:
        self.fold, self.inputs = fold, fold(inputs.detach())
        self.deltas: Tensor | None = None

    def add(self, delta: Tensor) -> None:
        if self.deltas is None:
            self.deltas = self.fold(delta)
        elif self.fold is torch.square:
            self.deltas.addcmul_(delta, delta)
        else:
            self.deltas += self.fold(delta)

    def collect(self, weight: Tensor | None, bias: Tensor | None) -> None:
        if self.deltas is None:
            return
        if weight is not None:
            add_outer(weight, self.deltas, self.inputs)
        if bias is not None:
            bias += self.deltas.sum(0)


class _Shared:
    """A weight that serves many places: patches U [B, G, in, L] of G groups, Δ [B, G, out, L] for each direction."""

    def __init__(self, fold: Fold, inputs: Tensor, groups: int, patches: Callable[[Tensor], Tensor]) -> None:
        self.fold, self.inputs, self.groups, self.patches = fold, inputs.detach(), groups, patches
        self.deltas: list[Tensor] = []

    def add(self, delta: Tensor) -> None:
        self.deltas.append(delta)

    def collect(self, weight: Tensor | None, bias: Tensor | None) -> None:
        if not self.deltas:
            return
        deltas = torch.stack([delta.flatten(2) for delta in self.deltas], 1)  # [B, D, C, L]
        if bias is not None:
            bias += self.fold(deltas.sum(3)).sum((0, 1))
        if weight is None:
            return
        count, ways, channels, places = deltas.shape
        grouped = deltas.reshape(count, ways, self.groups, channels // self.groups, places).transpose(1, 2)
        size = max(1, CHUNK // (ways * weight.numel()))
        sums = weight.new_zeros(self.groups, channels // self.groups, weight[0].numel())
        for start in range(0, count, size):
            seen = self.patches(self.inputs[start : start + size])  # [b, G · in, L]
            inner = seen.shape[1] // self.groups
            seen = seen.reshape(-1, inner, places)  # [b · G, in, L]
            back = grouped[start : start + size].reshape(len(seen), -1, places)  # [b · G, D · out, L]
            found = torch.bmm(back, seen.transpose(1, 2))
            sums += self.fold(found).view(-1, self.groups, ways, channels // self.groups, inner).sum((0, 2))
        weight += sums.view_as(weight)


class _Scale:
    """z = γ x̂ + β, γ and β over the dimensions `kept` of an example: x̂ [B, ...]."""

    def __init__(self, fold: Fold, normalised: Tensor, kept: tuple[int, ...]) -> None:
        self.fold, self.normalised = fold, normalised.detach()
        self.over = tuple(dim for dim in range(1, normalised.dim()) if dim not in kept)
        self.weight: Tensor | None = None
        self.bias: Tensor | None = None

    def add(self, delta: Tensor) -> None:
        scale = self.fold(self._sum(delta * self.normalised)).sum(0)
        shift = self.fold(self._sum(delta)).sum(0)
        self.weight = scale if self.weight is None else self.weight + scale
        self.bias = shift if self.bias is None else self.bias + shift

    def _sum(self, values: Tensor) -> Tensor:
        return values.sum(self.over) if self.over else values

    def collect(self, weight: Tensor | None, bias: Tensor | None) -> None:
        if weight is not None and self.weight is not None:
            weight += self.weight
        if bias is not None and self.bias is not None:
            bias += self.bias


@dataclass(frozen=True)
class _Folding:
    """The notes of `Watch`: what sums of folded gradients need."""

    fold: Fold

    def linear(self, inputs: Tensor) -> _Call:
        return _Linear(self.fold, inputs)

    def shared(self, inputs: Tensor, groups: int, patches: Callable[[Tensor], Tensor]) -> _Call:
        return _Shared(self.fold, inputs, groups, patches)

    def scale(self, normalised: Tensor, kept: tuple[int, ...]) -> _Call:
        return _Scale(self.fold, normalised, kept)
