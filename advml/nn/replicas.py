"""Many copies of one network at once, as functions of their parameters: few-shot tasks, clients, candidates.

A copy is a value for every parameter; the copies' values lie side by side, [R, *shape] for R copies. Outputs are
differentiable to second order in them, so that a step of gradient descent can itself be learned through.

Batch norm uses the statistics of the examples at hand, of each copy by itself, and never running averages.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from advml.contracts import Network

Parameters = dict[str, Tensor]
"""Name → [R, *shape]: a value for each of R copies."""
Inputs = Mapping[str, Tensor]
Engine = Literal["auto", "loop", "batched", "vmap"]

ELEMENTWISE = (
    nn.ReLU, nn.Tanh, nn.Softplus, nn.GELU, nn.Sigmoid, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.Dropout, nn.Identity,
)  # fmt: skip


def expand(network: nn.Module, copies: int) -> Parameters:
    """`copies` times the network's own parameters; gradients flow back to them."""
    return {name: value.unsqueeze(0).expand(copies, *value.shape) for name, value in network.named_parameters()}


class Replicas:
    """Copies of one network, computed copy by copy: the reference for all engines, and the one that serves any network.

    `network` gives the form only: it is neither changed nor kept in step. `at_once`: how many copies are best computed
    by one call; None = as many as there are.
    """

    engine: str = "loop"
    at_once: int | None = 1

    def __init__(self, network: Network) -> None:
        self.seen = _Seen()
        self.network = _bare(network, self.seen)

    def outputs(
        self, parameters: Parameters, inputs: Inputs, reference: Inputs | None = None, dropout: bool = False
    ) -> Tensor:
        """Outputs [R, B, C] of each copy for examples of its own, name → [R, B, ...].

        Batch norm takes its statistics from these examples; with `reference`, name → [R, S, ...], from those instead,
        so that one example's output does not depend on its neighbours. `dropout` switches it on.
        """
        first = 0
        if reference is not None:
            first = next(iter(reference.values())).shape[1]
            inputs = {name: torch.cat([reference[name], values], 1) for name, values in inputs.items()}
        self.seen.first = first or None
        if self.network.training != dropout:
            self.network.train(dropout)
        return self._outputs(parameters, inputs)[:, first:]

    def _outputs(self, parameters: Parameters, inputs: Inputs) -> Tensor:
        copies = len(next(iter(inputs.values())))
        return torch.stack([self._one(_nth(parameters, copy), _nth(inputs, copy)) for copy in range(copies)])

    def _one(self, parameters: Mapping[str, Tensor], inputs: Inputs) -> Tensor:
        outputs: Tensor = functional_call(self.network, dict(parameters), (inputs,))
        return outputs


def make_replicas(network: Network, engine: Engine = "auto") -> Replicas:
    """Copies of `network`, computed by `engine`."""
    return Replicas(network)


def has_batch_norm(network: nn.Module) -> bool:
    """Does an output depend on the other examples beside it?"""
    return any(isinstance(module, _BatchNorm) for module in network.modules())


def _nth(values: Mapping[str, Tensor], index: int) -> dict[str, Tensor]:
    return {name: value[index] for name, value in values.items()}


# --- batch norm without a memory ----------------------------------------------------------------------------------


@dataclass
class _Seen:
    """Whose statistics batch norms use: those of the first so many examples; None = of all."""

    first: int | None = None


class _Normalised(nn.Module):
    """Batch norm (Ioffe and Szegedy 2015) by the examples at hand, under the parameter names of the norm it replaces.

    y = γ (x − μ) / √(σ² + ε) + β with the mean μ and the variance σ² of each channel over examples and places.
    """

    def __init__(self, norm: _BatchNorm, seen: _Seen, native: bool) -> None:
        super().__init__()
        self.weight, self.bias, self.affine = norm.weight, norm.bias, norm.affine
        self.eps, self.seen, self.native = norm.eps, seen, native

    def forward(self, values: Tensor) -> Tensor:
        """[B, C, ...] → the same shape."""
        if self.native and self.seen.first is None:
            return F.batch_norm(values, None, None, self.weight, self.bias, training=True, eps=self.eps)
        shape = (1, -1, *[1] * (values.dim() - 2))
        normal = normalised(values, self.seen.first, (0, *range(2, values.dim())), self.eps)
        return normal * self.weight.view(shape) + self.bias.view(shape) if self.affine else normal


def normalised(values: Tensor, first: int | None, axes: tuple[int, ...], eps: float) -> Tensor:
    """(x − μ) / √(σ² + ε), μ and σ² over `axes`, of which the foremost counts examples: over its `first` ones only.

    Written as means because vmap over torch's own batch norm has wrong second derivatives (torch 2.13).
    """
    seen = values if first is None else values.narrow(axes[0], 0, first)
    mean = seen.mean(axes, keepdim=True)
    variance = (seen - mean).square().mean(axes, keepdim=True)
    return (values - mean) * torch.rsqrt(variance + eps)


def _bare(network: Network, seen: _Seen, native: bool = True) -> Network:
    """The form of the network: the same parameters under the same names, batch norms without running averages."""
    shared = {id(parameter): parameter for parameter in network.parameters()}
    bare = copy.deepcopy(network, shared)
    for module in list(bare.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, _BatchNorm):
                setattr(module, name, _Normalised(child, seen, native))
    return bare.eval()
