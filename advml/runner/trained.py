"""The trained network of a run behind the preparation of its inputs: what the data set stores goes in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from advml.contracts import Network, Spec
from advml.data.prepare import Project, restore
from advml.data.source import blanked


class Trained(nn.Module):
    """Raw values in, outputs out, on the CPU. `prepare`: input → the steps as their `state()` told."""

    def __init__(self, network: Network, prepare: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        super().__init__()
        self.network = network
        self.names = tuple(network.recipe["spec"]["inputs"])
        spec = Spec.from_dict(network.recipe["spec"])
        self.streams, self.helpers = spec.streams, set(spec.helpers)
        self.dtype = next((parameter.dtype for parameter in network.parameters()), torch.float32)
        self.prepare = {
            name: tuple(restore(step).to(torch.device("cpu"), self.dtype) for step in prepare.get(name, ()))
            for name in self.names
        }

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Input → the shape of one raw example: that of the network's input, unless principal components are taken."""
        seen = self.network.recipe["spec"]["inputs"]
        steps = {name: [step for step in self.prepare[name] if isinstance(step, Project)] for name in self.names}
        return {name: steps[name][0].shape if steps[name] else tuple(seen[name]) for name in self.names}

    def forward(self, *raw: Tensor) -> Tensor:
        """One tensor [B, ...] for each input, in the order of `names`."""
        ready = {}
        for name, values in zip(self.names, raw, strict=True):
            for step in self.prepare[name]:
                values = step(values)
            ready[name] = values != 0 if name in self.helpers else values.to(self.dtype)
        outputs: Tensor = self.network(blanked(ready, self.streams) if self.helpers else ready)
        return outputs
