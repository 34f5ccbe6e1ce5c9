"""All examples in one place: the baseline that tells what is lost by leaving them with the clients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from advml.config import settings
from advml.contracts import At, Context, Step
from advml.methods.federated.rounds import Rounds, RoundSettings
from advml.nn.aggregation import cohort_size
from advml.nn.optimisers import make_optimiser
from advml.nn.replicas import has_batch_norm
from advml.nn.training import batches_of, minibatches, train, updates_per_epoch


@settings
class Settings(RoundSettings):
    """Those of rounds."""


class Centralised(Rounds):
    """Mini-batch training on the pooled examples of all clients, with one optimiser throughout.

    A round takes m/K · E epochs, m of K clients: as many examples as the clients of a round of FedAvg take together.
    They are the most that a batch has, so that B = ∞ is FedSGD's step, and each round has an update.
    """

    settings: ClassVar[type] = Settings

    def setup(self, context: Context) -> None:
        """And the optimiser."""
        super().setup(context)
        config = self.config
        self.optimiser = make_optimiser(self.network.parameters(), config)
        self.examples, clients = len(self.view.train), len(self.view)
        drawn = cohort_size(clients, config.fraction)
        most = self.examples * drawn // clients  # at least 1: every client has an example
        self.batch_size = min(config.batch_size or most, most)
        self.alone = not has_batch_norm(self.network)  # such a norm cannot learn from a single example
        updates = updates_per_epoch(self.examples, self.batch_size, self.alone)
        self.per_round = drawn / clients * config.epochs * updates

    def step(self, at: At) -> Step:
        """A round's updates: over all rounds m/K · E epochs each, rounded once."""
        start, stop = (round(number * self.per_round) for number in (at.index, at.index + 1))
        indices = minibatches(
            self.examples, self.batch_size, start, stop, lambda epoch: self.context.rng("order", epoch), self.alone
        )
        loss = train(
            self.network,
            batches_of(self.view.train, indices),
            self.loss,
            self.optimiser,
            settings=replace(self.config, lr=self.rate(at.index), schedule="constant", warmup=0),
            update=start,
            total=stop,
            count=self.context.count,
        )
        return self.with_curve(at, {"loss": loss})

    def state_dict(self) -> dict[str, Any]:
        """Network and optimiser."""
        return {"network": self.network.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore both."""
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
