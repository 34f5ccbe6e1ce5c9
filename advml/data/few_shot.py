"""Few-shot tasks from the examples of a data set: N classes, K examples of each to learn from and others to be tested.

Which examples a task has is drawn on the CPU, for many tasks at once, as indices into a table of the examples of each
class; the examples themselves are gathered where they live. Classes, not examples, are for training or for testing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from advml.contracts import Batch, Prepare, Split

TURNS = 4  # quarter turns that an image may be given


class TaskShape(NamedTuple):
    """How large tasks are: classes (None: the tasks have none), examples to learn from and to be tested on of each."""

    ways: int | None
    shots: int
    queries: int


class Drawn(NamedTuple):
    """The examples of T tasks, int64 [T, M] on the CPU: which they are, their quarter turns and their labels."""

    example: Tensor
    turn: Tensor
    label: Tensor


@dataclass(frozen=True)
class Pool:
    """The classes that tasks of a split are made of: the examples of each (int64 [C, E], filled up with 0 beyond their
    number), how many they are (int64 [C]) and by how many quarter turns they are rotated (int64 [C]).
    """

    rows: Tensor
    sizes: Tensor
    turn: Tensor

    @classmethod
    def of(cls, target: Tensor, classes: Tensor, turned: bool) -> Pool:
        """The examples with targets in `classes`; where `turned`, each class gives four, one for each quarter turn."""
        sizes = target.bincount(minlength=int(classes.max()) + 1)
        examples = target.argsort(stable=True).split(sizes.tolist())
        copies = TURNS if turned else 1
        rows = pad_sequence([examples[number] for number in classes.tolist()], batch_first=True)
        return cls(
            rows.repeat_interleave(copies, 0),
            sizes[classes].repeat_interleave(copies),
            torch.arange(copies).repeat(len(classes)),
        )

    def __len__(self) -> int:
        return len(self.sizes)

    def whole(self) -> Drawn:
        """Every example of every class in order, labelled by its class; [N] each."""
        there = torch.arange(self.rows.shape[1]) < self.sizes.unsqueeze(1)
        label = torch.arange(len(self)).repeat_interleave(self.sizes)
        return Drawn(self.rows[there], self.turn[label], label)

    def draw(self, shape: TaskShape, count: int, augment: bool, rng: torch.Generator) -> tuple[Drawn, Drawn]:
        """The support and query examples of `count` tasks; `augment` turns each class of a task at random.

        Equally many random keys for each of the choices: the places of the largest are a random choice in random
        order. So classes get their labels at random too. Support examples come class by class, query examples mixed.
        """
        assert shape.ways is not None
        chosen = torch.rand(count, len(self), generator=rng).topk(shape.ways).indices
        keys = torch.rand(count, shape.ways, self.rows.shape[1], generator=rng)
        if int(self.sizes.min()) < keys.shape[-1]:
            missing = torch.arange(keys.shape[-1]) >= self.sizes[chosen].unsqueeze(-1)
            keys.masked_fill_(missing, -1)
        places = keys.topk(shape.shots + shape.queries).indices
        example = self.rows[chosen.unsqueeze(-1), places]
        turn = torch.randint(TURNS, chosen.shape, generator=rng) if augment else self.turn[chosen]
        label = torch.arange(shape.ways).expand(count, -1)

        def part(of_each: Tensor) -> Drawn:
            repeated = (values.repeat_interleave(of_each.shape[-1], 1) for values in (turn, label))
            return Drawn(of_each.flatten(1), *repeated)

        support, query = part(example[..., : shape.shots]), part(example[..., shape.shots :])
        order = torch.rand(query.label.shape, generator=rng).argsort(1)
        return support, Drawn(*(values.gather(1, order) for values in query))


@dataclass(frozen=True)
class FewShot:
    """Tasks from `examples`: those of a split have the classes of its pool."""

    examples: Split
    pools: Mapping[str, Pool]
    augment: bool

    @property
    def prepare(self) -> Mapping[str, tuple[Prepare, ...]]:
        """The normalisation fitted on the training classes."""
        return self.examples.prepare

    def to(self, device: torch.device, dtype: torch.dtype) -> FewShot:
        """The examples on a device; the tables stay on the CPU, where tasks are drawn."""
        return replace(self, examples=self.examples.to(device, dtype))

    def draw(self, split: str, shape: TaskShape, count: int, rng: torch.Generator) -> tuple[Drawn, Drawn]:
        """What the support and the query of `count` tasks consist of."""
        return self.pools[split].draw(shape, count, self.augment, rng)

    def batch(self, drawn: tuple[Tensor, ...]) -> Batch:
        """The examples that were drawn, [T, M, ...], prepared for a network."""
        example, turn, label = drawn
        inputs = self.examples.prepared(self._stored(example.flatten(), turn.flatten()))
        inputs = {name: values.unflatten(0, example.shape) for name, values in inputs.items()}
        return Batch(inputs, label.to(self.examples.device, non_blocking=True))

    @cached_property
    def base(self) -> Base:
        """All examples of all training classes, each turn a class of its own where turns are classes."""
        return Base(self, self.pools["train"].whole())

    def _stored(self, example: Tensor, turn: Tensor) -> dict[str, Tensor]:
        """The stored values of examples [N], turned counter-clockwise by `turn` [N] quarters; both are on the CPU.

        Sorted by their turns, then put back. `index_select` is far faster than an index in brackets (torch 2.13, CPU).
        """
        device, turned = self.examples.device, bool(turn.any())
        order = turn.argsort(stable=True)
        index = (example[order] if turned else example).to(device, non_blocking=True)
        inputs = {name: values.index_select(0, index) for name, values in self.examples.inputs.items()}
        if not turned:
            return inputs
        counts, back = turn.bincount(minlength=TURNS).tolist(), order.argsort().to(device, non_blocking=True)
        for name, values in inputs.items():
            parts = [part.rot90(quarters, (-2, -1)) for quarters, part in enumerate(values.split(counts))]
            inputs[name] = torch.cat(parts).index_select(0, back)
        return inputs


@dataclass(frozen=True)
class Base:
    """The examples that supervised training sees, `drawn` [N]: all of the training classes."""

    tasks: FewShot
    drawn: Drawn

    def __len__(self) -> int:
        return len(self.drawn.label)

    def batch(self, index: Tensor, rng: torch.Generator) -> Batch:
        """Those at `index` [B], in a form for a network; where tasks `augment`, each is turned at random by `rng`."""
        example, turn, label = (values[index] for values in self.drawn)
        if self.tasks.augment:
            turn = torch.randint(TURNS, turn.shape, generator=rng)
        return self.tasks.batch((example, turn, label))
