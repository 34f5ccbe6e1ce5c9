"""FedProx (Li et al. 2020): clients are held near the global network."""

from __future__ import annotations

from typing import ClassVar

from advml.config import CountFloat, settings
from advml.methods.federated.common import Federated, FederatedSettings
from advml.nn.local_training import Pull


@settings
class Settings(FederatedSettings):
    """How strongly they are held."""

    mu: CountFloat


class FedProx(Federated):
    """Each client minimises F_k(w) + μ/2 ‖w − w_global‖², whose gradient adds μ (w − w_global)."""

    settings: ClassVar[type] = Settings
    needs_all = "there are no global norms to hold a client's near"

    def pull(self, clients: list[int]) -> Pull | None:
        """μ w − μ w_global; none for μ = 0, which is FedAvg."""
        mu: float = self.config.mu
        if not mu:
            return None
        return Pull(mu, {name: value.detach().unsqueeze(0) * -mu for name, value in self.parameters.items()})
