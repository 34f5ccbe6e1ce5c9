"""The stream view: tasks one after another, for continual learning (van de Ven and Tolias 2019; Lopez-Paz 2017).

How tasks are made (`tasks_by`): `classes` gives each task its own classes (split MNIST), `permutation` its own fixed
order of input elements (permuted MNIST; the first task keeps the natural one), `rotation` its own angle.

What is told at test time (`scenario`): in `task` the task is known and only its own outputs compete; in `domain` it is
not, but all tasks share the same outputs; in `class` it is not, and the outputs of all tasks seen so far compete.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from advml.config import settings
from advml.contracts import Classes, Prepare, Rng, Spec, Split
from advml.data.prepare import Reorder, Rotate
from advml.data.source import Splits
from advml.errors import ConfigError

Scenario = Literal["task", "domain", "class"]
MOST_TASKS = 10_000  # each has its split, its mask and, of a permuted stream, its order: more would fill the memory


@settings
class StreamSettings:
    """The keys of configs/view/stream.yaml."""

    tasks: Annotated[int, Interval(ge=2, le=MOST_TASKS)]
    tasks_by: Literal["classes", "permutation", "rotation"]
    scenario: Scenario
    shuffle_classes: bool
    angle: Annotated[float, Interval(gt=0, le=360)]


@dataclass(frozen=True)
class Task:
    """One task: its examples, the outputs that belong to it (bool [C]) and a label for tables."""

    name: str
    label: str
    train: Split
    valid: Split
    test: Split
    outputs: Tensor

    def split(self, name: str) -> Split:
        """`train`, `valid` or `test` by name."""
        return {"train": self.train, "valid": self.valid, "test": self.test}[name]

    def to(self, device: torch.device, dtype: torch.dtype) -> Task:
        """All examples on a device."""
        train, valid, test = (part.to(device, dtype) for part in (self.train, self.valid, self.test))
        return Task(self.name, self.label, train, valid, test, self.outputs.to(device))


class Stream:
    """A sequence of tasks with one head over all outputs; a task sees it through a mask."""

    kind: ClassVar[str] = "stream"
    settings: ClassVar[type] = StreamSettings

    def __init__(self, tasks: tuple[Task, ...], scenario: Scenario, spec: Spec, record: Mapping[str, Any]) -> None:
        self.tasks, self.scenario, self.spec, self.record = tasks, scenario, spec, record

    @staticmethod
    def view_spec(spec: Spec, settings: StreamSettings) -> Spec:
        """The data set's inputs, and as many outputs as the scenario asks for."""
        return replace(spec, target=Classes(_outputs(spec, settings)))

    @classmethod
    def of(cls, splits: Splits, settings: StreamSettings, rng: Rng) -> Stream:
        """The stream of divided examples; class order and permutations are keyed like the split."""
        spec = cls.view_spec(splits.spec, settings)
        assert isinstance(splits.spec.target, Classes)
        classes, count = splits.spec.target.count, settings.tasks
        if settings.tasks_by == "classes":
            tasks = _by_classes(splits, settings, spec, rng)
        else:
            tasks = tuple(_transformed(splits, settings, spec, rng, number, classes) for number in range(count))
        record = dict(splits.record) | {
            "scenario": settings.scenario,
            "tasks": [
                {"name": task.name, "label": task.label, "outputs": task.outputs.nonzero().flatten().tolist()}
                | {part: len(task.split(part)) for part in ("train", "valid", "test")}
                for task in tasks
            ],
        }
        return cls(tasks, settings.scenario, spec, record)

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, index: int) -> Task:
        return self.tasks[index]

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)

    def mask(self, index: int, seen: int) -> Tensor:
        """The outputs that compete, bool [C], when examples of task `index` are shown after `seen` tasks were begun.

        In the class scenario these are the outputs of all tasks seen, and of the task itself where it is still to come.
        """
        if self.scenario != "class":
            return self.tasks[index].outputs
        return torch.stack([task.outputs for task in self.tasks[: max(index + 1, seen)]]).any(0)

    @property
    def prepare(self) -> Mapping[str, tuple[Prepare, ...]]:
        """That of the first task: later tasks of a permuted or rotated stream have their own."""
        return self.tasks[0].train.prepare

    def each(self) -> dict[str, dict[str, Any]]:
        """Task → its `prepare` and, where only these compete, its `outputs`; empty where no task has its own of either.

        Whoever shows raw inputs to the trained network must then say which task they belong to.
        """
        kinds = {tuple(type(step) for steps in task.train.prepare.values() for step in steps) for task in self.tasks}
        if len(kinds) == 1 and self.scenario != "task":  # a permutation or a rotation is a step that the first has not
            return {}
        return {
            task.name: {
                "prepare": {name: [step.state() for step in steps] for name, steps in task.train.prepare.items()},
                "outputs": task.outputs.cpu() if self.scenario == "task" else None,
            }
            for task in self.tasks
        }

    def to(self, device: torch.device, dtype: torch.dtype) -> Stream:
        """All tasks on a device; stored examples that tasks have in common (permuted, rotated) are moved once."""
        moved: dict[int, Tensor] = {}

        def shared(part: Split) -> Split:
            for values in part.inputs.values():
                if id(values) not in moved:
                    moved[id(values)] = values.to(device)
            return replace(part, inputs={name: moved[id(values)] for name, values in part.inputs.items()})

        tasks = (replace(t, train=shared(t.train), valid=shared(t.valid), test=shared(t.test)) for t in self.tasks)
        return Stream(tuple(task.to(device, dtype) for task in tasks), self.scenario, self.spec, self.record)

    def describe(self) -> Mapping[str, Any]:
        """Sizes, outputs and hashes."""
        return self.record


