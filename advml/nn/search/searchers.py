"""Searchers that ask for points and are told their scores; larger is better. R independent searches go side by side.

A searcher keeps no generator: `ask` is given one, keyed by the number of the question, so that a search stopped and
resumed asks the same. R searches of a table cost hardly more than one; a search by training has R = 1.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from advml.nn.optimisers import Adam
from advml.nn.search.choices import Choices

LOWEST = -1e300
"""Worse than any score, and finite: a state that is not looks like a fault."""


class Searcher(Protocol):
    """`ask` and `tell` alternate."""

    def ask(self, rng: torch.Generator) -> Tensor:
        """The next points [R, P]."""
        ...

    def tell(self, points: Tensor, scores: Tensor) -> None:
        """What the points that were asked for are worth, [R] float64."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that the next question depends on."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        ...


class Random:
    """Uniform points, whatever the scores: what every other searcher must beat."""

    def __init__(self, choices: Choices, repeats: int) -> None:
        self.choices, self.repeats = choices, repeats

    def ask(self, rng: torch.Generator) -> Tensor:
        """Uniform points."""
        return self.choices.draw(self.repeats, rng)

    def tell(self, points: Tensor, scores: Tensor) -> None:
        """Nothing is learned."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing."""


class Evolution:
    """Regularised evolution (Real, Aggarwal, Huang, Le 2019, algorithm 1).

    A population of `size` starts at random. Then: draw `sample` members with replacement, mutate the best of them in
    one choice, put the child in the place of the *oldest* member.
    """

    def __init__(self, choices: Choices, repeats: int, size: int = 10, sample: int = 3) -> None:
        self.choices, self.repeats, self.size, self.sample = choices, repeats, size, sample
        self.points = torch.zeros((repeats, size, len(choices.counts)), dtype=torch.int64)
        self.scores = torch.zeros((repeats, size), dtype=torch.float64)
        self.born = 0  # members so far; number i lives at place i mod size

    def ask(self, rng: torch.Generator) -> Tensor:
        """Random points until the population is full, then a child."""
        if self.born < self.size:
            return self.choices.draw(self.repeats, rng)
        rows = torch.arange(self.repeats)
        drawn = torch.randint(self.size, (self.repeats, self.sample), generator=rng)
        best = drawn[rows, self.scores.gather(1, drawn).argmax(1)]
        return self.choices.mutate(self.points[rows, best], rng)

    def tell(self, points: Tensor, scores: Tensor) -> None:
        """The newest takes the place of the oldest."""
        place = self.born % self.size
        self.points[:, place], self.scores[:, place] = points, scores
        self.born += 1

    def state_dict(self) -> dict[str, Any]:
        """The population and its age."""
        return {"points": self.points, "scores": self.scores, "born": self.born}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.points, self.scores, self.born = state["points"].clone(), state["scores"].clone(), state["born"]


