"""SCAFFOLD (Karimireddy et al. 2020, algorithm 1 with option II): clients correct their drift by control variates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from advml.config import PositiveFloat, settings
from advml.contracts import Context
from advml.methods.federated.common import Federated, FederatedSettings, Update
from advml.nn.aggregation import masses
from advml.nn.local_training import Pull
from advml.nn.replicas import Parameters

VARIATE = "variate/"


@settings
class Settings(FederatedSettings):
    """The server's step."""

    server_lr: PositiveFloat

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimiser != "sgd" or self.momentum:
            raise ValueError("optimiser: SCAFFOLD's variates are those of plain steps; use sgd with momentum 0")
        if self.clip_norm is not None:
            raise ValueError("clip_norm: SCAFFOLD's variates are means of gradients as they are; use null")


class Scaffold(Federated):
    """Local steps  y ← y − η (∇F_k(y) + c − c_k);  after K of them  c_k⁺ = c_k − c + (w − y) / (K η).

    The server:  w ← w + η_g Σ p_k (y_k − w),  c ← c + s Σ p_k (c_k⁺ − c_k),  s the share of all clients (by what each
    counts) that took part. Twice the bytes of FedAvg, both ways. Each client keeps its c_k: memory grows with the
    number of clients that ever took part.
    """

    settings: ClassVar[type] = Settings
    needs_all = "variates are of what is sent, and local norms are not"
    privacy_refused = "SCAFFOLD sends its variates too, which are not clipped; use method=fedavg"

    def setup(self, context: Context) -> None:
        """And the server's variate, zero; so are the clients' until they first take part."""
        super().setup(context)
        self.variate = {name: torch.zeros_like(value) for name, value in self.parameters.items()}
        self.variate = {name: value.detach() for name, value in self.variate.items()}
        self.norms: list[Tensor] = []

    def pull(self, clients: list[int]) -> Pull | None:
        """c − c_k."""
        mine = self.variates_of(clients)
        return Pull(0.0, {name: self.variate[name].unsqueeze(0) - value for name, value in mine.items()})

    def variates_of(self, clients: list[int]) -> Parameters:
        """c_k, name → [r, *shape]."""
        rows = {}
        for name, value in self.variate.items():
            kept = [self.kept.get(client, {}).get(VARIATE + name) for client in clients]
            rows[name] = torch.stack([torch.zeros_like(value) if one is None else one for one in kept])
        return rows

    def update(
        self, round: int, clients: list[int], values: Parameters, loss: Tensor, samples: int, steps: list[int]
    ) -> Update:
        """And how the variates change: c_k⁺ − c_k = −c − (y − w) / (K η)."""
        found = super().update(round, clients, values, loss, samples, steps)
        scale = torch.tensor([1 / (count * self.rate(round)) for count in steps], dtype=torch.float64)
        for name, mine in self.variates_of(clients).items():
            factor = scale.to(mine.device, mine.dtype).view(-1, *[1] * (mine.dim() - 1))
            change = (found.deltas[name] * factor).add_(self.variate[name].unsqueeze(0)).neg_()
            found.deltas[VARIATE + name] = change
            found.kept[VARIATE + name] = mine + change
        return found

    @torch.no_grad()
    def serve(self, round: int, mean: Mapping[str, Tensor], clients: list[int]) -> None:
        """The network by η_g, buffers by 1, the variate by the share of the clients that took part."""
        if not mean:
            return
        rate, weighting = self.config.server_lr, self.config.weighting
        present = masses(self.view.sizes[clients], weighting).sum() / masses(self.view.sizes, weighting).sum()
        moved = {name: value * rate if name in self.parameters else value for name, value in mean.items()}
        super().serve(round, moved, clients)
        for name, value in self.variate.items():
            value.add_(mean[VARIATE + name], alpha=float(present))

    def keep(self, update: Update) -> None:
        """And the norm of each c_k⁺: one that grows from turn to turn tells of a local rate that is too large."""
        super().keep(update)
        rows = [value.reshape(len(value), -1) for name, value in update.kept.items() if name.startswith(VARIATE)]
        self.norms.append(torch.stack([row.square().sum(1) for row in rows]).sum(0).sqrt())

    def end_round(self, round: int) -> dict[str, Any]:
        """And `largest_variate`, the largest ‖c_k⁺‖ of the round."""
        norms, self.norms = self.norms, []
        return {**super().end_round(round), **({"largest_variate": torch.cat(norms).max()} if norms else {})}

    def downlink(self) -> int:
        """The server sends its variate too."""
        return super().downlink() + sum(value.numel() * value.element_size() for value in self.variate.values())

    def state_dict(self) -> dict[str, Any]:
        """And the server's variate; the clients' are among what they keep."""
        return {**super().state_dict(), "variate": dict(self.variate)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore all of it."""
        super().load_state_dict(state)
        for name, value in self.variate.items():
            value.copy_(state["variate"][name])
