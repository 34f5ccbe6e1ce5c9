"""Elastic weight consolidation (Kirkpatrick et al. 2017, "Overcoming catastrophic forgetting in neural networks")."""

from __future__ import annotations

from typing import Literal

from advml.config import CountFloat, PositiveInt, settings
from advml.contracts import At, Step
from advml.methods.continual.anchored import Anchored
from advml.methods.continual.common import ContinualSettings
from advml.nn.fisher import fisher_diagonal


@settings
class Settings(ContinualSettings):
    """How strongly, around what, and how the Fisher information is measured."""

    strength: CountFloat
    anchor: Literal["separate", "online"]
    decay: CountFloat
    fisher: Literal["exact", "sample", "empirical", "batched"]
    fisher_examples: PositiveInt | None
    fisher_batch_size: PositiveInt


class ElasticWeightConsolidation(Anchored):
    """Equation 3: L(θ) = L_task(θ) + λ/2 Σ_t Σ_i F_t,i (θ_i − θ_t,i)², a pull towards what earlier tasks need.

    `F` is the diagonal of the Fisher information, averaged over the task's training examples; λ is `strength`.
    """

    settings = Settings

    def step(self, at: At) -> Step:
        """A block of iterations with the penalty's gradient added; after a task's last, its own importance."""
        strength = self.config.strength
        loss = self.train_block(at, transform=lambda: self.anchor.add_gradient(strength))
        metrics = {"loss": loss, "penalty": self.anchor.value(strength)}
        if at.last and at.phase + 1 < len(self.stream):  # nothing comes after the last task
            self._consolidate(at)
        return self.done(at, metrics)

    def _consolidate(self, at: At) -> None:
        config, task = self.config, self.stream[at.phase]
        mask = self.stream.mask(at.phase, self.begun)
        index = self.measured_on(at, config.fisher_examples)
        fisher = fisher_diagonal(
            self.network,
            task.train,
            kind=config.fisher,
            mask=mask,
            index=index,
            generator=self.context.rng("fisher classes", at.phase),
            batch_size=config.fisher_batch_size,
        )
        # The exact kind takes one gradient fewer than active classes: advml.nn.fisher.contrasts.
        self.count_measured(at, index, int(mask.sum()) - 1 if config.fisher == "exact" else 1)
        self.anchor.consolidate(fisher, online=config.anchor == "online", decay=config.decay)
