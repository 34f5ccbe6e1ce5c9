"""Ordinary training of many copies of a network at once, each on examples of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from advml.contracts import Batch
from advml.nn.optimisers import Optimiser
from advml.nn.replicas import Parameters, Replicas

Losses = Callable[[Tensor, Tensor], Tensor]
"""Outputs [R, B, C] and targets [R, B, ...] → the loss of each copy, [R]."""


def start_from(values: Mapping[str, Tensor], copies: int) -> dict[str, nn.Parameter]:
    """`copies` times the same values, side by side, to be trained: no gradient flows back to where they come from."""
    return {
        name: nn.Parameter(value.detach().unsqueeze(0).repeat(copies, *[1] * value.dim()))
        for name, value in values.items()
    }


def train_copies(
    replicas: Replicas,
    parameters: Mapping[str, nn.Parameter],
    batches: Iterable[Batch],
    losses: Losses,
    optimiser: Optimiser,
) -> Iterator[Tensor]:
    """Update `parameters` in place, once for each batch of inputs [R, B, ...]; yields the losses [R] before the update.

    The sum over copies is differentiated: as a copy's loss depends on its own values only, each gets its own gradient,
    and an optimiser that works number by number moves each as if it were alone.
    """
    values: Parameters = dict(parameters)
    for batch in batches:
        with torch.enable_grad():
            found = losses(replicas.outputs(values, batch.inputs, dropout=True), batch.target)
            gradients = torch.autograd.grad(found.sum(), list(parameters.values()), allow_unused=True)
        for parameter, gradient in zip(parameters.values(), gradients, strict=True):
            parameter.grad = gradient
        optimiser.step()
        optimiser.zero_grad()
        yield found.detach()
