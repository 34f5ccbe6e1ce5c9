"""Deep generative replay (Shin et al. 2017, "Continual learning with deep generative replay").

With a variational autoencoder as the generator and weights of the two losses as van de Ven and Tolias 2018, "Generative
replay with feedback connections", and 2019, "Three scenarios for continual learning", have them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import count
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from advml.config import CountFloat, PositiveFloat, PositiveInt, settings
from advml.contracts import At, Batch, Context, Network, Step
from advml.data.stream import Task
from advml.errors import ConfigError
from advml.methods.continual.common import Continual, ContinualSettings
from advml.models.mlp import flat, flat_size
from advml.nn.evaluation import BATCH, frozen
from advml.nn.losses import mean_of
from advml.nn.optimisers import Optimiser, clip_gradients, learning_rate, make_optimiser
from advml.nn.replayed import hard_targets, readings, soft_cross_entropy, soft_targets, split_rows
from advml.nn.vae import Likelihood, Vae, make_vae

ROUNDING = 1e-5  # how far outside [0, 1] a normalisation in single precision may put the extreme examples


@settings
class Settings(ContinualSettings):
    """The generator, and what is replayed how strongly."""

    hidden: tuple[PositiveInt, ...]
    latent: PositiveInt
    likelihood: Likelihood
    generator_lr: PositiveFloat | None
    weighting: Literal["by_tasks", "fixed"]
    strength: CountFloat
    targets: Literal["hard", "soft"]
    temperature: PositiveFloat


@dataclass(frozen=True)
class Lesson:
    """The examples of one iteration, `rows` [B + R, D]: the current task's, then those replayed, R = B or none.

    `noise` [B + R, latent] is the generator's. `batch` shows all of them to the network, with the targets [B] of the
    current ones; `targets` are those of all readings of the replayed ones.
    """

    iteration: int
    rows: Tensor
    noise: Tensor
    batch: Batch
    targets: Tensor | None


class Masks(NamedTuple):
    """Outputs that compete: `own` bool [C] for current examples; for those replayed one row for each reading of them,
    bool [S, C], when the earlier network labels them (`known`) and in the loss (`active`).
    """

    own: Tensor
    known: Tensor
    active: Tensor


class GenerativeReplay(Continual):
    """At task t, L = w · L(current) + v · L(replayed), for the network (the solver) and for the generator alike.

    Replayed inputs are drawn from the generator, and labelled by the network, as they were after task t − 1.
    `by_tasks`: w = 1/t, v = 1 − 1/t, as if all tasks were there in equal parts; `fixed`: w = 1, v = `strength`.
    """

    settings = Settings
    several_networks = True  # examples go through the generator too

    def setup(self, context: Context) -> None:
        """A generator of all inputs, flattened and joined; nothing to replay yet."""
        super().setup(context)
        if self.stream.spec.tokens:
            raise ConfigError("method=generative_replay: draws inputs that are numbers, and here they are tokens")
        if helpers := self.stream.spec.helpers:
            raise ConfigError(
                f"method=generative_replay: draws inputs that are numbers, and {', '.join(helpers)} says which of them "
                "are there; use another method, such as replay"
            )
        config, width = self.config, flat_size(self.stream.spec)
        if config.likelihood == "bernoulli":
            for task in self.stream:
                _check_range(task)
        self.generator = make_vae(width, config.hidden, config.latent, config.likelihood, context.rng("generator"))
        self.generator.to(context.device, context.dtype)
        self.generator_config = config if config.generator_lr is None else replace(config, lr=config.generator_lr)
        self.generator_optimiser = self._generator_optimiser()
        self.previous: tuple[Vae, Network] | None = None  # generator and network after the task before, frozen

    def step(self, at: At) -> Step:
        """A block of iterations, each an update of the network and one of the generator on the same examples."""
        if at.index == 0 and self.config.fresh_optimiser:
            self.generator_optimiser = self._generator_optimiser()
        iterations = count(at.index * self.config.block)
        masks = self._masks(at.phase)
        current, replayed = self._weights(at.phase)
        lessons: list[Lesson] = []  # the one at hand
        bounds: list[Tensor] = []
        sizes: list[int] = []

        def batches(index: Tensor) -> Batch:
            lessons[:] = [self._lesson(at.phase, next(iterations), index, masks)]
            return lessons[0].batch

        def loss(outputs: Tensor, batch: Batch) -> Tensor:
            size, targets = len(batch.target), lessons[0].targets
            if targets is None:
                return self.loss(outputs, batch)
            again = self._replay_loss(outputs[size:], targets, masks.active)
            return current * self.loss(outputs[:size], batch) + replayed * again

        def after() -> None:
            bounds.append(self._train_generator(at.phase, lessons[0], current, replayed))
            sizes.append(len(lessons[0].batch.target))

        value = self.train_block(at, batches=batches, loss=loss, after=after, earlier=self.previous is not None)
        if at.last and at.phase + 1 < len(self.stream) and self._weights(at.phase + 1)[1]:
            self.previous = self._frozen()
        return self.done(at, {"loss": value, "generator_loss": mean_of(bounds, sizes)})

    def _weights(self, phase: int) -> tuple[float, float]:
        """Of the current examples and of those replayed, at task number `phase` (from 0)."""
        if self.config.weighting == "fixed":
            return 1.0, self.config.strength
        return 1 / (phase + 1), 1 - 1 / (phase + 1)

    def _masks(self, phase: int) -> Masks:
        """One reading of a replayed input for each earlier task where the task is known, otherwise one."""
        own = self.stream.mask(phase, phase + 1)
        if self.previous is None:
            return Masks(own, own[None], own[None])
        earlier = range(phase) if self.stream.scenario == "task" else range(phase - 1, phase)
        known, active = (
            torch.stack([self.stream.mask(number, seen) for number in earlier]) for seen in (phase, phase + 1)
        )
        return Masks(own, known, active)

    @torch.no_grad()
    def _lesson(self, phase: int, iteration: int, index: Tensor, masks: Masks) -> Lesson:
        """The task's own examples at `index` and, once there is something to replay, as many replayed."""
        split = self.stream[phase].train
        inputs, target, _ = split.batch(index.to(split.device, non_blocking=True))
        rng = self.context.rng("replay", phase, iteration)
        targets = None
        if self.previous is not None:
            generator, solver = self.previous
            with self.context.autocast():
                rows = generator.expected(self._normal(len(index), rng)).to(self.context.dtype)
                replayed = split_rows(rows, self.stream.spec.inputs)
                outputs = solver(replayed)
            targets = self._targets(outputs, masks.known)
            inputs = {name: torch.cat([values, replayed[name]]) for name, values in inputs.items()}
        rows = flat(inputs)
        return Lesson(iteration, rows, self._normal(len(rows), rng), Batch(inputs, target, masks.own), targets)

    def _normal(self, rows: int, rng: torch.Generator) -> Tensor:
        """Standard normal numbers, [rows, latent], the same on every device and in every precision."""
        numbers = torch.randn(rows, self.config.latent, generator=rng)
        return numbers.to(self.context.device, self.context.dtype, non_blocking=True)

    def _targets(self, outputs: Tensor, known: Tensor) -> Tensor:
        if self.config.targets == "hard":
            return hard_targets(outputs, known)
        return soft_targets(outputs, known, self.config.temperature)

    def _replay_loss(self, outputs: Tensor, targets: Tensor, active: Tensor) -> Tensor:
        if self.config.targets == "soft":
            return soft_cross_entropy(outputs, active, targets, self.config.temperature)
        each, masks = readings(outputs, active)
        return self.loss(each, Batch({}, targets, masks))

    def _train_generator(self, phase: int, lesson: Lesson, current: float, replayed: float) -> Tensor:
        """One update on the examples of the iteration; the weighted negative evidence lower bound, 0-d."""
        config, optimiser, size = self.generator_config, self.generator_optimiser, len(lesson.batch.target)
        optimiser.lr = learning_rate(config, lesson.iteration, self.iterations(self.stream[phase]))
        optimiser.zero_grad()
        with self.context.autocast():
            bounds = self.generator(lesson.rows, lesson.noise)
        value: Tensor = bounds[:size].mean()
        if lesson.targets is not None:
            value = current * value + replayed * bounds[size:].mean()
        value.backward()
        if config.clip_norm is not None:
            clip_gradients(self.generator.parameters(), config.clip_norm)
        optimiser.step()
        optimiser.zero_grad()
        # The network's own pass over the current examples is counted already. Those replayed pass three times:
        # labelled by the earlier network, learnt by the present one, learnt by the generator.
        again = len(lesson.rows) - size
        self.context.count(samples=len(lesson.rows) + 2 * again, updates=1, gradients=len(lesson.rows) + again)
        return value.detach()

    def _generator_optimiser(self) -> Optimiser:
        return make_optimiser(self.generator.parameters(), self.generator_config)

    def _frozen(self) -> tuple[Vae, Network]:
        return frozen(self.generator), frozen(self.network)

    def memory(self) -> tuple[Iterable[Tensor], int]:
        """The generator, and generator and network as they were: of the same size for any number of tasks."""
        modules = [self.generator, *(self.previous or ())]
        return [value for module in modules for value in module.state_dict().values()], 0

    def state_dict(self) -> dict[str, Any]:
        """Adds the generator with its optimiser, and what is replayed from."""
        return {
            **super().state_dict(),
            "generator": self.generator.state_dict(),
            "generator_optimiser": self.generator_optimiser.state_dict(),
            "previous": None if self.previous is None else [module.state_dict() for module in self.previous],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore all of it."""
        super().load_state_dict(state)
        self.generator.load_state_dict(state["generator"])
        self.generator_optimiser.load_state_dict(state["generator_optimiser"])
        self.previous = None
        if state["previous"] is not None:
            self.previous = self._frozen()
            for module, values in zip(self.previous, state["previous"], strict=True):
                module.load_state_dict(values)


def _check_range(task: Task) -> None:
    """A Bernoulli likelihood describes numbers within [0, 1] only: elsewhere it has no lower bound."""
    lowest, highest = torch.inf, -torch.inf
    for at in range(0, len(task.train), BATCH):
        for values in task.train.batch(slice(at, at + BATCH)).inputs.values():
            low, high = values.aminmax()
            lowest, highest = min(lowest, float(low)), max(highest, float(high))
    if lowest < -ROUNDING or highest > 1 + ROUNDING:
        raise ConfigError(
            f"method.likelihood=bernoulli: needs inputs within [0, 1], and those of {task.name} reach from "
            f"{lowest:.3g} to {highest:.3g}; use dataset.normalise=unit or method.likelihood=gaussian"
        )
