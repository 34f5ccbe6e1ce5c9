"""Training by differentially private gradient descent (DP-SGD; Abadi et al. 2016, algorithm 1).

One update:  g̃ = (Σ_{i sampled} g_i min(1, C/‖g_i‖) + N(0, (σC)²)) / B,   then whatever the optimiser makes of g̃.

B is the expected number of sampled examples, not the number that came: that one is private. Which examples come and
the noise follow from the update's number alone, and the noise is added once, however the examples were divided.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from advml.config import CountFloat, PositiveFloat, PositiveInt, settings
from advml.contracts import Metrics, Network, Rng, Split
from advml.nn.accounting import Sampling, Spending, check_noise, usual_delta
from advml.nn.clipped import clipped_sums
from advml.nn.losses import Loss
from advml.nn.optimisers import Optimiser, clip_gradients, learning_rate
from advml.nn.per_example import Engine, in_batches
from advml.nn.privacy import add_noise, fixed_sample, noise_deviation, poisson_sample
from advml.nn.training import Counter, TrainingSettings

TAKEN_AS_PUBLIC = (
    "the number of training examples",
    "all settings, however they were found",
    "what inputs are prepared by: normalisation constants, principal components",
    "the network that training starts from",
)
NOT_PROTECTED = "training metrics in the records", "validation and test examples", "anything, from who knows the seed"


@settings
class PrivacySettings:
    """The keys of the block `privacy` in configs/method/supervised.yaml."""

    kind: Literal["none", "example"]
    clip: PositiveFloat
    noise: CountFloat | None
    target_epsilon: PositiveFloat | None
    delta: Annotated[float, Interval(gt=0, lt=1)] | None
    sampling: Sampling
    micro_batch_size: PositiveInt

    def __post_init__(self) -> None:
        check_noise(self.kind, self.noise, self.target_epsilon)


class Privacy(Spending):
    """What is private about a training: who is sampled, how large the noise is, and how many sums were released."""

    def __init__(self, config: PrivacySettings, examples: int, batch_size: int, planned: int, rng: Rng) -> None:
        """`planned` updates in all: the noise for a target is chosen for them. Raises ValueError as noise_for does."""
        self.config, self.examples, self.rng = config, examples, rng
        self.expected = min(batch_size, examples)
        rate = self.expected / examples
        delta = usual_delta(examples, "example") if config.delta is None else config.delta
        super().__init__("example", config.sampling, rate, delta, config.noise, config.target_epsilon, planned)

    def sample(self, update: int) -> Tensor:
        """The examples of an update, int64 [N] on the CPU; under Poisson sampling perhaps none."""
        generator = self.rng("sample", update)
        if self.config.sampling == "poisson":
            return poisson_sample(self.examples, self.rate, generator)
        return fixed_sample(self.examples, self.expected, generator)

    def to_dict(self) -> dict[str, Any]:
        """The guarantee and its limits, for a file."""
        promised = self.statement()
        limits = {"taken_as_public": list(TAKEN_AS_PUBLIC), "not_protected": list(NOT_PROTECTED)}
        return {"statement": promised.line(), **promised.to_dict(), "clip": self.config.clip, **limits}

    def restore(self, updates: int) -> None:
        """Count at least so many updates. Never fewer: an earlier state chosen as the best is a choice among all."""
        self.released = max(self.released, updates)


def train_privately(
    network: Network,
    split: Split,
    loss: Loss,
    optimiser: Optimiser,
    privacy: Privacy,
    *,
    settings: TrainingSettings,
    start: int,
    stop: int,
    total: int,
    count: Counter,
    engine: Engine = "auto",
) -> Metrics:
    """Updates `start` to `stop` of `total`; the mean loss of the sampled examples, and the share that was clipped.

    Both are of training examples and not protected; None where nobody was sampled.
    """
    network.train()
    parameters = {name: value for name, value in network.named_parameters() if value.requires_grad}
    clip = privacy.config.clip
    deviation = noise_deviation(privacy.noise, clip)
    losses, exceeding, seen = [], [], 0
    for update in range(start, stop):
        batches, size = in_batches(split, privacy.sample(update), privacy.config.micro_batch_size)
        sums, norms, value = clipped_sums(network, batches, loss, clip, engine)
        add_noise(list(sums.values()), deviation, privacy.rng("noise", update))
        for name, parameter in parameters.items():
            parameter.grad = sums[name].div_(privacy.expected)
        if settings.clip_norm is not None:
            clip_gradients(parameters.values(), settings.clip_norm)
        optimiser.lr = learning_rate(settings, update, total)
        optimiser.step()
        privacy.released = update + 1
        losses.append(value)
        exceeding.append((norms > clip).sum())
        seen += size
    optimiser.zero_grad()
    count(samples=seen, updates=stop - start, gradients=seen)
    if not seen:
        return {"loss": None, "clipped": None}
    return {"loss": torch.stack(losses).sum() / seen, "clipped": torch.stack(exceeding).sum() / seen}
