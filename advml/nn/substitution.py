"""A network called with other values than its own, by the names of its parameters and buffers.

What `torch.func.functional_call` does, without looking for the places of the names at each call. They are those of the
modules as they are now: a network that is taken apart afterwards needs another one of these.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

from torch import Tensor, nn

Place = tuple[dict[str, Tensor | None], str]
"""Where a module keeps its parameters or buffers, and a name there."""


class Substitution:
    """Calls `network` with values in place of its own, which it has again afterwards, whatever happens.

    A tensor that the network has in several places is replaced in all of them, under the first of its names.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.places: dict[str, list[Place]] = {}
        first: dict[int, str] = {}
        own = chain(network.named_parameters(remove_duplicate=False), network.named_buffers(remove_duplicate=False))
        for name, value in own:
            owner, _, key = name.rpartition(".")
            module: Any = network.get_submodule(owner)
            kept = module._parameters if key in module._parameters else module._buffers
            self.places.setdefault(first.setdefault(id(value), name), []).append((kept, key))

    def __call__(self, values: Mapping[str, Tensor], *inputs: Any) -> Tensor:
        """The network's outputs with these values, name → tensor; what has no value here stays the network's own."""
        taken: list[tuple[Place, Tensor | None]] = []
        try:
            for name, value in values.items():
                for kept, key in self.places[name]:
                    taken.append(((kept, key), kept[key]))
                    kept[key] = value
            outputs: Tensor = self.network(*inputs)
            return outputs
        finally:
            for (kept, key), own in taken:
                kept[key] = own
