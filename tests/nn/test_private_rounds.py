"""DP-FedAvg against formulas written out by hand: weights, denominator, clipping, the noise and its size, ε."""

import math

import pytest
import torch
from scipy import stats

from advml.nn.accounting import epsilon
from advml.nn.aggregation import WeightedSum, shares
from advml.nn.private_rounds import ClientPrivacy, PrivateRoundsSettings
from advml.runner.randomness import KeyedRng

FALSE_ALARM = 1e-6  # of each statistical test; the seeds are fixed besides
SIZES = [4, 10, 7, 30, 2, 9, 9, 12]
BLOCK = {
    "kind": "client", "clip": 1.0, "noise": 1.0, "target_epsilon": None, "delta": 1e-3, "sampling": "poisson",
    "weight_cap": None, "quantile": None, "clip_speed": 0.2, "count_noise": None,
}  # fmt: skip


def private(sizes=SIZES, fraction=0.5, planned=10, seed=0, **changes):
    return ClientPrivacy(PrivateRoundsSettings(**BLOCK | changes), sizes, fraction, planned, KeyedRng(seed))


def updates(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {"weight": (count, 3, 2), "bias": (count, 3)}
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}


LIKE = {name: rows[0] for name, rows in updates(1).items()}


def round_of(privacy, number, rows):
    clients = privacy.cohort(number)
    total = privacy.new_sum(number, LIKE)
    if clients:
        given = {name: value[clients] for name, value in rows.items()}
        total.add(clients, privacy.clipped(given), privacy.weights(clients))
    return clients, total.total()


@pytest.mark.parametrize("cap", [None, 8.0])
def test_without_noise_it_is_the_clipped_weighted_sum_over_the_expected_weight(cap):
    """By a loop over clients: w_k = min(n_k/ŵ, 1), each client's norm over both tensors, divided by q W."""
    privacy, rows = private(noise=0.0, clip=1.5, weight_cap=cap), updates(8)
    weights = [1.0 if cap is None else min(size / cap, 1.0) for size in SIZES]
    for number in range(6):
        clients, found = round_of(privacy, number, rows)
        expected = {name: torch.zeros_like(value) for name, value in LIKE.items()}
        for client in clients:
            norm = math.sqrt(sum(float(value[client].square().sum()) for value in rows.values()))
            for name, value in rows.items():
                expected[name] += weights[client] * value[client] * min(1.0, 1.5 / norm) / (0.5 * sum(weights))
        for name, value in found.items():
            torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-13)


def test_a_fixed_cohort_without_noise_and_bound_is_the_uniform_mean():
    privacy, rows = private(noise=0.0, clip=1e300, sampling="fixed"), updates(8)
    clients, found = round_of(privacy, 3, rows)
    assert len(clients) == 4
    plain = WeightedSum()
    plain.add(clients, {name: value[clients] for name, value in rows.items()}, shares(torch.ones(4), "uniform"))
    for name, value in plain.total().items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-13)


@pytest.mark.parametrize("cap", [None, 40.0])
def test_the_noise_has_the_size_that_it_should_have(cap):
    """σ C / (q W), though no client here weighs 1 beside ŵ = 40: who is there does not change it.

    χ² of the whole released tensor over rounds; a chance of 1e-6 to fail where all is right.
    """
    privacy = private(noise=2.0, clip=0.3, weight_cap=cap)
    zeros = {name: torch.zeros_like(rows) for name, rows in updates(8).items()}
    weights = [1.0 if cap is None else min(size / cap, 1.0) for size in SIZES]
    deviation = 2.0 * 0.3 / (0.5 * sum(weights))
    sums = [round_of(privacy, number, zeros)[1] for number in range(300)]
    drawn = torch.cat([value.flatten() for found in sums for value in found.values()])
    statistic = float((drawn / deviation).square().sum())
    low, high = stats.chi2.interval(1 - FALSE_ALARM, len(drawn))
    assert low < statistic < high
    assert stats.kstest(drawn.numpy() / deviation, "norm").pvalue > FALSE_ALARM


def test_a_hundred_clients_are_too_few():
    """K = 100, q = 0.1, σ = 1: of 199,210 parameters the noise in the sum has 45 times the norm of an update."""
    privacy = private([5] * 100, fraction=0.1)
    found = privacy.new_sum(0, {"x": torch.zeros(199_210)}).total()
    assert float(found["x"].norm()) == pytest.approx(math.sqrt(199_210) / 10, rel=0.01)
    assert math.sqrt(199_210) / 10 == pytest.approx(45, abs=0.5)


def test_one_client_moves_the_sum_by_no_more_than_the_noise_is_scaled_to():
    """σ C / (q W) for σ = 1 is the most that the divided sum moves when one of its clients is left out."""
    privacy, rows = private(noise=0.0, clip=0.4, weight_cap=30.0), updates(8)
    most = private(noise=1.0, clip=0.4, weight_cap=30.0).deviation()

    def summed(clients):
        total = privacy.new_sum(0, LIKE)
        total.add(clients, privacy.clipped({k: v[clients] for k, v in rows.items()}), privacy.weights(clients))
        return torch.cat([value.flatten() for value in total.total().values()])

    everyone = list(range(8))
    moved = [float((summed(everyone) - summed([k for k in everyone if k != gone])).norm()) for gone in everyone]
    assert max(moved) == pytest.approx(most, rel=1e-12)  # by the heaviest of those that were clipped


