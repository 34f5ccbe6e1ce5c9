"""The class of the nearest support example: what can be had without learning (Cover and Hart 1967)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from advml.config import CountInt, settings
from advml.contracts import At, Classes, Context, Metrics, Needs, Phase, Record, Step
from advml.data.episodes import Tasks
from advml.methods.meta.common import MetaLearner, examples_of, joined
from advml.methods.meta.metric import features_of
from advml.models.mlp import flat
from advml.nn.prototypes import Distance, metric_logits, nearest_logits
from advml.nn.replicas import has_batch_norm

TASKS_A_STEP = 10  # training tasks over whose examples a step takes the mean


@settings
class Settings:
    """Nearest in what space, and by what measure."""

    space: Literal["inputs", "features"]
    distance: Distance
    centre_tasks: CountInt
    transductive: bool

    def __post_init__(self) -> None:
        if self.centre_tasks and self.distance == "euclidean":
            raise ValueError(
                "centre_tasks: euclidean distances are the same about any centre; "
                "use method.distance=cosine or method.centre_tasks=0"
            )


class NearestNeighbour(MetaLearner):
    """A query example has the class of the support example next to it, in the inputs or in the network's features.

    Nothing is trained: features are those of a network as it is initialised, or of another run (model=run). With
    `centre_tasks` the mean over that many training tasks is subtracted first (Wang et al. 2019, "SimpleShot"), for
    which the plan has its steps; otherwise it has one, which does nothing.
    """

    settings = Settings
    needs = Needs(view="episodes", targets=(Classes,), precisions=("float32", "float64"))

    def setup(self, context: Context) -> None:
        """A network only where it is asked."""
        self.context, self.config, self.view = context, context.settings, context.data
        self.network = context.build()
        with torch.no_grad():
            self.mean = torch.zeros_like(self._rows(self.view.fixed("valid", 0, 1))[0, 0])
        self.seen = 0  # training tasks that the mean is over

    def _rows(self, tasks: Tasks) -> Tensor:
        """Support and query examples of each task as vectors, [T, S + Q, F]."""
        if self.config.space == "features":
            return features_of(self.network, tasks, self.config.transductive)
        inputs = joined(tasks)
        shape = next(iter(inputs.values())).shape[:2]
        return flat({name: values.flatten(0, 1) for name, values in inputs.items()}).reshape(*shape, -1)

    def phases(self) -> Sequence[Phase]:
        """Steps for the mean, or one without anything to do."""
        return [Phase("centre", "block", max(1, -(-self.config.centre_tasks // TASKS_A_STEP)))]

    def step(self, at: At) -> Step:
        """Some training tasks join the mean."""
        count = min(TASKS_A_STEP, self.config.centre_tasks - self.seen)
        if count > 0:
            tasks = self.view.draw(count, self.context.rng("tasks", at.index))
            mean = self._rows(tasks).mean((0, 1))
            self.mean = (self.mean * self.seen + mean * count) / (self.seen + count)
            self.seen += count
            self.context.count(samples=examples_of(tasks.support) + examples_of(tasks.query))
        return Step({"centre_tasks": self.seen})

    def predictions(self, tasks: Tasks) -> Tensor:
        """The negative distance to the nearest support example of each class."""
        assert self.view.ways is not None
        rows, labels = self._rows(tasks) - self.mean, tasks.support.target
        shots = labels.shape[1]
        logits = metric_logits(rows[:, shots:], rows[:, :shots], self.config.distance)
        return nearest_logits(logits, labels, self.view.ways).unsqueeze(0)

    def state_dict(self) -> dict[str, Any]:
        """The mean, and what it is over."""
        return {"mean": self.mean, "seen": self.seen}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore both."""
        self.mean, self.seen = state["mean"].to(self.mean), state["seen"]

    def result(self) -> None:
        """Nothing was trained."""

    def summary(self, records: Sequence[Record]) -> Metrics:
        """`transductive`, as of every meta-learner."""
        asked = self.config.space == "features" and has_batch_norm(self.network)
        return {"transductive": self.config.transductive and asked}
