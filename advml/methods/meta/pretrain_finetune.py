"""The plain way to learn a new task: supervised training on all classes at hand, then fine-tuning (Chen et al. 2019, "A
closer look at few-shot classification").
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor, nn

from advml.config import PositiveInt, settings
from advml.contracts import At, Batch, Classes, Context, Needs, Network, Step
from advml.data.episodes import Tasks
from advml.errors import ConfigError
from advml.methods.meta.common import MetaLearner
from advml.methods.meta.finetuning import FinetuningSettings, fine_tuned, moments
from advml.methods.meta.metric import features_of
from advml.nn.losses import make_loss
from advml.nn.optimisers import make_optimiser
from advml.nn.replicas import make_replicas
from advml.nn.training import TrainingSettings, batches_of, minibatches, train


@settings
class Settings(TrainingSettings, FinetuningSettings):
    """Training on all training classes, and what is adapted to a task."""

    iterations: PositiveInt
    block: PositiveInt
    transductive: bool
    adapt: Literal["head", "all"]


class Head(Network):
    """A head by itself: its inputs are features."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def features(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """As they come."""
        return inputs["features"]


class PretrainFinetune(MetaLearner):
    """Learn to tell all training classes apart; for a task, put a new head on the network and train it on the support set.

    `adapt`: the head alone, on features as they are, or all weights.
    """

    settings = Settings
    needs = Needs(view="episodes", targets=(Classes,), precisions=("float32", "float64"))

    def setup(self, context: Context) -> None:
        """A network for all training classes, and one whose head every task begins with."""
        self.context, self.config, self.view = context, context.settings, context.data
        if self.view.base is None or self.view.base_spec is None:
            raise ConfigError("view: has no training classes to learn all at once; use view=episodes with dataset=omniglot")
        try:
            self.supervised = make_loss(self.config.loss, self.view.base_spec.target, self.config.label_smoothing)
        except ValueError as error:
            raise ConfigError(f"method.{error}") from None
        self.network = context.build(self.view.base_spec)
        self.optimiser = make_optimiser(self.network.parameters(), self.config)
        self.beginner = context.build(self.view.spec, "new head")
        self.replicas = make_replicas(Head(self.beginner.head) if self.config.adapt == "head" else self.beginner)

    def step(self, at: At) -> Step:
        """A block of updates by mini-batches of the examples of all training classes."""
        config, base = self.config, self.view.base
        assert base is not None
        start = at.index * config.block
        stop = min(start + config.block, config.iterations)
        indices = minibatches(
            len(base), config.batch_size, start, stop, lambda epoch: self.context.rng("shuffle", epoch)
        )
        loss = train(
            self.network,
            batches_of(base, indices),
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
        transductive = self.config.transductive
        values = dict(self.beginner.named_parameters())
        if self.config.adapt == "head":
            features = features_of(self.network, tasks, transductive)
            shots = tasks.support.target.shape[1]
            tasks = tasks._replace(
                support=Batch({"features": features[:, :shots]}, tasks.support.target),
                query=Batch({"features": features[:, shots:]}, tasks.query.target),
            )
            values = {name: value for name, value in values.items() if name.startswith("head.")}
        else:
            values |= {n: value for n, value in self.network.named_parameters() if not n.startswith("head.")}
        return fine_tuned(
            self.replicas,
            values,
            tasks,
            self.config,
            lambda epoch: self.context.rng("evaluation order", epoch),
            transductive,
        )

    def steps_asked(self, rows: int) -> Sequence[int]:
        """Not after every step."""
        return moments(self.config.evaluation_steps)
