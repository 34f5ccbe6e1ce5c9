"""FedAvg, then some epochs of each client on its own examples: the personal baseline of the family."""

from __future__ import annotations

from typing import ClassVar

from advml.config import PositiveFloat, PositiveInt, settings
from advml.contracts import Context
from advml.methods.federated.common import Federated, FederatedSettings
from advml.nn.local_training import batch_sizes
from advml.nn.replicas import Parameters


@settings
class Settings(FederatedSettings):
    """How long and how fast clients fine-tune."""

    finetune_epochs: PositiveInt
    finetune_lr: PositiveFloat


class FedAvgFinetune(Federated):
    """FedAvg in training. When measured, each client trains a copy of the global network on its own training examples
    and is asked about its held-out ones; the copies are thrown away. All clients do so at every evaluation.
    """

    settings: ClassVar[type] = Settings

    def setup(self, context: Context) -> None:
        """Everyone has a model of their own."""
        super().setup(context)
        self.personalise()

    def personal(self, clients: list[int]) -> Parameters:
        """The global network after fine-tuning, [r, *shape]."""
        values, alone = self.start(clients), not self.normed
        sizes = [len(batch_sizes(self.sizes[client], self.config.batch_size, alone)) for client in clients]
        steps = [count * self.config.finetune_epochs for count in sizes]
        self.train(0, clients, steps, values, "finetune order", None, self.config.finetune_lr)
        return values
