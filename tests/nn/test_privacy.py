"""Sampling, noise, client updates and single releases: against formulas, counts and integrals computed otherwise."""

import math

import pytest
import torch
from scipy import integrate, stats

from advml.nn.privacy import (
    add_noise,
    classical_noise,
    client_weights,
    clip_factors,
    fixed_sample,
    gaussian_delta,
    gaussian_epsilon,
    gaussian_noise,
    next_clip,
    noise_beside_count,
    poisson_sample,
    update_norms,
)

FALSE_ALARM = 1e-6  # how often one test of a random draw would fail though all is right; seeds are fixed besides


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def as_many_as_expected(observed, expected):
    """Pearson's chi-square test of counts."""
    assert stats.chisquare(observed, expected).pvalue > FALSE_ALARM


# --- who is sampled -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [0.02, 0.3])
def test_poisson_samples_are_independent_coins(rate):
    count, rounds = 40, 3000
    samples = [poisson_sample(count, rate, seeded(s)) for s in range(rounds)]
    assert all(torch.equal(sample, sample.unique()) and sample.dtype == torch.int64 for sample in samples)
    chosen = torch.bincount(torch.cat(samples), minlength=count)  # of each: binomial
    total = float(((chosen - rounds * rate) ** 2).sum()) / (rounds * rate * (1 - rate))
    assert stats.chi2(count).ppf(FALSE_ALARM / 2) < total < stats.chi2(count).ppf(1 - FALSE_ALARM / 2)
    sizes = torch.tensor([len(sample) for sample in samples])
    law = stats.binom(count, rate)
    cut = [k for k in range(count + 1) if law.pmf(k) * rounds >= 5]  # the rest are counted together at each end
    observed = [int((sizes <= cut[0]).sum()), *(int((sizes == k).sum()) for k in cut[1:-1])]
    expected = [law.cdf(cut[0]), *(law.pmf(k) for k in cut[1:-1]), law.sf(cut[-1] - 1)]
    as_many_as_expected([*observed, int((sizes >= cut[-1]).sum())], [rounds * p for p in expected])
    assert (rate > 0.1) != bool((sizes == 0).any())  # a sample may be empty


def test_poisson_at_the_ends():
    assert torch.equal(poisson_sample(7, 1.0, seeded()), torch.arange(7))
    assert poisson_sample(7, 0.0, seeded()).shape == (0,)
    assert poisson_sample(0, 0.5, seeded()).shape == (0,)


def test_fixed_samples_are_subsets_of_one_size():
    samples = [fixed_sample(10, 3, seeded(s)) for s in range(2000)]
    assert all(len(sample.unique()) == 3 for sample in samples)
    counts = torch.bincount(torch.cat(samples))
    as_many_as_expected([int(c) for c in counts], [600] * 10)
    assert torch.equal(fixed_sample(5, 5, seeded()).sort().values, torch.arange(5))


@pytest.mark.parametrize("sample", [lambda g: poisson_sample(50, 0.3, g), lambda g: fixed_sample(50, 9, g)])
def test_samples_follow_from_the_generator_alone(sample):
    first = sample(seeded(3))
    torch.rand(5)
    assert torch.equal(first, sample(seeded(3)))
    assert not torch.equal(first, sample(seeded(4)))


# --- noise --------------------------------------------------------------------------------------------------------


def drawn(deviation, seed=0, size=20_000):
    values = [torch.zeros(size // 2), torch.zeros(size // 20, 10)]
    add_noise(values, deviation, seeded(seed))
    return torch.cat([part.flatten() for part in values]).double()


@pytest.mark.parametrize("deviation", [0.01, 1.0, 7.0])
def test_the_variance_of_the_noise(deviation):
    """Σ z² / σ² follows χ² with as many degrees of freedom as numbers; false alarms: 1e-6 of all seeds, both tails."""
    noise = drawn(deviation)
    law = stats.chi2(len(noise))
    assert law.ppf(FALSE_ALARM / 2) < float(noise.square().sum()) / deviation**2 < law.ppf(1 - FALSE_ALARM / 2)
    assert stats.kstest(noise / deviation, "norm").pvalue > FALSE_ALARM
    wrong = float(drawn(1.05 * deviation).square().sum()) / deviation**2
    assert not law.ppf(FALSE_ALARM / 2) < wrong < law.ppf(1 - FALSE_ALARM / 2)  # the test sees 5 % too much


def test_the_noise_is_as_large_on_every_call():
    """A published mistake: the scale divided (by the batch, the cohort) once more at every call."""
    law = stats.chi2(20_000)
    for call in range(5):
        total = float(drawn(3.0, seed=call).square().sum()) / 9
        assert law.ppf(FALSE_ALARM / 2) < total < law.ppf(1 - FALSE_ALARM / 2)


def test_noise_is_added_in_place_and_follows_from_the_generator_alone():
    start = [torch.randn(3, 4, generator=seeded(1)), torch.randn(5, generator=seeded(2))]
    once, again = ([values.clone() for values in start] for _ in range(2))
    add_noise(once, 0.5, seeded(3))
    torch.rand(9)
    add_noise(again, 0.5, seeded(3))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
    assert not any((a == b).any() for a, b in zip(once, start, strict=True))
    add_noise(again, 0.0, seeded(3))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))


# --- clients ------------------------------------------------------------------------------------------------------


def updates(clients=6, seed=0):
    generator = seeded(seed)
    return [torch.randn(clients, *shape, generator=generator, dtype=torch.float64) for shape in [(3, 2), (4,), ()]]


def test_the_norm_of_an_update_is_over_all_its_tensors():
    before = updates()
    norms = torch.stack([torch.cat([values[k].flatten() for values in before]).norm() for k in range(6)])
    torch.testing.assert_close(update_norms(before), norms, rtol=1e-14, atol=0)


