"""The plain way to learn a new task: supervised training on all classes at hand, then fine-tuning (Chen et al. 2019, "A
closer look at few-shot classification").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from advml.config import PositiveInt, settings
from advml.contracts import At, Batch, Classes, Context, Needs, Network, Spec, Step, Target
from advml.data.episodes import Tasks
from advml.errors import ConfigError
from advml.methods.meta.common import MetaLearner
from advml.methods.meta.finetuning import (
    FinetuningSettings,
    check_batches,
    fine_tuned,
    moments,
    tested_copies_of,
)
from advml.methods.meta.metric import features_of
from advml.nn.losses import make_loss
from advml.nn.optimisers import make_optimiser
from advml.nn.training import TrainingSettings, minibatches, train


@settings
class Settings(TrainingSettings, FinetuningSettings):
    """Training on all training classes, and what is adapted to a task."""

    iterations: PositiveInt
    block: PositiveInt
    transductive: bool
    adapt: Literal["head", "all"]


class Head(Network):
    """The head of a network by itself: its inputs are features [B, width]."""

    def __init__(self, network: Network, width: int, target: Target) -> None:
        super().__init__()
        self.head = network.head
        self.recipe = {"spec": Spec({"features": (width,)}, target).to_dict()}

    def features(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """As they come."""
        return inputs["features"]


class PretrainFinetune(MetaLearner):
    """Learn to tell all training classes apart; for a task, train the network with a new head on its support set.

    `adapt`: the head alone, on features as they are, or all weights.
    """

    settings = Settings
    needs = Needs(view="episodes", targets=(Classes,), precisions=("float32", "float64"))

    def setup(self, context: Context) -> None:
        """A network for all training classes, and one whose head every task begins with."""
        self.context, self.config, self.view = context, context.settings, context.data
        if self.view.base is None or self.view.base_spec is None:
            raise ConfigError("view: its tasks are of no common set of classes to learn at once; try dataset=omniglot")
        self.supervised = make_loss(self.config.loss, self.view.base_spec.target, self.config.label_smoothing)
        self.network = context.build(self.view.base_spec)
        self.optimiser = make_optimiser(self.network.parameters(), self.config)
        self.beginner = context.build(self.view.spec, "new head")
        if not _drawn_anew(self.beginner.head, context.build(self.view.spec, "another head").head):
            raise ConfigError("model.head: every task would begin with the head that the run ended with; use new")
        adapted, tasks = self.beginner, self.view.fixed("valid", 0, 1)
        support = tasks.support.inputs
        if self.config.adapt == "head":
            features = features_of(self.network, tasks, False)
            adapted, support = Head(self.beginner, features.shape[2], self.view.spec.target), {"features": features}
        self.start = {
            name: self.network.get_parameter(name) if not name.startswith("head.") else value
            for name, value in adapted.named_parameters()
        }
        tested = (self.view.ways or 1) * self.view.shots
        check_batches(adapted, "eval_batch_size", self.config.eval_batch_size, support, tested)
        self.tested = tested_copies_of(adapted, self.config, self.view)

    def step(self, at: At) -> Step:
        """A block of updates by mini-batches of the examples of all training classes."""
        config, base = self.config, self.view.base
        assert base is not None
        start = at.index * config.block
        stop = min(start + config.block, config.iterations)
        indices = minibatches(len(base), config.batch_size, start, stop, partial(self.context.rng, "shuffle"))
        loss = train(
            self.network,
            (base.batch(index, self.context.rng("turns", update)) for update, index in enumerate(indices, start)),
            self.supervised,
            self.optimiser,
            settings=config,
            update=start,
            total=config.iterations,
            count=self.context.count,
        )
        return Step({"loss": loss})

    def predictions(self, tasks: Tasks) -> Tensor:
        """A new head, or the whole network with one, trained on each support set."""
        transductive, orders = self.config.transductive, partial(self.context.rng, "evaluation order")
        if self.config.adapt == "head":
            features = features_of(self.network, tasks, transductive)
            shots = tasks.support.target.shape[1]
            tasks = tasks._replace(
                support=Batch({"features": features[:, :shots]}, tasks.support.target),
                query=Batch({"features": features[:, shots:]}, tasks.query.target),
            )
        return fine_tuned(self.tested, self.start, tasks, self.config, orders, transductive)

    def steps_asked(self, rows: int) -> Sequence[int]:
        """Not after every step."""
        return moments(self.config.eval_steps)


def _drawn_anew(one: nn.Module, other: nn.Module) -> bool:
    """Are these two heads different draws, wherever they are not constants?"""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return not any(torch.equal(a, b) and a.unique().numel() > 1 for a, b in pairs)
