"""Every client for itself: the baseline that tells what is gained by learning together."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from advml.config import settings
from advml.contracts import Context
from advml.methods.federated.channel import Rows
from advml.methods.federated.common import Federated, FederatedSettings, Update
from advml.methods.federated.extras import Sum
from advml.nn.aggregation import WeightedSum, masses
from advml.nn.replicas import Parameters


@settings
class Settings(FederatedSettings):
    """Those of every federated method."""


class LocalOnly(Federated):
    """The clients of a round, as in FedAvg, train on with their own models, all from the same start; nothing is sent.

    The global network is the mean of all clients' models, Σ_k n_k/n v_k (averaging once, at the end): nobody uses it.
    Memory grows with the number of clients that ever took part.
    """

    settings: ClassVar[type] = Settings
    privacy_refused = "nothing is sent that could be hidden; use kind=none"
    sends = False

    def setup(self, context: Context) -> None:
        """Everything is the clients' own."""
        super().setup(context)
        self.initial = {name: value.clone() for name, value in self.network.state_dict().items()}
        self.own, self.counters = set(), {}
        state = self.network.state_dict(keep_vars=True)
        self.shared = {name: value for name, value in state.items() if value.is_floating_point()}  # own norms too
        self.personalise()

    def start(self, clients: list[int]) -> Parameters:
        """Each where it was, or at the initial network."""
        rows = {name: torch.stack([value] * len(clients)) for name, value in self.initial.items()}
        for row, client in enumerate(clients):
            for name, value in self.kept.get(client, {}).items():
                rows[name][row] = value
        return rows

    def update(
        self, round: int, clients: list[int], values: Parameters, loss: Tensor, samples: int, steps: list[int]
    ) -> Update:
        """All values are kept. How they have moved moves the mean of all."""
        before = self.start(clients)
        deltas = {name: values[name] - before[name] for name in self.shared}
        return Update(clients, deltas, loss, samples, sum(steps), kept=values)

    def weights(self, clients: list[int]) -> Tensor:
        """n_k/n over all clients, present or not."""
        weighting = self.config.weighting
        return masses(self.view.sizes[clients], weighting) / masses(self.view.sizes, weighting).sum()

    def new_sum(self, round: int, cohort: list[int]) -> Sum:
        """A plain one: there are no messages to mask."""
        return WeightedSum()

    def uplink(self, round: int, clients: list[int], deltas: Rows) -> tuple[Rows, int]:
        """Nothing is sent."""
        return deltas, 0

    def downlink(self) -> int:
        """Nothing is sent."""
        return 0
