"""The stream view: tasks one after another, for continual learning (van de Ven and Tolias 2019; Lopez-Paz 2017).

How tasks are made (`tasks_by`): `classes` gives each task its own classes (split MNIST), `groups` those of one group
(a data set of a series), `permutation` its own fixed order of input elements (permuted MNIST; the first task keeps the
natural one unless `permute_first`), `rotation` its own angle. `pad` puts images into a border of zeros first.

What is told at test time (`scenario`): in `task` the task is known and only its own outputs compete; in `domain` it is
not, but all tasks share the same outputs; in `class` it is not, and the outputs of all tasks seen so far compete.

With `blurry`, tasks by classes or groups exchange a share of their examples: advml/data/blur.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from advml.config import CountInt, Fraction, settings
from advml.contracts import Classes, Prepare, Rng, Spec, Split
from advml.data.blur import blurred
from advml.data.prepare import Pad, Reorder, Rotate
from advml.data.source import Splits
from advml.errors import ConfigError

PARTS = ("train", "valid", "test")
Scenario = Literal["task", "domain", "class"]
MOST_TASKS = 10_000  # each has its split, its mask and, of a permuted stream, its order: more would fill the memory


@settings
class StreamSettings:
    """The keys of configs/view/stream.yaml."""

    tasks: Annotated[int, Interval(ge=2, le=MOST_TASKS)] | None
    tasks_by: Literal["classes", "groups", "permutation", "rotation"]
    scenario: Scenario
    shuffle_classes: bool
    permute_first: bool
    angle: Annotated[float, Interval(gt=0, le=360)]
    pad: CountInt
    blurry: Fraction


@dataclass(frozen=True)
class Task:
    """One task: its examples, the outputs that belong to it (bool [C]) and a label for tables.

    In a blurry stream the classes of the examples that others gave belong to it too, in training and validation.
    """

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
        outputs = Classes(_outputs(spec, settings))
        return Spec(_padded(spec.inputs, settings.pad), outputs, tokens=spec.tokens, streams=spec.streams)

    @classmethod
    def of(cls, splits: Splits, settings: StreamSettings, rng: Rng) -> Stream:
        """The stream of divided examples; class order and permutations are keyed like the split."""
        spec = cls.view_spec(splits.spec, settings)
        if settings.tasks_by in ("classes", "groups"):
            tasks = _by_classes(splits, settings, spec, rng)
        else:
            tasks = _transformed(splits, settings, spec, rng)
        if settings.pad:
            tasks = tuple(_with_border(task, settings.pad) for task in tasks)
        record = (
            dict(splits.record)
            | ({"blurry": settings.blurry} if settings.blurry else {})
            | {
                "scenario": settings.scenario,
                "tasks": [
                    {"name": task.name, "label": task.label, "outputs": task.outputs.nonzero().flatten().tolist()}
                    | {part: len(task.split(part)) for part in PARTS}
                    for task in tasks
                ],
            }
        )
        return cls(tasks, settings.scenario, spec, record)

    def __len__(self) -> int:
        return len(self.tasks)

    def __getitem__(self, index: int) -> Task:
        return self.tasks[index]

    def __iter__(self) -> Iterator[Task]:
        return iter(self.tasks)

    def mask(self, index: int, seen: int) -> Tensor:
        """The outputs that compete, bool [C], when examples of task `index` are shown after `seen` tasks were begun.

        In the class scenario these are the outputs of all tasks seen; where it is still to come, of all up to the task.
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
        steps = [step for task in self.tasks for steps in task.train.prepare.values() for step in steps]
        if self.scenario != "task" and not any(isinstance(step, Reorder | Rotate) for step in steps):
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


def _padded(inputs: Mapping[str, tuple[int, ...]], border: int) -> dict[str, tuple[int, ...]]:
    """The shapes with a border. Raises ConfigError where inputs are no images."""
    if border and any(len(shape) != 3 for shape in inputs.values()):
        raise ConfigError(f"view.pad={border}: needs a data set of images, such as dataset=digits; use view.pad=0")
    return {name: (*shape[:1], *(side + 2 * border for side in shape[1:])) if border else shape
            for name, shape in inputs.items()}  # fmt: skip


