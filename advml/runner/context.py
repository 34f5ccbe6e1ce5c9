"""The concrete Context: what the runner hands to a method."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from advml import registry
from advml.config import Part
from advml.contracts import Network, Spec, World
from advml.errors import ConfigError
from advml.models.build import build, placed
from advml.runner.budget import Budget
from advml.runner.randomness import KeyedRng, derive
from advml.runner.world import Alone

DTYPES = {"float32": torch.float32, "float64": torch.float64, "bf16": torch.float32}


class RunContext:
    """See `advml.contracts.Context`."""

    def __init__(
        self,
        settings: Any,
        data: Any,
        model: Part,
        seed: int,
        device: torch.device,
        precision: str,
        budget: Budget,
        world: World | None = None,
    ) -> None:
        self.settings, self.data, self.device, self.dtype = settings, data, device, DTYPES[precision]
        self.rng = KeyedRng(seed)
        self.count = budget.add
        self.world = world or Alone()
        self._seed, self._model, self._autocast = seed, model, precision == "bf16"

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 regions under `precision=bf16`, nothing otherwise."""
        return torch.autocast(self.device.type, torch.bfloat16) if self._autocast else nullcontext()

    def build(self, spec: Spec | None = None, purpose: str = "model") -> Network:
        """Initialised on the CPU from (seed, purpose), then moved: the same weights on every device.

        Raises ConfigError where the model has no network for a `spec` that is not the view's.
        """
        name = self._model.name
        if spec is not None and (reason := registry.resolve("model", name).check(spec, self._model.settings)):
            raise ConfigError(f"model={name}: needs {reason}; this method has a network of {spec.outputs} outputs")
        spec = spec or self.data.spec
        seed = derive(self._seed, "build", purpose)
        return placed(build(self._model.name, self._model.settings, spec, seed), self.device, self.dtype)