def test_a_round_without_clients_releases_noise_too():
    privacy = private(fraction=1e-6, noise=1.0)
    clients, found = round_of(privacy, 0, updates(8))
    assert clients == []
    assert all(bool(value.all()) for value in found.values())


def test_an_update_that_is_no_number_counts_as_zeros():
    privacy, rows = private(), updates(3)
    rows["bias"][1, 0], rows["weight"][2, 0, 0] = float("nan"), float("inf")
    clipped = privacy.clipped(rows)
    for name, value in clipped.items():
        assert not value[1:].any()
        assert bool(value[0].any()), name


def test_noise_and_cohort_follow_from_the_round_alone():
    one, other, rows = private(), private(), updates(8)
    later = round_of(one, 7, rows)
    for number in (0, 3):
        round_of(other, number, rows)
    again = round_of(other, 7, rows)
    assert later[0] == again[0]
    assert all(torch.equal(later[1][name], again[1][name]) for name in LIKE)
    assert not torch.equal(round_of(private(seed=1), 7, rows)[1]["bias"], later[1]["bias"])


def test_poisson_cohorts_have_the_rate():
    privacy = private([1] * 50, fraction=0.2)
    drawn = [privacy.cohort(number) for number in range(400)]
    assert stats.binomtest(sum(map(len, drawn)), 400 * 50, 0.2).pvalue > FALSE_ALARM
    assert len(set(map(len, drawn))) > 5


# --- the bound that adapts ---


def test_the_bound_goes_to_the_quantile_of_the_norms():
    """Norms 1 … 200, from far below: after 150 rounds near 0.7 of them, the noise of the count notwithstanding."""
    privacy = private([5] * 200, fraction=0.5, quantile=0.7, clip=0.01, noise=0.5, clip_speed=0.3)
    rows = {"x": torch.arange(1.0, 201.0, dtype=torch.float64).unsqueeze(1)}
    for number in range(150):
        clients = privacy.cohort(number)
        privacy.clipped({name: value[clients] for name, value in rows.items()})
        told = privacy.end_round(number)
    assert 110 < privacy.clip < 170
    assert type(told["clipped"]) is float  # no tensor of the CPU's, which records could not stack with the others
    assert 0.1 < told["clipped"] < 0.5


def test_the_count_is_paid_for():
    """1/z² = 1/z_Δ² + 1/(2σ_b)²; ε is that of z."""
    privacy = private([5] * 200, quantile=0.5, noise=1.0)
    assert privacy.count_noise == pytest.approx(200 * 0.5 / 20)
    assert 1 / privacy.on_updates**2 + 1 / (2 * privacy.count_noise) ** 2 == pytest.approx(1.0)
    assert privacy.on_updates > 1.0
    assert private(quantile=None, noise=1.0).on_updates == 1.0
    with pytest.raises(ValueError, match="count"):
        private([5] * 8, quantile=0.5, noise=1.0)  # a twentieth of four clients hides nobody


# --- what it costs ---


@pytest.mark.parametrize("sampling", ["poisson", "fixed"])
def test_epsilon_is_that_of_the_rounds_done(sampling):
    privacy = private([5] * 100, fraction=0.1, sampling=sampling)
    assert privacy.epsilon() == 0.0
    for number in range(4):
        privacy.end_round(number)
    assert privacy.epsilon() == epsilon(sampling, 0.1, 1.0, 4, 1e-3)
    said = privacy.to_dict()
    assert (said["unit"], said["sampling"], said["steps"], said["delta"]) == ("client", sampling, 4, 1e-3)
    assert "for each client" in said["statement"]


def test_a_target_is_met_and_never_exceeded():
    privacy = private([5] * 100, fraction=0.1, planned=20, noise=None, target_epsilon=2.0)
    for number in range(20):
        privacy.end_round(number)
    assert 2.0 * 0.999 <= privacy.epsilon() <= 2.0


def test_restoring_an_earlier_state_forgets_no_round():
    privacy = private()
    privacy.end_round(0)
    early = privacy.state_dict()
    privacy.end_round(1)
    privacy.load_state_dict(early)
    assert privacy.released == 2
    fresh = private()
    fresh.load_state_dict(early)
    assert fresh.released == 1


def test_without_noise_nothing_is_promised():
    privacy = private(noise=0.0)
    privacy.end_round(0)
    assert privacy.epsilon() is None


@pytest.mark.parametrize("changes", [{"noise": None}, {"target_epsilon": 3.0}])
def test_noise_or_a_target_but_not_both(changes):
    with pytest.raises(ValueError, match="noise"):
        private(**changes)
