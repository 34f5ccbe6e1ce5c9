"""A network that some modalities are kept from, for good: that of a training that never showed them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from advml.config import settings
from advml.contracts import Network, Spec
from advml.models.build import from_recipe
from advml.nn.multimodal.presence import without


@settings
class BlindSettings:
    """The recipe of the network, and the modalities that it does not see."""

    network: Mapping[str, Any]
    names: tuple[str, ...]


class Blind(Network):
    """A network's outputs [B, C] with these modalities taken from every example, as the data take them."""

    settings: ClassVar[type] = BlindSettings
    reads_tokens: ClassVar[bool] = True

    def __init__(self, network: Network, names: Sequence[str]) -> None:
        super().__init__()
        self.network, self.names, self.head = network, tuple(names), nn.Identity()
        self.streams = Spec.from_dict(network.recipe["spec"]).streams
        own = {"network": dict(network.recipe), "names": list(names)}
        self.recipe = {"name": "advml.models.blind:Blind", "settings": own, "spec": network.recipe["spec"]}

    @classmethod
    def make(cls, spec: Spec, settings: BlindSettings) -> Network:
        """With arbitrary weights."""
        return cls(from_recipe(settings.network), settings.names)

    def features(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """See the class."""
        rows = next(iter(inputs.values()))
        gone = {name: rows.new_ones(rows.shape[:1], dtype=torch.bool) for name in self.names}
        outputs: Tensor = self.network(without(inputs, self.streams, gone))
        return outputs
