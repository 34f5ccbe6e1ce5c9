"""The gradient of a validation loss with respect to an architecture, through the training of the weights (DARTS).

Liu, Simonyan, Yang 2019, eqs. 6 to 8. With weights w, architecture α, and one virtual step of training

    w′ = w − η (μ b + ∇w L_train(w, α) + λ w)

where b is SGD's momentum buffer and λ its weight decay, the hypergradient is

    ∇α L_valid(w′, α) − η ∇²α,w L_train(w, α) v          v = ∇w′ L_valid(w′, α)

and the product with the second derivatives is a central difference of two gradients:

    [∇α L_train(w + R v, α) − ∇α L_train(w − R v, α)] / 2 R          R = radius / ‖v‖
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

LossOf = Callable[[], Tensor]
Parameters = Sequence[nn.Parameter]


class Hypergradient(NamedTuple):
    """One gradient for each α, and the two losses: L_train(w, α), and L_valid at w′ (at w without a virtual step)."""

    gradients: list[Tensor]
    train_loss: Tensor | None
    valid_loss: Tensor


def first_order(architecture: Parameters, valid_loss: LossOf) -> Hypergradient:
    """∇α L_valid(w, α): the weights are taken to be good already (η = 0). No gradient of a weight is computed."""
    loss = valid_loss()
    return Hypergradient(gradients_of(loss, architecture), None, loss.detach())


def second_order(
    weights: Parameters,
    architecture: Parameters,
    train_loss: LossOf,
    valid_loss: LossOf,
    *,
    lr: float,
    momentum: float = 0.0,
    buffers: Sequence[Tensor | None] | None = None,
    weight_decay: float = 0.0,
    radius: float = 0.01,
) -> Hypergradient:
    """See the file. `buffers`: of each weight its momentum buffer, None where there is none yet.

    The losses are functions of the weights and the architecture as they stand when called. The weights are never
    written to: other tensors take their place for a while, so that they come back bit by bit.
    """
    at_w = train_loss()
    gradients = gradients_of(at_w, weights)
    with _lent(weights, virtual_step(weights, gradients, lr, momentum, buffers, weight_decay)):
        at_virtual = valid_loss()
        both = gradients_of(at_virtual, [*architecture, *weights])
    direct, v = both[: len(architecture)], both[len(architecture) :]
    norm = joint_norm(v)
    # Where v is zero, so is the product: any step along it will do.
    step = torch.where(norm > 0, radius / norm, torch.ones_like(norm))
    moved = torch._foreach_mul(v, step)
    plain = [weight.detach() for weight in weights]
    with _lent(weights, torch._foreach_add(plain, moved)):
        above = gradients_of(train_loss(), architecture)
    with _lent(weights, torch._foreach_sub(plain, moved)):
        below = gradients_of(train_loss(), architecture)
    found = [first - lr * (high - low) / (2 * step) for first, high, low in zip(direct, above, below, strict=True)]
    return Hypergradient(found, at_w.detach(), at_virtual.detach())


@torch.no_grad()
def virtual_step(
    weights: Parameters,
    gradients: Sequence[Tensor],
    lr: float,
    momentum: float,
    buffers: Sequence[Tensor | None] | None,
    weight_decay: float,
) -> list[Tensor]:
    """w′ = w − η (μ b + g + λ w), as new tensors: what SGD would do to the weights."""
    plain = [weight.detach() for weight in weights]
    direction = list(torch._foreach_add(list(gradients), plain, alpha=weight_decay))
    if momentum and buffers is not None:
        for one, buffer in zip(direction, buffers, strict=True):
            if buffer is not None:
                one.add_(buffer, alpha=momentum)
    return list(torch._foreach_add(plain, direction, alpha=-lr))


def gradients_of(loss: Tensor, parameters: Parameters) -> list[Tensor]:
    """∇ loss, zeros for what it does not depend on. Nothing else is differentiated."""
    found = torch.autograd.grad(loss, list(parameters), allow_unused=True)
    return [torch.zeros_like(p) if one is None else one for one, p in zip(found, parameters, strict=True)]


def joint_norm(tensors: Sequence[Tensor]) -> Tensor:
    """The 2-norm of all tensors together, 0-d."""
    norm: Tensor = torch.stack(torch._foreach_norm(list(tensors))).norm()
    return norm


@contextmanager
def _lent(weights: Parameters, values: Sequence[Tensor]) -> Iterator[None]:
    """Inside, the weights have these values; afterwards their own tensors again."""
    own = [weight.data for weight in weights]
    for weight, value in zip(weights, values, strict=True):
        weight.data = value
    try:
        yield
    finally:
        for weight, value in zip(weights, own, strict=True):
            weight.data = value


def largest_eigenvalue(
    loss: LossOf, architecture: Parameters, start: Sequence[Tensor], iterations: int = 10, radius: float = 1e-2
) -> Tensor:
    """λ_max of ∇²α L, 0-d; sign included, not size (Zela et al. 2020, "Understanding and robustifying DARTS").

    Lanczos' iteration from the direction `start`: λ_max of the Hessian within the span of H^k start, k < `iterations`,
    which is never above it and nears it far sooner than power iteration, whose limit is the one largest in size. A
    product with the Hessian is the central difference ∇²α L d ≈ [∇α L(α + r d) − ∇α L(α − r d)] / 2 r, ‖d‖ = 1, which
    asks no second derivatives of the network.
    """
    plain = [alpha.detach() for alpha in architecture]

    def product(direction: Tensor) -> Tensor:
        parts = direction.split([alpha.numel() for alpha in plain])
        step = [radius * part.view_as(alpha) for part, alpha in zip(parts, plain, strict=True)]
        with _lent(architecture, torch._foreach_add(plain, step)):
            above = gradients_of(loss(), architecture)
        with _lent(architecture, torch._foreach_sub(plain, step)):
            below = gradients_of(loss(), architecture)
        return torch.cat([(up - down).flatten() for up, down in zip(above, below, strict=True)]) / (2 * radius)

    rest = torch.cat([part.flatten() for part in start])
    basis = rest.new_zeros((0, len(rest)))
    products = torch.zeros_like(basis)
    scale = rest.norm()
    for _ in range(min(iterations, len(rest))):
        if rest.norm() <= 1e-6 * scale:  # the space holds all that the Hessian makes of it
            break
        basis = torch.cat([basis, (rest / rest.norm())[None]])
        products = torch.cat([products, product(basis[-1])[None]])
        scale, rest = products[-1].norm(), products[-1]
        for _ in range(2):  # once is not enough in float32
            rest = rest - basis.T @ (basis @ rest)
    within = basis @ products.T
    largest: Tensor = torch.linalg.eigvalsh((within + within.T) / 2)[-1]
    return largest
