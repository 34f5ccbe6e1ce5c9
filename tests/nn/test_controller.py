"""The controller of ENAS: its probabilities, its gradient by enumeration, and what it finds."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from advml.nn.search.controller import PRESETS, Controller, Reinforced, policy_loss


def rng(seed):
    return torch.Generator().manual_seed(seed)


def controller(blocks=1, operations=2, preset="code", **changes):
    torch.manual_seed(1)
    small = replace(PRESETS[preset], **{"hidden": 8, **changes})
    return Controller(blocks, operations, small).double()


def every_sequence():
    """Two cells of one block with two operations: 2 · 2 · 2 · 2 each."""
    cells = list(product(range(2), repeat=4))
    return torch.tensor([[[one], [other]] for one, other in product(cells, cells)])


def reward(cells):
    return (cells.flatten(1).double() @ torch.arange(1, 9, dtype=torch.float64)).sin()


@pytest.mark.parametrize("preset", ["paper", "code"])
def test_probabilities_sum_to_one_and_the_entropy_is_theirs(preset):
    one = controller(preset=preset)
    found = one.score(every_sequence())
    torch.testing.assert_close(found.log_probability.exp().sum(), torch.tensor(1.0, dtype=torch.float64))
    # The entropy of a sequence is that of the decisions along it: on average, the entropy of the whole.
    whole = -(found.log_probability.exp() * found.log_probability).sum()
    torch.testing.assert_close((found.log_probability.exp() * found.entropy).sum(), whole)


def test_draws_have_these_probabilities_and_know_their_own():
    one = controller(favoured=1.0)
    drawn = one.draw(20_000, rng(0))
    again = one.score(drawn.cells)
    torch.testing.assert_close(drawn.log_probability, again.log_probability)
    torch.testing.assert_close(drawn.entropy, again.entropy)
    every = every_sequence()
    code = drawn.cells.flatten(1) @ (2 ** torch.arange(7, -1, -1))
    shares = code.bincount(minlength=256) / 20_000
    torch.testing.assert_close(shares.double(), one.score(every).log_probability.exp().detach(), atol=6e-3, rtol=0)


def test_inputs_of_a_block_are_states_before_it():
    cells = controller(blocks=4, operations=5).draw(300, rng(1)).cells
    for block in range(4):
        inputs = cells[:, :, block, :2]
        assert set(inputs.unique().tolist()) == set(range(block + 2))
        assert cells[:, :, block, 2:].max() <= 4


@pytest.mark.parametrize("baseline", [0.0, 0.7])
def test_the_gradient_is_that_of_the_expected_reward(baseline):
    one, every = controller(favoured=0.5), every_sequence()
    rewards, parameters = reward(every), list(one.parameters())
    chance = one.score(every).log_probability.exp()
    exact = torch.autograd.grad((chance * rewards).sum(), parameters, allow_unused=True)
    assert sum(float(g.abs().sum()) for g in exact if g is not None) > 0
    weights = chance.detach()
    # The estimate of each sequence, weighted by how often it is drawn; policy_loss takes the mean over its rows.
    found = one.score(every)
    loss = policy_loss(found.log_probability, (rewards - baseline) * weights * len(every))
    for g, e in zip(torch.autograd.grad(loss, parameters, allow_unused=True), exact, strict=True):
        if e is not None:
            torch.testing.assert_close(-g, e, rtol=1e-9, atol=1e-12)


def test_it_finds_a_planted_architecture():
    """Rewarded by the share of its decisions that are those of one architecture, it draws hardly any other."""
    one = controller(1, 3, hidden=32, lr=0.01, constant=2.5, shrink=1.0, favoured=0.0, nudge=0.0, entropy=0.0)
    for parameter in one.parameters():
        torch.nn.init.uniform_(parameter, -0.5, 0.5, generator=rng(0))
    best = torch.tensor([[[1, 1, 2, 2]], [[0, 0, 1, 1]]])
    learner = Reinforced(one, 0.9)
    for step in range(80):
        drawn = one.draw(200, rng(step))
        learner.learn(drawn, (drawn.cells == best).flatten(1).double().mean(1))
    found = one.draw(200, rng(-1)).cells
    assert (found == best).flatten(1).all(1).double().mean() > 0.5


def test_the_average_moves_before_it_is_subtracted():
    """As in the authors' code: the first reward is compared with a hundredth of itself."""
    one = controller(entropy=0.0)
    learner = Reinforced(one, 0.9)
    drawn, before = one.draw(2, rng(3)), [p.detach().clone() for p in one.parameters()]
    learner.learn(drawn, torch.tensor([1.0, 2.0], dtype=torch.float64))
    assert float(learner.baseline) == pytest.approx(0.9 * 0.1 + 0.2)
    assert any(not torch.equal(a, b) for a, b in zip(before, one.parameters(), strict=True))


def test_its_adam_is_that_of_the_authors_code():
    """tf.train.AdamOptimizer(0.0035, beta1=0.0, epsilon=1e-3): θ ← θ − lr √(1 − β₂ᵗ) g / (√v + ε)."""
    one = controller(entropy=0.0)
    learner, square = Reinforced(one, 0.9), [torch.zeros_like(p) for p in one.parameters()]
    for update in (1, 2, 3):
        drawn, rewards = one.draw(4, rng(update)), torch.tensor([1.0, 0.2, 0.4, 0.9], dtype=torch.float64)
        baseline, advantages = learner.baseline, []
        for reward in rewards:
            baseline = 0.9 * baseline + 0.1 * reward
            advantages.append(reward - baseline)
        before = [p.detach().clone() for p in one.parameters()]
        loss = policy_loss(drawn.log_probability, torch.stack(advantages))
        gradients = torch.autograd.grad(loss, list(one.parameters()), retain_graph=True)
        learner.learn(drawn, rewards)
        rate = 0.0035 * (1 - 0.999**update) ** 0.5
        for p, old, g, v in zip(one.parameters(), before, gradients, square, strict=True):
            v.mul_(0.999).addcmul_(g, g, value=0.001)
            torch.testing.assert_close(p.detach(), old - rate * g / (v.sqrt() + 1e-3), rtol=1e-6, atol=1e-9)


def test_the_presets_are_those_of_the_specification():
    code, paper = PRESETS["code"], PRESETS["paper"]
    assert (code.hidden, code.lr, code.constant, code.shrink, code.entropy) == (64, 0.0035, 1.10, 2.5, 1e-4)
    assert (paper.hidden, paper.lr, paper.constant, paper.temperature, paper.entropy) == (100, 0.00035, 2.5, 5.0, 0.1)
    assert (code.betas, code.eps) == ((0.0, 0.999), 1e-3)
    assert (code.floor, paper.floor) == (0.0005, 0.001)
    assert Controller(5, 5, code).operation.bias.tolist() == [10, 10, 0, 0, 0]
    assert Controller(5, 5, code).nudge.tolist() == [0.25, 0.25, -0.25, -0.25, -0.25]