class Reinforce:
    """REINFORCE (Williams 1992) on independent logits, one row for each choice, moved by Adam.

    x_p ~ softmax(θ_p); θ moves along (score − b) ∇ log p(x), where b is the running average of scores: the first one
    to begin with, then b ← decay · b + (1 − decay) · score.
    """

    def __init__(self, choices: Choices, repeats: int, lr: float = 0.1, decay: float = 0.9) -> None:
        self.choices, self.decay = choices, decay
        options = torch.arange(max(choices.counts))
        self.closed = options >= choices.limits.unsqueeze(1)  # [P, C]: alternatives that a choice does not have
        self.logits = nn.Parameter(torch.zeros((repeats, *self.closed.shape), dtype=torch.float64))
        self.optimiser = Adam([self.logits], lr)
        self.baseline: Tensor | None = None

    def probabilities(self) -> Tensor:
        """[R, P, C]."""
        return self.logits.detach().masked_fill(self.closed, float("-inf")).softmax(2)

    def ask(self, rng: torch.Generator) -> Tensor:
        """One draw from each distribution."""
        self.drawn_from = self.probabilities()
        below = self.drawn_from.cumsum(2)[..., :-1]
        even = torch.rand((*below.shape[:2], 1), generator=rng, dtype=torch.float64)
        return torch.minimum((even >= below).sum(2), self.choices.limits - 1)

    def tell(self, points: Tensor, scores: Tensor) -> None:
        """One step up. A score that is undefined says nothing of how much to move: no step."""
        if bool((scores <= LOWEST).any()):
            return
        before = scores if self.baseline is None else self.baseline
        self.logits.grad = -estimate(self.drawn_from, points, scores - before)
        self.optimiser.step()
        self.baseline = scores if self.baseline is None else self.decay * before + (1 - self.decay) * scores

    def state_dict(self) -> dict[str, Any]:
        """Logits, Adam's moments, the average."""
        return {
            "logits": self.logits.detach(), "optimiser": self.optimiser.state_dict(), "baseline": self.baseline
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.logits.data = state["logits"].clone()
        self.optimiser.load_state_dict(state["optimiser"])
        self.baseline = None if state["baseline"] is None else state["baseline"].clone()


class LocalSearch:
    """Hill climbing (White, Nolen, Savani 2021, "Exploring the loss landscape in neural architecture search").

    From a random point look at its neighbours, those with one choice changed, in random order. `first`: go to the
    first that is better; `best`: look at all and go to the best. Where none is better, begin anew at random.
    """

    def __init__(self, choices: Choices, repeats: int, climb: Literal["first", "best"] = "first") -> None:
        self.choices, self.repeats, self.climb = choices, repeats, climb
        self.at = torch.zeros((repeats, len(choices.counts)), dtype=torch.int64)  # where each search stands
        self.height = torch.full((repeats,), LOWEST, dtype=torch.float64)
        self.order = torch.zeros((repeats, choices.moves), dtype=torch.int64)  # in which neighbours are looked at
        self.looked = torch.full((repeats,), -1)  # neighbours looked at; −1: a start is wanted
        self.found = self.at.clone()  # `best`: the best neighbour so far, and its score
        self.found_score = self.height.clone()

    def ask(self, rng: torch.Generator) -> Tensor:
        """A start or the next neighbour, each search for itself."""
        if not self.choices.moves:
            return self.choices.draw(self.repeats, rng)
        fresh = self.looked == 0
        orders = torch.rand((self.repeats, self.choices.moves), generator=rng).argsort(1)
        self.order = torch.where(fresh.unsqueeze(1), orders, self.order)
        move = self.order.gather(1, self.looked.clamp_min(0).unsqueeze(1)).squeeze(1)
        start = self.choices.draw(self.repeats, rng)
        return torch.where((self.looked < 0).unsqueeze(1), start, self.choices.moved(self.at, move))

    def tell(self, points: Tensor, scores: Tensor) -> None:
        """Go there, look on, or give up."""
        if not self.choices.moves:
            return
        started = self.looked < 0
        better = started | (scores > self.found_score)  # of a start whose score is undefined too
        self.found = torch.where(better.unsqueeze(1), points, self.found)
        self.found_score = torch.where(better, scores, self.found_score)
        looked = self.looked + 1
        ended = looked == self.choices.moves
        climbs = self.found_score > self.height
        goes = started | (climbs & (ended if self.climb == "best" else ~started))
        stuck = ended & ~goes
        self.at = torch.where(goes.unsqueeze(1), self.found, self.at)
        self.height = torch.where(goes, self.found_score, self.height)
        self.looked = torch.where(goes, 0, torch.where(stuck, -1, looked))
        lowest = torch.full_like(self.height, LOWEST)
        self.height = torch.where(stuck, lowest, self.height)
        self.found_score = torch.where(stuck, lowest, self.found_score)

    def state_dict(self) -> dict[str, Any]:
        """Where every search stands."""
        return {name: getattr(self, name) for name in ("at", "height", "order", "looked", "found", "found_score")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        for name, value in state.items():
            setattr(self, name, value.clone())


def estimate(probabilities: Tensor, points: Tensor, advantages: Tensor) -> Tensor:
    """advantage · ∇θ log p(x) [R, P, C], of points [R, P] and advantages [R]; ∇ log softmax = onehot − p."""
    gradient = -probabilities
    gradient.scatter_add_(2, points.unsqueeze(2), torch.ones_like(gradient[..., :1]))
    return gradient * advantages.view(-1, 1, 1)
