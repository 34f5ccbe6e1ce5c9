"""What federated methods share: a step is a round. Clients are drawn, train, send; the server sums and moves.

The parts that a method or a setting may replace: `cohort`, `work`, `weights`, `pull`, `local`, `uplink`, `new_sum`,
`serve`. Everything random is keyed by round and client, so that the same seed draws the same in any engine.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from advml.artifacts import Artifact
from advml.config import settings
from advml.contracts import At, Batch, Context, Metrics, Network, Objective, SplitName, Step
from advml.errors import ConfigError
from advml.methods.federated import measuring
from advml.methods.federated.channel import Rows, bytes_of
from advml.methods.federated.extras import Extras, ExtraSettings
from advml.methods.federated.together import updates_together
from advml.nn.abilities import Unsuited, draws
from advml.nn.example_losses import example_losses
from advml.nn.local_training import (
    LocalEngine,
    LocalTraining,
    Pull,
    batch_sizes,
    copies_at_once,
    local_batches,
    local_replicas,
)
from advml.nn.private_clients import train_client
from advml.nn.replicas import Parameters, has_batch_norm
from advml.nn.seeding import draw_from


@settings
class FederatedSettings(ExtraSettings):
    """Keys of every federated method: configs/method/_base/federated.yaml."""

    batch_norm: Literal["average", "local", "refuse"]
    engine: LocalEngine


@dataclass(frozen=True)
class Update:
    """What comes of the local training of a chunk of clients, a row for each.

    `deltas`: by how much what is summed has changed: parameters, floating buffers, and what a method adds.
    `counters`: integer buffers, of which the server takes the largest. `kept`: what stays with the clients.
    `loss`: summed over `samples` examples, 0-d. `beside`: gradients for what is not sent.
    """

    clients: list[int]
    deltas: Rows
    loss: Tensor
    samples: int
    updates: int
    counters: Rows = field(default_factory=dict)
    kept: Rows = field(default_factory=dict)
    beside: int = 0


class Tally:
    """What a round amounts to."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.samples = self.updates = self.gradients = self.sent = 0
        self.counters: dict[str, Tensor] = {}

    def add(self, update: Update, sent: int) -> None:
        """A chunk's work, and the bytes it sent besides its counters."""
        self.losses.append(update.loss)
        self.samples += update.samples
        self.updates += update.updates
        self.gradients += update.samples + update.beside
        self.sent += sent + bytes_of(update.counters)
        for name, value in update.counters.items():
            largest = value.amax(0)
            self.counters[name] = torch.maximum(self.counters.get(name, largest), largest)

    def metrics(self) -> dict[str, Any]:
        """`loss`, the mean over the examples trained on; nothing where there are none."""
        return {"loss": torch.stack(self.losses).sum() / self.samples} if self.samples else {}


