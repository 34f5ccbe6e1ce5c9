"""FedOpt (Reddi et al. 2021): to the server, the clients' mean change is a gradient for an optimiser of its own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from advml.config import Fraction, PositiveFloat, settings
from advml.contracts import Context
from advml.methods.federated.common import Federated, FederatedSettings
from advml.nn.server import Rule, ServerOptimiser


@settings
class Settings(FederatedSettings):
    """The server's optimiser."""

    server_optimiser: Rule
    server_lr: PositiveFloat
    server_momentum: Fraction
    server_betas: tuple[Fraction, Fraction]
    tau: PositiveFloat

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.server_momentum and self.server_optimiser != "sgd":
            raise ValueError(f"server_momentum: {self.server_optimiser} has none; use 0, or server_optimiser sgd")


class FedOpt(Federated):
    """w ← w + step(Δ), Δ = Σ_k p_k (w_k − w), by FedAvgM, FedAdam, FedYogi or FedAdagrad: advml/nn/server.py.

    Running averages of batch norms are no parameters: they are averaged as in FedAvg.
    """

    settings: ClassVar[type] = Settings

    def setup(self, context: Context) -> None:
        """And the server's optimiser."""
        super().setup(context)
        config = self.config
        self.server = ServerOptimiser(
            config.server_optimiser, config.server_lr, config.server_momentum, config.server_betas, config.tau
        )

    @torch.no_grad()
    def serve(self, round: int, mean: Mapping[str, Tensor], clients: list[int]) -> None:
        """The optimiser's step on parameters, the mean for buffers."""
        if not mean:
            return
        moved = {name: value for name, value in self.shared.items() if name in self.parameters}
        self.server.step(moved, mean)
        super().serve(round, {name: value for name, value in mean.items() if name not in moved}, clients)

    def state_dict(self) -> dict[str, Any]:
        """And what the server's optimiser remembers."""
        return {**super().state_dict(), "server": self.server.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore all of it."""
        super().load_state_dict(state)
        self.server.load_state_dict(state["server"], self.context.device)
