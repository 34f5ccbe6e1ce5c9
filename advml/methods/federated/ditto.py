"""Ditto (Li et al. 2021, "Ditto: Fair and Robust Federated Learning Through Personalization", algorithm 1)."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from advml.config import CountFloat, settings
from advml.contracts import Context
from advml.methods.federated.common import Federated, FederatedSettings, Update
from advml.nn.local_training import Pull
from advml.nn.replicas import Parameters

OWN = "own/"


@settings
class Settings(FederatedSettings):
    """How near a client's own model stays to the global one."""

    strength: CountFloat


class Ditto(Federated):
    """FedAvg, and beside it each client's own model, trained when the client takes part:

    v_k ← v_k − η (∇F_k(v_k) + λ (v_k − w)),  w as the server sent it; as many steps as for the global network.

    It begins at the initial network. Memory grows with the number of clients that ever took part.
    """

    settings: ClassVar[type] = Settings
    needs_all = "there are no global norms to hold a client's near"

    def setup(self, context: Context) -> None:
        """And the network at which own models begin."""
        super().setup(context)
        self.initial = {name: value.clone() for name, value in self.network.state_dict().items()}
        self.personalise()

    def local(self, round: int, clients: list[int], steps: list[int]) -> Update:
        """FedAvg's, and a step of the clients' own models."""
        sent = super().local(round, clients, steps)
        values = self.personal(clients)
        _, samples = self.train(round, clients, steps, values, "order", self.held())
        kept = {**sent.kept, **{OWN + name: value for name, value in values.items()}}
        return replace(sent, kept=kept, beside=samples, updates=sent.updates + sum(steps))

    def held(self) -> Pull | None:
        """λ v − λ w."""
        strength: float = self.config.strength
        if not strength:
            return None
        near = {name: value.detach().unsqueeze(0) * -strength for name, value in self.parameters.items()}
        return Pull(strength, near)

    def personal(self, clients: list[int]) -> Parameters:
        """v_k, name → [r, *shape]."""
        rows: dict[str, Tensor] = {}
        for name, value in self.initial.items():
            kept = [self.kept.get(client, {}).get(OWN + name) for client in clients]
            rows[name] = torch.stack([value] * len(clients))
            for row, one in enumerate(kept):
                if one is not None:
                    rows[name][row] = one
        return rows
