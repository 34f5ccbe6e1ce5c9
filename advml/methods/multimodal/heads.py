"""A fusion network seen in other ways: with the outputs of its heads, one of these alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from advml.contracts import Network
from advml.models.fusion import FusionNetwork
from advml.nn.evaluation import evaluating


class WithHeads(Network):
    """A fusion network that gives, beside its own outputs, those of each modality's head, in one pass.

    Outputs [B, (1 + M) · C]: the network's own, then each head's. The parameters are the network's.
    """

    def __init__(self, network: FusionNetwork) -> None:
        super().__init__()
        self.network, self.head = network, nn.Identity()

    def features(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """See the class."""
        encoded = self.network.encode(inputs)
        outputs = self.network.head(self.network.fuse(encoded, inputs))
        return torch.cat([outputs, *self.network.unimodal(encoded).values()], 1)


class Alone(Network):
    """One modality's head of a fusion network, as a network of its own."""

    def __init__(self, network: FusionNetwork, name: str) -> None:
        super().__init__()
        self.network, self.name, self.head = network, name, nn.Identity()

    def features(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """That head's outputs [B, C]."""
        return self.network.unimodal(self.network.encode(inputs))[self.name]


def with_heads(network: Network, data: Any) -> WithHeads | None:
    """The network with a head for each of several modalities; None if it has none. One example tells."""
    if not isinstance(network, FusionNetwork) or len(data.spec.streams) < 2 or not len(data.train):
        return None
    with evaluating(network):
        found = network.unimodal(network.encode(data.train.batch(slice(0, 1)).inputs))
    return WithHeads(network) if found else None
