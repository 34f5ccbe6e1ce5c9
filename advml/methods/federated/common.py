"""What federated methods share: a step is a round. Clients are drawn, train, send; the server sums and moves.

The parts that a method or a setting may replace: `cohort`, `work`, `weights`, `pull`, `local`, `uplink`, `new_sum`,
`serve`. Everything random is keyed by round and client, so that the same seed draws the same in any engine.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Interval
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from advml.artifacts import Artifact
from advml.config import Fraction, PositiveInt, settings
from advml.contracts import (
    At,
    Batch,
    Classes,
    Context,
    Method,
    Metrics,
    Needs,
    Network,
    Objective,
    Phase,
    Real,
    Record,
    SplitName,
    Step,
)
from advml.data.clients import Clients
from advml.errors import ConfigError
from advml.methods.federated import curves, measuring
from advml.nn.aggregation import WeightedSum, Weighting, cohort, shares
from advml.nn.local_training import (
    LocalEngine,
    LocalTraining,
    Pull,
    batch_sizes,
    copies_at_once,
    example_losses,
    local_batches,
    local_replicas,
)
from advml.nn.losses import LossName, make_loss
from advml.nn.optimisers import OptimiserSettings, learning_rate
from advml.nn.replicas import Parameters, Unsuited, has_batch_norm

Rows = dict[str, Tensor]
"""Name → [r, *shape]: a value for each of r clients."""


@settings
class FederatedSettings(OptimiserSettings):
    """Keys of every federated method: configs/method/_base/federated.yaml."""

    rounds: PositiveInt
    fraction: Annotated[float, Interval(gt=0, le=1)]
    epochs: PositiveInt
    batch_size: PositiveInt | None
    loss: LossName
    label_smoothing: Fraction
    weighting: Weighting
    batch_norm: Literal["average", "local", "refuse"]
    engine: LocalEngine
    targets: tuple[Annotated[float, Interval(ge=0)], ...]
    curve: Literal["none", "valid", "test"]
    curve_every: PositiveInt
    stop_at_targets: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stop_at_targets and (self.curve == "none" or not self.targets):
            raise ValueError("stop_at_targets: needs targets and a curve to reach them; set targets and curve")


@dataclass(frozen=True)
class Update:
    """What comes of the local training of a chunk of clients, a row for each.

    `deltas`: by how much what is summed has changed: parameters, floating buffers, and what a method adds.
    `counters`: integer buffers, of which the server takes the largest. `kept`: what stays with the clients.
    `loss`: summed over `samples` examples, 0-d.
    """

    clients: list[int]
    deltas: Rows
    loss: Tensor
    samples: int
    updates: int
    counters: Rows = field(default_factory=dict)
    kept: Rows = field(default_factory=dict)


class Federated(Method):
    """Algorithm 1 of McMahan et al. 2017, with places for what others put there."""

    settings: ClassVar[type] = FederatedSettings
    needs = Needs(view="clients", targets=(Classes, Real), precisions=("float32", "float64"))
    objective = Objective("accuracy", "valid", "max")

    # --- a round ---

    def step(self, at: At) -> Step:
        """A round. If nobody does any work, the model stays and `clients` is 0."""
        round = at.index
        cohort = self.cohort(round)
        steps = dict(zip(cohort, self.work(round, cohort, [self.planned(client) for client in cohort]), strict=True))
        order = sorted((k for k in cohort if steps[k]), key=lambda k: (-steps[k], -self.sizes[k], k))
        weight = dict(zip(order, self.weights(order).tolist(), strict=True))
        total = self.new_sum(round, cohort, torch.tensor([weight.get(k, 0.0) for k in cohort], dtype=torch.float64))
        losses, sent = [], 0
        for update in self.updates(round, [(chunk, [steps[k] for k in chunk]) for chunk in self.chunks(order, steps)]):
            deltas, size = self.uplink(round, update.clients, update.deltas)
            weights = torch.tensor([weight[k] for k in update.clients], dtype=torch.float64)
            total.add(update.clients, deltas, weights)
            self.keep(update)
            losses.append(update.loss)
            sent += size + _bytes(update.counters)
            self.context.count(samples=update.samples, updates=update.updates, gradients=update.samples)
            self.seen += update.samples
        self.serve(round, total.total(), order)
        received = len(cohort) * self.downlink()
        self.context.count(bytes_up=sent, bytes_down=received)
        loss = torch.stack(losses).sum() / self.seen if losses else torch.tensor(float("nan"))
        self.seen = 0
        found = {"loss": loss, "clients": len(order), "bytes_up": sent, "bytes_down": received}
        return self._with_curve(at, found)

    def cohort(self, round: int) -> list[int]:
        """The clients of a round, in ascending order."""
        return cohort(len(self.view), self.config.fraction, self.context.rng("cohort", round))

    def planned(self, client: int) -> int:
        """How many local steps a client has to do: E epochs."""
        sizes = batch_sizes(self.sizes[client], self.config.batch_size, not self.normed)
        return len(sizes) * self.config.epochs

    def work(self, round: int, cohort: list[int], planned: list[int]) -> list[int]:
        """How many local steps each does of those planned; 0 = it drops out."""
        return planned

    def weights(self, clients: list[int]) -> Tensor:
        """What each client's update is multiplied by in the sum, float64 [m] on the CPU."""
        return shares(torch.tensor([self.sizes[client] for client in clients]), self.config.weighting)

    def new_sum(self, round: int, cohort: list[int], weights: Tensor) -> WeightedSum:
        """An empty sum for a round; weights [m] of the cohort, 0 for those that drop out."""
        return WeightedSum()

    def uplink(self, round: int, clients: list[int], deltas: Rows) -> tuple[Rows, int]:
        """(what the server receives of the clients' deltas, bytes that were sent)."""
        return deltas, _bytes(deltas)

    def downlink(self) -> int:
        """Bytes that the server sends to each client of a cohort: all that is not the client's own."""
        state = self.network.state_dict()
        return sum(value.numel() * value.element_size() for name, value in state.items() if name not in self.own)

    @torch.no_grad()
    def serve(self, round: int, mean: Mapping[str, Tensor], clients: list[int]) -> None:
        """Move the global network by the weighted mean of deltas; `mean` is empty where nobody sent anything."""
        for name, value in self.shared.items():
            if name in mean:
                value.add_(mean[name])

    # --- on the clients ---

    def chunks(self, order: list[int], steps: Mapping[int, int]) -> Iterator[list[int]]:
        """The clients that train side by side: as many as are fast, and with batch norm only of equal sizes."""
        chunk: list[int] = []
        for client in order:
            alike = not chunk or (steps[client], self.sizes[client]) == (steps[chunk[0]], self.sizes[chunk[0]])
            if len(chunk) == self.at_once or (self.normed and not alike):
                yield chunk
                chunk = []
            chunk.append(client)
        if chunk:
            yield chunk

    def updates(self, round: int, chunks: Sequence[tuple[list[int], list[int]]]) -> Iterator[Update]:
        """What comes of each chunk (clients, local steps of each), in this order."""
        for clients, steps in chunks:
            yield self.local(round, clients, steps)

    def local(self, round: int, clients: list[int], steps: list[int]) -> Update:
        """Train a chunk of clients from what the server sent: it changes nothing here.

        It follows from round, clients and steps, the global network and what the clients kept.
        """
        values = self.start(clients)
        loss, samples = self.train(round, clients, steps, values, "order", self.pull(clients))
        return self.update(clients, values, loss, samples, steps)

    def train(
        self, round: int, clients: list[int], steps: list[int], values: Parameters, purpose: str, pull: Pull | None
    ) -> tuple[Tensor, int]:
        """Move values [r, *shape] in place by so many local steps; (the loss summed over examples, their number)."""
        batches = [
            local_batches(
                self.view.owned[client],
                self.config.batch_size,
                count,
                self.context.rng(purpose, round, client),
                not self.normed,
            )
            for client, count in zip(clients, steps, strict=True)
        ]
        if self.noisy:  # dropout draws from the global generator: make it the chunk's own, whoever computes it
            torch.manual_seed(int(torch.randint(2**62, (), generator=self.context.rng("noise", round, clients[0]))))

        def fetch(index: Tensor) -> Batch:
            return self.view.batch(clients[: len(index)], index)

        loss = self.training.train(values, list(self.parameters), batches, fetch, self.rate(round), pull)
        return loss, sum(len(batch) for rows in batches for batch in rows)

    def rate(self, round: int) -> float:
        """The local learning rate of a round."""
        return learning_rate(self.config, round, self.config.rounds)

    def pull(self, clients: list[int]) -> Pull | None:
        """What is added to these clients' gradients."""
        return None

    def start(self, clients: list[int]) -> Parameters:
        """The values from which clients train, [r, *shape]: the global ones, and their own where they keep some."""
        values = {name: value.detach() for name, value in self.network.state_dict().items()}
        rows = {name: value.unsqueeze(0).repeat(len(clients), *[1] * value.dim()) for name, value in values.items()}
        for row, client in enumerate(clients):
            for name in self.own & self.kept.get(client, {}).keys():
                rows[name][row] = self.kept[client][name]
        return rows

    def update(self, clients: list[int], values: Parameters, loss: Tensor, samples: int, steps: list[int]) -> Update:
        """What training has changed. `values` become the deltas."""
        deltas = {name: values[name].sub_(value.detach()) for name, value in self.shared.items()}
        counters = {name: values[name] for name in self.counters}
        kept = {name: values[name] for name in self.own}
        return Update(clients, deltas, loss, samples, sum(steps), counters, kept)

    def keep(self, update: Update) -> None:
        """Store what stays with the clients; of counters the server takes the largest."""
        for row, client in enumerate(update.clients):
            if update.kept:
                self.kept[client] = {name: value[row].clone() for name, value in update.kept.items()}
        for name, value in update.counters.items():
            current = self.counters[name]
            current.copy_(torch.maximum(current, value.amax(0)))

    # --- a run ---

    def setup(self, context: Context) -> None:
        """The global network, and how copies of it are trained."""
        self.context, self.config = context, context.settings
        self.view: Clients = context.data
        if isinstance(self.view.spec.target, Real):
            self.objective = Objective(self.objective.metric.replace("accuracy", "mse"), "valid", "min")
        self.network = context.build()
        self.sizes: list[int] = self.view.sizes.tolist()
        self.kept: dict[int, dict[str, Tensor]] = {}
        self.seen = 0  # examples in the round at hand
        self._name_values()
        config, target = self.config, self.view.spec.target
        try:
            make_loss(config.loss, target, config.label_smoothing)
            self.replicas = local_replicas(self.network, config.engine)
        except (Unsuited, ValueError) as error:
            raise ConfigError(f"method.{error}") from None
        self.training = LocalTraining(
            self.replicas, example_losses(config.loss, target, config.label_smoothing), config
        )
        self.at_once = copies_at_once(self.network, self.replicas)
        self.noisy = any(getattr(module, "p", 0) or getattr(module, "dropout", 0) for module in self.network.modules())

    def _name_values(self) -> None:
        """Which values are trained, which summed, which stay with the clients."""
        norms = [name for name, module in self.network.named_modules() if isinstance(module, _BatchNorm)]
        self.normed = has_batch_norm(self.network)
        if norms and self.config.batch_norm == "refuse":
            raise ConfigError("method.batch_norm: refuse, and model.norm is batch; use average, local or another norm")
        if norms and min(self.sizes) == 1:
            raise ConfigError("model.norm=batch: a client has one example only, of which a batch norm has no statistics")
        state = self.network.state_dict(keep_vars=True)
        local = self.config.batch_norm == "local"
        self.own = {name for name in state if local and name.rpartition(".")[0] in norms}
        self.parameters: dict[str, nn.Parameter] = dict(self.network.named_parameters())
        shared = {name: value for name, value in state.items() if name not in self.own}
        self.shared = {name: value for name, value in shared.items() if value.is_floating_point()}
        self.counters = {name: value for name, value in shared.items() if not value.is_floating_point()}

    def phases(self) -> Sequence[Phase]:
        """One phase of rounds."""
        return [Phase("train", "round", self.config.rounds)]

    def evaluate(self, split: SplitName) -> Metrics:
        """The global network on the whole split, and each client's own examples: see measuring.py."""
        return measuring.measured(self, split)

    def personal(self, clients: list[int]) -> Parameters | None:
        """The values with which these clients work, [r, *shape]; None = everyone with the global network."""
        return self.start(clients) if self.own else None

    def _with_curve(self, at: At, metrics: dict[str, Any]) -> Step:
        """The metrics, with those of the whole split that `curve` names where it is time for it."""
        config = self.config
        if config.curve == "none" or not (at.last or (at.index + 1) % config.curve_every == 0):
            return Step(metrics)
        name = "accuracy" if isinstance(self.view.spec.target, Classes) else "mse"
        found = measuring.of_network(self.network, self.view, config.curve)[name]
        reached = config.stop_at_targets and curves.reached(float(found), config.targets, name)
        return Step(metrics | {f"{config.curve}_{name}": found}, end_phase=reached)

    def state_dict(self) -> dict[str, Any]:
        """The global network and what clients keep."""
        return {"network": self.network.state_dict(), "kept": {k: dict(values) for k, values in self.kept.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore both."""
        self.network.load_state_dict(state["network"])
        device = self.context.device
        self.kept = {
            client: {name: value.to(device) for name, value in values.items()}
            for client, values in state["kept"].items()
        }

    def result(self) -> Network | None:
        """The global network."""
        return self.network

    def summary(self, records: Sequence[Record]) -> Metrics:
        """`rounds_to_T` for each target T: null where it was not reached."""
        return curves.rounds_to_targets(records, self.config.targets, self.config.curve, self.objective)

    def artifacts(self, records: Sequence[Record]) -> Mapping[str, Artifact]:
        """The partition, curves by rounds and bytes, and how the clients' own scores are spread."""
        return {
            **curves.partition(self.view),
            **curves.by_rounds(records, self.config.curve, self.objective),
            **measuring.spread(self),
        }


def _bytes(rows: Mapping[str, Tensor]) -> int:
    return sum(value.numel() * value.element_size() for value in rows.values())
