"""Settings that every federated method has: compression, masks, stragglers, privacy and several processes.

They fill the places that `Federated.step` leaves: `cohort`, `work`, `weights`, `updates`, `uplink`, `new_sum`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from advml.artifacts import Artifact, Json
from advml.config import PositiveInt, settings
from advml.contracts import Metrics, Record, SplitName
from advml.errors import ConfigError
from advml.methods.federated.channel import Channel, Rows
from advml.methods.federated.rounds import Rounds, RoundSettings
from advml.nn.abilities import mixing
from advml.nn.aggregation import Weighting, cohort, shares
from advml.nn.compression import CompressionSettings
from advml.nn.participation import Share, StragglerSettings, planned_work
from advml.nn.private_clients import ExamplePrivacy
from advml.nn.private_rounds import ClientPrivacy, PrivateRoundsSettings
from advml.nn.secure_sum import SecureSettings


@settings
class ExtraSettings(RoundSettings):
    """The blocks of configs/method/_base/federated.yaml that say what happens around local training."""

    weighting: Weighting
    workers: PositiveInt
    dropout: Share
    stragglers: StragglerSettings
    compression: CompressionSettings
    secure_aggregation: SecureSettings
    privacy: PrivateRoundsSettings


class Sum(Protocol):
    """Where a round's updates are added up: plain, masked or noisy."""

    def add(self, clients: Sequence[int], values: Mapping[str, Tensor], weights: Tensor) -> None:
        """Add values [r, *shape] of r clients with weights [r] (on the CPU)."""
        ...

    def total(self) -> dict[str, Tensor]:
        """The sum, name → [*shape]; empty where nobody sent anything."""
        ...


