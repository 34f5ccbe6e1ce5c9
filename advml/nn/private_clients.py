"""Differentially private training on each client's own examples (DP-SGD inside federated learning).

Every local step is one of Abadi et al. 2016 on a sample of the client's own examples, each with probability
q_k = min(B, n_k)/n_k:

    g̃ = (Σ_{i sampled} g_i min(1, C/‖g_i‖) + N(0, (σC)²)) / min(B, n_k),   then whatever the optimiser makes of g̃

so that what a client sends tells little about any one of its examples, to the server too. An example lies with one
client: the client's steps so far are all that ever saw it, and the largest ε of a client is the ε of the run (parallel
composition). Which clients are drawn is taken as known, and hides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from advml.contracts import Batch, Network, Rng
from advml.nn.accounting import Statement, epsilon, noise_for, over_disjoint, state, the_package, usual_delta
from advml.nn.clipped import clipped_sums
from advml.nn.local_training import Pull, pulled
from advml.nn.losses import Loss
from advml.nn.optimisers import OptimiserSettings, clip_gradients, make_optimiser
from advml.nn.privacy import add_noise, fixed_sample, noise_deviation, poisson_sample
from advml.nn.private_rounds import PrivateRoundsSettings
from advml.nn.seeding import draw_from

AT_ONCE = 1024  # examples differentiated together: it changes nothing but memory
LISTED = 64  # kinds of clients whose ε are all computed for the file; of more only the largest
TAKEN_AS_PUBLIC = (
    "how many examples each client has",
    "which clients took part in which rounds",
    "all settings, however found",
    "what inputs are prepared by: normalisation constants, principal components",
    "the network that training starts from",
)
NOT_PROTECTED = (
    "training metrics in the records",
    "validation and test examples, and what is measured per client",
    "models that stay with a client",
    "anything, from who knows the seed",
)

Spent = tuple[float, int]
"""A client's sampling rate, and how many of its sums were released."""


