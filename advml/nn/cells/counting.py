"""What a network costs: its parameters and the work of one forward pass."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import nn

from advml.contracts import Network, Spec
from advml.nn.flops import FlopCounter


@dataclass(frozen=True)
class Cost:
    """`parameters` without an auxiliary head; `multiply_adds`: of the convolutions and products for one example.

    The literature on architecture search calls multiply-adds FLOPs; `flops` counts both operations of each.
    """

    parameters: int
    multiply_adds: int

    @property
    def flops(self) -> int:
        """Floating point operations: two for each multiply-add."""
        return 2 * self.multiply_adds


def count_parameters(network: nn.Module) -> int:
    """Numbers to be learned, those of an auxiliary head left out."""
    return sum(value.numel() for name, value in network.named_parameters() if not name.startswith("auxiliary."))


def cost(network: Network, spec: Spec) -> Cost:
    """Counted on tensors without content (device `meta`): nothing is computed and the network is not touched."""
    empty = copy.deepcopy(network).to("meta").eval()
    like = next(empty.parameters()).dtype
    inputs = {name: torch.empty((1, *shape), device="meta", dtype=like) for name, shape in spec.inputs.items()}
    with torch.no_grad(), FlopCounter() as counter:
        empty(inputs)
    return Cost(count_parameters(network), counter.total // 2)
