"""Search by training candidates for a while, or by weights that all of them share; the best is retrained."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from advml.artifacts import Artifact, Curve, Table
from advml.contracts import At, Metrics, Objective, Phase, Real, Record, SplitName, Step
from advml.errors import ConfigError
from advml.methods.nas.common import (
    ArchitectureSearch,
    check_batches,
    check_kinds,
    check_retraining,
    halves,
    shrunk_spec,
    supernet,
)
from advml.methods.nas.retrain import Retraining, derived_network
from advml.methods.nas.settings import SearcherSettings
from advml.methods.nas.shared import SharedWeights
from advml.nn.cells.counting import cost
from advml.nn.cells.genotype import Genotype
from advml.nn.cells.spaces import Code, DartsCells, EnasMicro, Space
from advml.nn.cells.stack import misfit
from advml.nn.cells.supernet import Supernet
from advml.nn.evaluation import measure
from advml.nn.search.choices import Choices
from advml.nn.search.searchers import LOWEST, Searcher

MOST = 5  # questions for each evaluation, where candidates that were met before cost nothing


class CandidateSearch(ArchitectureSearch):
    """One search over the space of `model`. A step of the phase `search` scores one candidate.

    `estimate.kind: training`: its network, in the size of `retrain` but for the images of the search, is trained for
    `estimate.epochs` on the weights' half and scored on the other. `sharing`: before, the supernet is trained on single
    architectures drawn evenly; a candidate is scored with those weights. A candidate met before keeps its score. One
    evaluation needs no score.
    """

    def __init__(self, make: Callable[[Choices, int], Searcher]) -> None:
        self.make_searcher = make

    def setup_search(self) -> None:
        """The space, the searcher, and what scores."""
        config, context = self.config, self.context
        self.seen = shrunk_spec(self.data.spec, config)
        network = supernet(context.build(self.seen))
        self.space = space_of(network)
        self.choices = Choices(self.space.choices)
        self.searcher: Searcher = self.make_searcher(self.choices, 1)
        self.train_half, self.valid_half = halves(context, config)
        check_batches("method.batch_size", config.batch_size, len(self.train_half))
        if reason := misfit(self.data.spec, config.retrain.reductions, "method.retrain.reductions"):
            raise ConfigError(f"method.retrain: needs {reason}")  # candidates are counted in that size
        if config.estimate.kind == "training" and config.evaluations > 1:
            check_retraining(config.retrain, self.seen, len(self.train_half))
        self.several_networks = config.evaluations > 1
        if not config.retrain.epochs:
            self.objective = Objective("best_score", "valid", "max", keep_best=False)
        self.scored: list[tuple[Code, float, int, int]] = []  # code, score, parameters, multiply-adds: by question
        self.met: dict[Code, tuple[float, int, int]] = {}  # the same of each canonical code
        self.shared: SharedWeights | None = None
        if self.sharing:
            check_kinds(network, config.retrain)
            self.shared = SharedWeights(network, context, config.estimate, self.train_half, config.batch_size)

    @property
    def sharing(self) -> bool:
        """Is the supernet trained at all?"""
        config: SearcherSettings = self.config
        return config.estimate.kind == "sharing" and config.evaluations > 1

    def search_phases(self) -> Sequence[Phase]:
        """Training the shared weights, if there are any; then candidates."""
        config = self.config
        most = config.evaluations * (1 if config.count == "raw" or config.evaluations == 1 else MOST)
        search = Phase("search", "candidate", most)
        return [Phase("share", "epoch", config.estimate.epochs), search] if self.sharing else [search]

    def search_step(self, at: At) -> Step:
        """An epoch of the shared weights, or a candidate."""
        if self.shared is not None and at.phase == 0:
            return Step({"loss": self._share(at.index)})
        points = self.searcher.ask(self.context.rng("ask", self.config.draw, at.index))
        code: Code = tuple(points[0].tolist())
        canonical = self.space.canonical(code)
        if canonical not in self.met or self.config.count == "raw":
            self.context.count(evaluations=1)
        if canonical not in self.met:
            self.met[canonical] = self._score(code)
        score, parameters, work = self.met[canonical]
        self.scored.append((code, score, parameters, work))
        self.searcher.tell(points, torch.tensor([score], dtype=torch.float64))
        return Step({"score": score, "parameters": float(parameters)}, end_phase=self._is_over())

    def _is_over(self) -> bool:
        config: SearcherSettings = self.config
        unique = config.count == "unique"
        charged = len(self.met) if unique else len(self.scored)
        work = sum(row[-1] for row in (self.met.values() if unique else self.scored))
        return charged >= config.evaluations or (config.multiply_adds is not None and work >= config.multiply_adds)

    # --- scores ---

    def _score(self, code: Code) -> tuple[float, int, int]:
        """Larger is better: accuracy, or minus the squared error; undefined is worst. And what the network costs."""
        genotype = self.space.genotype(code)
        size = cost(derived_network(self.context, self.config.retrain, genotype, "candidate"), self.data.spec)
        if self.config.evaluations == 1:
            return 0.0, size.parameters, size.multiply_adds
        found = self._shared_score(genotype) if self.shared is not None else self._trained_score(genotype)
        self.context.count(samples=len(self.valid_half))
        value = float(found)
        return (value if math.isfinite(value) else LOWEST), size.parameters, size.multiply_adds

    def _trained_score(self, genotype: Genotype) -> Tensor | float:
        """Trained from the same seed as every other candidate."""
        brief = replace(self.config.retrain, epochs=self.config.estimate.epochs, block=None)
        training = Retraining(self.context, brief, genotype, self.train_half, "candidate", self.seen)
        for epoch in range(brief.epochs):
            training.step(At(0, epoch, epoch, epoch == brief.epochs - 1))
        found = measure(training.network, self.valid_half, autocast=self.context.autocast)
        return -found["mse"] if isinstance(self.data.spec.target, Real) else found["accuracy"]  # type: ignore

    def _shared_score(self, genotype: Genotype) -> Tensor:
        assert self.shared is not None
        return self.shared.score(genotype, self.valid_half)

    def _share(self, epoch: int) -> Tensor:
        """Each mini-batch trains one architecture, drawn evenly."""
        assert self.shared is not None

        def draw(update: int) -> Genotype:
            points = self.choices.draw(1, self.context.rng("share", update))
            return self.space.genotype(tuple(points[0].tolist()))

        return self.shared.epoch(epoch, draw)

    # --- the rest ---

    def derive(self) -> Genotype:
        """The candidate of best score, of equals the first; before there is one, the first of the space."""
        if not self.scored:
            return self.space.genotype((0,) * len(self.space.choices))
        return self.space.genotype(max(self.scored, key=lambda row: row[1])[0])

    def search_evaluate(self, split: SplitName) -> Metrics:
        """The best score so far: the largest of many, on the half of the training examples that judges architectures.

        It is no accuracy of one network, so it is not called so.
        """
        if split != "valid" or not self.scored or self.config.evaluations == 1:
            return {}
        return {"best_score": max(row[1] for row in self.scored)}

    def search_state(self) -> dict[str, Any]:
        """The searcher and the shared weights."""
        shared = None if self.shared is None else self.shared.state_dict()
        return {"searcher": self.searcher.state_dict(), "shared": shared}

    def load_search_state(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self.searcher.load_state_dict(state["searcher"])
        if self.shared is not None:
            self.shared.load_state_dict(state["shared"])

    def told(self) -> dict[str, Any]:
        """All candidates."""
        codes = torch.tensor([row[0] for row in self.scored]).view(-1, len(self.space.choices))
        scores = torch.tensor([row[1] for row in self.scored], dtype=torch.float64)
        return {"codes": codes.long(), "scores": scores, "costs": [list(row[2:]) for row in self.scored]}

    def load_told(self, told: Mapping[str, Any]) -> None:
        """Restore them."""
        rows = zip(told["codes"].tolist(), told["scores"].tolist(), told["costs"], strict=True)
        self.scored = [(tuple(code), score, parameters, work) for code, score, (parameters, work) in rows]
        self.met = {self.space.canonical(row[0]): row[1:] for row in self.scored}

    def artifacts(self, records: Sequence[Record]) -> Mapping[str, Artifact]:
        """The cells; all candidates, and their scores against their parameters."""
        made = dict(super().artifacts(records))
        columns = ["question", "code", "score", "parameters", "multiply_adds"]
        rows = [[place, " ".join(map(str, code)), *rest] for place, (code, *rest) in enumerate(self.scored)]
        made["candidates"] = Table(columns, rows)
        if len(self.scored) > 2 and self.config.evaluations > 1:
            by_size = sorted((row[2], row[1]) for row in self.scored)
            sizes, scores = [size for size, _ in by_size], [score for _, score in by_size]
            title = "Candidates" if self.shared is None else "Candidates, with shared weights"
            made["candidates_by_size"] = Curve(
                sizes, {"candidates": scores}, "parameters", "score on held-out training examples", title,
                points=["candidates"],
            )  # fmt: skip
        return made


def space_of(network: Supernet) -> Space:
    """The space of codes that a supernet covers. `none` is never chosen."""
    nodes, operations = network.config.nodes, [name for name in network.operations if name != "none"]
    return EnasMicro(nodes, operations) if network.space == "enas_micro" else DartsCells(nodes, operations)
