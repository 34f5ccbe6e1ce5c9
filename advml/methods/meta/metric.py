"""What metric-based methods share: nothing adapts; a query example is compared with a task's support set in a learned
space, the network's features.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from advml.contracts import Classes, Context, Needs, Network
from advml.data.episodes import Tasks
from advml.errors import ConfigError
from advml.methods.meta.common import MetaLearner, joined, task_losses
from advml.nn.embedding import embed, own_statistics
from advml.nn.evaluation import evaluating
from advml.nn.replicas import has_batch_norm


class MetricLearner(MetaLearner):
    """Features are learned such that comparing in them tells classes apart. Subclasses write `outputs`.

    The network's head is not asked and stays as it is. Batch norm: in training, by the support and query examples of a
    task together, as in the code of Snell et al. 2017; measured as there by the running averages of training, in which
    no other query example has a part, or where `transductive` once more by the task's own examples.
    """

    needs = Needs(view="episodes", targets=(Classes,), precisions=("float32", "float64"))

    def setup(self, context: Context) -> None:
        """All of the network but its head learns."""
        super().setup(context)
        if not self.learned():
            name = self.network.recipe["name"]
            raise ConfigError(f"model={name}: has nothing to learn before its head; use model=mlp or model=conv4")
        self.network.head.requires_grad_(False)

    def learned(self) -> list[nn.Parameter]:
        """What features are made of."""
        head = {id(parameter) for parameter in self.network.head.parameters()}
        return [parameter for parameter in self.network.parameters() if id(parameter) not in head]

    def outputs(self, query: Tensor, support: Tensor, labels: Tensor, ways: int) -> Tensor:
        """Logits [T, Q, ways] of queries [T, Q, F], given a support set [T, S, F] with labels [T, S]."""
        raise NotImplementedError

    def loss(self, tasks: Tasks) -> Tensor:
        """The mean cross-entropy of the query examples."""
        ways = self.view.config.shape("train").ways
        assert ways is not None
        self.network.train()
        features = embed(self.network, joined(tasks), apart=has_batch_norm(self.network))
        return task_losses(self._outputs(features, tasks, ways), tasks.query.target).mean()

    def predictions(self, tasks: Tasks) -> Tensor:
        """One row: nothing adapts."""
        assert self.view.ways is not None
        features = features_of(self.network, tasks, self.config.transductive)
        with torch.no_grad():
            return self._outputs(features, tasks, self.view.ways).unsqueeze(0)

    def _outputs(self, features: Tensor, tasks: Tasks, ways: int) -> Tensor:
        shots = tasks.support.target.shape[1]
        return self.outputs(features[:, shots:], features[:, :shots], tasks.support.target, ways)


def features_of(network: Network, tasks: Tasks, transductive: bool) -> Tensor:
    """Features [T, S + Q, F] for measuring: no gradient, no dropout, and the network is left as it was."""
    with evaluating(network):
        if not (transductive and has_batch_norm(network)):
            return embed(network, joined(tasks), apart=False)
        with own_statistics(network):
            return embed(network, joined(tasks), apart=True)
