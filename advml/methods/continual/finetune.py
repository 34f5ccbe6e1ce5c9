"""Fine-tuning: train on each task in turn and do nothing against forgetting. The lower bound of every table."""

from __future__ import annotations

from advml.contracts import At, Step
from advml.methods.continual.common import Continual


class Finetune(Continual):
    """Mini-batch training on the task at hand."""

    def step(self, at: At) -> Step:
        """A block of iterations."""
        return self.done(at, {"loss": self.train_block(at)})
