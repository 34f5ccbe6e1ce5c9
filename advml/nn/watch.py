"""How the calls of a network's layers are noticed, with what went in and what gradient came back to what came out.

Within a `Watch` the layers that have something to train compute as ever, but autograd carries no gradient to their
parameters: it gives Δ = ∂(score)/∂z at the output z of each layer, and whoever watches makes of Δ and of the layer's
inputs what they need of each example's own gradient (sums of squares: `advml.nn.per_example`, clipped sums:
`advml.nn.clipped`). It serves layers that keep examples apart and are called once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from advml.nn.abilities import Unsuited
from advml.nn.products import product, product_back


class Call(Protocol):
    """The call of one layer in one batch."""

    def add(self, delta: Tensor) -> None:
        """Note ∂(score)/∂z of one direction."""


Kind = TypeVar("Kind", bound=Call)
Noted = TypeVar("Noted", bound=Call, covariant=True)


class Notes(Protocol[Noted]):
    """What is noted of a call: one kind of note for each kind of layer."""

    def linear(self, inputs: Tensor) -> Noted:
        """z = W a + b on inputs [B, in]; Δ is [B, out]."""
        ...

    def shared(self, inputs: Tensor, groups: int, patches: Callable[[Tensor], Tensor]) -> Noted:
        """A weight that serves many places: `patches` makes of inputs [b, ...] the U [b, groups · in, L] that each
        place sees; Δ is [B, groups · out, ...], L places in all.
        """
        ...

    def scale(self, normalised: Tensor, kept: tuple[int, ...]) -> Noted:
        """z = γ x̂ + β, with γ and β over the dimensions `kept` of x̂ [B, ...]; Δ has the shape of x̂."""
        ...


class _Affine(torch.autograd.Function):
    """z = a Wᵀ + b. Its backward pass tells Δ and goes on to a only, and only if a depends on layers.

    `source` stands for the parameters: because it requires a gradient, z does.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, source: Tensor, call: Call, weight: Tensor, bias: Tensor | None) -> Tensor:
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
    def forward(ctx: Any, output: Tensor, source: Tensor, call: Call) -> Tensor:
        ctx.call = call
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, *deltas: Tensor) -> tuple[Tensor | None, None, None]:
        (delta,) = deltas
        ctx.call.add(delta)
        return delta if ctx.needs_input_grad[0] else None, None, None


class Watch(TorchFunctionMode, Generic[Kind]):
    """Within it, calls of layers that have something to train are done without their parameters, and noted."""

    def __init__(self, network: nn.Module, notes: Notes[Kind]) -> None:
        super().__init__()
        self.notes = notes
        self.layers: dict[Tensor, tuple[str, Tensor | None]] = {}  # weight → name of the layer, bias
        for name, module in network.named_modules():
            weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
            if isinstance(weight, nn.Parameter) and (weight.requires_grad or getattr(bias, "requires_grad", False)):
                if weight in self.layers:
                    raise Unsuited("engine closed needs layers that share no parameter")
                self.layers[weight] = (name, bias)
        self.calls: dict[str, Kind] = {}
        self.source = torch.zeros((), requires_grad=True)
        self.examples = 0
        self.doubtful = False  # is there a layer of which two dimensions might be the examples?

    def outputs(self, network: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        """The network's outputs for a batch, its layers' calls noted. Raises Unsuited where they do not fit.

        Of rows [L, B, F] with L = B it is not seen which dimension the examples are: one example more tells.
        """
        count = len(next(iter(inputs.values())))
        with self.over(count):
            outputs: Tensor = network(inputs)
        if self.doubtful:
            calls, self.doubtful = self.calls, False
            with torch.no_grad(), self.over(count + 1):
                network({name: torch.cat([values, values[:1]]) for name, values in inputs.items()})
            self.calls, self.doubtful = calls, False
        return outputs

    def over(self, examples: int) -> Watch[Kind]:
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

    def _noted(self, name: str, inputs: Tensor, call: Kind) -> None:
        if name in self.calls or len(inputs) != self.examples:
            raise Unsuited("engine closed needs each layer to be used once, on one row for each example")
        if torch.is_autocast_enabled(inputs.device.type):
            raise Unsuited("engine closed needs one precision: it does not work under autocast")
        self.calls[name] = call
        self.doubtful |= inputs.dim() == 3 and inputs.shape[1] == self.examples

    def _tapped(self, name: str, inputs: Tensor, call: Kind, output: Tensor) -> Tensor:
        self._noted(name, inputs, call)
        tapped: Tensor = _Tap.apply(output, self.source, call)  # type: ignore[no-untyped-call]
        return tapped

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        name = self._layer(weight, bias)
        if name is None:
            return F.linear(input, weight, bias)
        own, shift = weight.detach(), _detached(bias)
        if input.dim() == 2:
            call = self.notes.linear(input)
            self._noted(name, input, call)
            output: Tensor = _Affine.apply(input, self.source, call, own, shift)  # type: ignore[no-untyped-call]
            return output
        places = self.notes.shared(input, 1, lambda values: values.flatten(1, -2).transpose(1, 2))
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
        call = self.notes.shared(input, groups, lambda values: F.unfold(values, window, dilation, padding, stride))
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
        return self._tapped(name, input, self.notes.scale(plain, (1,)), output)

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
        return self._tapped(name, input, self.notes.scale(plain, kept), output)

    def _group_norm(
        self, input: Tensor, num_groups: int, weight: Tensor | None = None, bias: Tensor | None = None,
        eps: float = 1e-5,
    ) -> Tensor:  # fmt: skip
        name = self._layer(weight, bias)
        if name is None:
            return F.group_norm(input, num_groups, weight, bias, eps)
        plain = F.group_norm(input.detach(), num_groups, None, None, eps)
        output = F.group_norm(input, num_groups, _detached(weight), _detached(bias), eps)
        return self._tapped(name, input, self.notes.scale(plain, (1,)), output)


# Not bound to a watch: it would refer to itself, and what it holds would stay until Python looks for such circles.
_WATCHED: dict[Any, Callable[..., Tensor]] = {
    F.linear: Watch._linear, F.conv2d: Watch._conv2d, F.batch_norm: Watch._batch_norm,
    F.layer_norm: Watch._layer_norm, F.group_norm: Watch._group_norm,
}  # fmt: skip


def _detached(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.detach()