def _outputs(spec: Spec, settings: StreamSettings) -> int:
    """How many outputs the head has. Raises ConfigError where the data set gives no such stream."""
    if not isinstance(spec.target, Classes):
        raise ConfigError("view=stream: needs a data set with classes (see: advml list datasets)")
    classes, by = spec.target.count, settings.tasks_by
    if settings.blurry and by not in ("classes", "groups"):
        raise ConfigError(
            f"view.blurry={settings.blurry:g}: every task by {by} has all classes already; "
            f"use view.tasks_by=classes or view.blurry=0"
        )
    if settings.blurry and settings.scenario == "task":
        raise ConfigError(
            f"view.blurry={settings.blurry:g}: in the task scenario only a task's own classes compete; "
            f"use view.scenario=class or domain, or view.blurry=0"
        )
    if by == "groups":
        return _outputs_of_groups(spec.groups, settings)
    if settings.tasks is None:
        raise ConfigError(f"view.tasks=null: only view.tasks_by=groups knows how many; by {by}, give a number")
    if by == "rotation" and any(len(shape) != 3 for shape in spec.inputs.values()):
        raise ConfigError("view.tasks_by=rotation: needs a data set of images, such as dataset=digits")
    if by == "permutation" and spec.helpers:
        raise ConfigError(
            f"view.tasks_by=permutation: {_listed(spec.helpers)} says which places of an input are there, and would "
            "no longer once these have another order; use view.tasks_by=classes"
        )
    if by != "classes":
        return classes if settings.scenario == "domain" else classes * settings.tasks
    least = 1 if settings.scenario == "class" else 2
    equal = settings.scenario == "domain"  # all tasks share the same outputs
    fitting = [count for count in range(2, classes // least + 1) if not equal or classes % count == 0]
    if settings.tasks not in fitting:
        some = " or ".join(map(str, fitting)) if equal or len(fitting) < 3 else f"2 to {fitting[-1]}"
        raise ConfigError(
            f"view.tasks={settings.tasks}: the {settings.scenario} scenario needs tasks of {least} or more classes"
            f"{', all equally many' if equal else ''}, and there are {classes}; "
            f"use {f'view.tasks={some}' if fitting else 'view.tasks_by=permutation or another data set'}"
        )
    return classes // settings.tasks if equal else classes


def _outputs_of_groups(groups: Mapping[str, int], settings: StreamSettings) -> int:
    """How many outputs a task for each group needs. Raises ConfigError where the groups give no such tasks."""
    if not groups:
        raise ConfigError("view.tasks_by=groups: needs a data set with groups of classes, such as dataset=series")
    if settings.tasks not in (None, len(groups)):
        raise ConfigError(
            f"view.tasks={settings.tasks}: there are {len(groups)} groups ({_listed(groups)}), a task for each; "
            f"use view.tasks=null"
        )
    if settings.scenario != "domain":
        if settings.scenario == "task" and (small := [name for name, count in groups.items() if count < 2]):
            raise ConfigError(f"view.scenario=task: {small[0]} has one class only; use view.scenario=class")
        return sum(groups.values())
    if len(set(groups.values())) > 1:
        counts = _listed(f"{name} {count}" for name, count in groups.items())
        raise ConfigError(
            f"view.scenario=domain: needs groups of equally many classes, and they have {counts}; "
            f"use view.scenario=task or class"
        )
    return next(iter(groups.values()))


def _listed(words: Iterable[str]) -> str:
    """The first few, so that the line stays a line."""
    names = list(words)
    return ", ".join(names if len(names) <= 5 else [*names[:4], "…"])


def _by_classes(splits: Splits, settings: StreamSettings, spec: Spec, rng: Rng) -> tuple[Task, ...]:
    """Tasks with classes of their own: those of a group, or a share of all."""
    assert isinstance(splits.spec.target, Classes)
    assert isinstance(spec.target, Classes)
    classes = splits.spec.target.count
    order = torch.arange(classes)
    if settings.tasks_by == "groups":
        groups = splits.spec.groups
        labels, chunks = list(groups), order.split(list(groups.values()))
    else:
        if settings.shuffle_classes:
            order = torch.randperm(classes, generator=rng("class order"))
        assert settings.tasks is not None
        chunks = order.tensor_split(settings.tasks)
        labels = ["/".join(str(int(member)) for member in chunk) for chunk in chunks]
    # Class → its task, and its output: itself, or in the domain scenario its place within the task.
    owner, output = torch.empty(classes, dtype=torch.int64), torch.arange(classes)
    for number, chunk in enumerate(chunks):
        owner[chunk] = number
        if settings.scenario == "domain":
            output[chunk] = torch.arange(len(chunk))

    def dealt(part: Split, name: str) -> list[Split]:
        indices = [(owner[part.target] == number).nonzero().flatten() for number in range(len(chunks))]
        if settings.blurry and name != "test":
            indices = blurred(part.target, indices, settings.blurry, lambda task: rng("blurry", name, task))
        return [replace(part.take(index), target=output[part.target[index]]) for index in indices]

    parts = [dealt(part, name) for name, part in zip(PARTS, (splits.train, splits.valid, splits.test), strict=True)]
    tasks = []
    for number, (label, chunk, train, valid, test) in enumerate(zip(labels, chunks, *parts, strict=True), start=1):
        outputs = torch.zeros(spec.target.count, dtype=torch.bool)
        outputs[torch.cat([output[chunk], train.target, valid.target])] = True
        tasks.append(Task(f"task{number}", label, train, valid, test, outputs))
    return tuple(tasks)


def _transformed(splits: Splits, settings: StreamSettings, spec: Spec, rng: Rng) -> tuple[Task, ...]:
    """Tasks with all classes, whose inputs are permuted or rotated."""
    assert settings.tasks is not None
    return tuple(_transformed_task(splits, settings, spec, rng, number) for number in range(settings.tasks))


def _transformed_task(splits: Splits, settings: StreamSettings, spec: Spec, rng: Rng, number: int) -> Task:
    assert isinstance(splits.spec.target, Classes)
    assert isinstance(spec.target, Classes)
    assert settings.tasks is not None
    classes, label = splits.spec.target.count, "natural"
    parts = [splits.train, splits.valid, splits.test]
    if (number or settings.permute_first) and settings.tasks_by == "permutation":
        label = f"order {number + settings.permute_first}"
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


def _with_border(task: Task, border: int) -> Task:
    """Before the normalisation, so that the border is black, not the mean, and before a rotation, which may use it."""
    first = {name: Pad(border) for name in task.train.prepare}
    train, valid, test = (_prepared(part, before=first) for part in (task.train, task.valid, task.test))
    return replace(task, train=train, valid=valid, test=test)


def _prepared(
    part: Split, before: Mapping[str, Prepare] | None = None, after: Mapping[str, Prepare] | None = None
) -> Split:
    first, last = before or {}, after or {}
    prepare = {
        name: tuple(step for step in (first.get(name), *steps, last.get(name)) if step is not None)
        for name, steps in part.prepare.items()
    }
    return replace(part, prepare=prepare)
