"""The server's optimisers against their formulas, number by number."""

import math

import pytest
import torch

from advml.nn.server import ServerOptimiser

CHANGES = [0.3, -0.2, 0.0, 1.5, -0.01]


def by_hand(rule, lr=0.1, momentum=0.0, betas=(0.9, 0.99), tau=0.05):
    """Reddi et al. 2021, algorithm 2, for one number."""
    value, mean, square, path = 1.0, 0.0, tau**2, []
    for change in CHANGES:
        if rule == "sgd":
            mean = momentum * mean + change
            value += lr * mean
        else:
            mean = betas[0] * mean + (1 - betas[0]) * change
            if rule == "adagrad":
                square = square + change**2
            elif rule == "yogi":
                sign = (square > change**2) - (square < change**2)
                square = square - (1 - betas[1]) * change**2 * sign
            else:
                square = betas[1] * square + (1 - betas[1]) * change**2
            value += lr * mean / (math.sqrt(square) + tau)
        path.append(value)
    return path


def ours(rule, stop_at=None, **words):
    given = {"lr": 0.1, "momentum": 0.0, "betas": (0.9, 0.99), "tau": 0.05, **words}
    optimiser, value, path = ServerOptimiser(rule, **given), torch.ones(2, dtype=torch.float64), []
    for number, change in enumerate(CHANGES):
        if number == stop_at:
            state = optimiser.state_dict()
            optimiser = ServerOptimiser(rule, **given)
            optimiser.load_state_dict(state, torch.device("cpu"))
        delta = torch.tensor([change, -change], dtype=torch.float64)
        optimiser.step({"w": value}, {"w": delta, "buffer": delta})
        assert set(optimiser.mean) <= {"w"}
        path.append(value.tolist())
    return path


@pytest.mark.parametrize(
    ("rule", "words"), [("sgd", {"momentum": 0.9}), ("sgd", {"lr": 1.0}), ("adam", {}), ("yogi", {}), ("adagrad", {})]
)
def test_the_formula(rule, words):
    path = ours(rule, **words)
    assert [one for one, _ in path] == pytest.approx(by_hand(rule, **words), abs=1e-14)
    assert path == ours(rule, stop_at=3, **words)
    mirrored = [2 - other for _, other in path]
    assert mirrored == pytest.approx([one for one, _ in path], abs=1e-12)


def test_plain_sgd_with_rate_one_adds_the_change_bit_for_bit():
    optimiser = ServerOptimiser("sgd", 1.0, 0.0, (0.9, 0.99), 1e-3)
    value, change = torch.randn(5), torch.randn(5)
    expected = value + change
    optimiser.step({"w": value}, {"w": change})
    assert torch.equal(value, expected)
    assert optimiser.state_dict() == {"mean": {}, "square": {}}
