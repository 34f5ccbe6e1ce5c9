"""Many copies of one network at once, as functions of their parameters: few-shot tasks, clients, candidates.

A copy is a value for every parameter; the copies' values lie side by side, [R, *shape] for R copies. Outputs are
differentiable to second order in them, so that a step of gradient descent can itself be learned through.

Batch norm uses the statistics of the examples at hand, of each copy by itself, and no running averages: unless
copies `remember`. Then these are among their values by name, kept up to date in place where dropout is on (training),
and used where it is off.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from math import prod
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.func import vmap
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from advml.contracts import Network, Spec
from advml.nn.abilities import Unsuited, unmapped
from advml.nn.replica_norms import Grouped, Normalised, Seen, normalised, remembered
from advml.nn.substitution import Substitution

Parameters = dict[str, Tensor]
"""Name → [R, *shape]: a value for each of R copies."""
Inputs = Mapping[str, Tensor]
Loss = Callable[[Tensor], Tensor]
"""Outputs [R, B, C] → the sum over copies of a loss that reads no other copy, 0-d."""
Engine = Literal["auto", "loop", "batched", "vmap"]

# On a CPU, by benchmarks/meta.py: up to FEW examples to a copy vmap beats the loop, AT_ONCE copies at a time. A GPU
# computes all copies at once.
AT_ONCE, FEW = 8, 10


def expand(network: nn.Module | Mapping[str, Tensor], copies: int) -> Parameters:
    """`copies` times the network's own parameters, or these values by name; gradients flow back to them."""
    values = dict(network.named_parameters()) if isinstance(network, nn.Module) else network
    return {name: value.unsqueeze(0).expand(copies, *value.shape) for name, value in values.items()}


def _bare(network: Network, seen: Seen, native: bool, remember: bool) -> Network:
    """The form of the network: the same parameters under the same names, batch norms without running averages.

    Nothing in it works in place: what a layer gave is differentiated by after the next one has read it.
    """
    shared = {id(parameter): parameter for parameter in network.parameters()}
    bare = copy.deepcopy(network, shared)
    for module in bare.modules():
        if getattr(module, "inplace", False):
            module.inplace = False  # type: ignore[assignment]
    for module in list(bare.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, _BatchNorm) and not remember:
                setattr(module, name, Normalised(child, seen, native))
            elif isinstance(child, nn.GroupNorm) and not native:
                setattr(module, name, Grouped(child))
    return bare.eval()


# --- engines ---


