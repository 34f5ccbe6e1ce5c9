"""A memory of examples of earlier tasks, and the two rules that say which of them it keeps.

Stored are raw values, as the split stores them (uint8 where the source is), targets, task numbers and whatever else a
method asks for. Each example is prepared as in its own task when it is shown again. Values live where the data lives;
what decides about slots (draws, task numbers, classes) lives on the CPU, where indices are drawn: no device is waited
for.
"""

from __future__ import annotations

from bisect import insort
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from advml.contracts import Batch, Split

Policy = Literal["reservoir", "balanced"]


def reservoir_update(seen: int, capacity: int, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Which of n new examples enter a reservoir and where (Vitter 1985, algorithm R), as (places, slots).

    `draws` [n] are uniform in [0, 1), float64; `seen` examples were offered before. Example number m, counted from 0
    over the whole stream, takes slot m while there is room; then slot ⌊u · (m + 1)⌋, if that is below `capacity`. So
    after m examples each of them is in the reservoir with probability capacity / m. Where two of the new ones want a
    slot the later has it, as if they had come one by one: `slots` int64 [k] has no slot twice, and new example
    `places[i]` goes to `slots[i]`.
    """
    number = seen + torch.arange(len(draws))
    slot = torch.where(number < capacity, number, (draws * (number + 1)).long())
    places = (slot < capacity).nonzero().flatten()
    wanted = slot[places]
    slots, order = wanted.sort(stable=True)
    last = torch.ones(len(slots), dtype=torch.bool)
    last[:-1] = slots[:-1] != slots[1:]
    return places[order[last]], slots[last]


class Balance(NamedTuple):
    """What class-balancing reservoir sampling knows: the class in each slot (−1: empty), int64 [capacity]; how many
    examples of each class were offered, int64 [classes]; which classes were ever the largest, bool [classes].
    """

    stored: Tensor
    seen: Tensor
    full: Tensor


def balanced_update(balance: Balance, classes: Tensor, draws: Tensor) -> tuple[Tensor, Tensor, Balance]:
    """Which of n new examples enter and where, as `reservoir_update`, and what is known afterwards.

    Class-balancing reservoir sampling (Chrysakis and Moens 2020, "Online continual learning from imbalanced data",
    algorithm 1). While there is room, every example is stored. Then an example of a class that is and was not among the
    largest replaces a random example of the largest class; one of a class c that was, replaces a random example of c
    with probability (stored of c) / (offered of c), so that those kept of c are a uniform sample. Ties for the largest
    are open: any example of the tied classes may go. `classes` int64 [n]; `draws` [n, 2] uniform in [0, 1), float64.
    """
    stored: list[int] = balance.stored.tolist()
    seen, full = balance.seen.tolist(), balance.full.tolist()
    members: list[list[int]] = [[] for _ in seen]
    for number, name in enumerate(stored):
        if name >= 0:
            members[name].append(number)
    filled = sum(map(len, members))
    most, largest = _largest(members)
    written: dict[int, int] = {}
    for place, (name, (first, second)) in enumerate(zip(classes.tolist(), draws.tolist(), strict=True)):
        seen[name] += 1
        slot: int | None = None
        if filled < len(stored):
            slot = filled
            filled += 1
        elif not full[name]:
            which, number = divmod(int(first * most * len(largest)), most)
            slot = members[largest[which]][number]
        elif first < len(members[name]) / seen[name]:
            slot = members[name][int(second * len(members[name]))]
        if slot is None:
            continue
        written[slot] = place
        if stored[slot] != name:
            if stored[slot] >= 0:
                members[stored[slot]].remove(slot)
            stored[slot] = name
            insort(members[name], slot)  # in order, so that it does not matter where batches begin
        if filled == len(stored):  # before that no class is full
            most, largest = _largest(members)
            for one in largest:
                full[one] = True
    slots = sorted(written)
    places = torch.tensor([written[slot] for slot in slots], dtype=torch.int64)
    after = Balance(torch.tensor(stored, dtype=torch.int64), torch.tensor(seen), torch.tensor(full))
    return places, torch.tensor(slots, dtype=torch.int64), after


def _largest(members: list[list[int]]) -> tuple[int, list[int]]:
    """How many slots the largest classes have, and which these are."""
    most = max(map(len, members))
    return most, [name for name, slots in enumerate(members) if len(slots) == most]


def draw_distinct(count: int, size: int, generator: torch.Generator) -> Tensor:
    """`size` different numbers below `count` (all of them, where there are fewer), every set equally likely.

    Floyd's algorithm (Bentley and Floyd 1987, "A sample of brilliance"): the work grows with `size` only. int64.
    """
    size = min(size, count)
    last = range(count - size, count)
    uniform = torch.rand(size, dtype=torch.float64, generator=generator)
    wanted = (uniform * torch.arange(last.start + 1, count + 1)).long()
    chosen: dict[int, None] = {}  # a set that keeps the order
    for number, other in zip(last, wanted.tolist(), strict=True):
        chosen[number if other in chosen else other] = None
    return torch.tensor(list(chosen), dtype=torch.int64)


class Recalled(NamedTuple):
    """Examples drawn from a memory, grouped by task: ready for a network, their tasks (CPU int64 [B]), what else was
    stored with them (name → [B, ...]).
    """

    batch: Batch
    task: Tensor
    extras: Mapping[str, Tensor]


class Memory:
    """At most `capacity` examples, stored as `like` stores them; `extras` name further tensors, with one example's
    shape and their type. `tasks` × `outputs` are the classes of the policy `balanced`: where tasks share outputs, the
    class of each task counts for itself, so that every task has its share too.
    """

    def __init__(
        self, capacity: int, policy: Policy, like: Split, tasks: int, outputs: int,
        extras: Mapping[str, tuple[tuple[int, ...], torch.dtype]] | None = None,
    ) -> None:  # fmt: skip
        self.capacity, self.policy, self.outputs = capacity, policy, outputs
        self.inputs = {name: values.new_zeros((capacity, *values.shape[1:])) for name, values in like.inputs.items()}
        self.target = like.target.new_zeros(capacity)
        self.extras = {
            name: torch.zeros((capacity, *shape), dtype=dtype, device=like.device)
            for name, (shape, dtype) in (extras or {}).items()
        }
        self.task = torch.full((capacity,), -1)  # of each slot, on the CPU; −1 = empty
        self.seen = 0  # examples offered so far
        self.balance = Balance(
            self.task.clone(), torch.zeros(tasks * outputs, dtype=torch.int64), torch.zeros(tasks * outputs).bool()
        )

    def __len__(self) -> int:
        return min(self.seen, self.capacity)

    def offer(
        self, split: Split, index: Tensor, task: int, generator: torch.Generator, *,
        classes: Tensor | None = None, extras: Mapping[str, Tensor] | None = None,
    ) -> None:  # fmt: skip
        """Offer the examples of task number `task` at `index` (CPU int64 [n]) of its split; the policy takes or leaves.

        `classes` (CPU int64 [n]), which `balanced` alone needs: their targets. `extras`: name → [n, ...].
        """
        if not self.capacity:
            return
        if self.policy == "balanced":
            assert classes is not None
            draws = torch.rand(len(index), 2, dtype=torch.float64, generator=generator)
            places, slots, self.balance = balanced_update(self.balance, task * self.outputs + classes, draws)
        else:
            draws = torch.rand(len(index), dtype=torch.float64, generator=generator)
            places, slots = reservoir_update(self.seen, self.capacity, draws)
        self.seen += len(index)
        if not len(slots):
            return
        self.task[slots] = task
        at = slots.to(split.device, non_blocking=True)
        taken = index[places].to(split.device, non_blocking=True)
        self.target[at] = split.target[taken]
        for name, values in self.inputs.items():
            values[at] = split.inputs[name][taken]
        if self.extras:
            given = places.to(split.device, non_blocking=True)
            for name, values in self.extras.items():
                values[at] = (extras or {})[name][given].to(values.dtype)

    def draw(self, size: int, generator: torch.Generator, before: int | None = None) -> Tensor:
        """Slots of `size` different examples, or of all where there are fewer; CPU int64.

        `before`: only examples of tasks before that number.
        """
        if before is None:
            return draw_distinct(len(self), size, generator)
        among = ((self.task >= 0) & (self.task < before)).nonzero().flatten()
        return among[draw_distinct(len(among), size, generator)]

    def recall(self, slots: Tensor, splits: Sequence[Split], masks: Tensor) -> Recalled:
        """The examples in `slots` (CPU int64 [B]), each prepared as in the split of its own task, under its mask.

        `masks` bool [tasks, C]: the outputs that compete for an example of each task.
        """
        task, order = self.task[slots].sort(stable=True)
        at = slots[order].to(self.target.device, non_blocking=True)
        raw = {name: values[at] for name, values in self.inputs.items()}
        numbers, counts = task.unique_consecutive(return_counts=True)
        ends = counts.cumsum(0).tolist()
        parts = [
            splits[number].prepared({name: values[begin:end] for name, values in raw.items()})
            for number, begin, end in zip(numbers.tolist(), [0, *ends], ends, strict=False)
        ]
        inputs = {name: torch.cat([part[name] for part in parts]) for name in raw}
        mask = masks[task.to(masks.device, non_blocking=True)]
        extras = {name: values[at] for name, values in self.extras.items()}
        return Recalled(Batch(inputs, self.target[at], mask), task, extras)

    def tensors(self) -> list[Tensor]:
        """All that is kept of examples, without empty slots."""
        kept = [*self.inputs.values(), self.target, self.task, *self.extras.values()]
        return [values[: len(self)] for values in kept]

    def state_dict(self) -> dict[str, Any]:
        """Tensors and primitives. The tensors are the live ones, as in torch: copy them to keep a moment."""
        own = {"target": self.target, "task": self.task, "seen": self.seen, "balance": self.balance._asdict()}
        return {**own, "inputs": dict(self.inputs), "extras": dict(self.extras)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """What `state_dict` gave, copied to where the data lives."""
        self.seen = state["seen"]
        self.task = state["task"].to("cpu", copy=True)
        self.target = state["target"].to(self.target, copy=True)
        self.balance = Balance(**{name: values.to("cpu", copy=True) for name, values in state["balance"].items()})
        for kind, own in (("inputs", self.inputs), ("extras", self.extras)):
            for name, values in own.items():
                own[name] = state[kind][name].to(values, copy=True)
