"""Search in a table of known accuracies: hundreds of searches at once, each charged alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from advml.artifacts import Artifact, Curve, Json, Table
from advml.contracts import At, Context, Method, Metrics, Needs, Nothing, Objective, Phase, Record, SplitName, Step
from advml.data.nasbench201 import Table as TableView
from advml.methods.nas.common import drawn
from advml.methods.nas.settings import SearcherSettings
from advml.nn.cells.nasbench201 import from_number, to_string
from advml.nn.search.choices import Choices
from advml.nn.search.searchers import Searcher

BLOCK = 50  # questions in a step of the run
MOST = 4  # questions for each evaluation, where only new cells are charged: an end for a search that moves no more

Count = Literal["raw", "unique"]


class TableSearch(Method):
    """R searches side by side. The signal (12-epoch validation accuracy) guides them, the score (200-epoch test
    accuracy) of the cell with the best signal is what they are worth.

    `count: raw` charges every question, `unique` only cells that the search has not met (up to isomorphism). Unless
    raw counting is asked for, a search goes on until both are known.
    """

    settings: ClassVar[type] = SearcherSettings
    needs = Needs(view="table", targets=(Nothing,), model=False)
    objective = Objective("accuracy", "valid", "max", keep_best=False)

    def __init__(self, make: Callable[[Choices, int], Searcher]) -> None:
        self.make_searcher = make

    def setup(self, context: Context) -> None:
        """The searcher; nothing was asked yet."""
        view: TableView = context.data
        self.context, self.config, self.known, self.space = context, context.settings, view.accuracies, view.space
        self.choices = Choices(self.space.choices)
        self.searcher = self.make_searcher(self.choices, self.config.repeats)
        repeats = self.config.repeats
        self.asked = torch.zeros((0, repeats), dtype=torch.int64)  # numbers of cells [questions, R]
        self.fresh = torch.zeros((0, repeats), dtype=torch.bool)  # was each new to its search?
        self.met = torch.zeros((repeats, len(self.known.same)), dtype=torch.bool)

    def phases(self) -> Sequence[Phase]:
        """Blocks of questions; with unique counting the search ends when all have their evaluations."""
        most = self.config.evaluations * (1 if self.config.count == "raw" else MOST)
        return [Phase("search", "block", -(-most // BLOCK))]

    def step(self, at: At) -> Step:
        """A block of questions."""
        rows, fresh, first = [], [], at.index * BLOCK
        last = first + BLOCK if self.config.count == "unique" else min(first + BLOCK, self.config.evaluations)
        for question in range(first, last):
            points = self.searcher.ask(self.context.rng("ask", self.config.draw, question))
            number = self.choices.number(points)
            self.searcher.tell(points, self.known.signal[number])
            rows.append(number)
            fresh.append(self._meet(number))
        before = self._charged(self.config.count).sum(0)
        self.asked, self.fresh = (torch.cat(pair) for pair in (
            (self.asked, torch.stack(rows)), (self.fresh, torch.stack(fresh)),
        ))  # fmt: skip
        charged = self._charged(self.config.count).sum(0)
        budget = self.config.evaluations
        self.context.count(evaluations=int((charged.clamp_max(budget) - before.clamp_max(budget)).sum()))
        found = self.known.signal[self.asked].amax(0)
        return Step({"signal": found.mean()}, end_phase=bool((charged >= budget).all()) or self._spent())

    def _meet(self, number: Tensor) -> Tensor:
        """Note the cells that were asked for [R]; which of them were not met before, bool [R]."""
        same = self.known.same[number].unsqueeze(1)
        fresh = ~self.met.gather(1, same).squeeze(1)
        self.met.scatter_(1, same, True)
        return fresh

    def _charged(self, count: Count) -> Tensor:
        """Which questions cost something, bool [questions, R]: of those that the search could still afford."""
        every = torch.ones_like(self.fresh) if count == "raw" else self.fresh
        return every if self.config.multiply_adds is None else every & self._affordable(every)

    def _affordable(self, every: Tensor) -> Tensor:
        """Which questions come before the budget of multiply-adds is reached, or reach it, bool [questions, R]."""
        cost: Tensor = self.known.multiply_adds[self.asked] * every
        before: Tensor = cost.cumsum(0) - cost
        return before < float(self.config.multiply_adds)

    def _spent(self) -> bool:
        """Have all searches met cells that cost as many multiply-adds as they may?"""
        if self.config.multiply_adds is None:
            return False
        cost = (self.known.multiply_adds[self.asked] * self._charged(self.config.count)).sum(0)
        return bool((cost >= self.config.multiply_adds).all())

    def evaluate(self, split: SplitName) -> Metrics:
        """The mean over repeats, as a fraction of 1: `accuracy` by the chosen count after all evaluations, its standard
        deviation `accuracy_sd`, `regret` against the best cell of the table, and `raw_100`, `unique_300`, … after so
        many evaluations counted so.
        """
        if split == "train" or not len(self.asked):
            return {}
        values = (self.known.signal if split == "valid" else self.known.score) / 100
        marks = sorted({*self.config.marks, self.config.evaluations})
        found: dict[str, Tensor] = {}
        over = len(self.asked) >= MOST * self.config.evaluations  # of a search that asks for nothing new any more
        counts: tuple[Count, ...] = ("raw",) if self.config.count == "raw" else ("raw", "unique")
        for count in counts:
            cells = self.best(count)
            for mark in marks:
                if mark <= len(cells) or over:
                    found[f"{count}_{mark}"] = values[cells[min(mark, len(cells)) - 1]].mean()
        final = values[self.best(self.config.count)[-1]]
        spread = final.std() if len(final) > 1 else torch.zeros(())
        return {"accuracy": final.mean(), "accuracy_sd": spread, "regret": values.max() - final.mean(), **found}

    def best(self, count: Count) -> Tensor:
        """After 1, 2, … evaluations the cell of best signal so far, int64 [≤ evaluations, R]."""
        charged = self._charged(count)
        affordable = None if self.config.multiply_adds is None else self._affordable(charged)
        return trajectory(self.asked, self.known.signal, charged, self.config.evaluations, affordable)

    def state_dict(self) -> dict[str, Any]:
        """All questions, and where the searches stand."""
        return {"asked": self.asked, "searcher": self.searcher.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it."""
        self.asked = state["asked"].clone()
        self.fresh = first_met(self.known.same[self.asked])
        self.met = torch.zeros_like(self.met).scatter_(1, self.known.same[self.asked].T, True)
        self.searcher.load_state_dict(state["searcher"])

    def artifacts(self, records: Sequence[Record]) -> Mapping[str, Artifact]:
        """Regret over evaluations; each search's best cell; the genotype and picture of the best of all."""
        if not len(self.asked):
            return {}
        known, cells = self.known, self.best(self.config.count)
        steps = list(range(1, len(cells) + 1))
        regrets = {
            "200-epoch test": known.score.max() - known.score[cells].mean(1),
            "12-epoch validation": known.signal.max() - known.signal[cells].mean(1),
        }
        title = f"Mean of {self.config.repeats} searches, {self.config.count} counting"
        lines = {name: regret.tolist() for name, regret in regrets.items()}
        curve = Curve(steps, lines, "evaluations", "regret (percentage points)", title)
        last = cells[-1].tolist()
        columns = ["search", "cell", "signal", "score"]
        rows = [
            [repeat, to_string(from_number(cell)), float(known.signal[cell]), float(known.score[cell])]
            for repeat, cell in enumerate(last)
        ]
        genotype = self.space.genotype(from_number(max(last, key=lambda cell: float(known.signal[cell]))))
        return {
            "regret": curve, "found": Table(columns, rows), "genotype": Json(genotype.to_dict()),
            "cells": drawn(genotype),
        }  # fmt: skip


