"""The diagonal of the Fisher information of a classifier: how sharply p(y|x) reacts to each parameter.

With the network in evaluation mode and c over the active classes, averaged over examples x (Kirkpatrick et al. 2017
use it as importance; van de Ven 2025, "On the computation of the Fisher information in continual learning", compares
the kinds):

    exact      Σ_c p(c|x) (∂ log p(c|x) / ∂θ)²
    sample     (∂ log p(c|x) / ∂θ)², one c drawn from p(c|x) for each example: exact on average
    empirical  (∂ log p(y|x) / ∂θ)², y the true class
    batched    the square of a mini-batch's mean empirical gradient. Wrong: gradients cancel before they are squared,
               so that it shrinks with the batch size; offered only to reproduce results obtained with it
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from advml.contracts import Batch, Network, Split

Kind = Literal["exact", "sample", "empirical", "batched"]
Engine = Literal["auto", "loop", "linear"]
Directions = Callable[[Tensor, Tensor], Iterator[Tensor]]
"""(logits [B, C], target [B]) → gradients with respect to the logits, [B, C] each: see `directions`."""


def fisher_diagonal(
    network: Network,
    split: Split,
    *,
    kind: Kind = "exact",
    mask: Tensor | None = None,
    index: Tensor | None = None,
    generator: torch.Generator | None = None,
    engine: Engine = "auto",
    batch_size: int = 500,
) -> dict[str, Tensor]:
    """The Fisher diagonal of every trainable parameter, by name, averaged over examples of `split`.

    `mask` bool [C]: the active classes; the others get probability 0. `index` int64 [N]: the examples to use, all by
    default. `generator` (on the CPU) draws the classes of kind `sample`. `batch_size` is what is evaluated at once and
    has no influence on the result, save for `batched`.

    Engines: `loop` differentiates example by example and serves any network; `linear` is a closed form for networks
    whose parameters all belong to linear layers; `auto` takes the fastest that applies.
    """
    index = torch.arange(len(split), device=split.device) if index is None else index.to(split.device)
    if not len(index):
        raise ValueError("the Fisher diagonal needs at least one example")
    if mask is not None:
        mask = mask.to(split.device)
        if kind in ("empirical", "batched") and not bool(mask[split.target[index]].all()):
            raise ValueError(f"kind {kind} needs examples of active classes only")

    def batches() -> Iterator[Batch]:
        return (split.batch(part) for part in torch.split(index, batch_size))

    def gradients(logits: Tensor, target: Tensor) -> Iterator[Tensor]:
        return directions(logits.detach(), target, kind, mask, generator)

    with evaluating(network), torch.enable_grad():
        if kind == "batched":
            total = _batched(network, batches(), gradients)
        elif engine == "loop" or (engine == "auto" and linear_layers(network) is None):
            total = _loop(network, batches(), gradients)
        else:
            try:
                total = _linear(network, batches(), gradients)
            except _Unsuited:
                if engine == "linear":
                    raise
                total = _loop(network, batches(), gradients)
    return {name: values / len(index) for name, values in total.items()}


def directions(
    logits: Tensor, target: Tensor, kind: Kind, mask: Tensor | None, generator: torch.Generator | None
) -> Iterator[Tensor]:
    """Gradients δ [B, C] with respect to the logits, such that the Fisher diagonal is Σ over δ of (δᵀ ∂logits/∂θ)².

    For softmax ∂ log p(c|x) / ∂logits = e_c − p(·|x), in closed form. `exact` gives √p_c (e_c − p) for each active
    class c, the other kinds e_c − p for the one class chosen.
    """
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    probability = logits.softmax(1)
    if kind == "exact":
        for label in range(logits.shape[1]) if mask is None else mask.nonzero().flatten().tolist():
            direction = -probability
            direction[:, label] += 1
            yield direction * probability[:, label : label + 1].sqrt()
        return
    chosen = drawn(logits, generator) if kind == "sample" else target
    yield nn.functional.one_hot(chosen, logits.shape[1]) - probability


def drawn(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """One class for each row of logits [B, C], drawn from their softmax as argmax(logits − log(−log u)) (Gumbel).

    One u for each logit, in order: the draws do not depend on how rows are grouped into batches.
    """
    uniform = torch.rand(logits.shape, generator=generator, dtype=torch.float64)
    noise = -(-uniform.log()).log()
    return (logits + noise.to(logits.device)).argmax(1)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode inside; afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


# --- engines: sums over examples, parameter name → tensor of its shape ---------------------------------------------


def _trainable(network: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, Tensor]]:
    """The parameters to differentiate, and zeros to add to."""
    parameters = {name: value for name, value in network.named_parameters() if value.requires_grad}
    return parameters, {name: torch.zeros_like(value) for name, value in parameters.items()}


def _gradient(logits: Tensor, of: list[nn.Parameter] | list[Tensor], direction: Tensor) -> list[Tensor]:
    """∂(Σ direction · logits) / ∂`of`, zeros where nothing depends; the graph stays for the next direction."""
    return list(torch.autograd.grad(logits, of, direction, retain_graph=True, materialize_grads=True))


def _loop(network: Network, batches: Iterable[Batch], gradients: Directions) -> dict[str, Tensor]:
    """Example by example: the reference, and the way for any network."""
    parameters, total = _trainable(network)
    weights, sums = list(parameters.values()), list(total.values())
    for batch in batches:
        for row in range(len(batch.target)):
            logits = network({name: values[row : row + 1] for name, values in batch.inputs.items()})
            for direction in gradients(logits, batch.target[row : row + 1]):
                gradient = _gradient(logits, weights, direction)
                torch._foreach_addcmul_(sums, gradient, gradient)
    return total


def _batched(network: Network, batches: Iterable[Batch], gradients: Directions) -> dict[str, Tensor]:
    """The mistaken kind: the square of each mini-batch's mean gradient, weighted by its size."""
    parameters, total = _trainable(network)
    weights, sums = list(parameters.values()), list(total.values())
    for batch in batches:
        size = len(batch.target)
        logits = network(batch.inputs)
        for direction in gradients(logits, batch.target):
            gradient = _gradient(logits, weights, direction / size)
            torch._foreach_addcmul_(sums, gradient, gradient, size)
    return total


