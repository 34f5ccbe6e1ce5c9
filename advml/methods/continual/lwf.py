"""Learning without forgetting (Li and Hoiem 2016, "Learning without forgetting")."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from advml.config import CountFloat, PositiveFloat, settings
from advml.contracts import At, Batch, Context, Network, Step
from advml.methods.continual.common import Continual, ContinualSettings
from advml.nn.distillation import distillation
from advml.nn.evaluation import frozen
from advml.nn.losses import mean_of


@settings
class Settings(ContinualSettings):
    """How strongly the network keeps to its earlier answers, and how soft these are."""

    temperature: PositiveFloat
    weighting: Literal["fixed", "by_tasks"]
    strength: CountFloat
    new_classes: Literal["free", "zero"]


class LearningWithoutForgetting(Continual):
    """On the new task's inputs, answer for earlier tasks as the network did before: no earlier example is kept.

    With KD_h the distillation of head h (`advml.nn.distillation`) from a copy made when the previous task ended, and λ
    for `strength`, the loss of task t > 1 is

        fixed      CE + λ Σ_h KD_h                        (the paper's: a sum over earlier tasks)
        by_tasks   1/t · CE + λ (1 − 1/t) · mean_h KD_h   (van de Ven and Tolias 2019, with λ = 1)

    Heads: in the task scenario each earlier task's outputs; in the domain scenario the shared ones; in the class
    scenario one head of all classes before this task's.
    """

    settings = Settings

    def setup(self, context: Context) -> None:
        """There is nobody to learn from yet."""
        super().setup(context)
        self.teacher: Network | None = None

    def step(self, at: At) -> Step:
        """A block of iterations beside the teacher; after a task's last, the network is the next teacher."""
        if self.teacher is None:
            loss, distilled = self.train_block(at), torch.zeros((), device=self.context.device)
        else:
            loss, distilled = self._beside(self.teacher, at)
        if at.last and at.phase + 1 < len(self.stream) and self.config.strength:  # nothing comes after the last task
            self.teacher = frozen(self.network)
        return self.done(at, {"loss": loss, "distillation": distilled})

    def _beside(self, teacher: Network, at: At) -> tuple[Tensor, Tensor]:
        """The mean loss of a block, and how far from the teacher's its answers were: Σ_h KD_h or mean_h KD_h."""
        config, tasks = self.config, at.phase + 1
        heads = self.heads(at.phase)
        begun = self.stream.mask(at.phase, tasks)
        student_heads = heads | begun if config.new_classes == "zero" and self.stream.scenario == "class" else heads
        new, old = (1.0, 1.0) if config.weighting == "fixed" else (1 / tasks, 1 - 1 / tasks)
        values: list[Tensor] = []
        sizes: list[int] = []

        def loss(outputs: Tensor, batch: Batch) -> Tensor:
            with torch.no_grad():
                answers = teacher(batch.inputs)
            each = distillation(outputs, answers, heads, config.temperature, student_heads)
            distilled = each.sum() if config.weighting == "fixed" else each.mean()
            values.append(distilled.detach())
            sizes.append(len(batch.target))
            learnt: Tensor = new * self.loss(outputs, batch) + config.strength * old * distilled
            return learnt

        total = self.train_block(at, loss=loss, earlier=True)
        self.context.count(samples=sum(sizes))  # the teacher's
        return total, mean_of(values, sizes)

    def heads(self, phase: int) -> Tensor:
        """The outputs of each earlier head, bool [H, C], for a task that is not the first."""
        earlier = torch.stack([task.outputs for task in self.stream.tasks[:phase]])
        return earlier if self.stream.scenario == "task" else earlier.any(0, keepdim=True)

    def memory(self) -> tuple[Iterable[Tensor], int]:
        """The teacher."""
        return [] if self.teacher is None else self.teacher.state_dict().values(), 0

    def state_dict(self) -> dict[str, Any]:
        """Adds the teacher."""
        return {**super().state_dict(), "teacher": None if self.teacher is None else self.teacher.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore all of it."""
        super().load_state_dict(state)
        self.teacher = None
        if state["teacher"] is not None:
            self.teacher = frozen(self.network)
            self.teacher.load_state_dict(state["teacher"])