def first_met(kinds: Tensor) -> Tensor:
    """Which entries of each column [S, R] are not in it before, bool [S, R]."""
    ordered, place = kinds.sort(dim=0, stable=True)
    fresh = torch.ones_like(ordered, dtype=torch.bool)
    fresh[1:] = ordered[1:] != ordered[:-1]
    return torch.zeros_like(fresh).scatter_(0, place, fresh)


def trajectory(asked: Tensor, signal: Tensor, charged: Tensor, budget: int, affordable: Tensor | None = None) -> Tensor:
    """Of questions [S, R] the one of best signal after 1, 2, … charged ones, as numbers of cells [≤ budget, R].

    Of equal signals the first. A search that has fewer charged questions than others keeps its last best.
    `affordable` [S, R]: the other questions count for nothing.
    """
    found = signal[asked]
    if affordable is not None:
        found = found.masked_fill(~affordable, float("-inf"))
    best = first_best(found)
    counts = charged.cumsum(0)
    most = min(budget, int(counts[-1].max()))
    wanted = torch.arange(1, most + 1).expand(asked.shape[1], -1).contiguous()
    at = torch.searchsorted(counts.T.contiguous(), wanted).clamp_max(len(asked) - 1).T
    return asked.gather(0, best.gather(0, at))


def first_best(values: Tensor) -> Tensor:
    """Where the largest value so far of each column [S, R] is found first, int64 [S, R]."""
    highest = values.cummax(0).values
    rises = torch.ones_like(values, dtype=torch.bool)
    rises[1:] = highest[1:] > highest[:-1]
    places = torch.arange(len(values)).unsqueeze(1).expand_as(values)
    return torch.where(rises, places, 0).cummax(0).values
