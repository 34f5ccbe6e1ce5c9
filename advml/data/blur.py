"""Blurry tasks: the border between tasks is no longer sharp (Bang et al. 2021, "Rainbow Memory: continual learning with
a memory of diverse samples").

In their "blurry-M" M percent of a task's examples belong to classes of the other tasks. Here tasks exchange examples:
each gives away that share and receives as many, so that sizes stay as they are and every example is in one task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from advml.data.source import interleaved


def blurred(
    target: Tensor, tasks: Sequence[Tensor], share: float, rng: Callable[[int], torch.Generator]
) -> list[Tensor]:
    """The examples of each task (indices into `target`, int64 [N], ascending) after the exchange, ascending.

    A task gives away `share` of its examples, of each of its classes alike, in an order drawn from `rng(task)`.
    """
    given = exchanged([round(share * len(task)) for task in tasks])
    held: list[list[Tensor]] = [[] for _ in tasks]
    for number, task in enumerate(tasks):
        amounts = given[number].tolist()
        amounts[number] = len(task) - sum(amounts)
        # Those that stay come last, wherever the task itself stands among the others.
        receivers = [*(other for other in range(len(tasks)) if other != number), number]
        dealt = task[interleaved(target[task], rng(number))].split([amounts[other] for other in receivers])
        for other, chunk in zip(receivers, dealt, strict=True):
            held[other].append(chunk)
    return [torch.cat(chunks).sort().values for chunks in held]


def exchanged(quotas: Sequence[int]) -> Tensor:
    """How many examples each task gives to each other: int64 [T, T], row t and column t both sum to `quotas[t]`.

    Where all quotas are equal, what a task gives to the others differs by at most one. A task with a larger quota than
    all others together can only exchange as many as these.

    Whoever is in a cycle gives as many as it receives. So cycles through all tasks that have something left are taken,
    each task giving to its neighbour, or to the next but one, and so on in turn. The largest may never have more left
    than all others together, who could not take it; before it would, cycles get narrower, down to pairs.
    """
    left = torch.tensor(quotas, dtype=torch.int64)
    amounts = torch.zeros(len(quotas), len(quotas), dtype=torch.int64)
    while int((left > 0).sum()) > 1:
        top, *others = left.argsort(descending=True, stable=True)[: int((left > 0).sum())].tolist()
        # A cycle takes one from the largest and one from each of its others: `spare` shrinks by their number − 1.
        spare = int(left[others].sum() - left[top])
        cycle = torch.tensor(sorted([top, *others[: max(spare, 0) + 1]]))
        width = len(cycle) - 1
        times = int(left[cycle].min())
        if width > 1:
            times = min(times, spare // (width - 1))
        for shift in range(1, min(width, times) + 1):
            amounts[cycle, cycle.roll(-shift)] += times // width + (shift <= times % width)
        left[cycle] -= times
    return amounts
