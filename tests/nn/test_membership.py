"""The attack's measures against scikit-learn, counts by hand, and intervals that cover as often as they say."""

import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve

from advml.nn.membership import auc, true_positives, wilson


def scores(seed=0, members=60, others=90, shift=0.5, places=2):
    """Rounded, so that some are equal."""
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(members + others, generator=generator, dtype=torch.float64)
    draw[:members] += shift
    draw = (draw * 10**places).round() / 10**places
    return draw[:members], draw[members:]


@pytest.mark.parametrize("places", [0, 1, 8])
def test_the_area_is_that_of_scikit_learn(places):
    members, others = scores(places=places)
    labels = [1] * len(members) + [0] * len(others)
    expected = roc_auc_score(labels, torch.cat([members, others]).numpy())
    found = auc(members, others)
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert found.low < found.value < found.high


@pytest.mark.parametrize("rate", [0.0, 0.01, 0.1, 0.5])
def test_the_rate_is_the_best_on_the_roc_curve_that_keeps_to_the_false_positives(rate):
    members, others = scores(members=300, others=400)
    labels = [1] * 300 + [0] * 400
    false, true, _ = roc_curve(labels, torch.cat([members, others]).numpy(), drop_intermediate=False)
    expected = max(t for f, t in zip(false, true, strict=True) if f <= rate + 1e-12)
    assert true_positives(members, others, rate).value == pytest.approx(expected, abs=1e-12)


def test_with_no_others_allowed_less_everything_is_told():
    assert true_positives(torch.tensor([2.0, 3.0]), torch.tensor([0.0, 1.0]), 0.0).value == 1.0
    assert true_positives(torch.tensor([0.0]), torch.tensor([0.0, 1.0]), 1.0).value == 1.0
    assert auc(torch.tensor([1.0]), torch.tensor([1.0])).value == 0.5


def test_intervals_of_shares_are_wilsons():
    expected = stats.binomtest(7, 40).proportion_ci(method="wilson")
    found = wilson(7, 40)
    assert (found.low, found.high) == (pytest.approx(expected.low, abs=1e-6), pytest.approx(expected.high, abs=1e-6))
    assert wilson(0, 10).low == 0.0
    assert wilson(10, 10).high == 1.0


def test_intervals_of_the_area_cover_it():
    """400 samples from normals a half apart: the true area is Φ(½/√2); at least 90 % cover it, at most 99 %."""
    truth = float(stats.norm.cdf(0.5 / 2**0.5))
    hits = 0
    for seed in range(400):
        found = auc(*scores(seed, places=8))
        hits += found.low <= truth <= found.high
    assert 360 <= hits <= 396