class Replicas:
    """Copies of one network, computed copy by copy: the reference for all engines, and the one that serves any network.

    `network` gives the form only: it is neither changed nor kept in step. `at_once`: how many copies are best computed
    by one call; None = as many as there are.
    """

    engine: ClassVar[str] = "loop"
    pads_norms: ClassVar[bool] = False  # may batch norms see examples of weight zero?
    at_once: int | None = 1

    def __init__(self, network: Network, remember: bool = False) -> None:
        self.seen, self.normalises = Seen(), has_batch_norm(network)
        self.network = _bare(network, self.seen, native=True, remember=remember)
        self.one = Substitution(self.network)
        self.last = [name for name, value in network.named_parameters() if _has_channels_last(value)]

    def outputs(
        self, parameters: Parameters, inputs: Inputs, reference: Inputs | None = None, dropout: bool = False,
        weight: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Outputs [R, B, C] of each copy for examples of its own, name → [R, B, ...].

        Batch norm takes its statistics from these examples; with `reference`, name → [R, S, ...], from those instead,
        so that one example's output does not depend on its neighbours (without a batch norm it is not looked at); with
        `weight` [R, B], where norms may be padded (`pads_norms`), from those above zero. `dropout` switches it on: each
        copy draws its own, from torch's generator, so that engines draw differently.
        """
        self.seen.first, self.seen.weight = None, weight if self.pads_norms else None
        reference = reference if self.normalises else None
        if reference is not None:
            self.seen.first = next(iter(reference.values())).shape[1]
            inputs = {name: torch.cat([reference[name], values], 1) for name, values in inputs.items()}
        self._train(dropout)
        outputs = self.computed(parameters, inputs)
        return outputs if reference is None else outputs[:, self.seen.first :]

    def gradients_at(
        self,
        values: Mapping[str, Tensor],
        names: Sequence[str],
        inputs: Inputs,
        loss: Loss,
        second: bool,
        dropout: bool,
    ) -> list[Tensor]:
        """Each copy's gradient [R, *shape] of its loss, for `names`, where all copies have these same `values` still.

        With `second` they are functions of `values`, to be differentiated once more.
        """
        parameters = expand(values, copies_in(inputs))
        places = [parameters[name] for name in names]
        outputs = self.outputs(parameters, inputs, dropout=dropout)
        return list(torch.autograd.grad(loss(outputs), places, create_graph=second, materialize_grads=True))

    def computed(self, parameters: Parameters, inputs: Inputs) -> Tensor:
        """Outputs [R, B, C], the statistics as `seen` says."""
        copies = copies_in(inputs)
        if copies == 1:  # nothing is copied, in either direction
            given, of = ({name: x.squeeze(0) for name, x in part.items()} for part in (parameters, inputs))
            return self.one(self.laid_out(given), of).unsqueeze(0)
        rows, own = ({name: x.unbind() for name, x in part.items()} for part in (parameters, inputs))
        return torch.stack([self.one(self.laid_out(_nth(rows, n)), _nth(own, n)) for n in range(copies)])

    def laid_out(self, parameters: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """One copy's parameters, filters with channels last if the network has them so: stacked, they lie otherwise."""
        last = {name: parameters[name].clone(memory_format=torch.channels_last) for name in self.last}
        return {**parameters, **last}

    def _train(self, dropout: bool) -> None:
        if self.network.training != dropout:
            self.network.train(dropout)


def _has_channels_last(value: Tensor) -> bool:
    return value.dim() == 4 and (value.stride(1), value.stride(3)) == (1, value.shape[1])


class Vmapped(Replicas):
    """All copies by `torch.func.vmap`: a convolution becomes one in as many groups as there are copies."""

    engine = "vmap"

    def __init__(self, network: Network, remember: bool = False) -> None:
        if (refused := unmapped(network)) is not None:
            raise Unsuited(f"engine: vmap does not serve {refused}; use loop")
        self.seen, self.normalises = Seen(), has_batch_norm(network)
        self.network = _bare(network, self.seen, native=False, remember=remember)
        self.one = Substitution(self.network)
        # On a CPU as many as stay in its cache, on a GPU as many as there are.
        self.at_once = AT_ONCE if next(network.parameters()).device.type == "cpu" else None

    def computed(self, parameters: Parameters, inputs: Inputs) -> Tensor:
        """Outputs [R, B, C]."""
        outputs: Tensor = vmap(self.one, randomness="different")(parameters, dict(inputs))
        return outputs


class Mixed(Replicas):
    """On a CPU: vmap for few examples to a copy, which cost more calls than numbers; more of them copy by copy."""

    engine = "mixed"

    def __init__(self, network: Network, examples: Sequence[int]) -> None:
        super().__init__(network)
        self.vmapped = Vmapped(network)
        if examples and min(examples) <= FEW:
            self.at_once = AT_ONCE

    def outputs(
        self, parameters: Parameters, inputs: Inputs, reference: Inputs | None = None, dropout: bool = False,
        weight: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Outputs [R, B, C]."""
        copies, examples = next(iter(inputs.values())).shape[:2]
        compute = self.vmapped.outputs if copies > 1 and examples <= FEW else super().outputs
        return compute(parameters, inputs, reference, dropout, weight)


class Batched(Replicas):
    """All copies of a chain of affine maps, norms and elementwise functions, by one product of matrices a layer."""

    engine = "batched"
    pads_norms = True
    at_once = None

    def __init__(self, network: Network, remember: bool = False) -> None:
        super().__init__(network, remember)
        self.chain = chain_of(self.network)
        linear = {name for name, module in self.chain if isinstance(module, nn.Linear)}
        self.of_linear = {name for name, _ in self.network.named_parameters() if name.rpartition(".")[0] in linear}

    def computed(self, parameters: Parameters, inputs: Inputs) -> Tensor:
        """Outputs [R, B, C]."""
        return self._walked(parameters, inputs, [])

    def gradients_at(
        self,
        values: Mapping[str, Tensor],
        names: Sequence[str],
        inputs: Inputs,
        loss: Loss,
        second: bool,
        dropout: bool,
    ) -> list[Tensor]:
        """The same without a matrix for each copy: of Y = X Wᵀ + b, ∂L/∂W = (∂L/∂Y)ᵀ X and ∂L/∂b = (∂L/∂Y)ᵀ 1.

        In the outer gradient, W's part is then one product of matrices for all copies together.
        """
        self.seen.first = None
        self._train(dropout)
        shared = {name: value for name, value in values.items() if name in self.of_linear}
        own = expand({name: value for name, value in values.items() if name not in shared}, copies_in(inputs))
        calls: list[Call] = []
        outputs = self._walked({**shared, **own}, inputs, calls)
        calls = [call for call in calls if f"{call.name}.weight" in names or f"{call.name}.bias" in names]
        sought = {name: own[name] for name in names if name in own}
        places = [*(call.given for call in calls), *sought.values()]
        found = torch.autograd.grad(loss(outputs), places, create_graph=second, materialize_grads=True)
        gradients = dict(zip(sought, found[len(calls) :], strict=True))
        with torch.set_grad_enabled(second):
            for call, delta in zip(calls, found, strict=False):
                gradients[f"{call.name}.weight"] = torch.bmm(delta.transpose(1, 2), call.read)
                gradients[f"{call.name}.bias"] = delta.sum(1)
        return [gradients[name] for name in names]

    def _walked(self, parameters: Parameters, inputs: Inputs, calls: list[Call]) -> Tensor:
        """Outputs [R, B, C]. Matrices may be those of all copies in common, [out, in]; `calls` gets what these do."""
        hidden = flat_rows(inputs)
        for name, module in self.chain:
            weight, bias = parameters.get(f"{name}.weight"), parameters.get(f"{name}.bias")
            match module:
                case nn.Linear():
                    assert weight is not None
                    given = affine(hidden, weight, bias)
                    if weight.dim() == 2:
                        calls.append(Call(name, hidden, given))
                    hidden = given
                case nn.LayerNorm():
                    hidden = _scaled(F.layer_norm(hidden, module.normalized_shape, eps=module.eps), weight, bias)
                case Normalised():
                    hidden = _scaled(normalised(hidden, self.seen.first, (1,), module.eps), weight, bias)
                case nn.BatchNorm1d():
                    normal = remembered(hidden, module, name, parameters, self.seen.weight)
                    hidden = _scaled(normal, weight, bias)
                case _:
                    hidden = module(hidden)
        return hidden


class Call(NamedTuple):
    """What a linear layer read, [R, B, in], and gave, [R, B, out]."""

    name: str
    read: Tensor
    given: Tensor


def affine(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """rows [R, B, in] → [R, B, out], by a weight of each copy, [R, out, in], with [R, out], or a common [out, in]."""
    if weight.dim() == 2:
        return F.linear(rows, weight, bias)
    if bias is None:
        return torch.bmm(rows, weight.transpose(1, 2))
    return torch.baddbmm(bias.unsqueeze(1), rows, weight.transpose(1, 2))


def _scaled(rows: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
    """rows [R, B, F] times and plus a row of each copy, [R, F], where it has one."""
    rows = rows if weight is None else rows * weight.unsqueeze(1)
    return rows if bias is None else rows + bias.unsqueeze(1)


SERVED = (
    nn.Linear, nn.LayerNorm, nn.BatchNorm1d, Normalised,
    nn.ReLU, nn.Tanh, nn.Softplus, nn.GELU, nn.Sigmoid, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.Dropout, nn.Identity,
)  # fmt: skip

ENGINES: dict[str, type[Replicas]] = {"loop": Replicas, "batched": Batched, "vmap": Vmapped}


def _is_served(module: nn.Module) -> bool:
    return isinstance(module, SERVED) and not (isinstance(module, nn.LayerNorm) and len(module.normalized_shape) > 1)


def make_replicas(network: Network, engine: Engine = "auto", examples: int | Sequence[int] = ()) -> Replicas:
    """Copies of `network`, computed by `engine`; `auto` takes the fastest for its layers, device and sizes.

    `examples`: how many to a copy there will be in each of the calls that are differentiated together. Raises Unsuited
    where the engine does not serve the network.
    """
    if engine != "auto":
        return ENGINES[engine](network)
    try:
        return Batched(network)
    except Unsuited:
        if unmapped(network) is not None:
            return Replicas(network)
        on_cpu = next(network.parameters()).device.type == "cpu"
        sizes = [examples] if isinstance(examples, int) else examples
        return Mixed(network, sizes) if on_cpu else Vmapped(network)


def chain_of(network: Network) -> list[tuple[str, nn.Module]]:
    """(name, module) of the layers in the order of their calls, for a network that is nothing but a chain of them.

    A trial tells: the first layer reads the flattened inputs, each other one the very output of that before it, which
    nothing has changed meanwhile, and the last gives the network's outputs. Parameters are used once. Raises Unsuited
    for all other networks.
    """
    calls: list[Trial] = []
    leaves = {name: module for name, module in network.named_modules() if not list(module.children())}
    refusal = Unsuited("engine: batched serves chains of linear layers, norms and activations (mlp, linear); use auto")
    if not hasattr(network, "recipe") or not all(map(_is_served, leaves.values())):
        raise refusal
    hooks = [
        module.register_forward_hook(
            lambda module, given, got, name=name: calls.append(Trial(name, module, given[0], got, given[0].clone()))
        )
        for name, module in leaves.items()
    ]
    example = next(network.parameters())
    shapes = Spec.from_dict(network.recipe["spec"]).inputs
    sizes = {name: prod(shape) for name, shape in shapes.items()}
    # Numbers of both signs, large and all different: whoever turns, cuts off or permutes them is seen.
    rows = (100 * torch.arange(2 * sum(sizes.values()), dtype=torch.float64).sin()).to(example).view(2, -1)
    parts = rows.split(list(sizes.values()), 1)
    inputs = {name: part.reshape(2, *shapes[name]) for name, part in zip(shapes, parts, strict=True)}
    with torch.no_grad():
        outputs = network(inputs)
    for hook in hooks:
        hook.remove()
    refused = (
        not calls
        or not torch.equal(calls[0].read, rows)
        or any(after.given is not before.got for before, after in pairwise(calls))
        or calls[-1].got is not outputs
        or _changed_between(calls, outputs)
    )
    owned = [f"{call.name}.{own}" for call in calls for own, _ in call.module.named_parameters()]
    if refused or sorted(owned) != sorted(name for name, _ in network.named_parameters()):
        raise refusal
    return [(call.name, call.module) for call in calls]


class Trial(NamedTuple):
    """A layer's call: the tensor that it was given and the one that it gave, and a copy of what it read."""

    name: str
    module: nn.Module
    given: Tensor
    got: Tensor
    read: Tensor


def _changed_between(calls: Sequence[Trial], outputs: Tensor) -> bool:
    """Did something work in place on what a layer gave, before the next one read it or it was handed out?"""
    with torch.no_grad():
        gave = [call.module(call.read) for call in calls]
    later = [*(call.read for call in calls[1:]), outputs]
    return not all(map(torch.equal, gave, later))


def has_batch_norm(network: nn.Module) -> bool:
    """Does an output depend on the other examples beside it?"""
    return any(isinstance(module, _BatchNorm) for module in network.modules())


def flat_rows(inputs: Inputs) -> Tensor:
    """All inputs as one row an example, [R, B, sum of their sizes]."""
    rows = [values.flatten(2) if values.dim() > 2 else values.unsqueeze(2) for values in inputs.values()]
    return rows[0] if len(rows) == 1 else torch.cat(rows, 2)


def copies_in(inputs: Inputs) -> int:
    """R, of inputs name → [R, B, ...]."""
    return len(next(iter(inputs.values())))


def _nth(values: Mapping[str, Sequence[Tensor]], index: int) -> dict[str, Tensor]:
    return {name: value[index] for name, value in values.items()}
