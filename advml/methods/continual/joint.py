"""Joint training: at each task, train on the examples of all tasks so far. The upper bound of every table."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from advml.config import settings
from advml.contracts import At, Context, Step
from advml.data.union import Union
from advml.methods.continual.common import Continual, ContinualSettings
from advml.nn.optimisers import make_optimiser


@settings
class Settings(ContinualSettings):
    """Whether each task begins from scratch: initial weights, and an optimiser that remembers nothing."""

    restart: bool


class Joint(Continual):
    """Nothing is ever forgotten because nothing is ever put away."""

    settings = Settings

    def setup(self, context: Context) -> None:
        """Remember where training starts, for `restart`."""
        super().setup(context)
        self.union: Union | None = None

    def step(self, at: At) -> Step:
        """A block of iterations on the union of the tasks so far, each example under its own task's mask."""
        if at.index == 0 and self.config.restart:
            self.network.load_state_dict(self.context.build().state_dict())
            self.optimiser = make_optimiser(self.network.parameters(), self.config)
        if self.union is None or len(self.union.splits) != at.phase + 1:
            tasks = self.stream.tasks[: at.phase + 1]
            masks = [self.stream.mask(number, at.phase + 1) for number in range(len(tasks))]
            self.union = Union([task.train for task in tasks], masks)
        loss = self.train_block(at, examples=len(self.union), batches=self.union.batch, earlier=True)
        return self.done(at, {"loss": loss})

    def memory(self) -> tuple[Iterable[Tensor], int]:
        """All training examples of the tasks before this one."""
        kept = [task.train for task in self.stream.tasks[: self.begun - 1]]
        tensors = [values for split in kept for values in (*split.inputs.values(), split.target)]
        return tensors, sum(len(split) for split in kept)
