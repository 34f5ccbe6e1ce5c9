"""What all methods of the family share, the pooled baseline too: rounds, targets, what is measured and drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from annotated_types import Interval

from advml.artifacts import Artifact
from advml.config import Fraction, PositiveInt, settings
from advml.contracts import (
    At,
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
from advml.nn.losses import LossName, make_loss
from advml.nn.optimisers import OptimiserSettings, learning_rate


@settings
class RoundSettings(OptimiserSettings):
    """Keys of every method of the family: configs/method/_base/rounds.yaml."""

    rounds: PositiveInt
    fraction: Annotated[float, Interval(gt=0, le=1)]
    epochs: PositiveInt
    batch_size: PositiveInt | None
    loss: LossName
    label_smoothing: Fraction
    targets: tuple[Annotated[float, Interval(ge=0)], ...]
    curve: Literal["none", "valid", "test"]
    curve_every: PositiveInt
    stop_at_targets: bool

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stop_at_targets and (self.curve == "none" or not self.targets):
            raise ValueError("stop_at_targets: needs targets and a curve to reach them; set targets and curve")


class Rounds(Method):
    """A network, trained in rounds on the examples of many clients."""

    needs = Needs(view="clients", targets=(Classes, Real), precisions=("float32", "float64"))
    objective = Objective("accuracy", "valid", "max")

    def setup(self, context: Context) -> None:
        """The network."""
        self.context, self.config = context, context.settings
        self.view: Clients = context.data
        target = self.view.spec.target
        if isinstance(target, Real):
            self.objective = Objective(self.objective.metric.replace("accuracy", "mse"), "valid", "min")
        self.loss = make_loss(self.config.loss, target, self.config.label_smoothing)
        if self.config.curve != "none" and not len(measuring.whole(self.view, self.config.curve)):
            raise ConfigError(f"method.curve={self.config.curve}: the split is empty; see dataset.{self.config.curve}")
        self.network = context.build()

    def phases(self) -> Sequence[Phase]:
        """One phase of rounds."""
        return [Phase("train", "round", self.config.rounds)]

    def rate(self, round: int) -> float:
        """The learning rate of a round."""
        return learning_rate(self.config, round, self.config.rounds)

    def with_curve(self, at: At, metrics: dict[str, Any]) -> Step:
        """The metrics, with the score on the split that `curve` names where it is time for it.

        It changes nothing, and rank 0 decides by it: processes that follow measure nothing.
        """
        config = self.config
        due = at.last or (at.index + 1) % config.curve_every == 0
        if config.curve == "none" or not due or self.context.world.rank:
            return Step(metrics)
        name = "accuracy" if isinstance(self.view.spec.target, Classes) else "mse"
        found = measuring.of_network(self.result(), self.view, config.curve)[name]
        assert found is not None
        ended = config.stop_at_targets and curves.reached(float(found), config.targets, name)
        return Step(metrics | {f"{config.curve}_{name}": found}, end_phase=ended)

    def evaluate(self, split: SplitName) -> Metrics:
        """The network on the whole split, and over the clients, each on its own examples: see measuring.py."""
        return measuring.of_all(self.result(), self.view, split)

    def spread(self) -> Mapping[str, Artifact]:
        """The clients' own scores; nothing without test examples."""
        if not len(self.view.test):
            return {}
        return measuring.spread(self.view, {"the network": measuring.global_scores(self.result(), self.view, "test")})

    def result(self) -> Network:
        """The network."""
        return self.network

    def summary(self, records: Sequence[Record]) -> Metrics:
        """`rounds_to_T` for each target T, `rounds_to_target` for the last: null where it was not reached."""
        return curves.rounds_to_targets(records, self.config.targets, self.config.curve, self.objective)

    def artifacts(self, records: Sequence[Record]) -> Mapping[str, Artifact]:
        """The partition, curves by rounds and bytes, and how the clients' own scores are spread."""
        curve = curves.by_rounds(records, self.config.curve, self.objective)
        return {**curves.partition(self.view), **curve, **self.spread()}
