"""What meta-learners share: blocks of meta-iterations over drawn tasks, evaluation on fixed ones, adaptation curves."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advml.artifacts import Artifact
from advml.config import PositiveInt, settings
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
from advml.data.episodes import Episodes, Tasks
from advml.methods.meta.curves import adaptation_curve, fits
from advml.nn.embedding import averaged
from advml.nn.optimisers import OptimiserSettings, clip_gradients, learning_rate, make_optimiser
from advml.nn.replicas import has_batch_norm

AT_ONCE = 50  # evaluation tasks side by side: enough to fill vectors, few enough for a convolution's images

AVERAGED = 2000  # examples, at least, that the running averages of a network's batch norms are over


@settings
class MetaSettings(OptimiserSettings):
    """Keys of every meta-learner: configs/method/_base/meta.yaml."""

    iterations: PositiveInt
    tasks: PositiveInt
    block: PositiveInt
    transductive: bool


class MetaLearner(Method):
    """A network that learns over many tasks. A step is a block of meta-iterations. Subclasses
    write `loss` and `predictions`.

    `at_once`: tasks of a meta-iteration that are differentiated together; None = all. It changes rounding only.
    `trained_steps`: of adaptation, in training; None = as many as in evaluation.
    """

    settings: ClassVar[type] = MetaSettings
    needs = Needs(view="episodes", targets=(Classes, Real), precisions=("float32", "float64"))
    objective = Objective("accuracy", "valid", "max")
    at_once: int | None = None
    trained_steps: int | None = None

    def setup(self, context: Context) -> None:
        """One network, and an optimiser of all that is learned over tasks."""
        self.context, self.config = context, context.settings
        self.view: Episodes = context.data
        if isinstance(self.view.spec.target, Real):
            self.objective = Objective("mse", "valid", "min")
        self.network = context.build()
        self.optimiser = make_optimiser(self.learned(), self.config)
        self.iteration = 0  # the meta-iteration at hand

    def learned(self) -> list[nn.Parameter]:
        """What the outer optimiser moves."""
        return list(self.network.parameters())

    def loss(self, tasks: Tasks) -> Tensor:
        """The mean over tasks of what the outer optimiser makes small, 0-d."""
        raise NotImplementedError

    def predictions(self, tasks: Tasks) -> Tensor:
        """Outputs [steps + 1, T, Q, C] for the query examples after 0, 1, … steps of adaptation, without gradients.

        One row where nothing adapts.
        """
        raise NotImplementedError

    def gradients_of(self, tasks: Tasks) -> int:
        """Gradients that `loss` takes: one example through one copy of the network."""
        return examples_of(tasks.support) + examples_of(tasks.query)

    # --- training ---

    def phases(self) -> Sequence[Phase]:
        """One phase of blocks."""
        return [Phase("train", "block", -(-self.config.iterations // self.config.block))]

    def step(self, at: At) -> Step:
        """A block of meta-iterations, each on tasks drawn by its number."""
        start = at.index * self.config.block
        stop = min(start + self.config.block, self.config.iterations)
        losses = [self.iterate(iteration) for iteration in range(start, stop)]
        return Step({"loss": torch.stack(losses).mean()})

    def iterate(self, iteration: int) -> Tensor:
        """One meta-iteration: draw tasks, move what is learned along the gradient of their mean loss; that loss."""
        config, self.iteration = self.config, iteration
        tasks = self.view.draw(config.tasks, self.context.rng("tasks", iteration))
        self.optimiser.lr = learning_rate(config, iteration, config.iterations)
        self.optimiser.zero_grad()
        loss = self.differentiate(tasks)
        if config.clip_norm is not None:
            clip_gradients(self.optimiser.parameters, config.clip_norm)
        self.optimiser.step()
        passes = self.gradients_of(tasks)
        self.context.count(samples=passes, updates=1, gradients=passes)
        return loss

    def differentiate(self, tasks: Tasks) -> Tensor:
        """Add the gradient of the mean loss of these tasks to that of all that is learned; the mean loss."""
        losses, count = [], len(tasks.query.target)
        for few in parts(tasks, self.at_once or count):
            value = self.loss(few) * (len(few.query.target) / count)
            value.backward()
            losses.append(value.detach())
        return torch.stack(losses).sum()

    # --- measuring ---

    def evaluate(self, split: SplitName) -> Metrics:
        """Over the view's fixed tasks: `accuracy` (or `mse`) after the last step of adaptation, half the width of its
        95 % interval `accuracy_ci`, both after each step as `accuracy/step0`, … (of errors also `mse_median/step0`, …),
        and the query examples' `loss`, which has to be finite, after as many steps as training takes: further ones may
        diverge on a task.
        """
        count = 0 if split == "train" else self.view.count(split)
        if not count:
            return {}
        scores, losses = [], []
        for start in range(0, count, AT_ONCE):
            tasks = self.view.fixed(split, start, min(start + AT_ONCE, count))
            outputs, target = self.predictions(tasks), tasks.query.target
            scores.append(torch.stack([self.score(row, target) for row in outputs]))
            losses.append(task_losses(outputs[self._trained_row(len(outputs))], target))
        name = self.objective.metric
        means, widths = interval(torch.cat(scores, 1))
        found: dict[str, Tensor] = {name: means[-1], f"{name}_ci": widths[-1], "loss": torch.cat(losses).mean()}
        if len(means) > 1:
            steps = self.steps_asked(len(means))
            found |= {f"{name}/step{step}": value for step, value in zip(steps, means, strict=True)}
            found |= {f"{name}_ci/step{step}": value for step, value in zip(steps, widths, strict=True)}
            if name == "mse":  # one task on which steps of this length diverge makes the mean what it likes
                errors = torch.cat(scores, 1)
                medians = errors.where(~errors.isnan(), torch.inf).quantile(0.5, 1)
                found |= {f"mse_median/step{step}": value for step, value in zip(steps, medians, strict=True)}
        return found

    def steps_asked(self, rows: int) -> Sequence[int]:
        """After how many steps of adaptation each row of `predictions` was taken."""
        return range(rows)

    def _trained_row(self, rows: int) -> int:
        """The last row of `predictions` that training reaches."""
        if self.trained_steps is None:
            return rows - 1
        return bisect_right(self.steps_asked(rows), self.trained_steps) - 1

    def score(self, outputs: Tensor, target: Tensor) -> Tensor:
        """Accuracy or mean squared error of each task [T], of outputs [T, Q, C]."""
        if target.is_floating_point():
            return task_losses(outputs, target)
        return (outputs.argmax(2) == target).to(outputs.dtype).mean(1)

    # --- the rest of a run ---

    def state_dict(self) -> dict[str, Any]:
        """Network and optimiser."""
        return {"network": self.network.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore both."""
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])

    def result(self) -> Network | None:
        """The network as it starts into a new task."""
        return self.network

    def with_averages(self) -> Network:
        """The same where learning reads no running averages and moves none: with those of training tasks, which whoever
        uses the network outside of tasks needs. A copy, so that the state stays as it is.
        """
        if not has_batch_norm(self.network):
            return self.network
        ways, shots, queries = self.view.config.shape("train")
        count = -(-AVERAGED // ((ways or 1) * (shots + queries)))
        keyed = (self.context.rng("running averages", number) for number in range(count))
        drawn = (joined(self.view.draw(1, generator)) for generator in keyed)
        return averaged(self.network, ({name: values[0] for name, values in of.items()} for of in drawn))

    def summary(self, records: Sequence[Record]) -> Metrics:
        """`transductive`, 1 or 0: was a query example's output normalised together with the other query examples?"""
        return {"transductive": bool(self.config.transductive and has_batch_norm(self.network))}

    def artifacts(self, records: Sequence[Record]) -> Mapping[str, Artifact]:
        """The adaptation curve; for functions of one number, what is fitted to the first test tasks."""
        curve = adaptation_curve(records, self.objective.metric, self.steps_asked)
        return {**curve, **fits(self.view, self.predictions, self.steps_asked)}


# --- tasks side by side -------------------------------------------------------------------------------------------


def parts(tasks: Tasks, size: int) -> Iterator[Tasks]:
    """The tasks in their order, at most `size` at a time."""
    count = len(tasks.query.target)
    if count <= size:
        yield tasks
        return
    for start in range(0, count, size):
        few = slice(start, start + size)
        yield tasks._replace(support=_some(tasks.support, few), query=_some(tasks.query, few))


def _some(batch: Batch, few: slice) -> Batch:
    return Batch({name: values[few] for name, values in batch.inputs.items()}, batch.target[few])


def examples_of(batch: Batch) -> int:
    """Examples of all tasks together."""
    return batch.target.shape[0] * batch.target.shape[1]


def joined(tasks: Tasks) -> Mapping[str, Tensor]:
    """Support and query examples of each task in a row: inputs name → [T, S + Q, ...]."""
    return {name: torch.cat([values, tasks.query.inputs[name]], 1) for name, values in tasks.support.inputs.items()}


def task_losses(outputs: Tensor, target: Tensor) -> Tensor:
    """The mean loss of each task [T], of outputs [T, B, C]: cross-entropy for classes, the squared error otherwise."""
    if target.is_floating_point():
        return (outputs.reshape(target.shape) - target).square().flatten(1).mean(1)
    return F.cross_entropy(outputs.flatten(0, 1), target.flatten(), reduction="none").view(target.shape).mean(1)


def interval(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over tasks and half the width of its 95 % interval, 1.96 s/√n, of scores [..., T]."""
    count = scores.shape[-1]
    spread = scores.std(-1) if count > 1 else torch.full_like(scores[..., 0], float("nan"))
    return scores.mean(-1), 1.96 * spread / count**0.5
