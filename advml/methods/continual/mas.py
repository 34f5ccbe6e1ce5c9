"""Memory aware synapses (Aljundi et al. 2018, "Memory aware synapses: learning what (not) to forget")."""

from __future__ import annotations

from typing import Literal

from advml.config import CountFloat, PositiveInt, settings
from advml.contracts import At, Step
from advml.methods.continual.anchored import Anchored
from advml.methods.continual.common import ContinualSettings
from advml.nn.sensitivity import sensitivity


@settings
class Settings(ContinualSettings):
    """How strongly, and how importance is measured."""

    strength: CountFloat
    norm: Literal["squared_l2", "l2"]
    importance_examples: PositiveInt | None
    importance_batch_size: PositiveInt


class MemoryAwareSynapses(Anchored):
    """Equation 3: L(θ) = L_task(θ) + λ Σ_k Ω_k (θ_k − θ*_k)², without a ½; θ* as the last task left them.

    Ω is the sum over tasks of how sensitive the outputs that compete in the task are to each parameter, averaged over
    its training examples: see `advml.nn.sensitivity`. λ is `strength`.
    """

    settings = Settings

    def step(self, at: At) -> Step:
        """A block of iterations with the penalty's gradient added; after a task's last, its own importance."""
        strength = 2 * self.config.strength  # the anchor's penalty has a ½
        loss = self.train_block(at, transform=lambda: self.anchor.add_gradient(strength))
        metrics = {"loss": loss, "penalty": self.anchor.value(strength)}
        if at.last and at.phase + 1 < len(self.stream):  # nothing comes after the last task
            self._consolidate(at)
        return self.done(at, metrics)

    def _consolidate(self, at: At) -> None:
        config, task = self.config, self.stream[at.phase]
        index = self.measured_on(at, config.importance_examples)
        importance = sensitivity(
            self.network,
            task.train,
            norm=config.norm,
            mask=self.stream.mask(at.phase, self.begun),
            index=index,
            batch_size=config.importance_batch_size,
        )
        self.count_measured(at, index)
        self.anchor.consolidate(importance, online=True)