class Federated(Extras):
    """Algorithm 1 of McMahan et al. 2017, with places for what others put there.

    `needs_all`: why every parameter must be the server's, where a method cannot do with norms of the clients' own.
    """

    settings: ClassVar[type] = FederatedSettings
    needs_all: ClassVar[str | None] = None

    # --- a round ---

    def step(self, at: At) -> Step:
        """A round. If nobody does any work, the model stays and `clients` is 0."""
        round = at.index
        cohort = self.cohort(round)
        steps = dict(zip(cohort, self.work(round, cohort, [self.planned(client) for client in cohort]), strict=True))
        order = self.order(steps)
        weight = dict(zip(order, self.weights(order).tolist(), strict=True))
        total = self.new_sum(round, cohort)
        jobs = [(chunk, [steps[client] for client in chunk]) for chunk in self.chunks(order, steps)]
        tally = Tally()
        for update in self.updates(round, jobs):
            received, sent = self.uplink(round, update.clients, update.deltas)
            total.add(update.clients, received, torch.tensor([weight[k] for k in update.clients], dtype=torch.float64))
            self.keep(update)
            tally.add(update, sent)
        if self.example_privacy is not None:
            self.example_privacy.count(round, {client: steps[client] for client in order})
        self.serve(round, total.total(), order)
        self.raise_counters(tally.counters)
        if self.noisy:  # shots of a curve: by themselves they would depend on who trained here
            draw_from(self.context.rng("curve", round))
        told = self.counted(tally, len(order), len(cohort) * self.downlink()) | self.end_round(round)
        return self.with_curve(at, told)

    def counted(self, tally: Tally, clients: int, received: int) -> dict[str, Any]:
        """The metrics of a round; its work goes into the budget."""
        work = {"samples": tally.gradients, "updates": tally.updates, "gradients": tally.gradients}
        self.context.count(**work, bytes_up=tally.sent, bytes_down=received)
        return {**tally.metrics(), "clients": clients, "bytes_up": tally.sent, "bytes_down": received}

    def planned(self, client: int) -> int:
        """How many local steps a client has to do: E epochs."""
        sizes = batch_sizes(self.sizes[client], self.config.batch_size, not self.normed)
        epochs: int = self.config.epochs
        return len(sizes) * epochs

    def downlink(self) -> int:
        """Bytes that the server sends to each client of a cohort: all that is not the client's own, and not frozen."""
        sent = [value for name, value in self.network.state_dict().items() if name not in self.own | self.frozen]
        return sum(value.numel() * value.element_size() for value in sent)

    @torch.no_grad()
    def serve(self, round: int, mean: Mapping[str, Tensor], clients: list[int]) -> None:
        """Move the global network by the weighted mean of deltas; `mean` is empty where nobody sent anything."""
        for name, value in self.shared.items():
            if name in mean:
                value.add_(mean[name])

    @torch.no_grad()
    def raise_counters(self, largest: Mapping[str, Tensor]) -> None:
        """Integer buffers are not averaged: the largest of the round's counts."""
        for name, value in largest.items():
            self.counters[name].copy_(value)

    # --- on the clients ---

    def order(self, steps: Mapping[int, int]) -> list[int]:
        """The clients that do any work, those with the most steps and examples first: neighbours are alike."""
        return sorted((k for k in steps if steps[k]), key=lambda k: (-steps[k], -self.sizes[k], k))

    def chunks(self, order: list[int], steps: Mapping[int, int]) -> Iterator[list[int]]:
        """The clients that train side by side: as many as are fast, of equal sizes where norms may not be padded."""
        chunk: list[int] = []
        for client in order:
            alike = not chunk or (steps[client], self.sizes[client]) == (steps[chunk[0]], self.sizes[chunk[0]])
            if len(chunk) == self.at_once or (self.normed and not self.replicas.pads_norms and not alike):
                yield chunk
                chunk = []
            chunk.append(client)
        if chunk:
            yield chunk

    def updates(self, round: int, chunks: Sequence[tuple[list[int], list[int]]]) -> Iterator[Update]:
        """What comes of each chunk (clients, local steps of each), in this order."""
        if self.context.world.size > 1:
            yield from updates_together(self.context.world, chunks, Update, partial(self.local, round))
            return
        for clients, steps in chunks:
            yield self.local(round, clients, steps)

    def local(self, round: int, clients: list[int], steps: list[int]) -> Update:
        """Train a chunk of clients from what the server sent: it changes nothing here.

        It follows from round, clients and steps, the global network and what the clients kept.
        """
        values = self.start(clients)
        train = self.train_privately if self.example_privacy is not None else self.train
        loss, samples = train(round, clients, steps, values, "order", self.pull(clients))
        return self.update(round, clients, values, loss, samples, steps)

    def train(
        self,
        round: int,
        clients: list[int],
        steps: list[int],
        values: Parameters,
        purpose: str,
        pull: Pull | None,
        lr: float | None = None,
    ) -> tuple[Tensor, int]:
        """Move values [r, *shape] in place by so many local steps; (the loss summed over examples, their number).

        `purpose` keys the order of the examples; `lr` is by default the round's.
        """
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
        noise = self.context.rng("noise", purpose, round, clients[0]) if self.noisy else None

        def fetch(index: Tensor) -> Batch:
            return self.view.batch(clients[: len(index)], index)

        rate = self.rate(round) if lr is None else lr
        loss = self.training.train(values, list(self.parameters), batches, fetch, rate, pull, noise)
        return loss, sum(batch.numel() for rows in batches for batch in rows)

    def train_privately(
        self, round: int, clients: list[int], steps: list[int], values: Parameters, purpose: str, pull: Pull | None
    ) -> tuple[Tensor, int]:
        """As `train`, by noisy steps on samples of each client's examples; one client after another."""
        assert self.example_privacy is not None
        worker, losses, seen = copy.deepcopy(self.network), [], 0
        for row, (client, count) in enumerate(zip(clients, steps, strict=True)):
            worker.load_state_dict({name: rows[row] for name, rows in values.items()})
            noise = self.context.rng("noise", purpose, round, client) if self.noisy else None
            loss, samples = train_client(
                worker, self.view.owned[client], partial(self._batch_of, client), self.loss, self.example_privacy,
                client=client, round=round, steps=count, settings=self.config, lr=self.rate(round),
                pull=None if pull is None else pull.row(row), noise=noise,
            )  # fmt: skip
            for name, value in worker.state_dict().items():
                values[name][row] = value
            losses.append(loss)
            seen += samples
        return torch.stack(losses).sum(), seen

    def _batch_of(self, client: int, index: Tensor) -> Batch:
        """The examples [b] as their client sees them."""
        inputs, target, _ = self.view.batch([client], index.unsqueeze(0))
        return Batch({name: value[0] for name, value in inputs.items()}, target[0])

    def pull(self, clients: list[int]) -> Pull | None:
        """What is added to these clients' gradients."""
        return None

    def start(self, clients: list[int]) -> Parameters:
        """The values from which clients train, [r, *shape]: the global ones, and their own where they keep some."""
        values = {name: value.detach() for name, value in self.network.state_dict().items()}
        rows = {name: torch.stack([value] * len(clients)) for name, value in values.items()}
        for row, client in enumerate(clients):
            for name in self.own & self.kept.get(client, {}).keys():
                rows[name][row] = self.kept[client][name]
        return rows

    def update(
        self, round: int, clients: list[int], values: Parameters, loss: Tensor, samples: int, steps: list[int]
    ) -> Update:
        """What training has changed. `values` become the deltas."""
        deltas = {name: values[name].sub_(value.detach()) for name, value in self.shared.items()}
        counters = {name: values[name] for name in self.counters}
        kept = {name: values[name] for name in self.own}
        return Update(clients, deltas, loss, samples, sum(steps), counters, kept)

    def keep(self, update: Update) -> None:
        """Store what stays with the clients."""
        if update.kept:
            for row, client in enumerate(update.clients):
                self.kept[client] = {name: value[row].clone() for name, value in update.kept.items()}

    # --- a run ---

    def setup(self, context: Context) -> None:
        """The global network, and how copies of it are trained."""
        super().setup(context)
        config = self.config
        self.sizes: list[int] = self.view.sizes.tolist()
        self.kept: dict[int, dict[str, Tensor]] = {}
        self._name_values()
        try:
            self.replicas = local_replicas(self.network, config.engine)
        except Unsuited as error:
            raise ConfigError(f"method.{error}") from None
        losses = example_losses(config.loss, self.view.spec.target, config.label_smoothing)
        self.training = LocalTraining(self.replicas, losses, config)
        self.at_once = copies_at_once(self.network, self.replicas)
        self.noisy = draws(self.network)
        self.set_up_extras(self.planned)
        self.personalised = False
        if self.own:
            self.personalise()

    def personalise(self) -> None:
        """Clients have models of their own, and these are what matters.

        With privacy they choose no state: they are trained without noise, and what they chose would tell of examples.
        """
        if not self.personalised:
            self.personalised = True
            if self.spending is not None:
                return
            self.objective = Objective(f"personal_{self.objective.metric}", "valid", self.objective.mode)

    def _name_values(self) -> None:
        """Which values are trained, which summed, which stay with the clients."""
        norms = [name for name, module in self.network.named_modules() if isinstance(module, _BatchNorm)]
        self.normed = has_batch_norm(self.network)
        if norms and self.config.batch_norm == "refuse":
            raise ConfigError("method.batch_norm: refuse, and model.norm is batch; use average, local or another norm")
        if norms and self.config.batch_size == 1:
            raise ConfigError("method.batch_size: 1, of which a batch norm has no statistics; use 2 or more")
        if norms and min(self.sizes) == 1:
            raise ConfigError("model.norm=batch: a client has one example, of which it has no statistics; give it more")
        state = self.network.state_dict(keep_vars=True)
        local = self.config.batch_norm == "local"
        if local and not norms:
            raise ConfigError("method.batch_norm: local, and the model has none; use model.norm=batch, or average")
        if local and self.needs_all is not None:
            raise ConfigError(f"method.batch_norm: local, but {self.needs_all}; use average, or method=fedbn")
        self.own = {name for name in state if local and name.rpartition(".")[0] in norms}
        given = dict(self.network.named_parameters())
        self.parameters = {name: value for name, value in given.items() if value.requires_grad}
        self.frozen = given.keys() - self.parameters.keys()
        shared = {name: value for name, value in state.items() if name not in self.own | self.frozen}
        self.shared = {name: value for name, value in shared.items() if value.is_floating_point()}
        self.counters = {name: value for name, value in shared.items() if not value.is_floating_point()}

    def personal(self, clients: list[int]) -> Parameters:
        """The values with which these clients work, [r, *shape], where they are `personalised`."""
        return self.start(clients)

    def evaluate(self, split: SplitName) -> Metrics:
        """The global network as in `Rounds`; where clients have models of their own, these too: `personal_…`."""
        found = super().evaluate(split)
        if found and self.personalised:
            name = "personal_accuracy" if "accuracy" in found else "personal_mse"
            owned = self.view.shares[split].owned
            found = {**found, **measuring.over_clients(self.personal_scores(split), owned, name)}
        return found

    @torch.no_grad()
    def personal_scores(self, split: SplitName) -> Tensor:
        """Of each example how good its owner's own model is on it, float64 [N]; 0 for those of nobody."""
        shares = self.view.shares[split]
        found = torch.zeros(len(shares.seen), dtype=torch.float64, device=self.context.device)
        steps = {client: self.planned(client) for client, index in enumerate(shares.owned) if len(index)}
        for chunk in self.chunks(self.order(steps), steps):
            owned = [shares.owned[client] for client in chunk]
            measuring.score_chunk(self.replicas, self.personal(chunk), shares.seen, owned, found)
        return found

    def result(self) -> Network:
        """The global network. Where clients keep their own batch norms, these are in it as the clients' mean.

        With privacy the initial ones are: no noise hides the mean.
        """
        if not self.own or not self.kept or self.spending is not None:
            return self.network
        network, all_own = copy.deepcopy(self.network), list(self.kept.values())
        state = network.state_dict()
        for name in self.own:
            rows = torch.stack([own[name] for own in all_own])
            state[name].copy_(rows.mean(0) if rows.is_floating_point() else rows.amax(0))
        return network

    def spread(self) -> Mapping[str, Artifact]:
        """The clients' own scores, by the global network and by their own; nothing without test examples."""
        if not len(self.view.test):
            return {}
        scores = {"the global network": measuring.global_scores(self.result(), self.view, "test")}
        if self.personalised:
            scores["their own"] = self.personal_scores("test")
        return measuring.spread(self.view, scores)

    def state_dict(self) -> dict[str, Any]:
        """The global network, what clients keep, and what their settings need."""
        kept = {client: dict(values) for client, values in self.kept.items()}
        return {"network": self.network.state_dict(), "kept": kept, **self.extra_state()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore all of it."""
        self.load_extra_state(state)
        self.network.load_state_dict(state["network"])
        device = self.context.device
        self.kept = {
            client: {name: value.to(device) for name, value in values.items()}
            for client, values in state["kept"].items()
        }
