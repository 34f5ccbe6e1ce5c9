"""Networks with a way of their own for each task: the task must be told, or read off the outputs that are asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from advml.contracts import Network


class PerTask(Network):
    """Each output belongs to one task, and is computed in that task's way.

    Asked without a task, it gives all outputs, each in the way of the task that it belongs to: whoever then looks at
    the outputs of one task only, as the task scenario's masks do, sees that task's predictions and no other's.
    `of(number)` computes a single task's outputs, which costs less.
    """

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs, self.tasks = outputs, 0
        self.head = nn.Identity()  # the outputs of a task come from its own

    def add_outputs(self, places: Sequence[int], device: torch.device) -> None:
        """The next task has the outputs at these places."""
        # Known from the recipe, therefore not part of the state.
        self.register_buffer(f"places{self.tasks}", torch.tensor(list(places), device=device), persistent=False)
        self.tasks += 1

    def places(self, number: int) -> Tensor:
        """Where the outputs of task `number` are, int64 [C of the task]."""
        places: Tensor = getattr(self, f"places{number}")
        return places

    def task(self, inputs: Mapping[str, Tensor], number: int) -> Tensor:
        """The outputs of task `number` alone, [B, C of the task], in the order of `places(number)`."""
        raise NotImplementedError

    def all_tasks(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """`task` for each task there is."""
        return [self.task(inputs, number) for number in range(self.tasks)]

    def features(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The outputs of all tasks, [B, C]."""
        return self.spread(inputs, dict(enumerate(self.all_tasks(inputs))))

    def spread(self, inputs: Mapping[str, Tensor], found: Mapping[int, Tensor]) -> Tensor:
        """The outputs found, by task, at their places among all of them; zero where there is none. [B, C]"""
        like = next(iter(found.values()), next(iter(inputs.values())))
        outputs = like.new_zeros((like.shape[0], self.outputs))  # its len() would fix the batch in a program
        for number, own in found.items():
            outputs = outputs.index_copy(1, self.places(number), own)
        return outputs

    def of(self, number: int) -> OneTask:
        """The same network, for task `number` only."""
        return OneTask(self, number)


class OneTask(Network):
    """A network's outputs for one task, at their places among those of all tasks; a task it does not know has zeros."""

    def __init__(self, whole: PerTask, number: int) -> None:
        super().__init__()
        self.whole, self.number, self.recipe = whole, number, whole.recipe
        self.head = nn.Identity()

    def features(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Zeros [B, C] but for the outputs of the task."""
        known = self.number < self.whole.tasks
        return self.whole.spread(inputs, {self.number: self.whole.task(inputs, self.number)} if known else {})