class Extras(Rounds):
    """What the settings of `ExtraSettings` do in a round. `set_up_extras` comes last in a method's setup.

    `privacy_refused`: why a method cannot hide clients, where it cannot. `sends`: does anything leave a client?
    """

    privacy_refused: ClassVar[str | None] = None
    sends: ClassVar[bool] = True
    sizes: list[int]
    parameters: dict[str, nn.Parameter]
    shared: dict[str, Tensor]

    def set_up_extras(self, planned: Callable[[int], int]) -> None:
        """`planned`: client → its local steps in a round. Raises ConfigError for settings that exclude each other."""
        config = self.config
        sent = {name: value for name, value in self.parameters.items() if name in self.shared}
        self.channel = Channel(config.compression, config.secure_aggregation, sent, self.context)
        self.privacy = self._private_clients() if config.privacy.kind == "client" else None
        self.example_privacy = self._private_examples(planned) if config.privacy.kind == "example" else None
        self.spending: ClientPrivacy | ExamplePrivacy | None = self.privacy or self.example_privacy

    def _private_examples(self, steps: Callable[[int], int]) -> ExamplePrivacy:
        config = self.config
        if not self.sends:
            raise ConfigError("method.privacy: nothing is sent that could be hidden; use kind=none")
        if (mixed := mixing(self.network)) is not None:
            raise ConfigError(mixed)
        planned = [0] * len(self.sizes)
        for round in range(config.rounds if config.privacy.noise is None else 0):
            for client in self.cohort(round):
                planned[client] += steps(client)
        try:
            return ExamplePrivacy(config.privacy, self.sizes, config.batch_size, planned, self.context.rng)
        except ValueError as error:
            raise ConfigError(f"method.privacy.{error}") from None

    def _private_clients(self) -> ClientPrivacy:
        config = self.config
        if self.privacy_refused is not None:
            raise ConfigError(f"method.privacy: {self.privacy_refused}")
        if config.secure_aggregation.enabled:
            raise ConfigError(
                "method.privacy: rounding to fixed point after clipping is not accounted for; use "
                "method.secure_aggregation.enabled=false"
            )
        slow = config.stragglers.fraction and not config.stragglers.keep
        if config.privacy.quantile is not None and (config.dropout or slow):
            # Who does not arrive counts as half a norm below the bound: C aims at another quantile, or runs away.
            given = "dropout" if config.dropout else "stragglers"
            instead = "method.stragglers.keep=true" if given == "stragglers" else "method.dropout=0"
            raise ConfigError(
                f"method.{given}: a bound that follows a quantile of norms counts on all who are drawn; use "
                f"method.privacy.quantile=null, or {instead}"
            )
        norms = [name for name, module in self.network.named_modules() if isinstance(module, _BatchNorm)]
        if beside := [name for name in self.shared if name.rpartition(".")[0] in norms]:
            raise ConfigError(
                f"method.privacy: {beside[0]} are statistics of examples that no noise hides; use "
                "method.batch_norm=local, or another model.norm"
            )
        try:
            return ClientPrivacy(config.privacy, self.sizes, config.fraction, config.rounds, self.context.rng)
        except ValueError as error:
            raise ConfigError(f"method.privacy.{error}") from None

    # --- the places in a round ---

    def cohort(self, round: int) -> list[int]:
        """The clients of a round, in ascending order."""
        if self.privacy is not None:
            return self.privacy.cohort(round)
        return cohort(len(self.sizes), self.config.fraction, self.context.rng("cohort", round))

    def work(self, round: int, cohort: list[int], planned: list[int]) -> list[int]:
        """How many local steps each does of those planned; 0 = it drops out."""
        config, rng = self.config, self.context.rng
        generators = [rng(purpose, round) for purpose in ("slow clients", "partial work", "dropouts")]
        done = planned_work(
            cohort, config.epochs, config=config.stragglers, dropout=config.dropout, generators=generators,
            independent=self.privacy is not None,
        )  # fmt: skip
        return [math.ceil(epochs / config.epochs * steps - 1e-9) for epochs, steps in zip(done, planned, strict=True)]

    def weights(self, clients: list[int]) -> Tensor:
        """What each client's update is multiplied by in the sum, float64 [m] on the CPU."""
        if self.privacy is not None:
            return self.privacy.weights(clients)
        return shares(torch.tensor([self.sizes[client] for client in clients]), self.config.weighting)

    def uplink(self, round: int, clients: list[int], deltas: Rows) -> tuple[Rows, int]:
        """(what the server receives of the clients' deltas, bytes that were sent)."""
        arrived, size = self.channel.sent(round, clients, deltas)
        if self.privacy is None:
            return arrived, size
        return self.privacy.clipped({name: rows for name, rows in arrived.items() if name in self.parameters}), size

    def new_sum(self, round: int, cohort: list[int]) -> Sum:
        """An empty sum for a round."""
        if self.privacy is not None:
            hidden = {name: value for name, value in self.shared.items() if name in self.parameters}
            return self.privacy.new_sum(round, hidden)  # what is frozen neither moves nor gets noise
        return self.channel.new_sum(round, cohort)

    def end_round(self, round: int) -> dict[str, Any]:
        """What else the record of a round tells."""
        return dict(self.channel.end_round() if self.privacy is None else self.privacy.end_round(round))

    # --- the rest of a run ---

    def evaluate(self, split: SplitName) -> Metrics:
        """The network on the whole split and over the clients; with privacy, ε of the rounds so far."""
        found = super().evaluate(split)
        return {**found, "epsilon": self.spending.epsilon()} if found and self.spending is not None else found

    def summary(self, records: Sequence[Record]) -> Metrics:
        """Rounds to each target; with privacy, ε and δ of the whole run."""
        found = super().summary(records)
        if self.spending is None:
            return found
        return {**found, "epsilon": self.spending.epsilon(), "delta": self.spending.delta}

    def artifacts(self, records: Sequence[Record]) -> Mapping[str, Artifact]:
        """Partition, curves and spread; with privacy, the statement of what is promised."""
        found = super().artifacts(records)
        return found if self.spending is None else {**found, "privacy": Json(self.spending.to_dict())}

    def extra_state(self) -> dict[str, Any]:
        """What the next round depends on."""
        return {
            "channel": self.channel.state_dict(),
            **({} if self.spending is None else {"privacy": self.spending.state_dict()}),
        }

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        """Restore it."""
        self.channel.load_state_dict(state["channel"])
        if self.spending is not None:
            self.spending.load_state_dict(state["privacy"])
