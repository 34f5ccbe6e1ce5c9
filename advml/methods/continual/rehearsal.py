"""What methods with a memory of examples share: when it is drawn from and when it is offered something.

Each iteration draws from the memory first and offers it the current batch last (Chaudhry et al. 2019, "On tiny episodic
memories in continual learning", algorithm 1). With `offer: first` a batch is offered in the first epoch of its task
only: every example is offered once however often it is trained on, and the reservoir is uniform over examples. With
`offer: every` it is offered in every epoch, as dark experience replay's own code does: the reservoir is uniform over
what was shown, an example may be in it twice, and what is stored beside it is not only of the first epoch.

Drawn examples pass the network by themselves, not in one batch with the current ones: A-GEM needs two gradients anyway,
dark experience replay's own code does so, and the same for all makes them comparable. With batch normalisation
each pass is then normalised by its own statistics, and both move the running ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import count
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from advml.config import CountInt, PositiveInt, settings
from advml.contracts import At, Batch, Context
from advml.errors import ConfigError
from advml.methods.continual.common import Continual, ContinualSettings
from advml.nn.losses import Loss
from advml.nn.memory import Memory, Policy, Recalled
from advml.nn.training import rows_kept, updates_per_epoch


@settings
class RehearsalSettings(ContinualSettings):
    """How many examples are kept, which, and how many are drawn at once."""

    capacity: CountInt
    policy: Policy
    offer: Literal["first", "every"]
    memory_batch_size: PositiveInt

    @property
    def earlier_only(self) -> bool:
        """Are only examples of tasks before the one at hand drawn?"""
        return True


@settings
class RecallSettings(RehearsalSettings):
    """For methods that may replay examples of the task at hand."""

    recall: Literal["all", "earlier"]

    @property
    def earlier_only(self) -> bool:
        """As chosen."""
        return self.recall == "earlier"


class Rehearsal(Continual):
    """Subclasses call `rehearse` in `step` and find what was drawn in `self.drawn`, by the name they gave it."""

    settings: ClassVar[type] = RehearsalSettings

    def setup(self, context: Context) -> None:
        """An empty memory, no larger than what it could ever be offered."""
        super().setup(context)
        first = self.config.offer == "first"
        offered = (len(t.train) if first else self.iterations(t) * self.config.batch_size for t in self.stream)
        capacity, outputs = min(self.config.capacity, sum(offered)), self.stream.spec.outputs
        like = self.stream[0].train
        self.kept = Memory(capacity, self.config.policy, like, len(self.stream), outputs, self.extras())
        self.drawn: Mapping[str, Recalled] = {}
        self.beside: Mapping[str, Tensor] = {}  # what is stored with the current batch

    def extras(self) -> Mapping[str, tuple[tuple[int, ...], torch.dtype]]:
        """What is stored with each example: name → shape and type."""
        return {}

    def rehearse(
        self,
        at: At,
        draws: Iterable[str],
        *,
        loss: Loss | None = None,
        transform: Callable[[], None] | None = None,
    ) -> Tensor:
        """A block of iterations on the task's own examples; the mean of `loss`.

        Before each, `memory_batch_size` examples are drawn for each name in `draws`, independently; with nothing to
        draw from, `self.drawn` is empty. Without names this is fine-tuning.
        """
        config, task, names = self.config, self.stream[at.phase], list(draws) if self.kept.capacity else []
        numbers = count(at.index * config.block)
        first_epoch = updates_per_epoch(len(task.train), config.batch_size)
        offered = first_epoch if config.offer == "first" else self.iterations(task)
        begun = at.phase + 1
        mask = self.stream.mask(at.phase, begun)
        splits = [one.train for one in self.stream.tasks[:begun]]
        masks = torch.stack([self.stream.mask(number, begun) for number in range(begun)])
        masks_here = masks.cpu()  # once for a block, so that no update waits for the device
        classes = task.train.target.cpu() if config.policy == "balanced" else None  # once for a block
        iteration, current, put_back = 0, torch.empty(0), rows_kept(self.network.head, mask)
        apart = bool((masks.any(0) & ~mask).any())  # tasks have rows of the head for themselves

        def batches(index: Tensor) -> Batch:
            nonlocal iteration, current, put_back
            iteration, current = next(numbers), index
            drawn = {}
            for name in names:
                generator = self.context.rng(f"memory {name}", at.phase, iteration)
                slots = self.kept.draw(config.memory_batch_size, generator, at.phase if config.earlier_only else None)
                if len(slots):
                    drawn[name] = self.kept.recall(slots, splits, masks)
                    self.context.count(samples=len(slots), gradients=len(slots))
            self.drawn = drawn
            if apart:  # of earlier tasks' rows only those learn whose examples are seen in this update
                tasks = torch.cat([torch.tensor([at.phase]), *(one.task for one in drawn.values())])
                put_back = rows_kept(self.network.head, masks_here[tasks].any(0))
            inputs, target, _ = task.train.batch(index.to(task.train.device, non_blocking=True))
            return Batch(inputs, target, mask)

        def after() -> None:
            put_back()
            if iteration < offered:
                generator = self.context.rng("memory offer", at.phase, iteration)
                chosen = None if classes is None else classes[current]
                self.kept.offer(task.train, current, at.phase, generator, classes=chosen, extras=self.beside)

        return self.train_block(
            at, batches=batches, loss=loss, transform=transform, after=after, earlier=bool(names),
        )  # fmt: skip

    def again(self, drawn: Recalled) -> Tensor:
        """What the network, as it is now, says about drawn examples: outputs [B, C]."""
        try:
            outputs: Tensor = self.network(drawn.batch.inputs)
        except ValueError as error:
            if len(drawn.task) == 1 and str(error).startswith("Expected more than 1 value per channel"):
                raise ConfigError(
                    "method.capacity, method.memory_batch_size: a batch norm cannot learn from one remembered example; "
                    "use 2 or more"
                ) from None
            raise
        return outputs

    def memory(self) -> tuple[Iterable[Tensor], int]:
        """The examples kept."""
        return self.kept.tensors(), len(self.kept)

    def state_dict(self) -> dict[str, Any]:
        """Adds the examples kept."""
        return {**super().state_dict(), "kept": self.kept.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore all of it."""
        super().load_state_dict(state)
        self.kept.load_state_dict(state["kept"])
