"""Memory aware synapses (Aljundi et al. 2018, "Memory aware synapses: learning what (not) to forget")."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from advml.config import CountFloat, PositiveInt, settings
from advml.contracts import At, Context, Step
from advml.methods.continual.common import Continual, ContinualSettings
from advml.nn.anchor import Anchor
from advml.nn.sensitivity import sensitivity


@settings
class Settings(ContinualSettings):
    """How strongly, and how importance is measured."""

    strength: CountFloat
    norm: Literal["squared_l2", "l2"]
    importance_examples: PositiveInt | None
    importance_batch_size: PositiveInt


class MemoryAwareSynapses(Continual):
    """Equation 3: L(θ) = L_task(θ) + λ Σ_k Ω_k (θ_k − θ*_k)², without a ½; θ* as the last task left them.

    Ω is the sum over tasks of how sensitive the outputs that compete in the task are to each parameter, averaged over
    its training examples: see `advml.nn.sensitivity`. λ is `strength`.
    """

    settings = Settings

    def setup(self, context: Context) -> None:
        """Nothing is important yet."""
        super().setup(context)
        self.anchor = Anchor(self.network)

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
        count = len(task.train)
        index = None
        if config.importance_examples is not None and config.importance_examples < count:
            count = config.importance_examples
            index = torch.randperm(len(task.train), generator=self.context.rng("importance examples", at.phase))[:count]
        importance = sensitivity(
            self.network,
            task.train,
            norm=config.norm,
            mask=self.stream.mask(at.phase, self.begun),
            index=index,
            batch_size=config.importance_batch_size,
        )
        self.context.count(samples=count, gradients=count)
        self.anchor.consolidate(importance, online=True)

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