def test_factors():
    norms = torch.tensor([0.0, 0.5, 1.0, 2.0, 8.0])
    assert clip_factors(norms, 1.0).tolist() == [1.0, 1.0, 1.0, 0.5, 0.125]
    assert clip_factors(norms, math.inf).tolist() == [1.0] * 5


def test_weights():
    assert client_weights(torch.tensor([5, 10, 40]), 10).tolist() == [0.5, 1.0, 1.0]
    assert client_weights(torch.tensor([5, 10, 40]), None).tolist() == [1.0] * 3


def test_adaptive_clipping_finds_the_quantile():
    """Log-normal norms: C settles at their γ-quantile, and without noise at the right place whatever it starts from."""
    norms = stats.lognorm(0.8, scale=3.0)
    for quantile, clip, deviation in ((0.5, 0.01, 0.0), (0.8, 100.0, 5.0)):
        path = []
        for step in range(300):
            seen = torch.tensor(norms.rvs(200, random_state=step))
            clip = next_clip(
                clip, seen, quantile=quantile, speed=0.2, expected=200, deviation=deviation, generator=seeded(step)
            )
            path.append(clip)
        settled = math.exp(sum(map(math.log, path[150:])) / 150)
        assert settled == pytest.approx(norms.ppf(quantile), rel=0.05)


def test_the_count_is_of_norms_not_above_the_bound():
    def moved(norms, **more):
        known = {"quantile": 0.5, "speed": 1.0, "expected": 4.0, "deviation": 0.0, "generator": seeded()}
        return math.log(next_clip(2.0, torch.tensor(norms), **known | more) / 2.0)

    assert moved([1.0, 2.0, 3.0, 4.0]) == pytest.approx(0)
    assert moved([1.0, 1.0, 1.0, 4.0]) == pytest.approx(-0.25)
    assert moved([1.0, 1.0, 1.0, 4.0], quantile=0.9) == pytest.approx(0.15)
    assert moved([]) == pytest.approx(0)  # nobody there: no reason to move from a share of one half
    assert moved([1.0] * 4, deviation=3.0, generator=seeded(1)) != moved([1.0] * 4, deviation=3.0, generator=seeded(2))


def test_noise_is_shared_between_updates_and_count():
    """Both together cost what one release with the whole multiplier costs: ε of the pair by its own Gaussian."""
    for noise, deviation in ((1.0, 5.0), (0.7, 0.4), (2.0, 1.01)):
        beside = noise_beside_count(noise, deviation)
        assert beside > noise
        # Scaled to unit noise, the pair of sums moves by a vector of this length when one client comes or goes.
        length = math.hypot(1 / beside, 0.5 / deviation)
        assert gaussian_epsilon(1 / length, 1e-5) == pytest.approx(gaussian_epsilon(noise, 1e-5), rel=1e-9)
    with pytest.raises(ValueError, match="needs more"):
        noise_beside_count(1.0, 0.5)
    assert noise_beside_count(0.0, 1.0) == 0.0


# --- one release --------------------------------------------------------------------------------------------------


def by_integration(noise, epsilon):
    """δ = ∫ max(0, p − e^ε q) for p = N(1, σ²), q = N(0, σ²): the definition, without Φ."""
    p, q = stats.norm(1, noise), stats.norm(0, noise)
    start = epsilon * noise**2 + 0.5  # where p = e^ε q
    value, _ = integrate.quad(lambda x: p.pdf(x) - math.exp(epsilon) * q.pdf(x), start, start + 12 * noise, epsabs=0,
                              epsrel=1e-11, limit=200)  # fmt: skip
    return value


@pytest.mark.parametrize("noise", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("epsilon", [0.0, 0.1, 1.0, 3.0])
def test_delta_against_numerical_integration(noise, epsilon):
    assert gaussian_delta(noise, epsilon) == pytest.approx(by_integration(noise, epsilon), rel=1e-8)


@pytest.mark.parametrize("delta", [1e-2, 1e-5, 1e-9])
@pytest.mark.parametrize("epsilon", [0.1, 0.9, 2.0, 10.0])
def test_analytic_gaussian_mechanism(epsilon, delta):
    """There and back; the noise is just enough by the integral, and a little less would not be."""
    noise = gaussian_noise(epsilon, delta)
    assert gaussian_epsilon(noise, delta) == pytest.approx(epsilon, rel=1e-9)
    assert gaussian_delta(noise, epsilon) <= delta
    assert by_integration(noise, epsilon) == pytest.approx(delta, rel=1e-6)
    assert by_integration(0.999 * noise, epsilon) > delta


def test_the_ends():
    assert gaussian_epsilon(1.0, 0.5) == 0.0  # δ alone suffices
    assert gaussian_epsilon(0.0, 1e-5) == math.inf
    assert gaussian_delta(0.0, 3.0) == 1.0


@pytest.mark.parametrize("epsilon", [0.1, 0.5, 0.99])
def test_the_classical_formula_wastes_below_one(epsilon):
    classical = classical_noise(epsilon, 1e-5)
    assert classical == pytest.approx(math.sqrt(2 * math.log(1.25e5)) / epsilon)
    assert classical > gaussian_noise(epsilon, 1e-5)


def test_the_classical_formula_is_refused_from_one_on():
    """At ε = 12 and δ = 1e-5 it would give less noise than needed."""
    for epsilon in (1.0, 2.0, 12.0):
        with pytest.raises(ValueError, match=r"^the classical formula holds for ε below 1, not [\d.]+; use .*$"):
            classical_noise(epsilon, 1e-5)
    assert math.sqrt(2 * math.log(1.25e5)) / 12 < gaussian_noise(12.0, 1e-5)
