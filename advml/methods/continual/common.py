"""What continual methods share: a phase per task, blocks of iterations, masks, the accuracy matrix."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from advml.artifacts import Artifact, Heatmap, Table
from advml.config import PositiveInt, settings
from advml.contracts import (
    At,
    Batch,
    Classes,
    Context,
    Method,
    Metrics,
    Needs,
    Network,
    Objective,
    Phase,
    Record,
    SplitName,
    Step,
)
from advml.data.stream import Stream, Task
from advml.errors import ConfigError
from advml.methods.continual.metrics import accuracy_matrix, summarise
from advml.models.pertask import PerTask
from advml.nn.evaluation import predict
from advml.nn.losses import Loss, make_loss
from advml.nn.metrics import accuracy, confusion_matrix, expected_calibration_error, macro_f1
from advml.nn.optimisers import make_optimiser
from advml.nn.training import TrainingSettings, batches_of, minibatches, rows_kept, train, updates_per_epoch


@settings
class ContinualSettings(TrainingSettings):
    """Keys of every continual method: configs/method/_base/continual.yaml."""

    iterations: PositiveInt | None
    epochs: PositiveInt | None
    block: PositiveInt
    fresh_optimiser: bool

    def __post_init__(self) -> None:
        """Training ends after one or the other."""
        TrainingSettings.__post_init__(self)
        if (self.iterations is None) == (self.epochs is None):
            raise ValueError("iterations, method.epochs: give one of the two and set the other to null")


class Continual(Method):
    """A network that learns the tasks of a stream in turn. Subclasses write `step`; `train_block` does its work."""

    settings: ClassVar[type] = ContinualSettings
    needs = Needs(view="stream", targets=(Classes,))
    objective = Objective("average_accuracy", "valid", "max", keep_best=False)
    tests_each_phase = True

    def setup(self, context: Context) -> None:
        """One network with one head over the outputs of all tasks."""
        self.context, self.config = context, context.settings
        self.stream: Stream = context.data
        empty = [task.label for task in self.stream if not len(task.train)]
        if empty:
            raise ConfigError(f"view: no training example for the task of classes {', '.join(empty)}")
        self.loss = make_loss(self.config.loss, self.stream.spec.target, self.config.label_smoothing)
        self.network = context.build()
        if isinstance(self.network, PerTask):
            raise ConfigError("model.path: the network of that run has a way of its own for each task; use another run")
        self.optimiser = make_optimiser(self.network.parameters(), self.config)
        self.begun = 0  # tasks whose training has begun

    def phases(self) -> Sequence[Phase]:
        """A phase for each task, a step for each block of iterations."""
        return [Phase(task.name, "block", -(-self.iterations(task) // self.config.block)) for task in self.stream]

    def iterations(self, task: Task) -> int:
        """Updates in a task: `iterations`, or so many that the task's own examples are seen `epochs` times."""
        if self.config.iterations is not None:
            return int(self.config.iterations)
        return int(self.config.epochs * updates_per_epoch(len(task.train), self.config.batch_size))

    def train_block(
        self,
        at: At,
        *,
        examples: int | None = None,
        batches: Callable[[Tensor], Batch] | None = None,
        loss: Loss | None = None,
        transform: Callable[[], None] | None = None,
        after: Callable[[], None] | None = None,
        still: Iterable[nn.Module] = (),
        earlier: bool = False,
    ) -> Tensor:
        """Train on one block of iterations of the task at hand; the mean loss.

        By default on the task's own examples; otherwise on `batches(index)`, with index int64 into `examples`.
        `loss` replaces the method's own, `transform` changes the gradients before each update, `after` is called after
        it; `still` are parts of the network that stay in evaluation mode. `earlier`: the outputs of earlier tasks learn
        too, because the loss or the batches have something to say about them; otherwise, in the task scenario, nothing
        moves them.
        """
        task = self.stream[at.phase]
        self.begun = at.phase + 1
        if at.index == 0 and self.config.fresh_optimiser:
            self.optimiser = make_optimiser(self.network.parameters(), self.config)
        total = self.iterations(task)
        start = at.index * self.config.block
        indices = minibatches(
            len(task.train) if examples is None else examples,
            self.config.batch_size,
            start,
            min(start + self.config.block, total),
            lambda epoch: self.context.rng("shuffle", at.phase, epoch),
        )
        mask = self.stream.mask(at.phase, self.begun)
        kept = rows_kept(self.network.head, self.outputs_begun() if earlier else mask)

        def updated() -> None:
            if after is not None:
                after()
            kept()

        return train(
            self.network,
            batches_of(task.train, indices, mask) if batches is None else map(batches, indices),
            self.loss if loss is None else loss,
            self.optimiser,
            settings=self.config,
            update=start,
            total=total,
            count=self.context.count,
            transform=transform,
            after=updated,
            still=still,
            autocast=self.context.autocast,
        )

    def outputs_begun(self) -> Tensor:
        """The outputs of all tasks whose training has begun, bool [C]."""
        return torch.stack([task.outputs for task in self.stream.tasks[: self.begun]]).any(0)

    def memory(self) -> tuple[Iterable[Tensor], int]:
        """What is held for the sake of earlier tasks, beside the network: its tensors, and how many examples."""
        return (), 0

    def done(self, at: At, metrics: Metrics) -> Step:
        """What `step` returns; after a task's last block with the memory held: `memory_parameters`, the network's
        size; `memory_examples` and `memory_bytes`, what is held beside it.
        """
        if at.last:
            tensors, examples = self.memory()
            held: Metrics = {
                "memory_parameters": sum(parameter.numel() for parameter in self.network.parameters()),
                "memory_examples": examples,
                "memory_bytes": sum(tensor.numel() * tensor.element_size() for tensor in tensors),
            }
            metrics = {**metrics, **held}
        return Step(metrics)

    def evaluate(self, split: SplitName) -> Metrics:
        """Accuracy of each task and their mean over the tasks begun, whose examples together give macro-F1 and ECE;
        validation leaves out tasks still to come.
        """
        accuracies: dict[str, Tensor] = {}
        pooled: dict[str, Tensor] = {}
        measured = self._outputs(split, len(self.stream) if split != "valid" else self.begun)
        for number, outputs, target in measured:
            accuracies[f"accuracy/{self.stream[number].name}"] = accuracy(outputs, target)
        if seen := [(outputs, target) for number, outputs, target in measured if number < self.begun]:
            first, *others = list(accuracies.values())[: len(seen)]
            outputs, target = (torch.cat(parts) for parts in zip(*seen, strict=True))
            pooled = {
                "average_accuracy": sum(others, first) / len(seen),
                "macro_f1": macro_f1(outputs.argmax(1), target, outputs.shape[1]),
                "ece": expected_calibration_error(outputs.softmax(1), target),
            }
        return pooled | accuracies

    def _outputs(self, split: SplitName, tasks: int) -> list[tuple[int, Tensor, Tensor]]:
        """(number, outputs [N, C] behind its mask, target [N]) of each of the first tasks that has examples."""
        found = []
        for number, task in enumerate(self.stream.tasks[:tasks]):
            examples = task.split(split)
            if len(examples):
                mask = self.stream.mask(number, self.begun)
                outputs = predict(self.network_for(number), examples, mask, self.context.autocast)
                found.append((number, outputs, examples.target))
        return found

    def network_for(self, number: int) -> Network:
        """What is asked about task `number`: the one network, unless a method has something else for each task."""
        return self.network

    def state_dict(self) -> dict[str, Any]:
        """Network, optimiser, tasks begun."""
        return {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "begun": self.begun,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore all of it."""
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.begun = state["begun"]

    def result(self) -> Network:
        """The network after the last task."""
        return self.network

    def summary(self, records: Sequence[Record]) -> Metrics:
        """ACC, BWT, FWT, forgetting and learning accuracy of a complete run, on the test split; the memory held."""
        rows, held = self._rows(records), memory_held(records)
        before, memory = rows.pop("start", None), held[-1] if held else {}
        if len(rows) < len(self.stream):
            return memory if len(held) == len(self.stream) else {}
        # Where tasks have outputs of their own, those of an unseen task are untrained: nothing can be transferred.
        shared = self.stream.scenario == "domain"
        found = summarise(list(rows.values()), before if shared else None)
        return {f"test_{name}": value for name, value in found.items()} | memory

    def artifacts(self, records: Sequence[Record]) -> Mapping[str, Artifact]:
        """The accuracy matrix R, before any training and after each task; the confusion of all tasks at the end; the
        memory held. Of accuracies nothing where a task has no test examples.
        """
        rows, held = self._rows(records), memory_held(records)
        columns = list(held[0]) if held else []
        memory = [[task.name, *row.values()] for task, row in zip(self.stream, held, strict=False)]
        made: dict[str, Artifact] = {"memory": Table(["task", *columns], memory)} if held or rows else {}
        if not rows:
            return made
        labels = {task.name: f"{task.name} ({task.label})" for task in self.stream}
        named = ["before" if name == "start" else f"after {name}" for name in rows]
        title = f"Test accuracy, {self.stream.scenario}-incremental"
        matrix = Heatmap(
            list(rows.values()), named, list(labels.values()), "trained up to", "tested on", title, "accuracy",
            limits=(0.0, 1.0),
        )  # fmt: skip
        return {"accuracy_matrix": matrix, "confusion_matrix": self._confusion(), **made}

    def _confusion(self) -> Heatmap:
        """Of the test examples of all tasks begun, each behind its own task's mask."""
        target = self.stream.spec.target
        assert isinstance(target, Classes)
        each = [
            confusion_matrix(outputs.argmax(1), truth, target.count)
            for _, outputs, truth in self._outputs("test", self.begun)
        ]
        counts = torch.stack(each).sum(0)
        names = [str(label) for label in range(target.count)]
        title, limits = f"Confusion on the test split, {self.stream.scenario}-incremental", (0.0, float(counts.max()))
        return Heatmap(counts.tolist(), names, names, "true class", "predicted class", title, "examples", 0, limits)

    def _rows(self, records: Sequence[Record]) -> dict[str, list[float]]:
        if not all(len(task.test) for task in self.stream):
            return {}
        return accuracy_matrix(records, self.phases(), [task.name for task in self.stream])


def memory_held(records: Sequence[Record]) -> list[dict[str, int]]:
    """The memory after each task that was ended: what `Continual.done` recorded."""
    return [
        {name: int(value) for name, value in record.items() if name.startswith("memory_")}
        for record in records
        if record["split"] == "train" and "memory_bytes" in record
    ]