class _Unsuited(ValueError):
    """The linear engine does not serve this network."""


def linear_layers(network: nn.Module) -> dict[str, nn.Linear] | None:
    """The linear layers with something to train, by name; None if any other module has a trainable parameter."""
    layers: dict[str, nn.Linear] = {}
    seen: set[nn.Parameter] = set()
    for name, module in network.named_modules():
        own = [value for value in module.parameters(recurse=False) if value.requires_grad]
        if not own:
            continue
        if type(module) is not nn.Linear or not seen.isdisjoint(own):
            return None
        seen.update(own)
        layers[name] = module
    return layers


def _linear(network: Network, batches: Iterable[Batch], gradients: Directions) -> dict[str, Tensor]:
    """Closed form for layers z = W a + b that see each example once.

    An example's gradient is Δ aᵀ with Δ = ∂(score)/∂z, so squared and summed over examples it is (Δ²)ᵀ(A²), with
    A [B, in] and Δ [B, out]; the biases' is ΣΔ². Summing Δ² over the classes first leaves one product for each layer
    and batch. Deltas come from autograd, by way of the layers' outputs, so whatever lies between layers is free.
    A weight that is also used outside its layer's call would escape notice: ask for the loop then.
    """
    layers = linear_layers(network)
    if layers is None:
        raise _Unsuited("engine linear needs all trainable parameters in linear layers, none shared")
    parameters, total = _trainable(network)
    calls: dict[nn.Module, tuple[Tensor, Tensor]] = {}

    def remember(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if layer in calls or inputs[0].dim() != 2:
            raise _Unsuited("engine linear needs each layer to be used once, on inputs [B, features]")
        calls[layer] = (inputs[0].detach().square(), output)
        return output.clone()  # what follows may work in place, and must not change what is remembered

    hooks = [layer.register_forward_hook(remember) for layer in layers.values()]
    try:
        for batch in batches:
            calls.clear()
            logits = network(batch.inputs)
            if len(calls) != len(layers):
                raise _Unsuited("engine linear needs each layer to be used once")
            outputs = [calls[layer][1] for layer in layers.values()]
            squares = [torch.zeros_like(output) for output in outputs]
            for direction in gradients(logits, batch.target):
                deltas = _gradient(logits, outputs, direction)
                torch._foreach_addcmul_(squares, deltas, deltas)
            for (name, layer), square in zip(layers.items(), squares, strict=True):
                if layer.weight.requires_grad:
                    total[f"{name}.weight"].addmm_(square.T, calls[layer][0])
                if f"{name}.bias" in parameters:
                    total[f"{name}.bias"] += square.sum(0)
    finally:
        for hook in hooks:
            hook.remove()
    return total
