"""Federated averaging that hides whether a client was there (DP-FedAvg; McMahan et al. 2018), over rounds.

One round:  Δ = (Σ_{k sampled} w_k Δ_k min(1, C/‖Δ_k‖) + N(0, (σ C)²)) / (q W)

with w_k = min(n_k/ŵ, 1) and W = Σ_k w_k over all clients, and whatever the server makes of Δ. The denominator is what
the sampled weights add up to on average, not what they came to: that is private. So is the largest of them: the noise
is for the largest there can be, 1. A round without any client adds its noise all the same. The norm is taken over all
parameters together; statistics of batch norms are no part of it and must not be sent.

With `quantile` the bound C follows that quantile of the norms, by a noisy count of the updates below it (Andrew et al.
2021); the count costs its share of the noise.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from advml.config import CountFloat, PositiveFloat, settings
from advml.contracts import Rng
from advml.nn.accounting import Sampling, Spending, check_noise, usual_delta
from advml.nn.aggregation import WeightedSum, cohort, cohort_size
from advml.nn.privacy import (
    add_noise,
    client_weights,
    clip_factors,
    next_clip,
    noise_beside_count,
    noise_deviation,
    poisson_sample,
    update_norms,
)

TAKEN_AS_PUBLIC = (
    "the number of clients",
    "what the weights of all clients add up to",
    "all settings, however found",
    "what inputs are prepared by: normalisation constants, principal components",
    "the network that training starts from",
)
NOT_PROTECTED = (
    "training metrics in the records",
    "validation and test examples, and what is measured per client",
    "what stays with a client",
    "anything, from who knows the seed",
)


@settings
class PrivateRoundsSettings:
    """The keys of the block `privacy` in configs/method/_base/federated.yaml."""

    kind: Literal["none", "client", "example"]
    clip: PositiveFloat
    noise: CountFloat | None
    target_epsilon: PositiveFloat | None
    delta: Annotated[float, Interval(gt=0, lt=1)] | None
    sampling: Sampling
    weight_cap: PositiveFloat | None
    quantile: Annotated[float, Interval(gt=0, lt=1)] | None
    clip_speed: PositiveFloat
    count_noise: PositiveFloat | None

    def __post_init__(self) -> None:
        check_noise(self.kind, self.noise, self.target_epsilon)
        if self.kind == "example" and self.quantile is not None:
            raise ValueError("quantile: is of clients' updates, and examples are hidden; use null, or kind client")
        if self.kind == "example" and self.weight_cap is not None:
            raise ValueError("weight_cap: is of clients that are hidden, and examples are; use null, or kind client")


class ClientPrivacy(Spending):
    """What is private about the rounds: who is sampled, how much they weigh, the noise, and what it costs so far."""

    def __init__(
        self, config: PrivateRoundsSettings, sizes: Sequence[int], fraction: float, planned: int, rng: Rng
    ) -> None:
        """`planned` rounds in all: the noise for a target is chosen for them. Raises ValueError as noise_for does."""
        self.config, self.rng, self.clients, self.fraction = config, rng, len(sizes), fraction
        rate = fraction if config.sampling == "poisson" else cohort_size(self.clients, fraction) / self.clients
        delta = usual_delta(self.clients, "client") if config.delta is None else config.delta
        super().__init__("client", config.sampling, rate, delta, config.noise, config.target_epsilon, planned)
        self.all_weights = client_weights(torch.tensor(sizes), config.weight_cap)
        self.expected = self.rate * self.clients  # clients in a round
        self.counted = config.quantile is not None
        given = config.count_noise
        self.count_noise = self.expected / 20 if given is None else given
        self.on_updates = noise_beside_count(self.noise, self.count_noise) if self.counted else self.noise
        self.clip = config.clip
        self.norms: list[Tensor] = []  # of the round at hand, before clipping

    def cohort(self, round: int) -> list[int]:
        """The clients of a round, ascending; under Poisson sampling perhaps none."""
        generator = self.rng("cohort", round)
        if self.config.sampling == "poisson":
            return [int(client) for client in poisson_sample(self.clients, self.rate, generator)]
        return cohort(self.clients, self.fraction, generator)

    def weights(self, clients: Sequence[int]) -> Tensor:
        """w_k / (q W), float64 [m]: the sum with these weights is divided already."""
        return self.all_weights[list(clients)] / (self.rate * self.all_weights.sum())

    def clipped(self, deltas: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The deltas, name → [r, *shape], each client's scaled to norm C at most over all of them together.

        One without a finite norm counts as zeros: a NaN in the sum would tell that its client was there.
        """
        norms = update_norms(list(deltas.values()))
        self.norms.append(norms.detach().cpu().double())
        factors, finite = clip_factors(norms, self.clip), norms.isfinite()
        return {
            name: torch.where(_beside(finite, rows), rows * _beside(factors, rows), 0.0)
            for name, rows in deltas.items()
        }

    def deviation(self) -> float:
        """Of the noise in the divided sum: σ C / (q W). Any client weighs 1 at most, whoever is there."""
        return noise_deviation(self.on_updates, self.clip) / (self.rate * float(self.all_weights.sum()))

    def new_sum(self, round: int, like: Mapping[str, Tensor]) -> PrivateSum:
        """The sum of a round, to which noise is added once."""
        return PrivateSum(like, self.deviation(), self.rng("client noise", round))

    def end_round(self, round: int) -> dict[str, float | Tensor | None]:
        """Count the round and move the bound; what happened: `clip` as it was, the share `clipped` (not protected)."""
        norms = torch.cat(self.norms) if self.norms else torch.empty(0, dtype=torch.float64)
        self.norms = []
        told: dict[str, float | Tensor | None] = {
            "clip": self.clip,
            "clipped": float((norms > self.clip).double().mean()) if len(norms) else None,
        }
        if self.config.quantile is not None:
            self.clip = next_clip(
                self.clip,
                norms,
                quantile=self.config.quantile,
                speed=self.config.clip_speed,
                expected=self.expected,
                deviation=self.count_noise if self.noise else 0.0,
                generator=self.rng("count noise", round),
            )
        self.released = max(self.released, round + 1)
        return told

    def to_dict(self) -> dict[str, Any]:
        """The guarantee and its limits, for a file."""
        promised = self.statement()
        limits = {"taken_as_public": list(TAKEN_AS_PUBLIC), "not_protected": list(NOT_PROTECTED)}
        bound = {"clip": self.clip, "quantile": self.config.quantile, "noise_on_updates": self.on_updates}
        return {"statement": promised.line(), **promised.to_dict(), **bound, **limits}

    def state_dict(self) -> dict[str, Any]:
        """What the next round depends on, and how many there were."""
        return {"clip": self.clip, "rounds": self.released}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it. Never fewer rounds: an earlier state chosen as the best is a choice among all."""
        self.clip, self.released = float(state["clip"]), max(self.released, int(state["rounds"]))


def _beside(values: Tensor, rows: Tensor) -> Tensor:
    """Values [r] in a shape that goes with rows [r, …]."""
    return values.view(-1, *[1] * (rows.dim() - 1))


class PrivateSum(WeightedSum):
    """The weighted sum of clipped updates, and noise: also where nobody came."""

    def __init__(self, like: Mapping[str, Tensor], deviation: float, generator: torch.Generator) -> None:
        super().__init__()
        self.sums = {name: torch.zeros_like(value) for name, value in like.items()}
        self.deviation, self.generator = deviation, generator

    def total(self) -> dict[str, Tensor]:
        """The noisy sum, name → [*shape]. To be asked for once: the noise is drawn then."""
        add_noise(list(self.sums.values()), self.deviation, self.generator)
        return self.sums
