"""What architecture searches share: data for the search, then derive → retrain → report as phases of one run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

import torch
import torch.nn.functional as F
from annotated_types import Interval
from torch import Tensor

from advml.artifacts import Artifact, Graph, Json
from advml.config import CountInt, PositiveInt, settings
from advml.contracts import (
    At,
    Classes,
    Context,
    Method,
    Metrics,
    Needs,
    Network,
    Objective,
    Phase,
    Real,
    Record,
    Spec,
    Split,
    SplitName,
    Step,
)
from advml.data.prepare import Pad
from advml.errors import ConfigError
from advml.methods.nas.retrain import Retraining, RetrainSettings, derived_network, pace_of, some_examples
from advml.nn.cells.counting import cost
from advml.nn.cells.genotype import Genotype
from advml.nn.cells.stack import kinds_of, misfit
from advml.nn.cells.supernet import Supernet

SUPERNETS = ("darts_cells", "enas_micro")  # spaces that a model holds all at once


@settings
class SearchSettings:
    """Keys of every search: configs/method/_base/search.yaml."""

    examples: PositiveInt | None
    share: Annotated[float, Interval(gt=0, lt=1)]
    pad: CountInt
    pool: PositiveInt
    batch_size: PositiveInt
    retrain: RetrainSettings


class ArchitectureSearch(Method):
    """Phases of a search, then `retrain`. Subclasses say what the search is; they derive, this trains what they found.

    During the search metrics are called `search_…`: they are no result. The result is the retrained network's.
    """

    settings: ClassVar[type] = SearchSettings
    needs = Needs(view="plain", targets=(Classes, Real), spaces=SUPERNETS)
    objective = Objective("accuracy", "valid", "max", keep_best=False)
    several_networks = True  # what the search trains, and what it found

    def setup(self, context: Context) -> None:
        """Check what would only be seen after the search; then that which searches."""
        self.context, self.config, self.data = context, context.settings, context.data
        self.genotype: Genotype | None = None
        self.retraining: Retraining | None = None
        if self.config.retrain.epochs:
            check_retraining(self.config.retrain, self.data.spec, len(self.data.train))
        name, mode = ("mse", "min") if isinstance(self.data.spec.target, Real) else ("accuracy", "max")
        name = name if self.config.retrain.epochs else f"search_{name}"
        self.objective = Objective(name, "valid", "min" if mode == "min" else "max", keep_best=False)
        self.setup_search()

    # --- what a search is ---

    def setup_search(self) -> None:
        """Networks, optimisers, data of the search."""
        raise NotImplementedError

    def search_phases(self) -> Sequence[Phase]:
        """Its phases."""
        raise NotImplementedError

    def search_step(self, at: At) -> Step:
        """One step of it."""
        raise NotImplementedError

    def derive(self) -> Genotype:
        """What the search has found so far. Pure."""
        raise NotImplementedError

    def search_evaluate(self, split: SplitName) -> Metrics:
        """Measured while the search goes on, as `search_…`."""
        return {}

    def search_state(self) -> dict[str, Any]:
        """Everything that the search's next step depends on."""
        raise NotImplementedError

    def load_search_state(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        raise NotImplementedError

    def searched(self) -> Network | None:
        """The network that the search trains, if there is one."""
        return None

    def told(self) -> dict[str, Any]:
        """What pictures need of the search after it is over: small, kept in every checkpoint."""
        return {}

    def load_told(self, told: Mapping[str, Any]) -> None:
        """Restore it."""

    # --- the run ---

    def phases(self) -> Sequence[Phase]:
        """The search, then retraining."""
        return [*self.search_phases(), pace_of(self.config.retrain, len(self.data.train)).phase("retrain")]

    def step(self, at: At) -> Step:
        """Search, or retrain what was found; it is derived at the first step of the second."""
        if at.phase < len(self.search_phases()):
            return self.search_step(at)
        if self.retraining is None:
            self.genotype = self.derive()
            self.retraining = Retraining(self.context, self.config.retrain, self.genotype)
        return Step(self.retraining.step(at))

    def evaluate(self, split: SplitName) -> Metrics:
        """Of the retrained network; before there is one, of the search."""
        return self.search_evaluate(split) if self.retraining is None else self.retraining.evaluate(split)

    def result(self) -> Network | None:
        """The retrained network; before there is one, what the search trains."""
        return self.searched() if self.retraining is None else self.retraining.network

    def state_dict(self) -> dict[str, Any]:
        """The search; once it is over, only what it found."""
        over = self.retraining is not None
        return {
            "told": self.told(),
            "search": None if over else self.search_state(),
            "genotype": None if self.genotype is None else self.genotype.to_dict(),
            "retraining": None if self.retraining is None else self.retraining.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it."""
        self.load_told(state["told"])
        if state["genotype"] is None:
            self.genotype, self.retraining = None, None
            self.load_search_state(state["search"])
            return
        self.genotype = Genotype.from_dict(state["genotype"])
        if self.retraining is None or self.retraining.genotype != self.genotype:
            self.retraining = Retraining(self.context, self.config.retrain, self.genotype)
        self.retraining.load_state_dict(state["retraining"])

    def found(self) -> Genotype:
        """What is or would be retrained."""
        return self.derive() if self.genotype is None else self.genotype

    def summary(self, records: Sequence[Record]) -> Metrics:
        """Of the derived network in its size for retraining: parameters without the auxiliary head, multiply-adds of
        one example; of its cells, how many edges skip.
        """
        genotype = self.found()
        cells = genotype.cells.items()
        counted: dict[str, float] = {f"skips_{kind}": cell.count("skip_connect") for kind, cell in cells}
        if self.retraining is not None:
            network = self.retraining.network
        elif self.config.retrain.epochs:
            network = derived_network(self.context, self.config.retrain, genotype, "retrain")
        else:
            return counted
        size = cost(network, self.data.spec)
        return {**counted, "derived_parameters": size.parameters, "multiply_adds": size.multiply_adds}

    def artifacts(self, records: Sequence[Record]) -> Mapping[str, Artifact]:
        """The genotype, and its cells drawn."""
        genotype = self.found()
        return {"genotype": Json(genotype.to_dict()), "cells": drawn(genotype)}


# --- data -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pool:
    """Prepared images averaged over squares of `side` × `side` pixels."""

    side: int

    def __call__(self, values: Tensor) -> Tensor:
        return F.avg_pool2d(values, self.side)

    def to(self, device: torch.device, dtype: torch.dtype) -> Pool:
        """It has no constants."""
        return self

    def state(self) -> dict[str, Any]:
        """Never saved with a network: the retrained one sees whole images."""
        return {"kind": "pool", "side": self.side}


def shrunk_spec(spec: Spec, config: SearchSettings) -> Spec:
    """The spec of the images that the search sees."""
    if config.pad == 0 and config.pool == 1:
        return spec
    if len(spec.inputs) != 1 or len(next(iter(spec.inputs.values()))) != 3:
        raise ConfigError("method.pool: needs one image input; use method.pad=0 method.pool=1")
    ((name, (channels, *sides)),) = spec.inputs.items()
    height, width = ((side + 2 * config.pad) // config.pool for side in sides)
    if not height or not width:
        shape = "×".join(map(str, sides))
        raise ConfigError(f"method.pool={config.pool}: leaves nothing of images {shape}; use a smaller one")
    return replace(spec, inputs={name: (channels, height, width)})


def shrunk(split: Split, config: SearchSettings) -> Split:
    """A split whose images come to the network padded and pooled: what a search may look at instead."""
    if config.pad == 0 and config.pool == 1:
        return split
    (name,) = split.inputs
    # Padded before normalising, after which zero is the mean and no black.
    steps = (Pad(config.pad), *split.prepare.get(name, ()), Pool(config.pool))
    return replace(split, prepare={name: steps})


def halves(context: Context, config: SearchSettings) -> tuple[Split, Split]:
    """The training examples divided: `share` of them for weights, the others to judge architectures by."""
    split = some_examples(context, shrunk(context.data.train, config), config.examples, "search examples")
    order = torch.randperm(len(split), generator=context.rng("search halves"))
    at = round(config.share * len(split))
    if not 0 < at < len(split):
        raise ConfigError("method.share: leaves no examples on one side; choose a share nearer 0.5")
    return split.take(order[:at]), split.take(order[at:])


def check_batches(key: str, batch_size: int, examples: int) -> None:
    """Batch norm cannot normalise a single example. Raises ConfigError."""
    if batch_size == 1 or examples % batch_size == 1:
        raise ConfigError(f"{key}: leaves a batch of one of {examples} examples, too few for batch norm; use another")


def check_retraining(config: RetrainSettings, spec: Spec, examples: int) -> None:
    """Raises ConfigError for what would fail only after the search."""
    if reason := misfit(spec, config.reductions, "method.retrain.reductions"):
        raise ConfigError(f"method.retrain: needs {reason}")
    check_batches("method.retrain.batch_size", config.batch_size, min(examples, config.examples or examples))


def check_kinds(network: Supernet, config: RetrainSettings) -> None:
    """Raises ConfigError where a kind of cell is to be retrained that the search does not have: nothing learns it."""
    model = network.config
    lacking = kinds_of(config.cells, config.reductions) - kinds_of(model.cells, model.reductions)
    if not config.epochs or not lacking:
        return
    if "normal" in lacking:
        raise ConfigError(
            f"model.cells={model.cells}: with model.reductions={model.reductions} no normal cell is searched, and "
            f"method.retrain has some; use model.cells={model.reductions + 1} or more"
        )
    raise ConfigError(
        "model.reductions=0: no reduce cell is searched, and method.retrain has some; use one or more, or "
        "method.retrain.reductions=0"
    )


# --- pictures -------------------------------------------------------------------------------------------------------


def drawn(genotype: Genotype) -> Graph:
    """The cells as graphs: they read the outputs of the two cells before, and give a concatenation of their nodes."""
    nodes, edges = {}, {}
    for kind, cell in genotype.cells.items():
        inputs = ["cell k−2", "cell k−1"][-cell.inputs :]
        last = cell.inputs + len(cell.nodes)
        nodes[kind] = [*inputs, *map(str, range(len(cell.nodes))), "output"]
        of_nodes = [
            (edge.source, cell.inputs + number, edge.operation)
            for number, node in enumerate(cell.nodes)
            for edge in node
        ]
        edges[kind] = [*of_nodes, *((state, last, "") for state in cell.concat)]
    return Graph(nodes, edges, quiet=("", "none"))


def supernet(network: Network) -> Supernet:
    """The network, which has something to search. Raises ConfigError if not."""
    assert isinstance(network, Supernet)  # `Needs.spaces` was asked before
    if set(network.operations) == {"none"}:
        raise ConfigError("model.operations: nothing but none, which no architecture that is found may hold; name more")
    return network
