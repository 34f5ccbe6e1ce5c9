"""Differential privacy as mathematics: who is sampled, what is clipped, how much noise is added, what a release costs.

A noise multiplier σ is the standard deviation of the noise as a multiple of the sensitivity: with neighbours that add
or remove one example (or client) the sensitivity of a sum of clipped terms is the bound C, with neighbours that replace
one it is 2C. What many releases cost together is in `advml.nn.accounting`.

All draws are functions of a generator on the CPU. Noise from a known seed protects nobody: whoever knows the seed
subtracts it. Seeded noise is for research; for a release, the seed must be secret and the generator a secure one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# --- who is sampled ------------------------------------------------------------------------------------------------


def poisson_sample(count: int, rate: float, generator: torch.Generator) -> Tensor:
    """Each of `count` by itself with probability q = `rate`: ascending indices int64 [N], N random and perhaps 0.

    Drawn with 53 bits: those of float32 would be off by up to 6e-8, much of a small rate.
    """
    return (torch.rand(count, generator=generator, dtype=torch.float64) < rate).nonzero().flatten()


def fixed_sample(count: int, size: int, generator: torch.Generator) -> Tensor:
    """`size` of `count`, all subsets equally likely: indices int64 [size]."""
    return torch.randperm(count, generator=generator)[:size]


# --- noise ---------------------------------------------------------------------------------------------------------


def noise_deviation(noise: float, sensitivity: float) -> float:
    """σ C; 0 for σ = 0 even where nothing is clipped (C infinite)."""
    return noise * sensitivity if noise else 0.0


def add_noise(sums: Sequence[Tensor], deviation: float, generator: torch.Generator) -> None:
    """Add N(0, deviation²) to every number of `sums`, in place: once for each sum that is released.

    Drawn on the CPU in the order of `sums`, then moved.
    """
    if not deviation:
        return
    for values in sums:
        noise = torch.randn(values.shape, generator=generator, dtype=values.dtype)
        values.add_(noise.to(values.device), alpha=deviation)


# --- clients: what their updates weigh and to what they are clipped (McMahan et al. 2018) ---------------------------


def update_norms(updates: Sequence[Tensor]) -> Tensor:
    """The 2-norm of each client's update over all parameters together, [R], for parameters' updates [R, ...]."""
    return torch.stack([values.unsqueeze(-1).flatten(1).square().sum(1) for values in updates]).sum(0).sqrt()


def clip_factors(norms: Tensor, clip: float) -> Tensor:
    """min(1, C / ‖g‖) for norms [N]; 1 where the norm is 0."""
    return (clip / norms).clamp_max(1.0)


def client_weights(sizes: Tensor, cap: float | None) -> Tensor:
    """w_k = min(n_k / ŵ, 1) for the examples n_k of each client, int64 [K]; `cap` ŵ is public, None = all weigh 1."""
    if cap is None:
        return torch.ones(len(sizes), dtype=torch.float64)
    return (sizes.double() / cap).clamp_max(1.0)


def next_clip(
    clip: float,
    norms: Tensor,
    *,
    quantile: float,
    speed: float,
    expected: float,
    deviation: float,
    generator: torch.Generator,
) -> float:
    """C exp(−η (b̃ − γ)), which goes to the γ-quantile of the norms (Andrew et al. 2021, algorithm 1).

    b̃ is the share of updates not above C, with noise: ½ + (Σ_i (b_i − ½) + N(0, σ_b²)) / expected, b_i = 1 where norm
    [R] i is at most C. Terms of ±½ make the count's sensitivity ½. `speed` η, `deviation` σ_b (there: a twentieth of
    the cohort), `expected` the expected size of the cohort. The count's noise is paid for by `noise_beside_count`.
    """
    count = float((norms <= clip).double().sub(0.5).sum())
    count += deviation * float(torch.randn((), generator=generator, dtype=torch.float64))
    return clip * math.exp(-speed * (0.5 + count / expected - quantile))


def noise_beside_count(noise: float, deviation: float) -> float:
    """The multiplier for the updates that together with the count costs what `noise` alone would: (z⁻² − (2σ_b)⁻²)^−½.

    Andrew et al. 2021, theorem 1: two Gaussian releases of sensitivity 1 add up as 1/z² = 1/z_Δ² + 1/(2σ_b)². Raises
    ValueError where the count by itself is more than `noise` allows.
    """
    if not noise:
        return 0.0
    if 2 * deviation <= noise:
        raise ValueError(f"count_noise: {deviation:g} costs all that noise {noise:g} allows; it needs more")
    return 1 / math.sqrt(noise**-2 - (2 * deviation) ** -2)


# --- one release ---------------------------------------------------------------------------------------------------


def gaussian_delta(noise: float, epsilon: float) -> float:
    """The least δ for which one release with multiplier σ is (ε, δ)-private (Balle and Wang 2018, theorem 8):

    δ = Φ(1/2σ − εσ) − e^ε Φ(−1/2σ − εσ)
    """
    if not noise:
        return 1.0
    inner, outer = (torch.tensor(sign / (2 * noise) - epsilon * noise, dtype=torch.float64) for sign in (1, -1))
    first = float(torch.special.log_ndtr(inner))
    second = epsilon + float(torch.special.log_ndtr(outer))
    return -math.exp(first) * math.expm1(second - first)


def gaussian_epsilon(noise: float, delta: float) -> float:
    """The least ε for which one release with multiplier σ is (ε, δ)-private; 0 where δ alone suffices."""
    if not noise:
        return math.inf
    return _least(lambda epsilon: gaussian_delta(noise, epsilon) <= delta)


def gaussian_noise(epsilon: float, delta: float) -> float:
    """The least multiplier σ that makes one release (ε, δ)-private: the analytic Gaussian mechanism."""
    return _least(lambda noise: gaussian_delta(noise, epsilon) <= delta)


def classical_noise(epsilon: float, delta: float) -> float:
    """σ = √(2 ln(1.25/δ)) / ε (Dwork and Roth 2014, theorem A.1), for ε < 1 only: more than `gaussian_noise` asks for.

    Raises ValueError for ε ≥ 1, where it was never proved and from some ε on is less than needed.
    """
    if epsilon >= 1:
        raise ValueError(f"the classical formula holds for ε below 1, not {epsilon:g}; use the analytic mechanism")
    return math.sqrt(2 * math.log(1.25 / delta)) / epsilon


def _least(holds: Callable[[float], bool]) -> float:
    """The least x ≥ 0 from which on `holds`, to the precision of a float, and never below it."""
    if holds(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while not holds(high):
        low, high = high, 2 * high
    while low < (middle := (low + high) / 2) < high:
        low, high = (low, middle) if holds(middle) else (middle, high)
    return high
