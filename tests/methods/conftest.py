"""Methods driven step by step, as the runner drives them, without a run folder: their state can be looked at."""

import copy
import os
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
import yaml

from advml.compose import compose
from advml.config import GROUPS, Bound, bind
from advml.contracts import At
from advml.runner.budget import Budget
from advml.runner.checkpoint import copied
from advml.runner.context import DTYPES, RunContext
from advml.runner.randomness import reseed
from advml.runner.run import load_view

QUIET = ("device=cpu", "threads=1", "progress=off", "figures=false")


@cache
def _composed(*choices):
    return compose(list(choices))[0]


def configure(*overrides):
    """The checked configuration, composed once for each choice of groups."""
    choices = [word for word in overrides if word.split("=")[0] in GROUPS]
    tree = copy.deepcopy(_composed(*choices, *QUIET))
    for word in overrides:
        if word in choices:
            continue
        path, _, value = word.partition("=")
        branch, (*parents, key) = tree, path.split(".")
        for parent in parents:
            branch = branch[parent]
        assert key in branch, word
        branch[key] = yaml.safe_load(value)
    return bind(tree)


VIEWS = {}


def viewed(bound):
    """The view, made once for each choice: nothing writes into it."""
    key = (bound.dataset.name, bound.dataset.settings, bound.view.name, repr(bound.view.settings), bound.run.seed)
    if key not in VIEWS:
        VIEWS[key] = load_view(bound, print)
    return VIEWS[key]


@dataclass
class Play:
    """A method set up with the runner's own context.

    `go()` plays all that is left, `go(n)` n steps, `to_end_of(p)` up to the end of a phase.
    """

    bound: Bound
    view: Any = None
    budget: Budget = field(default_factory=Budget)
    steps: list = field(default_factory=list)  # metrics of each step
    ended: bool = False  # by the method itself

    def __post_init__(self):
        run = self.bound.run
        self.view = (self.view or viewed(self.bound)).to(torch.device("cpu"), DTYPES[run.precision])
        reseed(run.seed, "setup")
        self.method = self.bound.method.cls()
        self.context = RunContext(
            self.bound.method.settings, self.view, self.bound.model, run.seed, torch.device("cpu"), run.precision,
            self.budget,
        )  # fmt: skip
        self.method.setup(self.context)
        self.plan = [(p, i, phase.steps) for p, phase in enumerate(self.method.phases()) for i in range(phase.steps)]

    def go(self, count=None):
        left = self.plan[len(self.steps) :]
        for phase, index, length in left if count is None else left[:count]:
            at = At(phase, index, len(self.steps), index == length - 1)
            reseed(self.bound.run.seed, "step", at.total)
            step = self.method.step(at)
            self.steps.append({name: float(value) for name, value in step.metrics.items()})
            self.ended = step.end_phase
            if self.ended:
                break
        return self

    def to_end_of(self, phase):
        return self.go(sum(1 for p, _, _ in self.plan if p <= phase) - len(self.steps))

    def evaluate(self, split="test"):
        reseed(self.bound.run.seed, "evaluate", split, len(self.steps))
        return {name: float(value) for name, value in self.method.evaluate(split).items()}

    def weights(self):
        return copied(self.method.network.state_dict())

    @property
    def head(self):
        return self.method.network.head


@pytest.fixture(scope="session", autouse=True)
def nobodys_settings():
    """Neither this person's cache nor their variables."""
    for name in [name for name in os.environ if name.startswith("ADVML_") and name != "ADVML_TEST_DATA"]:
        del os.environ[name]


@pytest.fixture(scope="session")
def play():
    """play("method=ewc", "method.strength=1"): a method at its beginning."""

    def make(*overrides, view=None):
        return Play(configure(*overrides), view)

    return make


def equal(one, other):
    """Two states of a network, bit by bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="session")
def same():
    """same(weights, weights)."""
    return equal
