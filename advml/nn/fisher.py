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
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from advml.contracts import Batch, Network, Split
from advml.nn.evaluation import evaluating

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
    batch_size: int = 1000,
) -> dict[str, Tensor]:
    """The Fisher diagonal of every trainable parameter, by name, averaged over examples of `split`.

    `mask` bool [C]: the active classes; the others get probability 0. `index` int64 [N]: the examples to use, all by
    default. `generator` (on the CPU) draws the classes of kind `sample`. `batch_size` is what is evaluated at once and
    has no influence on the result, save for `batched`.

    Engines: `loop` differentiates example by example and serves any network; `linear` is a closed form for networks
    whose parameters all belong to linear layers; `auto` takes the fastest that applies.
    """
    whole = slice(None) if index is None else index.to(split.device)
    count = len(split.target[whole])
    if not count:
        raise ValueError("the Fisher diagonal needs at least one example")
    if mask is not None:
        mask = mask.to(split.device)
        if kind in ("empirical", "batched") and not bool(mask[split.target[whole]].all()):
            raise ValueError(f"kind {kind} needs examples of active classes only")

    def batches() -> Iterator[Batch]:
        for start in range(0, count, batch_size):
            part = slice(start, start + batch_size)
            yield split.batch(part if isinstance(whole, slice) else whole[part])  # a slice copies nothing

    def gradients(logits: Tensor, target: Tensor) -> Iterator[Tensor]:
        return directions(logits.detach(), target, kind, mask, generator)

    with evaluating(network), torch.enable_grad():
        if kind == "batched":
            total = _batched(network, batches(), gradients)
        elif engine == "loop" or (engine == "auto" and linear_layers(network) is None):
            total = _loop(network, batches(), gradients)
        else:
            begun = None if generator is None else generator.get_state()
            try:
                total = _linear(network, batches(), gradients)
            except _Unsuited:
                if engine == "linear":
                    raise
                if generator is not None and begun is not None:
                    generator.set_state(begun)  # the loop draws the same classes as if it had been asked for
                total = _loop(network, batches(), gradients)
    return {name: values / count for name, values in total.items()}


def directions(
    logits: Tensor, target: Tensor, kind: Kind, mask: Tensor | None, generator: torch.Generator | None
) -> Iterator[Tensor]:
    """Gradients δ [B, C] with respect to the logits, such that the Fisher diagonal is Σ over δ of (δᵀ ∂logits/∂θ)².

    For softmax ∂ log p(c|x) / ∂logits = e_c − p(·|x), in closed form: the direction itself for one class chosen.
    `exact` needs one direction fewer than active classes: see `contrasts`.
    """
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    probability = logits.softmax(1)
    if kind == "exact":
        active = range(logits.shape[1]) if mask is None else mask.nonzero()[:, 0].tolist()
        yield from contrasts(probability, list(active))
        return
    chosen = drawn(logits, generator) if kind == "sample" else target
    yield nn.functional.one_hot(chosen, logits.shape[1]) - probability


def contrasts(probability: Tensor, labels: list[int]) -> Iterator[Tensor]:
    """C − 1 directions δ [B, C] with Σ δδᵀ = diag(p) − ppᵀ, for p [B, C] that is 0 outside the C ascending `labels`.

    With J = ∂logits/∂θ, any δs give Σ (δᵀJ)² = diag(Jᵀ (Σ δδᵀ) J), so only Σ δδᵀ matters; for the C directions
    √p_c (e_c − p) of the exact Fisher it is diag(p) − ppᵀ, of rank C − 1: fewer directions than here cannot do.
    These are the columns of its Cholesky factor (Tanabe & Sagae 1992), each class c but the last against those after
    it, with q_c = Σ_{k>c} p_k:  δ_c = √(p_c q_c / (p_c + q_c)) (e_c − Σ_{k>c} e_k p_k / q_c).
    """
    later = probability[:, labels[-1:]].clamp_min(torch.finfo(probability.dtype).tiny)  # no 0/0 where p underflows
    for label in reversed(labels[:-1]):
        here = probability[:, label : label + 1]
        both = here + later
        length = (here * (later / both)).sqrt()
        direction = torch.zeros_like(probability)
        direction[:, label : label + 1] = length
        direction[:, label + 1 :] = probability[:, label + 1 :] * (-length / later)
        yield direction
        later = both


