"""Variational autoencoders (Kingma and Welling 2014, "Auto-encoding variational Bayes") over rows of numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advml.nn.affine import Affine
from advml.nn.losses import at_least_float32

Likelihood = Literal["bernoulli", "gaussian"]


def divergence(mean: Tensor, log_variance: Tensor) -> Tensor:
    """KL[N(mean, diag exp log_variance) ‖ N(0, I)] of each row, [B] from two [B, Z] (their appendix B):

    ½ Σ_j (μ_j² + σ_j² − 1 − log σ_j²).
    """
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1)


def bernoulli_surprise(logits: Tensor, x: Tensor) -> Tensor:
    """−log p(x|z) of each row, [B]: the binary cross-entropy summed over elements, p = σ(logits), x in [0, 1]."""
    return F.binary_cross_entropy_with_logits(logits, x, reduction="none").sum(1)


def gaussian_surprise(mean: Tensor, x: Tensor) -> Tensor:
    """−log N(x; mean, I) of each row, [B]: half the squared distance, and D/2 · log 2π."""
    return 0.5 * (x - mean).square().sum(1) + 0.5 * x.shape[1] * math.log(2 * math.pi)


class Vae(nn.Module):
    """Encoder D → hidden → 2·Z, decoder Z → hidden in reverse → D, with rectifiers between.

    The decoder gives logits of Bernoulli variables (`bernoulli`, for elements within [0, 1]) or means of normal ones
    with variance 1 (`gaussian`). It draws nothing itself: noise comes in from outside.
    """

    def __init__(self, width: int, hidden: Sequence[int], latent: int, likelihood: Likelihood) -> None:
        super().__init__()
        self.latent, self.likelihood = latent, likelihood
        self.encoder = _mlp([width, *hidden, 2 * latent])
        self.decoder = _mlp([latent, *reversed(hidden), width])

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|x), two [B, Z], from [B, D]."""
        mean, log_variance = at_least_float32(self.encoder(x)).chunk(2, dim=1)
        return mean, log_variance

    def decode(self, z: Tensor) -> Tensor:
        """What p(x|z) is parameterised by, [B, D] from [B, Z]: logits or means."""
        return at_least_float32(self.decoder(z))

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        """The negative evidence lower bound of each row, [B], from x [B, D] and standard normal noise [B, Z]:

        −log p(x|z) + KL[q(z|x) ‖ N(0, I)] with z = μ + σ · noise, one draw (equation 7).
        """
        mean, log_variance = self.encode(x)
        surprise = bernoulli_surprise if self.likelihood == "bernoulli" else gaussian_surprise
        found = self.decode(mean + (0.5 * log_variance).exp() * noise)
        return surprise(found, x.to(found.dtype)) + divergence(mean, log_variance)

    def expected(self, z: Tensor) -> Tensor:
        """The mean of p(x|z), [B, D]: with z standard normal, what the model takes for a typical example."""
        found = self.decode(z)
        return found.sigmoid() if self.likelihood == "bernoulli" else found


def make_vae(width: int, hidden: Sequence[int], latent: int, likelihood: Likelihood, rng: torch.Generator) -> Vae:
    """A VAE on the CPU, initialised as torch does by the seed of `rng`; torch's own generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(rng.initial_seed())  # not CUDA's: nothing is drawn there
        return Vae(width, hidden, latent, likelihood)


def _mlp(widths: Sequence[int]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [Affine(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
