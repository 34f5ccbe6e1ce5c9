"""What methods share that hold parameters by how important they were: EWC, synaptic intelligence, MAS."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from advml.contracts import At, Context
from advml.methods.continual.common import Continual
from advml.nn.anchor import Anchor


class Anchored(Continual):
    """A quadratic pull towards parameters of earlier tasks. Subclasses write `step`, and consolidate `self.anchor`."""

    def setup(self, context: Context) -> None:
        """Nothing is important yet."""
        super().setup(context)
        self.anchor = Anchor(self.network)

    def measured_on(self, at: At, limit: int | None) -> Tensor | None:
        """Which training examples of the task importance is measured on: at most `limit`, drawn; None = all."""
        count = len(self.stream[at.phase].train)
        if limit is None or limit >= count:
            return None
        return torch.randperm(count, generator=self.context.rng("importance examples", at.phase))[:limit]

    def count_measured(self, at: At, index: Tensor | None, gradients: int = 1) -> None:
        """Add to the budget what was done for importance: so many gradients for each example it is measured on."""
        examples = len(self.stream[at.phase].train) if index is None else len(index)
        self.context.count(samples=examples, gradients=gradients * examples)

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
