"""What many noisy sums cost together: ε from the sampling, its rate q, the noise σ, the number of sums T, and δ.

σ is the standard deviation of the noise as a multiple of the clipping bound C, whatever the sampling:

    poisson  each member by itself with probability q. Neighbours add or remove one: the sum's sensitivity is C. By the
             privacy loss distribution (PLD; tight), or by Rényi differential privacy (RDP) as a cross-check
    fixed    samples of one size, without replacement. Neighbours replace one: the sensitivity is 2C, so that the same
             noise has half the multiplier. By RDP (Wang et al. 2019, theorem 27); there is no PLD for it

The two relations are different promises: their ε are not to be compared. Computed by Google's dp-accounting, an
optional package. No accountant of the central-limit kind is offered: those report less ε than there is.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any, Literal

from advml.errors import ConfigError

Sampling = Literal["poisson", "fixed"]
Accountant = Literal["PLD", "RDP"]

RELATION: dict[Sampling, str] = {"poisson": "add or remove one", "fixed": "replace one"}
USUAL: dict[Sampling, Accountant] = {"poisson": "PLD", "fixed": "RDP"}

NOISE = 0.125, 2.0**16  # beyond these no σ is looked for: with less ε is in the hundreds, and takes hours to compute


@dataclass(frozen=True)
class Statement:
    """A guarantee with all that it needs to mean something; `noise` is σ, a multiple of the clipping bound.

    `unit`: whose presence is hidden. `relation`: what neighbouring data sets differ in.
    """

    unit: Literal["example", "client"]
    relation: str
    sampling: Sampling
    rate: float
    noise: float
    steps: int
    delta: float
    epsilon: float
    accountant: Accountant

    def line(self) -> str:
        """The whole of it in a sentence."""
        return (
            f"ε = {self.epsilon:.4g} at δ = {self.delta:.4g} for each {self.unit} (neighbours {self.relation} "
            f"{self.unit}), by {self.accountant}: {self.steps} sums with noise {self.noise:.4g} times the clipping "
            f"bound over {self.sampling} samples of a share of {self.rate:.4g}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a file; an infinite ε is null."""
        return asdict(self) | {"epsilon": self.epsilon if math.isfinite(self.epsilon) else None}


def state(
    unit: Literal["example", "client"], sampling: Sampling, rate: float, noise: float, steps: int, delta: float
) -> Statement:
    """The guarantee of T = `steps` sums, by the accountant that goes with the sampling."""
    found = epsilon(sampling, rate, noise, steps, delta)
    return Statement(unit, RELATION[sampling], sampling, rate, noise, steps, delta, found, USUAL[sampling])


class Spending:
    """How many noisy sums a training has released, and what they cost: DP-SGD one an update, DP-FedAvg one a round."""

    def __init__(
        self, unit: Literal["example", "client"], sampling: Sampling, rate: float, delta: float,
        noise: float | None, target: float | None, planned: int,
    ) -> None:  # fmt: skip
        """Either `noise`, σ, or the ε `target` is given, for which σ is chosen so that `planned` sums cost it.

        Raises ValueError as noise_for does.
        """
        the_package()  # at once: without it the first evaluation after some training would fail
        self.unit, self.sampling, self.rate, self.delta = unit, sampling, rate, delta
        if noise is None:
            assert target is not None
            noise = noise_for(target, sampling, rate, planned, delta)
        self.noise = noise
        self.released = 0

    def epsilon(self) -> float | None:
        """ε of all sums so far; None where nothing is promised, without noise."""
        found = epsilon(self.sampling, self.rate, self.noise, self.released, self.delta)
        return found if math.isfinite(found) else None

    def statement(self) -> Statement:
        """The guarantee for all sums so far."""
        return state(self.unit, self.sampling, self.rate, self.noise, self.released, self.delta)


def check_noise(kind: str, noise: float | None, target: float | None) -> None:
    """Raises ValueError unless one of the two is given, where anything is private."""
    if kind != "none" and noise is None and target is None:
        raise ValueError("noise: how much is neither given nor follows from a target_epsilon; set one of them")
    if kind != "none" and noise is not None and target is not None:
        raise ValueError("noise: follows from target_epsilon; set one of them to null")
    if kind != "none" and noise is not None and 0 < noise < NOISE[0]:
        raise ValueError(f"noise: {noise:g} promises next to nothing; use {NOISE[0]:g} or more, or 0 for no promise")


def usual_delta(members: int, unit: str) -> float:
    """δ where none is given: 1/N for N members. Raises ValueError for one, to whom δ = 1 would promise nothing."""
    if members == 1:
        raise ValueError(f"delta: 1/N for N {unit}s is 1 where there is one, a promise of nothing; set it")
    return 1 / members


