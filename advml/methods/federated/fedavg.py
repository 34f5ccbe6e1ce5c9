"""Federated averaging (McMahan et al. 2017, algorithm 1)."""

from __future__ import annotations

from typing import ClassVar

from advml.config import settings
from advml.methods.federated.common import Federated, FederatedSettings


@settings
class Settings(FederatedSettings):
    """Those of every federated method."""


class FedAvg(Federated):
    """w ← Σ_{k∈S} n_k / n_S · w_k: the clients' networks, averaged.

    With `batch_norm=local` it is FedBN (Li et al. 2021): each client keeps its own batch norms.
    """

    settings: ClassVar[type] = Settings
