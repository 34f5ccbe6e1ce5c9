"""One network whose weights belong to tasks (Mallya and Lazebnik 2018, "PackNet")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call

from advml.config import settings
from advml.contracts import Network, Spec
from advml.errors import ConfigError
from advml.models.build import from_recipe
from advml.models.pertask import PerTask

FREE = torch.iinfo(torch.int16).max  # the owner of a weight that is nobody's: later than every task


@settings
class PackedSettings:
    """The recipe of the network inside, and the outputs of each task."""

    inner: Mapping[str, Any]
    places: tuple[tuple[int, ...], ...]


class PackedNetwork(PerTask):
    """A network and, for each weight of its layers before the head, the number of the task that it belongs to.

    Task k is computed with the weights of tasks 0 to k; all others count as zero. What belongs to no task, biases and
    norms, is common to all; of the head, each task has the rows of its own outputs.
    """

    settings: ClassVar[type] = PackedSettings

    def __init__(self, inner: Network, places: Sequence[Sequence[int]]) -> None:
        spec = inner.recipe["spec"]
        super().__init__(Spec.from_dict(spec).outputs)
        self.inner = inner
        heads = set(inner.head.modules())
        self.layers = [
            name
            for name, module in inner.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d) and module not in heads
        ]
        if not self.layers:
            raise ConfigError(
                f"model={inner.recipe['name']}: has no layer before its head whose weights tasks could share out; "
                "use model=mlp or another with hidden layers"
            )
        weights = self.weights().values()
        device = next(iter(weights)).device
        count = sum(weight.numel() for weight in weights)
        self.register_buffer("owner", torch.zeros(count, dtype=torch.int16, device=device))
        for own in places:
            self.add_outputs(own, device)
        own_recipe = {"inner": dict(inner.recipe), "places": [list(own) for own in places]}
        self.recipe = {"name": "advml.models.packed:PackedNetwork", "settings": own_recipe, "spec": spec}

    @classmethod
    def make(cls, spec: Spec, settings: PackedSettings) -> Network:
        """With arbitrary weights, all of the first task."""
        return cls(from_recipe(settings.inner), settings.places)

    def weights(self) -> dict[str, nn.Parameter]:
        """The weights that belong to tasks, by name."""
        # Not get_parameter: inside functional_call a weight may be any tensor.
        return {f"{name}.weight": self.inner.get_submodule(name).weight for name in self.layers}  # type: ignore[misc]

    def owners(self) -> dict[str, Tensor]:
        """Name → the number of the task that each weight belongs to, or FREE; int16 views into `owner`."""
        weights = self.weights()
        owner: Tensor = self.get_buffer("owner")
        parts = owner.split([weight.numel() for weight in weights.values()])
        return {name: part.view_as(weight) for part, (name, weight) in zip(parts, weights.items(), strict=True)}

    def task(self, inputs: Mapping[str, Tensor], number: int) -> Tensor:
        """The outputs of task `number`, with the weights of later tasks, and free ones, at zero."""
        owners = self.owners()
        masked = {
            name: torch.where(owners[name] <= number, weight, torch.zeros_like(weight))
            for name, weight in self.weights().items()
        }
        outputs: Tensor = functional_call(self.inner, masked, (inputs,))
        return outputs.index_select(1, self.places(number))
