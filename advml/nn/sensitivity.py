"""How sensitive a network's outputs are to each parameter (Aljundi et al. 2018, "Memory aware synapses", section 4.1).

With the network in evaluation mode and f(x) its active outputs, averaged over examples x:

    Ω = 1/N Σ_n |∂ ‖f(x_n)‖² / ∂θ|

The absolute value is that of each example's own gradient: the mean gradient of a mini-batch would have them cancel. No
label is needed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from advml.contracts import Batch, Network, Split
from advml.nn.evaluation import evaluating
from advml.nn.fisher import linear_layers

Norm = Literal["squared_l2", "l2"]
Engine = Literal["auto", "loop", "linear", "vmap"]
AT_ONCE = 1 << 24  # numbers in the gradients that engine vmap holds at once


def sensitivity(
    network: Network,
    split: Split,
    *,
    norm: Norm = "squared_l2",
    mask: Tensor | None = None,
    index: Tensor | None = None,
    engine: Engine = "auto",
    batch_size: int = 500,
) -> dict[str, Tensor]:
    """Ω of every trainable parameter, by name, averaged over examples of `split`.

    `mask` bool [C]: the active outputs. `index` int64 [N]: the examples to use, all by default. `batch_size` is what is
    evaluated at once and has no influence on the result. `norm`: of the outputs; the paper takes the squared one.

    Engines: `loop` differentiates example by example and serves any network; `linear` is a closed form for networks
    whose parameters all belong to linear layers; `vmap` serves most networks and suits GPUs; `auto` takes `linear`
    where it applies, else `vmap` on a GPU and `loop` on a CPU, where vmap's batched weight gradients do not pay.
    """
    whole = slice(None) if index is None else index.to(split.device)
    count = len(split.target[whole])
    if not count:
        raise ValueError("the sensitivity needs at least one example")
    mask = None if mask is None else mask.to(split.device)

    def batches() -> Iterator[Batch]:
        for start in range(0, count, batch_size):
            part = slice(start, start + batch_size)
            yield split.batch(part if isinstance(whole, slice) else whole[part])

    if engine != "auto":
        engines = [engine]
    else:
        engines = ["linear", "vmap", "loop"] if split.device.type == "cuda" else ["linear", "loop"]
    with evaluating(network), torch.enable_grad():
        for name in engines:
            try:
                total = ENGINES[name](network, batches(), norm, mask)
                break
            except UnsuitedError:
                if name == engines[-1]:
                    raise
    return {name: values / count for name, values in total.items()}


def direction(outputs: Tensor, norm: Norm, mask: Tensor | None) -> Tensor:
    """The gradient [B, C] of each row's norm with respect to `outputs` [B, C]; 0 where not active.

    Of ‖z‖² it is 2z, of ‖z‖ it is z / ‖z‖, taken as 0 at 0.
    """
    active = outputs if mask is None else outputs.masked_fill(~mask, 0.0)
    if norm == "squared_l2":
        return 2 * active
    length: Tensor = active.norm(dim=-1, keepdim=True)
    return active / length.clamp_min(torch.finfo(active.dtype).tiny)


class UnsuitedError(ValueError):
    """An engine does not serve this network."""


# --- engines: sums over examples, parameter name → tensor of its shape ---------------------------------------------


def _trainable(network: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, Tensor]]:
    """The parameters to differentiate, and zeros to add to."""
    parameters = {name: value for name, value in network.named_parameters() if value.requires_grad}
    return parameters, {name: torch.zeros_like(value, requires_grad=False) for name, value in parameters.items()}


def _loop(network: Network, batches: Iterable[Batch], norm: Norm, mask: Tensor | None) -> dict[str, Tensor]:
    """Example by example: the reference. Each batch has sums of its own, against rounding."""
    parameters, total = _trainable(network)
    weights = list(parameters.values())
    for batch in batches:
        sums = [torch.zeros_like(value) for value in weights]
        for row in range(len(batch.target)):
            outputs = network({name: values[row : row + 1] for name, values in batch.inputs.items()})
            towards = direction(outputs.detach(), norm, mask)
            gradients = torch.autograd.grad(outputs, weights, towards, materialize_grads=True)
            torch._foreach_add_(sums, torch._foreach_abs(gradients))
        torch._foreach_add_(list(total.values()), sums)
    return total


def _vmap(network: Network, batches: Iterable[Batch], norm: Norm, mask: Tensor | None) -> dict[str, Tensor]:
    """All examples of a chunk at once: their gradients are held beside each other, so chunks are small."""
    from torch.func import functional_call, grad, vmap

    parameters, total = _trainable(network)
    fixed = {name: value.detach() for name, value in parameters.items()}
    chunk = max(1, AT_ONCE // max(1, sum(value.numel() for value in fixed.values())))

    def score(values: Mapping[str, Tensor], inputs: Mapping[str, Tensor]) -> Tensor:
        single = {name: example.unsqueeze(0) for name, example in inputs.items()}
        outputs: Tensor = functional_call(network, dict(values), (single,))
        return (outputs * direction(outputs.detach(), norm, mask)).sum()

    each = vmap(grad(score), in_dims=(None, 0), chunk_size=chunk)
    for batch in batches:
        for start in range(0, len(batch.target), chunk):
            part = {name: values[start : start + chunk] for name, values in batch.inputs.items()}
            try:
                gradients = each(fixed, part)
            except RuntimeError as error:
                raise UnsuitedError(f"engine vmap does not serve this network: {error}") from error
            for name, values in gradients.items():
                total[name] += values.abs().sum(0)
    return total


def _linear(network: Network, batches: Iterable[Batch], norm: Norm, mask: Tensor | None) -> dict[str, Tensor]:
    """Closed form for layers z = W a + b that see each example once.

    An example's gradient is Δ aᵀ with Δ = ∂‖f‖²/∂z. Its absolute value is |Δ| |a|ᵀ, so that summed over examples it is
    |Δ|ᵀ |A| with A [B, in] and Δ [B, out]; the biases' is Σ|Δ|. One forward and one backward pass for a batch.
    """
    layers = linear_layers(network)
    if layers is None:
        raise UnsuitedError("engine linear needs all trainable parameters in linear layers, none shared")
    parameters, total = _trainable(network)
    watch = _Watch(layers)
    for batch in batches:
        with watch.over(len(batch.target)):
            outputs = network(batch.inputs)
        sources = [z for _, z in watch.calls.values()]
        towards = direction(outputs.detach(), norm, mask)
        # Nothing but the calls seen may lead to the parameters.
        found = torch.autograd.grad(outputs, [*sources, *parameters.values()], towards, allow_unused=True)
        if any(gradient is not None for gradient in found[len(sources) :]):
            raise UnsuitedError("engine linear needs parameters to be used by their layer's call only")
        for (name, (inputs, _)), delta in zip(watch.calls.items(), found, strict=False):
            if delta is not None:
                if f"{name}.weight" in parameters:
                    total[f"{name}.weight"].addmm_(delta.abs().T, inputs)
                if f"{name}.bias" in parameters:
                    total[f"{name}.bias"] += delta.abs().sum(0)
    return total


class _Watch(TorchFunctionMode):
    """Within it, calls of `layers` are noted: |A| [B, in] and Z [B, out], through which gradients flow instead of
    through the parameters.
    """

    def __init__(self, layers: Mapping[str, nn.Linear]) -> None:
        super().__init__()
        self.names: dict[Tensor, str] = {layer.weight: name for name, layer in layers.items()}
        self.biases = {name: layer.bias for name, layer in layers.items()}
        self.calls: dict[str, tuple[Tensor, Tensor]] = {}
        self.examples = 0

    def over(self, examples: int) -> _Watch:
        """Forget earlier calls and expect those of a batch of `examples`."""
        self.calls, self.examples = {}, examples
        return self

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        does = self._linear if func is nn.functional.linear else func
        return does(*args, **(kwargs or {}))

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        name = self.names.get(weight)
        if name is None or bias is not self.biases[name]:
            return nn.functional.linear(input, weight, bias)
        if name in self.calls or input.dim() != 2 or len(input) != self.examples:
            raise UnsuitedError("engine linear needs each layer to be used once, on inputs [B, features]")
        z = nn.functional.linear(input, weight.detach(), None if bias is None else bias.detach())
        if not z.requires_grad:
            z.requires_grad_()
        self.calls[name] = input.detach().abs(), z  # now: what follows may work in place
        return z.clone()


ENGINES = {"loop": _loop, "linear": _linear, "vmap": _vmap}
