"""ε against published programs' values, against exact answers where there are some, and against integrals."""

import math
import re
import sys
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from advml.errors import ConfigError
from advml.nn import accounting
from advml.nn.accounting import check_noise, epsilon, noise_for, over_disjoint, state, usual_delta
from advml.nn.privacy import gaussian_epsilon

pytest.importorskip("dp_accounting")

# σ, q, T, δ → ε by Google's PLD accountant, by Opacus' RDP accountant.
REFERENCE = [
    (1.3, 0.004, 3750, 1e-5, 0.8336, 0.9220),
    (1.1, 0.004, 15000, 1e-5, 2.2955, 2.5029),
    (0.7, 0.004, 11250, 1e-5, 5.4312, 6.0925),
    (1.0, 0.01, 1000, 5e-4, 1.2729, 1.5010),
]


@pytest.mark.parametrize(("noise", "rate", "steps", "delta", "by_pld", "by_rdp"), REFERENCE)
def test_reference_values(noise, rate, steps, delta, by_pld, by_rdp):
    tight = epsilon("poisson", rate, noise, steps, delta)
    assert by_pld - 1e-4 <= tight <= by_pld + 1e-2
    loose = epsilon("poisson", rate, noise, steps, delta, "RDP")
    assert by_rdp - 1e-4 <= loose <= by_rdp + 1e-2
    assert tight < loose


def test_replacing_one_moves_the_sum_by_twice_the_bound():
    """dp-accounting's multiplier is one of the sensitivity: its 2.7412 at multiplier 1 is ours at σ = 2."""
    assert epsilon("fixed", 0.01, 2.0, 1000, 5e-4) == pytest.approx(2.7412, abs=1e-2)
    assert epsilon("fixed", 0.01, 1.0, 1000, 5e-4) > 10


@pytest.mark.parametrize(("rate", "noise"), [(0.9, 1.0), (0.9, 2.0)])
def test_two_members_that_pull_in_opposite_ways(rate, noise):
    """One at +C replaced by one at −C, all others 0: the exact ε of this pair is above what σ itself would be given."""
    at = np.linspace(-1 - 14 * noise, 1 + 14 * noise, 400_001)
    one, other = ((1 - rate) * stats.norm(0, noise).pdf(at) + rate * stats.norm(m, noise).pdf(at) for m in (1, -1))

    def integral(level):
        return float(np.trapezoid(np.maximum(0, one - math.exp(level) * other), at))

    assert integral(epsilon("fixed", rate, noise, 1, 1e-3)) <= 1e-3
    assert integral(epsilon("fixed", rate, 2 * noise, 1, 1e-3)) > 1e-3  # dp-accounting's, given σ as its multiplier


@pytest.mark.parametrize(("noise", "steps", "delta"), [(8.0, 10, 1e-4), (3.0, 1, 1e-5), (20.0, 100, 1e-3)])
def test_a_larger_sample_of_a_fixed_size_never_costs_less(noise, steps, delta):
    """The theorem alone asks more for nine of ten members than for all of them."""
    costs = [epsilon("fixed", rate, noise, steps, delta) for rate in (0.05, 0.2, 0.5, 0.7, 0.9, 0.99, 1.0)]
    assert costs == sorted(costs)
    assert costs[0] < 0.5 * costs[-1]
    most = [noise_for(3.0, "fixed", rate, steps, delta) for rate in (0.05, 0.7, 0.99, 1.0)]
    assert all(less <= 1.002 * more for less, more in pairwise(most))


@pytest.mark.parametrize("steps", [1, 30])
@pytest.mark.parametrize("noise", [2.0, 10.0])
def test_without_sampling_all_sums_are_one_gaussian_release(noise, steps):
    """T sums with σ tell as much as one with σ/√T, whose ε is known exactly; half of that σ where one is replaced."""
    exact = gaussian_epsilon(noise / math.sqrt(steps), 1e-5)
    assert exact - 1e-9 <= epsilon("poisson", 1.0, noise, steps, 1e-5) <= 1.002 * exact + 1e-3
    assert exact < epsilon("poisson", 1.0, noise, steps, 1e-5, "RDP") < 1.2 * exact + 0.1
    replaced = gaussian_epsilon(noise / 2 / math.sqrt(steps), 1e-5)
    assert replaced < epsilon("fixed", 1.0, noise, steps, 1e-5) < 1.2 * replaced + 0.1


@pytest.mark.parametrize(("rate", "noise", "delta"), [(0.1, 1.0, 1e-3), (0.5, 2.0, 1e-5), (0.02, 0.7, 1e-4)])
def test_one_sampled_sum_against_numerical_integration(rate, noise, delta):
    """δ(ε) = ∫ max(0, p − e^ε p'), p and p' with and without one more member, in both directions."""
    at = np.linspace(-14 * noise, 1 + 14 * noise, 400_001)
    without = stats.norm(0, noise).pdf(at)
    with_ = (1 - rate) * without + rate * stats.norm(1, noise).pdf(at)

    def integral(level):
        ways = [np.maximum(0, one - math.exp(level) * other) for one, other in ((with_, without), (without, with_))]
        return max(float(np.trapezoid(way, at)) for way in ways)

    found = epsilon("poisson", rate, noise, 1, delta)
    assert integral(found) <= delta * (1 + 1e-6)
    assert integral(found - 3e-3) > delta


