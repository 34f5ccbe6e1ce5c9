"""Elastic weight consolidation (Kirkpatrick et al. 2017, "Overcoming catastrophic forgetting in neural networks")."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from advml.config import CountFloat, PositiveInt, settings
from advml.contracts import At, Context, Step
from advml.methods.continual.common import Continual, ContinualSettings
from advml.nn.anchor import Anchor
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


class ElasticWeightConsolidation(Continual):
    """Equation 3: L(θ) = L_task(θ) + λ/2 Σ_t Σ_i F_t,i (θ_i − θ_t,i)², a pull towards what earlier tasks need.

    `F` is the diagonal of the Fisher information, averaged over the task's training examples; λ is `strength`.
    """

    settings = Settings

    def setup(self, context: Context) -> None:
        """Nothing is important yet."""
        super().setup(context)
        self.anchor = Anchor(self.network)

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
        index = None
        if config.fisher_examples is not None and config.fisher_examples < len(task.train):
            order = torch.randperm(len(task.train), generator=self.context.rng("fisher examples", at.phase))
            index = order[: config.fisher_examples]
        fisher = fisher_diagonal(
            self.network,
            task.train,
            kind=config.fisher,
            mask=self.stream.mask(at.phase, self.begun),
            index=index,
            generator=self.context.rng("fisher classes", at.phase),
            batch_size=config.fisher_batch_size,
        )
        self.anchor.consolidate(fisher, online=config.anchor == "online", decay=config.decay)

    def memory(self) -> tuple[Iterable[Tensor], int]:
        """The anchor: of the same size for any number of tasks."""
        return self.anchor.tensors(), 0

    def state_dict(self) -> dict[str, Any]:
        """Adds the anchor."""
        return {**super().state_dict(), "anchor": self.anchor.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore all of it."""
        super().load_state_dict(state)
        self.anchor.load_state_dict(state["anchor"])
