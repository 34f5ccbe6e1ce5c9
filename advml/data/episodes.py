"""The view of few-shot tasks, for meta-learning: a few examples to learn from, and others to be tested on.

Tasks for training, validation and testing have classes of their own (advml/data/few_shot.py), or are functions drawn
from a family (advml/data/families.py). Training tasks are drawn anew by the generator that the method gives; evaluation
tasks are keyed by their number: the same in every evaluation, in whatever portions they are asked for.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from annotated_types import Ge
from torch import Tensor

from advml.config import PositiveInt, settings
from advml.contracts import Batch, Classes, Prepare, Rng, Spec, SplitName
from advml.data.class_splits import SPLITS, ClassSplitSettings, divide_classes, split_counts
from advml.data.families import FamilyTasks
from advml.data.few_shot import TURNS, Base, FewShot, Pool, TaskShape
from advml.data.source import Whole, input_preparation, prepared_by
from advml.errors import ConfigError

Ways = Annotated[int, Ge(2)]
Portions = tuple[tuple[Tensor, ...], tuple[Tensor, ...]]  # what the support and the query of tasks consist of
TaskCount = Annotated[int, Ge(2)]  # of a single task there is no standard deviation


@settings
class EpisodesSettings(ClassSplitSettings):
    """The keys of configs/view/episodes.yaml."""

    ways: Ways | None
    shots: PositiveInt
    queries: PositiveInt
    train_ways: Ways | None
    train_shots: PositiveInt | None
    train_queries: PositiveInt | None
    valid_tasks: TaskCount
    test_tasks: TaskCount
    rotations: Literal["none", "augment", "classes"]

    def shape(self, split: str) -> TaskShape:
        """The size of the tasks of a split."""
        if split != "train":
            return TaskShape(self.ways, self.shots, self.queries)
        ways, shots, queries = self.train_ways, self.train_shots, self.train_queries
        return TaskShape(ways or self.ways, shots or self.shots, queries or self.queries)

    def count(self, split: str) -> int:
        """How many evaluation tasks a split has."""
        return {"valid": self.valid_tasks, "test": self.test_tasks}[split]


class Tasks(NamedTuple):
    """T tasks side by side: inputs name → [T, M, ...], target int64 [T, M] or floating [T, M, ...], no mask.

    Of classes, M is ways · shots in the support, class by class, and ways · queries in the query, mixed.
    """

    support: Batch
    query: Batch


class Episodes:
    """Tasks to learn from a few examples: `draw` for training, `fixed` for evaluation.

    `evaluation`: valid, test → what the support and the query of all its tasks consist of, on the CPU.
    """

    kind: ClassVar[str] = "episodes"
    settings: ClassVar[type] = EpisodesSettings
    undivided: ClassVar[bool] = True

    def __init__(
        self,
        tasks: FewShot | FamilyTasks,
        evaluation: Mapping[str, Portions],
        config: EpisodesSettings,
        spec: Spec,
        record: Mapping[str, Any],
    ) -> None:
        self.tasks, self.evaluation, self.config, self.spec, self.record = tasks, evaluation, config, spec, record
        self.ways, self.shots, self.queries = config.shape("test")

    @staticmethod
    def view_spec(spec: Spec, settings: EpisodesSettings) -> Spec:
        """The inputs of one example, and one of `ways` classes. Raises ConfigError where there are no such tasks."""
        if isinstance(spec.target, Classes):
            _check_classes(spec, settings)
            assert settings.ways is not None
            return Spec(spec.inputs, Classes(settings.ways), tokens=spec.tokens, streams=spec.streams)
        if not spec.drawn:
            raise ConfigError(
                "view=episodes: needs a data set with classes or one that draws tasks, "
                "such as dataset=omniglot or dataset=sinusoid"
            )
        _check_family(settings)
        return Spec(spec.inputs, spec.target, tokens=spec.tokens, streams=spec.streams)

    @classmethod
    def of(cls, whole: Whole, settings: EpisodesSettings, rng: Rng) -> Episodes:
        """The tasks of a data set; the division of its classes is keyed like a split, evaluation tasks as well."""
        spec = cls.view_spec(whole.spec, settings)
        if whole.spec.drawn:
            family = FamilyTasks(whole.loaded, torch.device("cpu"), torch.float32)
            counts = {name: {"tasks": settings.count(name)} for name in ("valid", "test")}
            return cls(family, _evaluation(family, settings, rng), settings, spec, counts)
        examples, classes = whole.examples(rng), divide_classes(whole.spec, settings, rng)
        pools = {name: Pool.of(examples.target, classes[name], settings.rotations == "classes") for name in SPLITS}
        for name, pool in pools.items():
            _check_examples(name, classes[name], pool, settings)
        rows = {name: torch.isin(examples.target, classes[name]).nonzero().flatten() for name in SPLITS}
        train, scale = examples.take(rows["train"]), whole.loaded.scale
        fitted = {name: input_preparation(train, name, whole.spec, whole.config, scale) for name in train.inputs}
        tasks = FewShot(prepared_by(examples, fitted, whole.spec), pools, settings.rotations == "augment")
        evaluation = _evaluation(tasks, settings, rng)
        record = {"files": dict(whole.loaded.files), **whole.loaded.record, "rotations": settings.rotations} | {
            name: {"classes": classes[name].tolist(), "examples": len(rows[name]), "index_sha256": _hash(rows[name])}
            for name in SPLITS
        }
        for name, (support, query) in evaluation.items():
            record[name] |= {"tasks": settings.count(name), "tasks_sha256": _hash(*support, *query)}
        return cls(tasks, evaluation, settings, spec, record)

    def draw(self, count: int, rng: torch.Generator) -> Tasks:
        """`count` training tasks, a function of the state of the CPU generator alone."""
        return self._tasks(*self.tasks.draw("train", self.config.shape("train"), count, rng))

    def count(self, split: SplitName) -> int:
        """How many evaluation tasks there are: of valid or test."""
        return self.config.count(split)

    def fixed(self, split: SplitName, start: int, stop: int) -> Tasks:
        """The evaluation tasks number `start` to `stop` − 1, the same every time."""
        support, query = (tuple(part[start:stop] for part in portion) for portion in self.evaluation[split])
        return self._tasks(support, query)

    def curve(self, split: SplitName, number: int, points: int) -> tuple[Tensor, Tensor] | None:
        """The true function of an evaluation task on a grid: x and y [points, 1]. None where tasks are no functions."""
        if not isinstance(self.tasks, FamilyTasks):
            return None
        (parameters, _), _ = self.evaluation[split]
        return self.tasks.curve(parameters[number], points)

    @property
    def base(self) -> Base | None:
        """All examples of all training classes, the target being the number of the class among them."""
        return self.tasks.base if isinstance(self.tasks, FewShot) else None

    @property
    def base_spec(self) -> Spec | None:
        """The spec of `base`: as many classes as there are to train on."""
        if not isinstance(self.tasks, FewShot):
            return None
        classes = Classes(len(self.tasks.pools["train"]))
        return Spec(self.spec.inputs, classes, tokens=self.spec.tokens, streams=self.spec.streams)

    @property
    def prepare(self) -> Mapping[str, tuple[Prepare, ...]]:
        """The normalisation fitted on the training classes."""
        return self.tasks.prepare

    def to(self, device: torch.device, dtype: torch.dtype) -> Episodes:
        """All examples on a device."""
        return Episodes(self.tasks.to(device, dtype), self.evaluation, self.config, self.spec, self.record)

    def describe(self) -> Mapping[str, Any]:
        """Classes, sizes and hashes of each split."""
        return self.record

    def _tasks(self, support: tuple[Tensor, ...], query: tuple[Tensor, ...]) -> Tasks:
        return Tasks(self.tasks.batch(support), self.tasks.batch(query))


def _evaluation(tasks: FewShot | FamilyTasks, config: EpisodesSettings, rng: Rng) -> dict[str, Portions]:
    """What all evaluation tasks consist of, each drawn by a generator of its own: a task is known by its number."""
    made = {}
    for split in ("valid", "test"):
        keyed = (rng("episodes", split, number) for number in range(config.count(split)))
        drawn = [tasks.draw(split, config.shape(split), 1, generator) for generator in keyed]
        support, query = (
            tuple(torch.cat(tensors) for tensors in zip(*portion, strict=True)) for portion in zip(*drawn, strict=True)
        )
        made[split] = support, query
    return made


def _hash(*tensors: Tensor) -> str:
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().numpy().data)
    return digest.hexdigest()


def _check_classes(spec: Spec, config: EpisodesSettings) -> None:
    """Raises ConfigError where classes are too few or cannot be turned."""
    if config.ways is None:
        raise ConfigError("view.ways=null: this data set has classes to be told apart; give a number, like view.ways=5")
    if config.rotations != "none" and any(len(shape) != 3 or shape[1] != shape[2] for shape in spec.inputs.values()):
        raise ConfigError(f"view.rotations={config.rotations}: needs square images; use view.rotations=none")
    copies = TURNS if config.rotations == "classes" else 1
    for name, classes in split_counts(spec, config).items():
        key, wanted = "train_ways" if name == "train" and config.train_ways else "ways", config.shape(name).ways
        assert wanted is not None
        if classes * copies < wanted:
            counted = f"{classes * copies}" + (f" ({classes} in {TURNS} rotations)" if copies > 1 else "")
            raise ConfigError(
                f"view.{key}={wanted}: there are only {counted} {name} classes; lower it, or divide the classes "
                f"otherwise (view.valid_classes, view.test_classes)"
            )


def _check_family(config: EpisodesSettings) -> None:
    """Raises ConfigError where settings ask functions for classes."""
    for key in ("ways", "train_ways", "valid_classes", "test_classes"):
        if (value := getattr(config, key)) is not None:
            raise ConfigError(
                f"view.{key}={value}: tasks of this data set have no classes; use view=episodes_regression"
            )
    if config.split != "random":
        raise ConfigError(f"view.split={config.split}: this data set has no split; use view=episodes_regression")
    if config.rotations != "none":
        raise ConfigError(f"view.rotations={config.rotations}: needs square images; use view=episodes_regression")


def _check_examples(name: str, classes: Tensor, pool: Pool, config: EpisodesSettings) -> None:
    """Raises ConfigError where a class has not enough examples for a task."""
    _, shots, queries = config.shape(name)
    least = int(pool.sizes.min())
    if least < shots + queries:
        copies = len(pool) // len(classes)
        class_ = int(classes[int(pool.sizes.argmin()) // copies])
        own = name == "train" and (config.train_shots is not None or config.train_queries is not None)
        keys = "view.train_shots, view.train_queries" if own else "view.shots, view.queries"
        raise ConfigError(
            f"{keys}: a task needs {shots} + {queries} examples of a class, but class {class_} has only {least}; "
            f"use fewer of them"
        )
