"""ENAS (Pham, Guan, Zoph, Le, Dean 2018): a controller draws architectures that share their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from advml.artifacts import Artifact, Table
from advml.config import CountFloat, Fraction, PositiveFloat, PositiveInt, settings
from advml.contracts import At, Metrics, Phase, Record, SplitName, Step
from advml.methods.nas.common import (
    ArchitectureSearch,
    SearchSettings,
    check_batches,
    check_kinds,
    halves,
    shrunk,
    shrunk_spec,
    supernet,
)
from advml.methods.nas.retrain import some_examples
from advml.methods.nas.schedules import restarts
from advml.methods.nas.shared import SharedWeights
from advml.nn.cells.genotype import Genotype
from advml.nn.cells.spaces import EnasMicro
from advml.nn.search.controller import PRESETS, Controller, Reinforced
from advml.nn.training import minibatches

JUDGED = 500  # validation examples on which a search is measured, ten architectures each time


@settings
class EnasSettings(SearchSettings):
    """The keys of configs/method/enas.yaml."""

    preset: Literal["paper", "code"]
    epochs: PositiveInt
    lr: PositiveFloat
    lr_min: CountFloat | None
    restart: PositiveInt
    restart_factor: PositiveInt
    momentum: Fraction
    nesterov: bool
    weight_decay: CountFloat
    clip_norm: PositiveFloat | None
    controller_steps: PositiveInt
    aggregate: PositiveInt
    baseline_decay: Fraction
    candidates: PositiveInt

    def __post_init__(self) -> None:
        """A look ahead needs a momentum."""
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: needs a momentum above 0")


class Enas(ArchitectureSearch):
    """Two alternating parts of an epoch: the shared weights, each mini-batch with an architecture that the controller
    draws; then the controller, rewarded by the accuracy of what it draws on a mini-batch of the other half.

    At the end it draws `candidates` architectures; the best on one mini-batch of that half is retrained.
    """

    settings: ClassVar[type] = EnasSettings
    needs = replace(ArchitectureSearch.needs, spaces=("enas_micro",))  # its controller draws blocks

    def setup_search(self) -> None:
        """The supernet and the controller."""
        config, context = self.config, self.context
        self.network = supernet(context.build(shrunk_spec(self.data.spec, config)))
        check_kinds(self.network, config.retrain)
        self.space = EnasMicro(self.network.config.nodes, self.network.operations)
        self.train_half, self.valid_half = halves(context, config)
        for half in (self.train_half, self.valid_half):
            check_batches("method.batch_size", config.batch_size, len(half))
        self.judged = some_examples(context, shrunk(self.data.valid, config), JUDGED, "evaluation examples")

        preset = PRESETS[config.preset]
        lr_min = preset.floor if config.lr_min is None else config.lr_min

        def rate(epoch: int) -> float:
            return restarts(config.lr, lr_min, epoch, config.restart, config.restart_factor)

        self.shared = SharedWeights(
            self.network, context, config, self.train_half, config.batch_size, rate, config.nesterov
        )
        blocks, operations = self.space.nodes, len(self.space.operations)
        controller = Controller(blocks, operations, preset, context.rng("build", "controller"))
        self.learner = Reinforced(controller.to(context.device, context.dtype), config.baseline_decay)
        self.ranked: list[tuple[list[int], float]] = []  # codes and accuracies of the last draw, best first

    def search_phases(self) -> Sequence[Phase]:
        """Epochs of both parts."""
        return [Phase("search", "epoch", self.config.epochs)]

    def search_step(self, at: At) -> Step:
        """An epoch over the weights' half, then the controller's steps."""
        rng = self.context.rng

        def draw(update: int) -> Genotype:
            with torch.no_grad():
                return self._genotypes(self.learner.controller.draw(1, rng("weights", update)).cells)[0]

        loss = self.shared.epoch(at.index, draw)
        steps = self.config.controller_steps
        found = [self._controller_step(number) for number in range(at.index * steps, (at.index + 1) * steps)]
        if at.last:
            self._rank()
        rewards, entropies = zip(*found, strict=True)
        told = {"loss": loss, "reward": torch.stack(rewards).mean(), "entropy": torch.stack(entropies).mean()}
        return Step({**told, "reward_baseline": self.learner.baseline})

    def _controller_step(self, number: int) -> tuple[Tensor, Tensor]:
        """One update from `aggregate` architectures, each rewarded on a mini-batch of its own."""
        count = self.config.aggregate
        drawn = self.learner.controller.draw(count, self.context.rng("controller", number))
        batches = list(minibatches(
            len(self.valid_half), self.config.batch_size, number * count, (number + 1) * count,
            lambda epoch: self.context.rng("reward order", epoch),
        ))  # fmt: skip
        with self.shared.scoring():
            scores = [
                self.shared.score(genotype, self.valid_half.take(index))
                for genotype, index in zip(self._genotypes(drawn.cells), batches, strict=True)
            ]
        rewards = torch.stack(scores).to(drawn.log_probability)
        self.learner.learn(drawn, rewards)
        self.context.count(evaluations=count, samples=sum(map(len, batches)), updates=1)
        return rewards.mean(), drawn.entropy.mean()

    def _rank(self) -> None:
        """Draw, score on one mini-batch, put the best first."""
        rng, config = self.context.rng, self.config
        with torch.no_grad():
            cells = self.learner.controller.draw(config.candidates, rng("candidates")).cells
        order = torch.randperm(len(self.valid_half), generator=rng("candidates batch"))
        batch = self.valid_half.take(order[: config.batch_size])
        with self.shared.scoring():
            scores = [float(self.shared.score(genotype, batch)) for genotype in self._genotypes(cells)]
        self.context.count(evaluations=config.candidates, samples=config.candidates * len(batch))
        places = sorted(range(len(scores)), key=lambda place: -scores[place])
        self.ranked = [(cells[place].flatten().tolist(), scores[place]) for place in places]

    def _genotypes(self, cells: Tensor) -> list[Genotype]:
        """The controller's order of decisions is that of the space's codes."""
        return [self.space.genotype(tuple(code)) for code in cells.flatten(1).tolist()]

    def derive(self) -> Genotype:
        """The best of the last draw; before there is one, what the controller draws."""
        if self.ranked:
            return self.space.genotype(tuple(self.ranked[0][0]))
        with torch.no_grad():
            return self._genotypes(self.learner.controller.draw(1, self.context.rng("candidates")).cells)[0]

    def search_evaluate(self, split: SplitName) -> Metrics:
        """The mean of ten architectures that the controller draws, with the shared weights, on validation examples."""
        if split != "valid" or not len(self.judged):
            return {}
        with torch.no_grad():
            cells = self.learner.controller.draw(10, self.context.rng("evaluation")).cells
        with self.shared.scoring():
            scores = torch.stack([self.shared.score(genotype, self.judged) for genotype in self._genotypes(cells)])
        name = "search_mse" if self.objective.metric.endswith("mse") else "search_accuracy"
        return {name: -scores.mean() if name == "search_mse" else scores.mean()}

    def search_state(self) -> dict[str, Any]:
        """Shared weights and controller."""
        return {"shared": self.shared.state_dict(), "learner": self.learner.state_dict()}

    def load_search_state(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self.shared.load_state_dict(state["shared"])
        self.learner.load_state_dict(state["learner"])

    def told(self) -> dict[str, Any]:
        """The last draw."""
        return {"ranked": [list(row) for row in self.ranked]}

    def load_told(self, told: Mapping[str, Any]) -> None:
        """Restore it."""
        self.ranked = [(list(code), score) for code, score in told["ranked"]]

    def artifacts(self, records: Sequence[Record]) -> Mapping[str, Artifact]:
        """The cells; what was drawn at the end."""
        rows = [[place, " ".join(map(str, code)), score] for place, (code, score) in enumerate(self.ranked)]
        return {**super().artifacts(records), "candidates": Table(["rank", "code", "accuracy"], rows)}
