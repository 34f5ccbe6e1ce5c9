"""The one mini-batch loop. What differs between methods comes in from outside: batches, loss, gradient transforms."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from advml.config import Fraction, PositiveInt, settings
from advml.contracts import Batch, Network, Split
from advml.nn.losses import Loss, LossName, mean_of
from advml.nn.optimisers import Optimiser, OptimiserSettings, clip_gradients, learning_rate


@settings
class TrainingSettings(OptimiserSettings):
    """Keys of every method that trains by mini-batches: configs/method/_base/training.yaml."""

    batch_size: PositiveInt
    loss: LossName
    label_smoothing: Fraction


class Counter(Protocol):
    """`Context.count`."""

    def __call__(self, **work: int) -> None: ...


def updates_per_epoch(examples: int, batch_size: int, alone: bool = True) -> int:
    """Batches of an epoch, the last of them short. Not `alone`: a single example joins the batch before."""
    joins = not alone and examples > batch_size and examples % batch_size == 1
    return -(-examples // batch_size) - joins


def minibatches(
    examples: int, batch_size: int, start: int, stop: int, rng: Callable[[int], torch.Generator], alone: bool = True
) -> Iterator[Tensor]:
    """Index tensors (CPU) of iterations `start` to `stop` of endless shuffled epochs, of `updates_per_epoch` each.

    Epoch e is shuffled by `rng(e)`, so any iteration can be drawn without drawing those before it.
    """
    per_epoch = updates_per_epoch(examples, batch_size, alone)
    order, drawn = torch.empty(0), -1
    for iteration in range(start, stop):
        epoch, place = divmod(iteration, per_epoch)
        if epoch != drawn:
            order, drawn = torch.randperm(examples, generator=rng(epoch)), epoch
        yield order[place * batch_size : None if place == per_epoch - 1 else (place + 1) * batch_size]


def batches_of(split: Split, indices: Iterable[Tensor], mask: Tensor | None = None) -> Iterator[Batch]:
    """The batches of a split at these indices, all with the same active outputs."""
    for index in indices:
        inputs, target, _ = split.batch(index.to(split.device, non_blocking=True))
        yield Batch(inputs, target, mask)


def train(
    network: Network,
    batches: Iterable[Batch],
    loss: Loss,
    optimiser: Optimiser,
    *,
    settings: OptimiserSettings,
    update: int,
    total: int,
    count: Counter,
    transform: Callable[[], None] | None = None,
    after: Callable[[], None] | None = None,
    still: Iterable[nn.Module] = (),
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Tensor:
    """Train on the batches in order; the mean loss per example, a 0-d tensor on the network's device.

    `update` of `total` is where the learning-rate schedule stands. `transform` changes the gradients in place before
    they are clipped and used: penalties, projections, privacy. `after` is called after each update. `still`: parts of
    the network that stay in evaluation mode, with the running averages that they have.
    """
    network.train()
    for module in still:
        module.eval()
    parameters = list(network.parameters())
    values, sizes = [], []
    for number, batch in enumerate(batches, start=update):
        optimiser.lr = learning_rate(settings, number, total)
        optimiser.zero_grad()
        with autocast():
            value = loss(network(batch.inputs), batch)
        value.backward()
        if transform is not None:
            transform()
        if settings.clip_norm is not None:
            clip_gradients(parameters, settings.clip_norm)
        optimiser.step()
        if after is not None:
            after()
        values.append(value.detach())
        sizes.append(len(batch.target))
    optimiser.zero_grad()
    count(samples=sum(sizes), updates=len(sizes), gradients=sum(sizes))
    return mean_of(values, sizes)


def rows_kept(head: nn.Module, active: Tensor) -> Callable[[], None]:
    """A function that puts the head's rows of inactive outputs (`active` bool [C] false) back as they are now.

    Called after each update, it keeps them from ever moving: their gradient is zero, but weight decay and an
    optimiser's momentum would still move them.
    """
    device = next((parameter.device for parameter in head.parameters()), active.device)
    rows = (~active).nonzero().flatten().to(device, non_blocking=True)  # `active` on the CPU: nobody waits
    kept = [(p, p.detach()[rows]) for p in head.parameters() if p.dim() and len(p) == len(active) and len(rows)]

    @torch.no_grad()
    def put_back() -> None:
        for parameter, values in kept:
            parameter.index_copy_(0, rows, values)

    return put_back