def drawn(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """One class for each row of logits [B, C], drawn from their softmax as argmax(logits − log(−log u)) (Gumbel).

    One u for each logit, in order: the draws do not depend on how rows are grouped into batches.
    """
    uniform = torch.rand(logits.shape, generator=generator, dtype=torch.float64)
    noise = -(-uniform.log()).log()
    return (logits + noise.to(logits.device)).argmax(1)


# --- engines: sums over examples, parameter name → tensor of its shape ---------------------------------------------


def _trainable(network: nn.Module) -> tuple[dict[str, nn.Parameter], dict[str, Tensor]]:
    """The parameters to differentiate, and zeros to add to."""
    parameters = {name: value for name, value in network.named_parameters() if value.requires_grad}
    return parameters, {name: torch.zeros_like(value) for name, value in parameters.items()}


def _gradient(logits: Tensor, of: list[nn.Parameter], direction: Tensor) -> list[Tensor]:
    """∂(Σ direction · logits) / ∂`of`, zeros where nothing depends; the graph stays for the next direction."""
    return list(torch.autograd.grad(logits, of, direction, retain_graph=True, materialize_grads=True))


def _loop(network: Network, batches: Iterable[Batch], gradients: Directions) -> dict[str, Tensor]:
    """Example by example: the reference, and the way for any network.

    Each batch has sums of its own: thousands of small terms added to one large sum would round off.
    """
    parameters, total = _trainable(network)
    weights = list(parameters.values())
    for batch in batches:
        sums = [torch.zeros_like(value) for value in weights]
        for row in range(len(batch.target)):
            logits = network({name: values[row : row + 1] for name, values in batch.inputs.items()})
            for direction in gradients(logits, batch.target[row : row + 1]):
                gradient = _gradient(logits, weights, direction)
                torch._foreach_addcmul_(sums, gradient, gradient)
        torch._foreach_add_(list(total.values()), sums)
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
    A [B, in] and Δ [B, out]; the biases' is ΣΔ². Summing Δ² over the directions first leaves one product for each
    layer and batch. Deltas come from autograd, so whatever lies between layers is free. It carries no gradient to any
    parameter in this: one that gets a gradient nevertheless is used in another way than its layer's call.
    """
    layers = linear_layers(network)
    if layers is None:
        raise _Unsuited("engine linear needs all trainable parameters in linear layers, none shared")
    parameters, total = _trainable(network)
    keep_freed_memory()
    watch = _Watch(layers)
    for batch in batches:
        with watch.over(len(batch.target)):
            logits = network(batch.inputs)
        for direction in gradients(logits, batch.target):
            sources = [watch.source, *parameters.values()]
            found = torch.autograd.grad(logits, sources, direction, retain_graph=True, allow_unused=True)
            if any(gradient is not None for gradient in found):
                raise _Unsuited("engine linear needs parameters to be used by their layer's call only")
        for name, layer in watch.layers.items():
            if layer.inputs is not None and layer.deltas is not None:
                if f"{name}.weight" in parameters:
                    add_outer(total[f"{name}.weight"], layer.deltas, layer.inputs)
                if f"{name}.bias" in parameters:
                    total[f"{name}.bias"] += layer.deltas.sum(0)
    return total


class _Watched:
    """A linear layer; of its call in this batch A² [B, in], and Δ² [B, out] summed over the backward passes so far."""

    def __init__(self, layer: nn.Linear) -> None:
        self.plain = layer
        self.weight = layer.weight.detach()
        self.bias = None if layer.bias is None else layer.bias.detach()
        self.inputs: Tensor | None = None
        self.deltas: Tensor | None = None

    def add(self, delta: Tensor) -> None:
        """Add Δ² [B, out]."""
        self.deltas = delta.square() if self.deltas is None else self.deltas.addcmul_(delta, delta)


class _Affine(torch.autograd.Function):
    """z = a Wᵀ + b. Its backward pass adds Δ² to the layer's and goes on to a only, and only if a depends on layers.

    `source` stands for the parameters: because it requires a gradient, z does.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, source: Tensor, layer: _Watched) -> Tensor:
        ctx.layer = layer
        return product(inputs, layer.weight, layer.bias)

    @staticmethod
    def backward(ctx: Any, *deltas: Tensor) -> tuple[Tensor | None, None, None]:
        (delta,) = deltas
        ctx.layer.add(delta)
        return product_back(delta, ctx.layer.weight) if ctx.needs_input_grad[0] else None, None, None