class ExamplePrivacy:
    """What is private about the local training of K clients, and what it has cost each of them so far."""

    def __init__(
        self,
        config: PrivateRoundsSettings,
        sizes: Sequence[int],
        batch_size: int | None,
        planned: Sequence[int],
        rng: Rng,
    ) -> None:
        """`planned` local steps of each client in all rounds: σ is one for all, such that the dearest meets the target.

        Raises ValueError as noise_for does.
        """
        the_package()  # at once: without it the first evaluation after some training would fail
        self.config, self.sizes, self.rng = config, list(sizes), rng
        self.expected = [min(batch_size or size, size) for size in sizes]
        self.rates = [expected / size for expected, size in zip(self.expected, sizes, strict=True)]
        self.delta = usual_delta(sum(sizes), "example") if config.delta is None else config.delta
        self.noise = self._noise(list(zip(self.rates, planned, strict=True)))
        self.steps = [0] * len(self.sizes)
        self.rounds = 0  # that were counted

    def _noise(self, planned: Sequence[Spent]) -> float:
        """σ as given, or the least for which no client's planned steps cost more than the target."""
        if self.config.noise is not None:
            return self.config.noise
        target, sampling = self.config.target_epsilon, self.config.sampling
        assert target is not None
        found = None
        for rate, steps in sorted(dearest(planned), key=lambda one: -(one[0] ** 2) * one[1]):
            if found is None or epsilon(sampling, rate, found, steps, self.delta) > target:
                found = noise_for(target, sampling, rate, steps, self.delta)
        assert found is not None
        return found

    # --- in a client's step ---

    def sample(self, client: int, round: int, step: int) -> Tensor:
        """Which of its own examples a step takes, int64 [N] on the CPU; under Poisson sampling perhaps none."""
        generator = self.rng("example sample", round, client, step)
        if self.config.sampling == "poisson":
            return poisson_sample(self.sizes[client], self.rates[client], generator)
        return fixed_sample(self.sizes[client], self.expected[client], generator)

    def noised(self, sums: Mapping[str, Tensor], client: int, round: int, step: int) -> dict[str, Tensor]:
        """The clipped sum with its noise, over the expected number of examples; `sums` are overwritten."""
        deviation = noise_deviation(self.noise, self.config.clip)
        add_noise(list(sums.values()), deviation, self.rng("example noise", round, client, step))
        return {name: value.div_(self.expected[client]) for name, value in sums.items()}

    # --- what it has cost ---

    def count(self, round: int, steps: Mapping[int, int]) -> None:
        """A round's local steps, client → how many; once for each round."""
        if round < self.rounds:
            return
        self.rounds = round + 1
        for client, more in steps.items():
            self.steps[client] += more

    def spent(self) -> list[Spent]:
        """Of each client."""
        return list(zip(self.rates, self.steps, strict=True))

    def _cost(self, of: Spent) -> float:
        return epsilon(self.config.sampling, of[0], self.noise, of[1], self.delta)

    def epsilon(self) -> float | None:
        """The largest ε of a client so far; None where nothing is promised, without noise."""
        return _finite(self._cost(self._worst()))

    def _worst(self) -> Spent:
        candidates = dearest(self.spent())
        costs = [self._cost(one) for one in candidates]
        return candidates[costs.index(over_disjoint(costs))]

    def statement(self) -> Statement:
        """The guarantee for the client whose steps cost the most."""
        rate, steps = self._worst()
        return state("example", self.config.sampling, rate, self.noise, steps, self.delta)

    def to_dict(self) -> dict[str, Any]:
        """The guarantee, what each client has spent of it, and its limits, for a file."""
        promised = self.statement()
        line = f"{promised.line()}; the largest of {len(self.sizes)} clients, each trained on examples of its own"
        kinds = set(self.spent())
        costs = {one: _finite(self._cost(one)) for one in (kinds if len(kinds) <= LISTED else dearest(kinds))}
        clients = [
            {"examples": size, "rate": spent[0], "steps": spent[1], "epsilon": costs.get(spent)}
            for size, spent in zip(self.sizes, self.spent(), strict=True)
        ]
        limits = {"taken_as_public": list(TAKEN_AS_PUBLIC), "not_protected": list(NOT_PROTECTED)}
        return {"statement": line, **promised.to_dict(), "clip": self.config.clip, "clients": clients, **limits}

    def state_dict(self) -> dict[str, Any]:
        """How many sums each client has released."""
        return {"steps": list(self.steps), "rounds": self.rounds}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it. Never fewer: an earlier state chosen as the best is a choice among all."""
        self.steps = [max(pair) for pair in zip(self.steps, state["steps"], strict=True)]
        self.rounds = max(self.rounds, int(state["rounds"]))


def _finite(cost: float) -> float | None:
    return cost if math.isfinite(cost) else None


def dearest(spent: Iterable[Spent]) -> list[Spent]:
    """Those than which no other has both at least their rate and at least their steps: one of them costs the most."""
    kept: list[Spent] = []
    for rate, steps in sorted(set(spent), reverse=True):
        if not kept or steps > kept[-1][1]:
            kept.append((rate, steps))
    return kept


def train_client(
    network: Network,
    owned: Tensor,
    fetch: Callable[[Tensor], Batch],
    loss: Loss,
    privacy: ExamplePrivacy,
    *,
    client: int,
    round: int,
    steps: int,
    settings: OptimiserSettings,
    lr: float,
    pull: Pull | None = None,
    noise: torch.Generator | None = None,
) -> tuple[Tensor, int]:
    """Move `network` by so many private steps on the examples `owned`; (their losses summed, 0-d, their number).

    `fetch` gets examples by their index [b]. `pull`, of one network, is added to each noisy gradient: it knows nothing
    of the examples. `noise` says what dropout draws. Neither of the two numbers is protected.
    """
    if noise is not None:
        draw_from(noise)
    network.train()
    parameters = dict(network.named_parameters())
    optimiser = make_optimiser(parameters.values(), settings)
    optimiser.lr = lr
    losses, seen = [], 0
    for step in range(steps):
        chosen = owned[privacy.sample(client, round, step)]
        sums, _, value = clipped_sums(network, _pieces(chosen, fetch), loss, privacy.config.clip)
        for name, gradient in privacy.noised(sums, client, round, step).items():
            value_now = parameters[name].detach()
            parameters[name].grad = gradient if pull is None else pulled(gradient, value_now, pull, name)
        if settings.clip_norm is not None:
            clip_gradients(parameters.values(), settings.clip_norm)
        optimiser.step()
        losses.append(value)
        seen += len(chosen)
    optimiser.zero_grad()
    return torch.stack(losses).sum(), seen


def _pieces(chosen: Tensor, fetch: Callable[[Tensor], Batch]) -> Callable[[int | None], Iterator[Batch]]:
    """The chosen examples as clipped_sums takes them."""

    def batches(limit: int | None) -> Iterator[Batch]:
        for index in chosen.split(min(limit or AT_ONCE, AT_ONCE)) if len(chosen) else ():
            yield fetch(index)

    return batches