def test_epsilon_grows_with_use_and_falls_with_noise():
    for sampling in ("poisson", "fixed"):
        of_steps = [epsilon(sampling, 0.05, 3.0, steps, 1e-4) for steps in (0, 1, 40, 41, 160, 161)]
        assert of_steps[0] == 0
        assert of_steps == sorted(of_steps)
        of_noise = [epsilon(sampling, 0.05, noise, 50, 1e-4) for noise in (0.0, 1.5, 2.0, 8.0)]
        assert of_noise[0] == math.inf
        assert of_noise == sorted(of_noise, reverse=True)


def test_pld_refuses_samples_of_a_fixed_size():
    with pytest.raises(ValueError, match="PLD accounts for Poisson sampling only"):
        epsilon("fixed", 0.01, 1.0, 10, 1e-5, "PLD")


# --- the noise for a target ---------------------------------------------------------------------------------------

TARGETS = [
    (1.0, "poisson", 0.02, 300, 1e-5),
    (8.0, "poisson", 0.25, 120, 1e-3),
    pytest.param(20.0, "poisson", 0.25, 120, 1e-3, marks=pytest.mark.slow),
    (3.0, "fixed", 0.01, 1000, 5e-4),
    (2.0, "poisson", 1.0, 50, 1e-5),
]


@pytest.mark.parametrize(("target", "sampling", "rate", "steps", "delta"), TARGETS)
def test_noise_for_a_target_never_exceeds_it(target, sampling, rate, steps, delta):
    noise = noise_for(target, sampling, rate, steps, delta)
    reached = epsilon(sampling, rate, noise, steps, delta)
    assert 0.999 * target <= reached <= target
    if rate == 1:
        assert gaussian_epsilon(noise / math.sqrt(steps), delta) <= target


def test_targets_out_of_reach(monkeypatch):
    monkeypatch.setattr(accounting, "NOISE", (0.25, 4.0))
    with pytest.raises(ValueError, match=r"^target_epsilon: no noise reaches ε = 0\.001 at δ = 1e-05 by PLD$"):
        noise_for(1e-3, "poisson", 0.01, 10, 1e-5)
    with pytest.raises(
        ValueError, match=r"^target_epsilon: ε = 10000 promises next to nothing: noise below 0\.25 would do$"
    ):
        noise_for(1e4, "fixed", 0.01, 10, 1e-5)


def test_hardly_any_noise_is_refused_and_none_is_not():
    """Its ε is in the hundreds, and the distribution of the privacy loss as fine as the noise."""
    with pytest.raises(
        ValueError, match=r"^noise: 0\.01 promises next to nothing; use 0\.125 or more, or 0 for no promise$"
    ):
        check_noise("client", 0.01, None)
    for kind, noise in (("client", 0.0), ("example", 0.125), ("none", 0.01)):
        check_noise(kind, noise, None)


def test_the_usual_delta_of_one_member_would_promise_nothing():
    assert usual_delta(50, "client") == 0.02
    with pytest.raises(ValueError, match=r"^delta: 1/N for N clients is 1 where there is one"):
        usual_delta(1, "client")


# --- statements ---------------------------------------------------------------------------------------------------


def test_a_statement_says_everything():
    told = state("example", "poisson", 0.01, 1.0, 1000, 5e-4)
    assert (told.relation, told.accountant) == ("add or remove one", "PLD")
    assert told.epsilon == epsilon("poisson", 0.01, 1.0, 1000, 5e-4)
    assert told.line() == (
        "ε = 1.273 at δ = 0.0005 for each example (neighbours add or remove one example), by PLD: 1000 sums with noise "
        "1 times the clipping bound over poisson samples of a share of 0.01"
    )
    other = state("client", "fixed", 0.01, 2.0, 1000, 5e-4)
    assert (other.unit, other.relation, other.accountant) == ("client", "replace one", "RDP")
    assert other.to_dict()["epsilon"] == other.epsilon
    assert state("client", "poisson", 0.01, 0.0, 1, 5e-4).to_dict()["epsilon"] is None


def test_clients_with_their_own_examples_share_one_guarantee():
    """A published mistake: ε added up over clients."""
    each = [epsilon("poisson", rate, 2.0, 20, 1e-4) for rate in (0.1, 0.2, 0.05)]
    assert over_disjoint(each) == each[1] < sum(each)


def test_without_the_package_one_line_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "dp_accounting"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "dp_accounting", None)
    accounting.epsilon.cache_clear()
    accounting._loss_distribution.cache_clear()
    with pytest.raises(ConfigError, match=r'^' + re.escape('privacy: its accountant needs dp-accounting: pip install '
                                                          '"advml[privacy]"') + "$"):  # fmt: skip
        epsilon("poisson", 0.1, 1.0, 10, 1e-5)
    assert epsilon("poisson", 0.1, 0.0, 10, 1e-5) == math.inf  # nothing to account for


def test_the_package_is_imported_on_first_use_only():
    import subprocess

    code = "import sys, advml.nn.accounting; assert 'dp_accounting' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
