"""Searches over codes as methods: random, evolution, REINFORCE, local search, Bayesian optimisation.

Each is a searcher (advml/nn/search) and a way to score: with `view=table` by looking up (table.py), otherwise by
training or by shared weights (candidates.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from advml.artifacts import Artifact
from advml.config import Fraction, PositiveFloat, PositiveInt, settings
from advml.contracts import (
    At,
    Classes,
    Context,
    Method,
    Metrics,
    Needs,
    Network,
    Nothing,
    Objective,
    Phase,
    Real,
    Record,
    SplitName,
    Step,
)
from advml.data.nasbench201 import Table
from advml.errors import ConfigError
from advml.methods.nas.candidates import CandidateSearch
from advml.methods.nas.common import SUPERNETS
from advml.methods.nas.settings import SearcherSettings
from advml.methods.nas.table import TableSearch
from advml.nn.search.choices import Choices
from advml.nn.search.searchers import Evolution, LocalSearch, Random, Reinforce, Searcher
from advml.nn.search.tpe import ParzenEstimator


class RandomArchitectures(Method):
    """Architectures drawn evenly. One evaluation is a random architecture, retrained: what a search has to beat."""

    settings: ClassVar[type] = SearcherSettings
    needs = Needs(view=("plain", "table"), targets=(Classes, Real, Nothing), spaces=SUPERNETS)
    objective = Objective("accuracy", "valid", "max", keep_best=False)

    def searcher(self, choices: Choices, repeats: int) -> Searcher:
        """What asks for points."""
        return Random(choices, repeats)

    def setup(self, context: Context) -> None:
        """By table or by training, as the view has it."""
        config: SearcherSettings = context.settings
        self.config = config
        self.inner: Method
        if isinstance(context.data, Table):
            self.inner = TableSearch(self.searcher)
        else:
            if config.repeats > 1:
                raise ConfigError("method.repeats: only searches of a table are repeated in one run; use other seeds")
            if config.marks:
                raise ConfigError("method.marks: only searches of a table have them; use view=table, or leave it empty")
            if isinstance(context.data.spec.target, Nothing):
                raise ConfigError("dataset: has no target to train a candidate on; choose another data set")
            self.inner = CandidateSearch(self.searcher)
        self.inner.setup(context)
        self.objective, self.several_networks = self.inner.objective, self.inner.several_networks

    def phases(self) -> Sequence[Phase]:
        """Those of the way to score."""
        return self.inner.phases()

    def step(self, at: At) -> Step:
        """One question, or a block of them."""
        return self.inner.step(at)

    def evaluate(self, split: SplitName) -> Metrics:
        """Of what was found so far."""
        return self.inner.evaluate(split)

    def state_dict(self) -> dict[str, Any]:
        """The search."""
        return self.inner.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.inner.load_state_dict(state)

    def result(self) -> Network | None:
        """The retrained network."""
        return self.inner.result()

    def summary(self, records: Sequence[Record]) -> Metrics:
        """What was found."""
        return self.inner.summary(records)

    def artifacts(self, records: Sequence[Record]) -> Mapping[str, Artifact]:
        """Its cells, and how the search went."""
        return self.inner.artifacts(records)


@settings
class EvolutionSettings(SearcherSettings):
    """The keys of configs/method/evolution.yaml."""

    population: PositiveInt
    sample: PositiveInt


class RegularisedEvolution(RandomArchitectures):
    """Real, Aggarwal, Huang, Le 2019: the oldest dies, a mutation of the best of a sample is born."""

    settings = EvolutionSettings

    def searcher(self, choices: Choices, repeats: int) -> Searcher:
        """See advml.nn.search.searchers."""
        return Evolution(choices, repeats, self.config.population, self.config.sample)  # type: ignore[attr-defined]


@settings
class ReinforceSettings(SearcherSettings):
    """The keys of configs/method/reinforce.yaml."""

    lr: PositiveFloat
    decay: Fraction


class ReinforceSearch(RandomArchitectures):
    """Williams 1992 on independent logits, one row for each choice."""

    settings = ReinforceSettings

    def searcher(self, choices: Choices, repeats: int) -> Searcher:
        """See advml.nn.search.searchers."""
        return Reinforce(choices, repeats, self.config.lr, self.config.decay)  # type: ignore[attr-defined]


@settings
class LocalSettings(SearcherSettings):
    """The keys of configs/method/local_search.yaml."""

    climb: Literal["first", "best"]


class HillClimbing(RandomArchitectures):
    """White, Nolen, Savani 2021: to better neighbours until there is none, then anew."""

    settings = LocalSettings

    def searcher(self, choices: Choices, repeats: int) -> Searcher:
        """See advml.nn.search.searchers."""
        return LocalSearch(choices, repeats, self.config.climb)  # type: ignore[attr-defined]


@settings
class BayesSettings(SearcherSettings):
    """The keys of configs/method/bayes_opt.yaml."""

    start: PositiveInt


class BayesianOptimisation(RandomArchitectures):
    """Optuna's tree-structured Parzen estimator."""

    settings = BayesSettings

    def searcher(self, choices: Choices, repeats: int) -> Searcher:
        """See advml.nn.search.tpe."""
        return ParzenEstimator(choices, repeats, self.config.start)  # type: ignore[attr-defined]
