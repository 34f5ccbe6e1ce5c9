"""Supervised learning with a quantum model: the one training loop of all networks, several learning rates, circuits."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch

from advml.config import PositiveFloat, PositiveInt, settings
from advml.contracts import At, Context, Metrics, Phase, Record, Step
from advml.errors import ConfigError
from advml.methods import supervised
from advml.nn.optimisers import make_optimiser


@settings
class Settings(supervised.Settings):
    """And the learning rates that are tried, and the end of each."""

    rates: tuple[PositiveFloat, ...]
    max_updates: PositiveInt | None


class Qnn(supervised.Supervised):
    """Minimise the mean loss over the training examples; a step is an epoch.

    With `rates` each is a phase, which starts from the same weights; the weights with the lowest validation loss of
    all epochs and rates are the result. So every model gets the same search, and test examples choose nothing.
    `circuits` counts one for each example of an update, as a simulator runs them; differentiated by parameter shift,
    an example costs two more for each angle.
    """

    settings: ClassVar[type] = Settings

    def setup(self, context: Context) -> None:
        """And what every rate starts from."""
        super().setup(context)
        if self.config.rates and self.config.patience is None:
            raise ConfigError("method.rates: are compared by early stopping; set method.patience, or method.rates=[]")
        if self.config.max_updates is not None:  # whole epochs, at least one
            most = max(1, self.config.max_updates // self.updates_per_epoch)
            self.config = replace(self.config, epochs=min(self.config.epochs, most))
        self.start = self._weights()
        self.chosen: dict[str, Any] = {"loss": math.inf, "rate": None, "weights": None}

    def _weights(self) -> dict[str, torch.Tensor]:
        return {name: value.detach().clone() for name, value in self.network.state_dict().items()}

    def phases(self) -> Sequence[Phase]:
        """One phase of epochs for each rate."""
        if not self.config.rates:
            return super().phases()
        return [Phase(f"lr {rate:g}", "epoch", self.config.epochs) for rate in self.config.rates]

    def step(self, at: At) -> Step:
        """An epoch."""
        self.context.count(circuits=len(self.data.train))
        if not self.config.rates:
            return super().step(at)
        if at.index == 0:
            self._begin(at.phase)
        step = super().step(at)
        if not self.waited and self.lowest is not None and self.lowest < self.chosen["loss"]:
            self.chosen = {"loss": self.lowest, "rate": self.config.lr, "weights": self._weights()}
        if at.phase == len(self.config.rates) - 1 and (at.last or step.end_phase) and self.chosen["weights"]:
            self.network.load_state_dict(self.chosen["weights"])
        return step

    def _begin(self, phase: int) -> None:
        """The same weights, another rate, nothing remembered."""
        self.network.load_state_dict(self.start)
        self.config = replace(self.config, lr=self.config.rates[phase])
        self.optimiser = make_optimiser(self.network.parameters(), self.config)
        self.lowest, self.waited = None, 0

    def state_dict(self) -> dict[str, Any]:
        """And the rate at hand, the best weights so far."""
        tried = {"lr": self.config.lr, "chosen": dict(self.chosen)} if self.config.rates else {}
        return {**super().state_dict(), **tried}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore all of it."""
        super().load_state_dict(state)
        if self.config.rates:
            self.config, self.chosen = replace(self.config, lr=state["lr"]), dict(state["chosen"])

    def summary(self, records: Sequence[Record]) -> Metrics:
        """And the chosen rate."""
        return {**super().summary(records), **({"chosen_lr": self.chosen["rate"]} if self.config.rates else {})}