class _Watch(TorchFunctionMode):
    """Within it, calls of `layers` are done by `_Affine` and noted."""

    def __init__(self, layers: dict[str, nn.Linear]) -> None:
        super().__init__()
        self.layers = {name: _Watched(layer) for name, layer in layers.items()}
        self.by_weight = {layer.plain.weight: layer for layer in self.layers.values()}
        self.source = torch.zeros((), requires_grad=True)
        self.examples = 0

    def over(self, examples: int) -> _Watch:
        """Forget earlier calls and expect those of a batch of `examples`."""
        self.examples = examples
        for layer in self.layers.values():
            layer.inputs = layer.deltas = None
        return self

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        does = self._linear if func is nn.functional.linear else func
        return does(*args, **(kwargs or {}))

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        layer = self.by_weight.get(weight)
        if layer is None or bias is not layer.plain.bias:
            return nn.functional.linear(input, weight, bias)
        if layer.inputs is not None or input.dim() != 2 or len(input) != self.examples:
            raise _Unsuited("engine linear needs each layer to be used once, on inputs [B, features]")
        if torch.is_autocast_enabled(input.device.type):
            raise _Unsuited("engine linear needs one precision: it does not work under autocast")
        layer.inputs = input.detach().square()  # now: what follows may work in place
        output: Tensor = _Affine.apply(input, self.source, layer)  # type: ignore[no-untyped-call]
        return output


# --- products ------------------------------------------------------------------------------------------------------


def suits_onednn(weight: Tensor) -> bool:
    """Is oneDNN the fast way for the products of a layer with this weight [out, in]?

    For float32 on processors with AVX-512 and unless it is small: on AMD's the MKL inside torch keeps to AVX2 and half
    the speed (seen with MKL 2024.2 on Zen 5), more than the way to oneDNN and back costs.
    """
    onednn = torch.backends.mkldnn
    suits = weight.dtype == torch.float32 and weight.device.type == "cpu" and min(weight.shape) >= 128
    return bool(
        suits and onednn.is_available() and onednn.enabled and torch.backends.cpu.get_cpu_capability() == "AVX512"
    )


def product(a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """a Wᵀ + bias [B, out] for a [B, in], W [out, in]."""
    if suits_onednn(weight):
        return nn.functional.linear(a.to_mkldnn(), weight, bias).to_dense()
    return nn.functional.linear(a, weight, bias)


def product_back(delta: Tensor, weight: Tensor) -> Tensor:
    """Δ W [B, in] for Δ [B, out], W [out, in]: a linear layer's gradient with respect to its input."""
    if suits_onednn(weight):
        size = [len(delta), weight.shape[1]]
        back: Tensor = torch.ops.aten.mkldnn_linear_backward_input(size, delta.to_mkldnn(), weight.contiguous())
        return back.to_dense()
    return delta @ weight


def add_outer(total: Tensor, delta: Tensor, a: Tensor) -> None:
    """Add Δᵀ a to `total` [out, in], for Δ [B, out], a [B, in]: a linear layer's gradient with respect to W."""
    if suits_onednn(total):
        total += torch.ops.aten.mkldnn_linear_backward_weights(delta.to_mkldnn(), a.to_mkldnn(), total, False)[0]
    else:
        total.addmm_(delta.T, a)


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for what comes next; handed back and mapped anew for each batch, it costs a fifth.

    It keeps up to twice the size of the largest block so far that was mapped and freed. This is one of 16 MiB; nothing
    is written to it, and other systems take no notice.
    """
    torch.UntypedStorage(1 << 24)
