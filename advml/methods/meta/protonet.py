"""Prototypical networks (Snell et al. 2017, "Prototypical networks for few-shot learning")."""

from __future__ import annotations

from torch import Tensor

from advml.config import PositiveFloat, settings
from advml.methods.meta.common import MetaSettings
from advml.methods.meta.metric import MetricLearner
from advml.nn.prototypes import Distance, metric_logits, prototypes


@settings
class Settings(MetaSettings):
    """How near a query is to a prototype."""

    distance: Distance
    scale: PositiveFloat


class PrototypicalNetworks(MetricLearner):
    """Equations 1 and 2: p(y = k | x) = softmax_k(−d(f(x), c_k)), c_k the mean of f over class k of the support set.

    The network learns f, over tasks of `view.train_ways` classes: better of more than in evaluation (section 2.6).
    """

    settings = Settings

    def outputs(self, query: Tensor, support: Tensor, labels: Tensor, ways: int) -> Tensor:
        """−d(f(x), c_k), times `scale`."""
        return metric_logits(query, prototypes(support, labels, ways), self.config.distance, self.config.scale)
