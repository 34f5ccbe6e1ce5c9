"""On-the-fly gradient modulation (Peng et al. 2022): the modality that is ahead learns more slowly for a while."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn


def confidence(logits: Tensor, target: Tensor) -> Tensor:
    """Σ_i softmax(logits_i)[y_i] (eq. 8), what a modality alone gives to the true classes; [B, C], int64 [B] → 0-d."""
    return logits.detach().softmax(1).gather(1, target.unsqueeze(1)).sum()


def coefficients(scores: Mapping[str, Tensor], alpha: float) -> dict[str, Tensor]:
    """What each modality's gradient is multiplied by: 1 − tanh(α ρ) where ρ > 1, otherwise 1 (eq. 10); all 0-d.

    ρ = its confidence / the mean confidence of the others (eq. 9 of two modalities; the mean is ours for more).
    """
    found = {}
    for name, score in scores.items():
        others = [value for other, value in scores.items() if other != name]
        if not others:
            return {name: torch.ones_like(score)}
        ratio = score / torch.stack(others).mean()
        found[name] = torch.where(ratio > 1, 1 - torch.tanh(alpha * ratio), 1.0)
    return found


@torch.no_grad()
def modulate(
    towers: Mapping[str, Iterable[nn.Parameter]],
    factors: Mapping[str, Tensor],
    draw: Callable[[str, int, Tensor], Tensor] | None = None,
) -> None:
    """Multiply the gradients of each modality's own parameters by its factor, in place.

    draw(name, number, gradient): standard normal numbers of the gradient's shape; with them comes the paper's
    generalisation enhancement, noise with the standard deviation of the gradient's own entries, for every tower,
    as in the authors' code. The spread is that of the gradient before it is multiplied.
    """
    for name, parameters in towers.items():
        for number, parameter in enumerate(parameters):
            gradient = parameter.grad
            if gradient is None:
                continue
            changed = gradient * factors[name].to(gradient)
            if draw is not None and gradient.numel() > 1:
                changed = changed + draw(name, number, gradient) * gradient.std()
            parameter.grad = changed
