"""Experience replay (Chaudhry et al. 2019, "On tiny episodic memories in continual learning"; Rolnick et al. 2019)."""

from __future__ import annotations

from torch import Tensor

from advml.config import CountFloat, settings
from advml.contracts import At, Batch, Step
from advml.methods.continual.rehearsal import RecallSettings, Rehearsal


@settings
class Settings(RecallSettings):
    """How much the examples of the memory count."""

    weight: CountFloat


class Replay(Rehearsal):
    """L(θ) = CE(B_t) + w · CE(B_M): the current batch, and as a second term one out of the memory, each a mean.

    With w = 1 and batches of equal size this is twice the mean over both that the papers' one joint batch gives.
    """

    settings = Settings

    def step(self, at: At) -> Step:
        """A block of iterations on current and remembered examples."""
        weight = self.config.weight

        def loss(outputs: Tensor, batch: Batch) -> Tensor:
            value = self.loss(outputs, batch)
            if replayed := self.drawn.get("replay"):
                value = value + weight * self.loss(self.again(replayed), replayed.batch)
            return value

        return self.done(at, {"loss": self.rehearse(at, ["replay"] if weight else [], loss=loss)})
