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
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from advml.contracts import Batch, Network, Split
from advml.nn.products import add_outer, keep_freed_memory, product, product_back

Engine = Literal["auto", "loop", "closed"]
Directions = Callable[[Tensor, Tensor], Iterator[Tensor]]
"""(outputs [B, C], target [B]) → gradients of scores with respect to the outputs, [B, C] each."""
Fold = Callable[[Tensor], Tensor]
"""`torch.square` or `torch.abs`: elementwise, with fold(uv) = fold(u) fold(v)."""

EXAMPLES = 50  # of a convolutional network at once: beyond, nothing gets faster and deltas fill the memory
CHUNK = 1 << 20  # numbers in the gradients of the examples that are held at once: they stay in cache


class Unsuited(ValueError):
    """The closed form does not serve this network."""


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
    watch = _Watch(network, fold)
    for batch in batches:
        with watch.over(len(batch.target)):
            outputs = network(batch.inputs)
        for direction in directions(outputs.detach(), batch.target):
            sources = [watch.source, *parameters.values()]
            found = torch.autograd.grad(outputs, sources, direction, retain_graph=True, allow_unused=True)
            if any(value is not None for value in found):
                raise Unsuited("engine closed needs parameters to be used by their layer's call only")
        for name, call in watch.calls.items():
            call.collect(total.get(f"{name}.weight"), total.get(f"{name}.bias"))
    return total


# --- calls of layers: what was seen on the way there, what comes back, what follows -------------------------------


class _Call(Protocol):
    """The call of one layer in one batch."""

    def add(self, delta: Tensor) -> None:
        """Note ∂(score)/∂z of one direction."""

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
        sums = torch.zeros_like(weight).view(self.groups, channels // self.groups, -1)
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


# --- how calls are noticed -----------------------------------------------------------------------------------------


class _Affine(torch.autograd.Function):
    """z = a Wᵀ + b. Its backward pass tells Δ and goes on to a only, and only if a depends on layers.

    `source` stands for the parameters: because it requires a gradient, z does.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, source: Tensor, call: _Call, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.call, ctx.weight = call, weight
        return product(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, *deltas: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        (delta,) = deltas
        ctx.call.add(delta)
        return product_back(delta, ctx.weight) if ctx.needs_input_grad[0] else None, None, None, None, None


class _Tap(torch.autograd.Function):
    """z as it is. Its backward pass tells Δ. In place, so that what follows may work in place as well."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, source: Tensor, call: _Call) -> Tensor:
        ctx.call = call
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, *deltas: Tensor) -> tuple[Tensor | None, None, None]:
        (delta,) = deltas
        ctx.call.add(delta)
        return delta if ctx.needs_input_grad[0] else None, None, None


