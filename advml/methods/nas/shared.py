"""A supernet whose weights many architectures share: trained one architecture a mini-batch, asked for scores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from advml.contracts import Batch, Context, Split
from advml.methods.nas.schedules import cosine
from advml.nn.cells.genotype import Genotype
from advml.nn.cells.supernet import Supernet
from advml.nn.losses import make_loss, mean_of
from advml.nn.optimisers import Sgd, clip_gradients
from advml.nn.training import minibatches

BATCH = 256  # examples scored at a time


class SharingSettings(Protocol):
    """How shared weights are trained."""

    epochs: int
    lr: float
    momentum: float
    weight_decay: float
    clip_norm: float | None


class SharedWeights:
    """SGD on weights only; `rate(epoch)` gives its learning rate, by default half a cosine down to 0.

    Weights that an architecture does not use keep still: they get neither gradient, momentum nor decay.
    """

    def __init__(
        self, network: Supernet, context: Context, config: SharingSettings, data: Split, batch_size: int,
        rate: Callable[[int], float] | None = None, nesterov: bool = False,
    ) -> None:  # fmt: skip
        self.network, self.context, self.config = network, context, config
        self.data, self.batch_size = data, batch_size
        self.rate = rate or (lambda epoch: cosine(config.lr, 0.0, epoch / config.epochs))
        self.weights = network.weights()
        self.optimiser = Sgd(self.weights, config.lr, config.momentum, nesterov, config.weight_decay)
        self.loss = make_loss("auto", context.data.spec.target)
        self.per_epoch = -(-len(data) // batch_size)
        self._scoring = False

    def epoch(self, epoch: int, draw: Callable[[int], Genotype]) -> Tensor:
        """Each mini-batch trains the architecture that `draw(update)` gives; the mean loss."""
        self.network.train()
        self.optimiser.lr = self.rate(epoch)
        first = epoch * self.per_epoch
        indices = minibatches(
            len(self.data), self.batch_size, first, first + self.per_epoch,
            lambda number: self.context.rng("shared order", number),
        )  # fmt: skip
        losses, sizes = [], []
        for update, index in enumerate(indices, first):
            batch = self.data.batch(index.to(self.context.device, non_blocking=True))
            loss = self._loss_of(batch, draw(update))
            found = torch.autograd.grad(loss, self.weights, allow_unused=True)
            for parameter, gradient in zip(self.weights, found, strict=True):
                parameter.grad = gradient
            if self.config.clip_norm is not None:
                clip_gradients(self.weights, self.config.clip_norm)
            self.optimiser.step()
            self.optimiser.zero_grad()
            losses.append(loss.detach())
            sizes.append(len(batch.target))
        self.context.count(samples=sum(sizes), updates=len(sizes), gradients=sum(sizes))
        return mean_of(losses, sizes)

    def _loss_of(self, batch: Batch, genotype: Genotype) -> Tensor:
        with self.context.autocast():
            return self.loss(self.network(batch.inputs, *self.network.selection(genotype)), batch)

    @contextmanager
    def scoring(self) -> Iterator[None]:
        """Around many scores: the network is made ready for them once. `score` enters it where nobody has."""
        if self._scoring:
            yield
            return
        with batch_statistics(self.network):
            self._scoring = True
            try:
                yield
            finally:
                self._scoring = False

    def score(self, genotype: Genotype, data: Split) -> Tensor:
        """Accuracy (or minus the squared error) on these examples, 0-d. Batch norm by each batch: the running averages
        are those of other architectures.
        """
        mix, active = self.network.selection(genotype)
        found: list[Tensor] = []
        sizes: list[int] = []
        with self.scoring(), torch.no_grad():
            for start in range(0, len(data), BATCH):
                batch = data.batch(slice(start, start + BATCH))
                if len(batch.target) == 1 and found:
                    continue  # batch norm cannot normalise one example
                with self.context.autocast():
                    outputs = self.network(batch.inputs, mix, active).float()
                if batch.target.is_floating_point():
                    found.append(-(outputs.reshape(batch.target.shape) - batch.target).square().mean())
                else:
                    found.append((outputs.argmax(1) == batch.target).float().mean())
                sizes.append(len(batch.target))
        return mean_of(found, sizes)

    def state_dict(self) -> dict[str, Any]:
        """Weights and optimiser."""
        return {"network": self.network.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])


@contextmanager
def batch_statistics(network: nn.Module) -> Iterator[None]:
    """Inside, batch norm normalises by the batch at hand and its running averages stay as they are."""
    norms = [module for module in network.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    modes = [(module, module.training) for module in network.modules()]
    tracked = [norm.track_running_stats for norm in norms]
    network.train()
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm, track in zip(norms, tracked, strict=True):
            norm.track_running_stats = track
        for module, mode in modes:
            module.training = mode
