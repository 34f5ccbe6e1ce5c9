"""Searchers over finite choices: each against its algorithm written out, resumed, and on a planted best point."""

from collections import deque
from itertools import product
from zlib import crc32

import pytest
import torch

from advml.nn.search.choices import Choices
from advml.nn.search.searchers import LOWEST, Evolution, LocalSearch, Random, Reinforce, estimate
from advml.nn.search.tpe import ParzenEstimator

COUNTS = (3, 1, 4, 2)
MAKERS = {
    "random": Random,
    "evolution": lambda *a: Evolution(*a, size=6, sample=3),
    "reinforce": Reinforce,
    "first": lambda *a: LocalSearch(*a, climb="first"),
    "best": lambda *a: LocalSearch(*a, climb="best"),
    "tpe": lambda *a: ParzenEstimator(*a, start=4),
}
every = pytest.mark.parametrize("name", MAKERS)


def rng(*key):
    return torch.Generator().manual_seed(crc32(repr(key).encode()))


def score(points):
    """A rugged function with one best point, (2, 0, 1, 1)."""
    far = (points - torch.tensor([2, 0, 1, 1])).abs()
    return -(far.sum(1) + 0.3 * (points.sum(1) % 2)).double()


def play(searcher, steps, start=0):
    told = []
    for step in range(start, start + steps):
        points = searcher.ask(rng("ask", step))
        scores = score(points)
        searcher.tell(points, scores)
        told.append((points, scores))
    return told


class TestChoices:
    choices = Choices(COUNTS)
    every_point = torch.tensor(list(product(*map(range, COUNTS))))

    def test_points_are_numbered_in_order(self):
        assert self.choices.number(self.every_point).tolist() == list(range(24))

    def test_draws_are_even(self):
        counts = self.choices.number(self.choices.draw(24_000, rng(0))).bincount(minlength=24)
        assert ((counts - 1000).abs() < 150).all()

    def test_moves_reach_each_neighbour_once(self):
        point = self.every_point[13:14]
        found = self.choices.moved(point.repeat(self.choices.moves, 1), torch.arange(self.choices.moves))
        neighbours = self.every_point[(self.every_point != point).sum(1) == 1]
        assert sorted(found.tolist()) == sorted(neighbours.tolist())

    def test_a_mutation_is_a_neighbour_and_places_are_drawn_evenly(self):
        point = self.every_point[7]
        found = self.choices.mutate(point.repeat(9000, 1), rng(1))
        assert ((found != point).sum(1) == 1).all()
        changed = (found != point).sum(0)
        assert changed[1] == 0
        assert ((changed[[0, 2, 3]] - 3000).abs() < 300).all()


@every
def test_it_asks_for_points_of_the_space(name):
    for points, _ in play(MAKERS[name](Choices(COUNTS), 5), 30):
        assert points.shape == (5, 4)
        assert ((points >= 0) & (points < torch.tensor(COUNTS))).all()


@every
def test_stopped_and_resumed_it_asks_the_same(name):
    live = MAKERS[name](Choices(COUNTS), 3)
    play(live, 15)
    state = {key: value.clone() if isinstance(value, torch.Tensor) else value
             for key, value in live.state_dict().items()}  # fmt: skip
    if name == "reinforce":
        state["optimiser"]["slots"] = {k: [t.clone() for t in v] for k, v in state["optimiser"]["slots"].items()}
    fresh = MAKERS[name](Choices(COUNTS), 3)
    fresh.load_state_dict(state)
    for (one, _), (other, _) in zip(play(live, 15, 15), play(fresh, 15, 15), strict=True):
        assert torch.equal(one, other)


@every
def test_searches_side_by_side_do_not_touch_each_other(name):
    """Whatever the second search is told, the first asks the same."""
    asked = []
    for spoilt in (False, True):
        searcher = MAKERS[name](Choices(COUNTS), 2)
        for step in range(25):
            points = searcher.ask(rng("ask", step))
            scores = score(points)
            if spoilt:
                scores[1] = float(step)
            searcher.tell(points, scores)
            asked.append(points)
    first, second = asked[:25], asked[25:]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(first, second, strict=True))
    if name != "random":
        assert any(not torch.equal(a[1], b[1]) for a, b in zip(first, second, strict=True))


@every
def test_a_space_of_one_point(name):
    told = play(MAKERS[name](Choices((1, 1, 1, 1)), 2), 9)
    assert all(torch.equal(points, torch.zeros_like(points)) for points, _ in told)


@pytest.mark.parametrize("name", ["evolution", "first", "best", "tpe", "reinforce"])
def test_it_beats_random_search_on_a_larger_space(name):
    choices = Choices([5] * 6)

    repeats, steps = (4, 60) if name == "tpe" else (20, 120)  # Optuna takes 5 ms for a point

    def best(make):
        searcher, found = make(choices, repeats), torch.full((repeats,), float("-inf"), dtype=torch.float64)
        for step in range(steps):
            points = searcher.ask(rng("large", step))
            scores = -(points - 2).abs().sum(1).double()
            searcher.tell(points, scores)
            found = found.maximum(scores)
        return float(found.mean())

    assert best(MAKERS[name]) > best(Random) + 0.3