class _Watch(TorchFunctionMode):
    """Within it, calls of layers that have something to train are done without their parameters, and noted."""

    def __init__(self, network: nn.Module, fold: Fold) -> None:
        super().__init__()
        self.fold = fold
        self.layers: dict[Tensor, tuple[str, Tensor | None]] = {}  # weight → name of the layer, bias
        for name, module in network.named_modules():
            weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
            if isinstance(weight, nn.Parameter) and (weight.requires_grad or getattr(bias, "requires_grad", False)):
                if weight in self.layers:
                    raise Unsuited("engine closed needs layers that share no parameter")
                self.layers[weight] = (name, bias)
        self.calls: dict[str, _Call] = {}
        self.source = torch.zeros((), requires_grad=True)
        self.examples = 0

    def over(self, examples: int) -> _Watch:
        """Forget earlier calls and expect those of a batch of `examples`."""
        self.examples = examples
        self.calls = {}
        return self

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        watched = _WATCHED.get(func)
        return watched(self, *args, **(kwargs or {})) if watched else func(*args, **(kwargs or {}))

    def _layer(self, weight: Tensor | None, bias: Tensor | None) -> str | None:
        """The name of the layer that these belong to; None for other calls."""
        name, own = self.layers.get(weight, (None, None)) if weight is not None else (None, None)
        return name if bias is own else None

    def _noted(self, name: str, inputs: Tensor, call: _Call) -> None:
        if name in self.calls or len(inputs) != self.examples:
            raise Unsuited("engine closed needs each layer to be used once, on one row for each example")
        if torch.is_autocast_enabled(inputs.device.type):
            raise Unsuited("engine closed needs one precision: it does not work under autocast")
        self.calls[name] = call

    def _tapped(self, name: str, inputs: Tensor, call: _Call, output: Tensor) -> Tensor:
        self._noted(name, inputs, call)
        tapped: Tensor = _Tap.apply(output, self.source, call)  # type: ignore[no-untyped-call]
        return tapped

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        name = self._layer(weight, bias)
        if name is None:
            return F.linear(input, weight, bias)
        own, shift = weight.detach(), _detached(bias)
        if input.dim() == 2:
            call = _Linear(self.fold, input)
            self._noted(name, input, call)
            output: Tensor = _Affine.apply(input, self.source, call, own, shift)  # type: ignore[no-untyped-call]
            return output
        places = _Shared(self.fold, input, 1, lambda values: values.flatten(1, -2).transpose(1, 2))
        # Δ as of a convolution, [B, out, L], so the output is tapped with its features in the second place.
        output = F.linear(input, own, shift).movedim(-1, 1)
        return self._tapped(name, input, places, output).movedim(1, -1)

    def _conv2d(
        self, input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
        dilation: Any = 1, groups: int = 1,
    ) -> Tensor:  # fmt: skip
        name = self._layer(weight, bias)
        if name is None:
            return F.conv2d(input, weight, bias, stride, padding, dilation, groups)
        if isinstance(padding, str) or input.dim() != 4:
            raise Unsuited("engine closed needs convolutions of [B, C, H, W] with padding in numbers")
        window = weight.shape[2:]
        call = _Shared(self.fold, input, groups, lambda values: F.unfold(values, window, dilation, padding, stride))
        output = F.conv2d(input, weight.detach(), _detached(bias), stride, padding, dilation, groups)
        return self._tapped(name, input, call, output)

    def _batch_norm(
        self, input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
        bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
    ) -> Tensor:  # fmt: skip
        name = self._layer(weight, bias)
        if name is None:
            return F.batch_norm(input, running_mean, running_var, weight, bias, training, momentum, eps)
        if training or running_mean is None:
            raise Unsuited("engine closed needs batch norm with running statistics: others mix examples")
        plain = F.batch_norm(input.detach(), running_mean, running_var, None, None, False, momentum, eps)
        own = (_detached(weight), _detached(bias))
        output = F.batch_norm(input, running_mean, running_var, *own, False, momentum, eps)
        return self._tapped(name, input, _Scale(self.fold, plain, (1,)), output)

    def _layer_norm(
        self, input: Tensor, normalized_shape: list[int], weight: Tensor | None = None, bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:  # fmt: skip
        name = self._layer(weight, bias)
        if name is None:
            return F.layer_norm(input, normalized_shape, weight, bias, eps)
        kept = tuple(range(input.dim() - len(normalized_shape), input.dim()))
        plain = F.layer_norm(input.detach(), normalized_shape, None, None, eps)
        output = F.layer_norm(input, normalized_shape, _detached(weight), _detached(bias), eps)
        return self._tapped(name, input, _Scale(self.fold, plain, kept), output)

    def _group_norm(
        self, input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:  # fmt: skip
        name = self._layer(weight, bias)
        if name is None:
            return F.group_norm(input, num_groups, weight, bias, eps)
        plain = F.group_norm(input.detach(), num_groups, None, None, eps)
        output = F.group_norm(input, num_groups, _detached(weight), _detached(bias), eps)
        return self._tapped(name, input, _Scale(self.fold, plain, (1,)), output)


# Not bound to a watch: it would refer to itself, and what it holds would stay until Python looks for such circles.
_WATCHED: dict[Any, Callable[..., Tensor]] = {
    F.linear: _Watch._linear, F.conv2d: _Watch._conv2d, F.batch_norm: _Watch._batch_norm,
    F.layer_norm: _Watch._layer_norm, F.group_norm: _Watch._group_norm,
}  # fmt: skip


def _detached(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.detach()