def over_disjoint(epsilons: Iterable[float]) -> float:
    """ε of mechanisms that each see data of their own (parallel composition, McSherry 2009): the largest of theirs.

    An example lies with one client, so one client's mechanism is all that ever sees it. A sum over clients would count
    a hundred guarantees where there is one.
    """
    return max(epsilons)


@lru_cache(maxsize=4096)
def epsilon(
    sampling: Sampling, rate: float, noise: float, steps: int, delta: float, accountant: Accountant | None = None
) -> float:
    """ε of T = `steps` sums over samples of a share q = `rate`. Never below the truth.

    The theorem for samples of a fixed size asks more for large shares than for all members each time. Sampling cannot
    cost more than that, since outputs are then mixtures, with equal weights, of what whole samples give, and Rényi's
    divergence is jointly quasi-convex (van Erven and Harremoës 2014, theorem 13): the lesser of both is taken.

    Raises ConfigError where dp-accounting is not installed.
    """
    accountant = accountant or USUAL[sampling]
    if sampling == "fixed" and accountant == "PLD":
        raise ValueError("PLD accounts for Poisson sampling only; of samples of a fixed size RDP does")
    if not steps or not rate:
        return 0.0
    if not noise:
        return math.inf
    library = the_package()
    if accountant == "PLD":
        distribution = _loss_distribution(rate, noise, _interval(steps))
        return float(distribution.self_compose(steps).get_epsilon_for_delta(delta))
    relations, accountant_of = library.NeighboringRelation, library.rdp.RdpAccountant
    if sampling == "poisson":
        sum_ = library.PoissonSampledDpEvent(rate, library.GaussianDpEvent(noise))
        found = accountant_of(neighboring_relation=relations.ADD_OR_REMOVE_ONE).compose(sum_, steps)
        return float(found.get_epsilon(delta))
    costs = []
    for share in {Fraction(rate).limit_denominator(10**9), Fraction(1)}:
        # The event's noise is a multiple of the sensitivity, which is 2C when one member replaces another.
        release = library.GaussianDpEvent(noise / 2)
        sum_ = library.SampledWithoutReplacementDpEvent(share.denominator, share.numerator, release)
        found = accountant_of(neighboring_relation=relations.REPLACE_ONE).compose(sum_, steps)
        costs.append(float(found.get_epsilon(delta)))
    return min(costs)


@lru_cache(maxsize=4096)
def noise_for(
    target: float, sampling: Sampling, rate: float, steps: int, delta: float, tolerance: float = 1e-3
) -> float:
    """σ for which ε is at most `target` and no further below it than the share `tolerance`.

    Between a σ that is too small and one that is not, the next is where log ε over log σ, taken as straight, crosses
    the target, or every other time in the middle. Raises ValueError where no noise reaches the target.
    """

    def cost(noise: float) -> float:
        return epsilon(sampling, rate, noise, steps, delta)

    low, high = 1.0, 1.0
    while cost(high) > target:
        low, high = high, 2 * high
        if high > NOISE[1]:
            raise ValueError(f"target_epsilon: no noise reaches ε = {target:g} at δ = {delta:g} by {USUAL[sampling]}")
    while low == high or cost(low) <= target:
        low, high = low / 2, low
        if low < NOISE[0]:
            little = f"ε = {target:g} promises next to nothing"
            raise ValueError(f"target_epsilon: {little}: noise below {NOISE[0]:g} would do")
    aim, turn = target * (1 - tolerance / 2), 0
    while cost(high) < target * (1 - tolerance) and high > low * (1 + 1e-6):
        share = 0.5
        if turn % 2 == 0 and math.isfinite(cost(low)) and cost(high) > 0:
            share = math.log(cost(low) / aim) / math.log(cost(low) / cost(high))
        middle = low * (high / low) ** min(max(share, 0.01), 0.99)
        low, high = (low, middle) if cost(middle) <= target else (middle, high)
        turn += 1
    return high


def _interval(steps: int) -> float:
    """The width of a PLD's cells: coarse where few sums add up; what is too much in ε grows like T times its square."""
    return next((width for width in (1e-3, 5e-4, 2e-4) if steps * width**2 <= 4e-5), 1e-4)


@lru_cache(maxsize=8)
def _loss_distribution(rate: float, noise: float, interval: float) -> Any:
    """The distribution of one sum; the same one serves every number of sums."""
    the_package()
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(
        noise, sampling_prob=rate, value_discretization_interval=interval, use_connect_dots=True
    )


def the_package() -> Any:
    """dp-accounting, imported on first use: it takes a second. Raises ConfigError where it is missing."""
    try:
        import dp_accounting
        import dp_accounting.rdp
    except ImportError:
        raise ConfigError('privacy: its accountant needs dp-accounting: pip install "advml[privacy]"') from None
    return dp_accounting