def test_evolution_is_algorithm_1():
    """A queue in plain Python, given the same draws."""
    searcher = Evolution(Choices(COUNTS), 1, size=6, sample=3)
    queue = deque()
    for step, (points, scores) in enumerate(play(searcher, 40)):
        if step >= 6:
            draws = rng("ask", step)
            drawn = torch.randint(6, (1, 3), generator=draws)[0].tolist()
            # Member i of the population tensor is the one whose number is i modulo the size.
            members = {number % 6: (point, value) for number, point, value in queue}
            parent = max((members[place] for place in drawn), key=lambda one: one[1])[0]
            assert torch.equal(points[0], searcher.choices.mutate(parent.unsqueeze(0), draws)[0])
        queue.append((step, points[0], float(scores[0])))
        if len(queue) > 6:
            queue.popleft()


@pytest.mark.parametrize("climb", ["first", "best"])
def test_local_search_climbs_as_said(climb):
    """The walk of one search, told apart from outside."""
    told = [(p[0].tolist(), float(s[0])) for p, s in play(MAKERS[climb](Choices(COUNTS), 1), 200)]
    at, height, seen, starts = None, None, [], 0
    for point, value in told:
        if at is None:
            at, height, seen, starts = point, value, [], starts + 1
            continue
        assert sum(a != b for a, b in zip(point, at, strict=True)) == 1
        assert point not in [one for one, _ in seen]
        seen.append((point, value))
        best = max(seen, key=lambda one: one[1])
        if best[1] > height and (climb == "first" or len(seen) == 6):
            (at, height), seen = best, []
        elif len(seen) == 6:
            at = None
    assert starts > 2
    assert max(value for _, value in told) == 0 == score(torch.tensor([[2, 0, 1, 1]]))[0] + 0.0


@pytest.mark.parametrize("climb", ["first", "best"])
def test_local_search_stands_where_it_started_though_its_score_is_undefined(climb):
    searcher = MAKERS[climb](Choices(COUNTS), 1)
    points = searcher.ask(rng("undefined", 0))
    searcher.tell(points, torch.tensor([LOWEST], dtype=torch.float64))
    assert torch.equal(searcher.at, points)
    near = searcher.ask(rng("undefined", 1))
    assert int((near != points).sum()) == 1
    assert torch.equal(near, searcher.ask(rng("undefined", 1)))


def test_reinforce_learns_on_after_undefined_scores():
    searcher = MAKERS["reinforce"](Choices(COUNTS), 1)
    for step in range(400):
        points = searcher.ask(rng("undefined", step))
        searcher.tell(points, score(points) if step % 5 else torch.tensor([LOWEST], dtype=torch.float64))
    assert float(score(searcher.probabilities().argmax(2))) == 0  # the best of the space


def test_the_reinforce_estimate_is_unbiased():
    """Its expectation by enumeration = the gradient of the expected score by autograd, with any baseline."""
    choices = Choices(COUNTS)
    searcher = Reinforce(choices, 1)
    searcher.logits.data = torch.randn(searcher.logits.shape, generator=rng(5), dtype=torch.float64)
    every_point = torch.tensor(list(product(*map(range, COUNTS))))
    values = score(every_point)

    def chance(logits):
        p = logits.masked_fill(searcher.closed, float("-inf")).softmax(1)
        return p.gather(1, every_point.T).prod(0)

    logits = searcher.logits[0].detach().requires_grad_()
    (exact,) = torch.autograd.grad((chance(logits) * values).sum(), logits)
    weights = chance(logits.detach())
    for baseline in (0.0, -1.7):
        pieces = [estimate(searcher.probabilities(), point.unsqueeze(0), (value - baseline).unsqueeze(0))[0]
                  for point, value in zip(every_point, values, strict=True)]  # fmt: skip
        expected = (torch.stack(pieces) * weights.view(-1, 1, 1)).sum(0)
        torch.testing.assert_close(expected, exact)


def test_reinforce_draws_from_its_probabilities():
    searcher = Reinforce(Choices((3, 2)), 30_000)
    searcher.logits.data[:, 0] = torch.tensor([0.0, 1.0, -1.0], dtype=torch.float64)
    searcher.logits.data[:, 1, :2] = torch.tensor([2.0, 0.0], dtype=torch.float64)
    drawn = searcher.ask(rng(9))
    shares = torch.stack([(drawn[:, 0] == k).double().mean() for k in range(3)])
    torch.testing.assert_close(shares, searcher.probabilities()[0, 0], atol=0.01, rtol=0)
    torch.testing.assert_close((drawn[:, 1] == 0).double().mean(), searcher.probabilities()[0, 1, 0], atol=0.01, rtol=0)
