"""Pruning by magnitude against a loop that sorts."""

import math

import pytest
import torch

from advml.nn.pruning import magnitude_mask


def by_hand(weight, eligible, fraction):
    pairs = zip(weight.flatten(), eligible.flatten(), strict=True)
    places = [(abs(float(w)), i) for i, (w, e) in enumerate(pairs) if e]
    kept = [i for _, i in sorted(places)[math.floor(fraction * len(places)) :]]
    mask = torch.zeros(weight.numel(), dtype=torch.bool)
    mask[kept] = True
    return mask.reshape(weight.shape)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.75, 0.999])
@pytest.mark.parametrize("shape", [(7,), (5, 9), (4, 3, 3, 3)])
def test_against_a_sorting_loop(fraction, shape):
    rng = torch.Generator().manual_seed(len(shape))
    weight = torch.randn(shape, generator=rng)
    for eligible in (torch.ones(shape, dtype=torch.bool), torch.rand(shape, generator=rng) < 0.6):
        found = magnitude_mask(weight, eligible, fraction)
        assert torch.equal(found, by_hand(weight, eligible, fraction))
        assert int(found.sum()) == int(eligible.sum()) - math.floor(fraction * int(eligible.sum()))


@pytest.mark.parametrize("fraction", [0.25, 0.5, 0.75])
def test_of_equal_weights_the_first_are_pruned(fraction):
    weight = torch.tensor([[1.0, -1, 2, 0, -0.0], [0, 1, -2, 1, -1]])
    eligible = torch.tensor([[True, True, True, True, False], [True, True, True, False, True]])
    assert torch.equal(magnitude_mask(weight, eligible, fraction), by_hand(weight, eligible, fraction))
    equal = torch.full((8,), -3.0)
    every = torch.ones(8, dtype=torch.bool)
    assert magnitude_mask(equal, every, fraction).tolist() == [i >= 8 * fraction for i in range(8)]


def test_nothing_eligible():
    nobody = torch.zeros(3, dtype=torch.bool)
    assert not magnitude_mask(torch.randn(3), nobody, 0.5).any()


def test_weights_that_are_not_eligible_do_not_count():
    weight = torch.tensor([0.0, 0.0, 5.0, 6.0])
    assert magnitude_mask(weight, torch.tensor([False, False, True, True]), 0.5).tolist() == [False, False, False, True]
