"""Reptile (Nichol, Achiam, Schulman 2018, "On first-order meta-learning algorithms")."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from advml.config import PositiveInt, settings
from advml.contracts import Context, Network
from advml.data.episodes import Tasks
from advml.errors import ConfigError
from advml.methods.meta.common import MetaLearner, MetaSettings, examples_of, parts, task_losses
from advml.methods.meta.finetuning import (
    FinetuningSettings,
    check_batches,
    check_queries,
    copies_of,
    fine_tuned,
    inner_optimiser,
    moments,
    support_batches,
    tested_copies_of,
)
from advml.nn.optimisers import Optimiser, clip_gradients, learning_rate
from advml.nn.replica_training import start_from, train_copies


@settings
class Settings(MetaSettings, FinetuningSettings):
    """How a task is learned in training; `lr` and `schedule` are those of the outer step."""

    steps: PositiveInt
    inner_batch_size: PositiveInt | None
    inner_memory: Literal["kept", "fresh"]


class Reptile(MetaLearner):
    """Algorithm 2: train on each task from θ, giving φ_t; then θ ← θ + ε · 1/T Σ_t (φ_t − θ).

    θ − 1/T Σ φ_t is given to the outer optimiser as if it were a gradient: of `optimiser=sgd` the rate `lr` is ε. Only
    support sets are trained on. With Adam's moments `kept`, as in the authors' code, tasks are learned one after
    another, each beginning with what the one before left; with `fresh` ones side by side.
    """

    settings = Settings

    def setup(self, context: Context) -> None:
        """Copies of the network, and of the inner optimiser the one whose memory is kept."""
        super().setup(context)
        self.trained_steps = self.config.steps
        shape = self.view.config.shape("train")
        if shape.ways != self.view.ways:
            raise ConfigError("view.train_ways: this method has an output for each class of a task; use null")
        most = (shape.ways or 1) * shape.shots
        support, tested = self.view.fixed("valid", 0, 1).support.inputs, (self.view.ways or 1) * self.view.shots
        check_batches(self.network, "inner_batch_size", self.config.inner_batch_size, support, most)
        check_batches(self.network, "eval_batch_size", self.config.eval_batch_size, support, tested)
        if self.config.transductive:
            check_queries(self.network, self.view, ["test"])
        self.replicas = copies_of(self.network, self.config, min(most, self.config.inner_batch_size or most))
        self.tested = tested_copies_of(self.network, self.config, self.view)
        self.copy = start_from(dict(self.network.named_parameters()), 1)
        self.inner = inner_optimiser(self.copy.values(), self.config)

    @property
    def keeps(self) -> bool:
        """Does the inner optimiser remember anything from task to task?"""
        return bool(self.config.inner_memory == "kept" and self.inner.slots)

    def iterate(self, iteration: int) -> Tensor:
        """One outer step; the mean loss over the inner ones."""
        config, self.iteration = self.config, iteration
        tasks = self.view.draw(config.tasks, self.context.rng("tasks", iteration))
        loss, gradients = self._learn(tasks, iteration)
        self.optimiser.lr = learning_rate(config, iteration, config.iterations)
        if config.clip_norm is not None:
            clip_gradients(self.optimiser.parameters, config.clip_norm)
        self.optimiser.step()
        self.optimiser.zero_grad()
        self.context.count(samples=gradients, updates=1, gradients=gradients)
        return loss

    def _learn(self, tasks: Tasks, iteration: int) -> tuple[Tensor, int]:
        """Train on each task, leave θ − 1/T Σ φ_t where gradients are; the mean loss, and the gradients it took."""
        config = self.config
        moved = [torch.zeros_like(parameter) for parameter in self.optimiser.parameters]
        losses, gradients = [], 0
        for few in parts(tasks, 1 if self.keeps else self.replicas.at_once or config.tasks):
            copies, optimiser = self._start(len(few.support.target))
            orders = partial(self.context.rng, "order", iteration)
            batches = list(support_batches(few, config.inner_batch_size, config.steps, orders))
            losses += list(train_copies(self.replicas, copies, batches, task_losses, optimiser))
            gradients += sum(map(examples_of, batches))
            for total, copy, theta in zip(moved, copies.values(), self.optimiser.parameters, strict=True):
                total += (theta.detach() - copy.detach()).sum(0)
        for parameter, total in zip(self.optimiser.parameters, moved, strict=True):
            parameter.grad = total / config.tasks
        return torch.cat(losses).mean(), gradients

    def _start(self, copies: int) -> tuple[Mapping[str, nn.Parameter], Optimiser]:
        """Copies at θ and what trains them."""
        values = dict(self.network.named_parameters())
        if not self.keeps:
            fresh = start_from(values, copies)
            return fresh, inner_optimiser(fresh.values(), self.config)
        with torch.no_grad():
            for name, value in values.items():
                self.copy[name].copy_(value.unsqueeze(0))
        return self.copy, self.inner

    def predictions(self, tasks: Tasks) -> Tensor:
        """The network fine-tuned on the support set, as in training."""
        values, orders = dict(self.network.named_parameters()), partial(self.context.rng, "evaluation order")
        memory = self.inner.state_dict() if self.keeps else None
        return fine_tuned(self.tested, values, tasks, self.config, orders, self.config.transductive, memory)

    def steps_asked(self, rows: int) -> Sequence[int]:
        """Not after every step."""
        return moments(self.config.eval_steps)

    def state_dict(self) -> dict[str, Any]:
        """Adds the inner optimiser's memory."""
        state = super().state_dict()
        return {**state, "inner": self.inner.state_dict()} if self.keeps else state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore all of it."""
        super().load_state_dict(state)
        if self.keeps:
            self.inner.load_state_dict(state["inner"])

    def result(self) -> Network:
        """θ, with running averages, which training on a task has no use for."""
        return self.with_averages()
