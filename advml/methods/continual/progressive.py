"""Progressive networks (Rusu et al. 2016, "Progressive neural networks")."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

from advml.config import PositiveInt, settings
from advml.contracts import At, Classes, Context, Network, Step
from advml.methods.continual.common import Continual, ContinualSettings
from advml.models.progressive import ProgressiveNetwork
from advml.nn.optimisers import make_optimiser


@settings
class Settings(ContinualSettings):
    """What a column gets from those before it."""

    lateral: Literal["adapter", "linear", "none"]
    adapter: PositiveInt | None


class Progressive(Continual):
    """Each task gets a column, a whole network that also reads what the columns before it compute; these are frozen.

    Nothing can be forgotten; what grows is the network. The optimiser starts anew with each column, whatever
    `fresh_optimiser` says: of its parameters none has been trained before.
    """

    settings = Settings
    needs = replace(Continual.needs, scenarios=("task",))  # it must be told which task an example is of
    several_networks = True  # columns, each of which costs more than the one before

    def setup(self, context: Context) -> None:
        """The first column."""
        super().setup(context)
        self._start(1)

    def _start(self, columns: int) -> None:
        """So many columns as they are before any training."""
        self.progressive = ProgressiveNetwork(self.stream.spec, self.config.lateral, self.config.adapter)
        self.network = self.progressive
        for _ in range(columns):
            self._grow()

    def _grow(self) -> None:
        """A column for the next task: the chosen model with the outputs of that task alone."""
        number = len(self.progressive.columns)
        places = self.stream[number].outputs.nonzero().flatten().tolist()
        spec = replace(self.stream.spec, target=Classes(len(places)))
        column = self.context.build(spec, purpose=f"column {number + 1}" if number else "model")
        self.progressive.add(column, places, self.context.rng("laterals", number))
        self.optimiser = make_optimiser(self.network.parameters(), self.config)

    def step(self, at: At) -> Step:
        """A block of iterations of the newest column."""
        if len(self.progressive.columns) == at.phase:
            self._grow()
        return self.done(at, {"loss": self.train_block(at, still=self.progressive.frozen())})

    def network_for(self, number: int) -> Network:
        """Column `number` and those before it; outputs of zero for a task that has none yet."""
        return self.progressive.of(number)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """As many columns as tasks had begun."""
        self._start(max(1, state["begun"]))
        super().load_state_dict(state)