def _outputs(spec: Spec, settings: StreamSettings) -> int:
    """How many outputs the head has. Raises ConfigError where the data set gives no such stream."""
    if not isinstance(spec.target, Classes):
        raise ConfigError("view=stream: needs a data set with classes (see: advml list datasets)")
    classes = spec.target.count
    if settings.tasks_by == "rotation" and any(len(shape) != 3 for shape in spec.inputs.values()):
        raise ConfigError("view.tasks_by=rotation: needs a data set of images, such as dataset=digits")
    if settings.tasks_by != "classes":
        return classes if settings.scenario == "domain" else classes * settings.tasks
    least = 1 if settings.scenario == "class" else 2
    equal = settings.scenario == "domain"  # all tasks share the same outputs
    fitting = [count for count in range(2, classes // least + 1) if not equal or classes % count == 0]
    if settings.tasks not in fitting:
        some = " or ".join(map(str, fitting)) if equal else f"2 to {classes // least}"
        raise ConfigError(
            f"view.tasks={settings.tasks}: the {settings.scenario} scenario needs tasks of {least} or more classes"
            f"{', all equally many' if equal else ''}, and there are {classes}; "
            f"use {f'view.tasks={some}' if fitting else 'view.tasks_by=permutation or another data set'}"
        )
    return classes // settings.tasks if equal else classes


def _by_classes(splits: Splits, settings: StreamSettings, spec: Spec, rng: Rng) -> tuple[Task, ...]:
    assert isinstance(splits.spec.target, Classes)
    assert isinstance(spec.target, Classes)
    classes = splits.spec.target.count
    order = torch.arange(classes)
    if settings.shuffle_classes:
        order = torch.randperm(classes, generator=rng("class order"))
    tasks = []
    for number, chunk in enumerate(order.tensor_split(settings.tasks), start=1):
        members = chunk.sort().values if not settings.shuffle_classes else chunk
        # Old class → output: itself, or in the domain scenario its place within the task.
        relabel = torch.full((classes,), -1)
        relabel[members] = torch.arange(len(members)) if settings.scenario == "domain" else members
        parts = [_relabelled(part, relabel) for part in (splits.train, splits.valid, splits.test)]
        outputs = torch.zeros(spec.target.count, dtype=torch.bool)
        outputs[relabel[members]] = True
        label = "/".join(str(int(member)) for member in members)
        tasks.append(Task(f"task{number}", label, parts[0], parts[1], parts[2], outputs))
    return tuple(tasks)


def _relabelled(part: Split, relabel: Tensor) -> Split:
    chosen = part.take((relabel[part.target] >= 0).nonzero().flatten())
    return replace(chosen, target=relabel[chosen.target])


def _transformed(
    splits: Splits, settings: StreamSettings, spec: Spec, rng: Rng, number: int, classes: int
) -> Task:
    assert isinstance(spec.target, Classes)
    label = "natural"
    parts = [splits.train, splits.valid, splits.test]
    if number and settings.tasks_by == "permutation":
        label = f"order {number}"
        sizes = {name: torch.Size(shape).numel() for name, shape in spec.inputs.items()}
        orders = {
            name: torch.randperm(size, generator=rng("permutation", number, name)) for name, size in sizes.items()
        }
        # After the normalisation, whose constants belong to the places of the natural order.
        parts = [_prepared(part, after={name: Reorder(order) for name, order in orders.items()}) for part in parts]
    elif number:
        degrees = settings.angle * number / settings.tasks
        label = f"{degrees:g}°"
        # Before the normalisation, so that the corners are filled with black, not with the mean.
        parts = [_prepared(part, before={name: Rotate(degrees) for name in spec.inputs}) for part in parts]
    first = 0 if settings.scenario == "domain" else number * classes
    parts = [replace(part, target=part.target + first) for part in parts]
    outputs = torch.zeros(spec.target.count, dtype=torch.bool)
    outputs[first : first + classes] = True
    return Task(f"task{number + 1}", label, parts[0], parts[1], parts[2], outputs)


def _prepared(
    part: Split, before: Mapping[str, Prepare] | None = None, after: Mapping[str, Prepare] | None = None
) -> Split:
    first, last = before or {}, after or {}
    prepare = {
        name: tuple(step for step in (first.get(name), *steps, last.get(name)) if step is not None)
        for name, steps in part.prepare.items()
    }
    return replace(part, prepare=prepare)
