"""DARTS (Liu, Simonyan, Yang 2019): architecture search by gradient descent, and variants of it behind settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor

from advml.artifacts import Artifact
from advml.config import CountFloat, CountInt, Fraction, PositiveFloat, PositiveInt, settings
from advml.contracts import At, Batch, Context, Metrics, Network, Phase, Record, Split, SplitName, Step
from advml.errors import ConfigError
from advml.methods.nas.common import (
    ArchitectureSearch,
    SearchSettings,
    check_batches,
    check_kinds,
    halves,
    shrunk,
    shrunk_spec,
    supernet,
)
from advml.methods.nas.monitor import Monitor, StopSettings
from advml.methods.nas.retrain import Augment, Pace, augmented
from advml.methods.nas.schedules import cosine
from advml.nn.cells.genotype import Genotype
from advml.nn.evaluation import frozen, measure
from advml.nn.hypergradient import first_order, gradients_of, largest_eigenvalue, second_order
from advml.nn.losses import make_loss, mean_of
from advml.nn.optimisers import Adam, Sgd, clip_gradients
from advml.nn.training import minibatches, updates_per_epoch


@settings
class DartsSettings(SearchSettings):
    """The keys of configs/method/darts.yaml."""

    order: Literal[1, 2]
    epochs: PositiveInt
    warmup: CountInt
    block: PositiveInt | None
    augment: Augment
    lr: PositiveFloat
    lr_min: CountFloat
    momentum: Fraction
    weight_decay: CountFloat
    clip_norm: PositiveFloat | None
    alpha_lr: CountFloat
    alpha_betas: tuple[Fraction, Fraction]
    alpha_weight_decay: CountFloat
    radius: PositiveFloat
    sampling: Literal["none", "gumbel"]
    temperature: tuple[PositiveFloat, PositiveFloat]
    skip_decay: bool
    eigenvalue: Annotated[int, Ge(0)]
    stop: StopSettings

    def __post_init__(self) -> None:
        """What has no effect, or decides without being known, misleads."""
        if self.stop.kind == "eigenvalue" and not self.eigenvalue:
            raise ValueError("eigenvalue: stop.kind=eigenvalue needs one; use 10 iterations")
        if self.stop.kind != "none" and self.stop.start >= self.epochs:
            raise ValueError(
                f"stop.start: {self.stop.start} epochs leave none of {self.epochs} in which the search may stop;"
                f" use method.stop.start={self.epochs // 2}, or more method.epochs"
            )
        if self.stop.kind == "eigenvalue" and self.stop.delta >= self.epochs:
            raise ValueError(
                f"stop.delta: {self.epochs} epochs have none that lies {self.stop.delta} before another;"
                f" use method.stop.delta={max(1, self.epochs // 4)}, or more method.epochs"
            )
        if self.warmup >= self.epochs:
            raise ValueError(
                f"warmup: {self.warmup} epochs leave none of {self.epochs} to move the architecture in; use fewer"
                " (method.alpha_lr=0 keeps it where it is)"
            )


class Darts(ArchitectureSearch):
    """Weights w learn from one half of the training examples, the architecture α from the other.

    For each mini-batch: α moves along its hypergradient (order 1: w is taken as it is; 2: through a virtual step of
    SGD), then w along ∇w L_train. The supernet of `model` mixes all operations on an edge by softmax(α), or with
    `sampling: gumbel` (GDAS, Dong and Yang 2019) computes one, drawn by α, with the gradient of the mixture.
    """

    settings: ClassVar[type] = DartsSettings

    def setup_search(self) -> None:
        """The supernet; SGD for its weights, Adam for its architecture."""
        config, context = self.config, self.context
        if (config.order == 2 or config.eigenvalue) and autocasting(context):
            raise ConfigError(
                "precision=bf16: drowns the small differences of gradients that method.order=2 and method.eigenvalue"
                " take; use precision=float32, or method.order=1 and method.eigenvalue=0"
            )
        self.network = supernet(context.build(shrunk_spec(self.data.spec, config)))
        check_kinds(self.network, config.retrain)
        if config.skip_decay and not self.network.config.auxiliary_skip:
            raise ConfigError("method.skip_decay: needs a skip whose weight can fall; use model.auxiliary_skip=true")
        self.weights, self.architecture = self.network.weights(), self.network.architecture()
        self.optimiser = Sgd(self.weights, config.lr, config.momentum, weight_decay=config.weight_decay)
        self.alpha_optimiser = Adam(
            self.architecture, config.alpha_lr, config.alpha_betas, weight_decay=config.alpha_weight_decay
        )
        self.loss = make_loss("auto", self.data.spec.target)
        self.train_half, self.valid_half = halves(context, config)
        for half in (self.train_half, self.valid_half):
            check_batches("method.batch_size", config.batch_size, len(half))
        per_epoch = updates_per_epoch(len(self.train_half), config.batch_size)
        self.pace = Pace(config.epochs, per_epoch, config.block)
        self.monitor = Monitor(config.stop, self.network.operations)

    def search_phases(self) -> Sequence[Phase]:
        """Epochs over the weights' half."""
        return [self.pace.phase("search")]

    # --- a step ---

    def search_step(self, at: At) -> Step:
        """An epoch, or a part of it; at its end the monitor looks for a collapse."""
        config, pace = self.config, self.pace
        epoch, start, stop = pace.updates(at.index)
        self.network.train()
        self.optimiser.lr = cosine(config.lr, config.lr_min, epoch / config.epochs)
        if config.skip_decay:
            self.network.skip_weight.fill_(1 - epoch / config.epochs)
        train = minibatches(len(self.train_half), config.batch_size, start, stop, self._rng("train order"))
        valid = minibatches(len(self.valid_half), config.batch_size, start, stop, self._rng("valid order"))
        losses: list[Tensor] = []
        sizes: list[int] = []
        for update, (of_weights, of_alpha) in enumerate(zip(train, valid, strict=True), start):
            batch = self._seen(self.train_half, of_weights, "augment weights", update)
            judge = self._seen(self.valid_half, of_alpha, "augment architecture", update)
            mix = self._mixer(update)
            if epoch >= config.warmup and config.alpha_lr:
                self._move_architecture(batch, judge, mix)
            losses.append(self._move_weights(batch, mix))
            sizes.append(len(batch.target))
        self.context.count(samples=sum(sizes), updates=len(sizes), gradients=sum(sizes))
        metrics: dict[str, Any] = {"loss": mean_of(losses, sizes)}
        if not pace.ends_epoch(at.index):
            return Step(metrics)
        eigenvalue = self._eigenvalue(epoch) if config.eigenvalue else None
        told, ended = self.monitor.epoch(self.network, eigenvalue)
        return Step({**metrics, **told}, end_phase=ended)

    def _seen(self, half: Split, index: Tensor, purpose: str, update: int) -> Batch:
        return augmented(half, index, self.context.rng(purpose, update), self.config.augment)

    def _rng(self, purpose: str) -> Callable[[int], torch.Generator]:
        return lambda epoch: self.context.rng(purpose, epoch)

    def _loss_of(self, batch: Batch, mix: Callable[[], Any]) -> Tensor:
        with self.context.autocast():
            mixture, active = mix()
            return self.loss(self.network(batch.inputs, mixture, active), batch)

    def _move_architecture(self, batch: Batch, judge: Batch, mix: Callable[[], Any]) -> None:
        config = self.config
        if config.order == 1:
            found = first_order(self.architecture, lambda: self._loss_of(judge, mix))
            passes = len(judge.target)
        else:
            found = second_order(
                self.weights,
                self.architecture,
                lambda: self._loss_of(batch, mix),
                lambda: self._loss_of(judge, mix),
                lr=self.optimiser.lr,
                momentum=config.momentum,
                buffers=self.optimiser.slots.get("momentum"),
                weight_decay=config.weight_decay,
                radius=config.radius,
            )
            passes = len(judge.target) + 3 * len(batch.target)
        for parameter, gradient in zip(self.architecture, found.gradients, strict=True):
            parameter.grad = gradient
        self.alpha_optimiser.step()
        self.alpha_optimiser.zero_grad()
        self.context.count(samples=passes, updates=1, gradients=passes)

    def _move_weights(self, batch: Batch, mix: Callable[[], Any]) -> Tensor:
        loss = self._loss_of(batch, mix)
        for parameter, gradient in zip(self.weights, gradients_of(loss, self.weights), strict=True):
            parameter.grad = gradient
        if self.config.clip_norm is not None:
            clip_gradients(self.weights, self.config.clip_norm)
        self.optimiser.step()
        self.optimiser.zero_grad()
        return loss.detach()

    # --- mixtures ---

    def _mixer(self, update: int) -> Callable[[], Any]:
        """A function that gives (mixture, active operations) by today's α; noise is drawn once for an update."""
        if self.config.sampling == "none":
            return lambda: (None, None)
        first, last = self.config.temperature
        temperature = first + (last - first) * update / max(1, self.pace.total - 1)
        noise = {}
        for kind, alpha in self.network.alphas.items():
            even = torch.rand(alpha.shape, generator=self.context.rng("gumbel", update, kind), dtype=torch.float64)
            noise[kind] = -(-even.clamp_min(1e-300).log()).log().to(alpha)

        def draw() -> Any:
            mix, active = self.network.mixing(), {}
            for kind, alpha in self.network.alphas.items():
                mix[kind], active[kind] = gumbel_choice(alpha, noise[kind], temperature)
            return mix, active

        return draw

    def _eigenvalue(self, epoch: int) -> Tensor:
        """The largest eigenvalue of ∇²α L_valid on one batch, of a copy: batch norm's averages stay as they are."""
        copy = frozen(self.network).train()
        architecture = copy.architecture()
        for alpha in architecture:
            alpha.requires_grad_()
        rng = self.context.rng("eigenvalue", epoch)
        index = torch.randperm(len(self.valid_half), generator=rng)[: self.config.batch_size]
        batch = self.valid_half.batch(index.to(self.context.device))
        start = [torch.randn(alpha.shape, generator=rng).to(alpha) for alpha in architecture]

        def loss() -> Tensor:
            self.context.count(samples=len(batch.target), gradients=len(batch.target))
            with self.context.autocast():
                return self.loss(copy(batch.inputs), batch)

        return largest_eigenvalue(loss, architecture, start, self.config.eigenvalue)

    # --- the rest of a search ---

    def derive(self) -> Genotype:
        """By today's α; where the monitor stopped the search, that of the epoch before the jump."""
        return self.monitor.kept or self.network.derive()

    def search_evaluate(self, split: SplitName) -> Metrics:
        """The supernet with its mixture, on validation examples only."""
        if split != "valid":
            return {}
        found = measure(self.network, shrunk(self.data.valid, self.config), autocast=self.context.autocast)
        return {f"search_{name}": value for name, value in found.items()}

    def searched(self) -> Network | None:
        """The supernet, unless it has learnt from shrunk images: nobody could give it what it knows."""
        return self.network if shrunk_spec(self.data.spec, self.config) == self.data.spec else None

    def search_state(self) -> dict[str, Any]:
        """Supernet and both optimisers."""
        return {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "alpha_optimiser": self.alpha_optimiser.state_dict(),
        }

    def load_search_state(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.alpha_optimiser.load_state_dict(state["alpha_optimiser"])

    def told(self) -> dict[str, Any]:
        """The monitor's history."""
        return self.monitor.state_dict()

    def load_told(self, told: Mapping[str, Any]) -> None:
        """Restore it."""
        self.monitor.load_state_dict(told)

    def summary(self, records: Sequence[Record]) -> Metrics:
        """Size, skips, and 1 in `collapsed` where more than half of the normal cell's edges are skips."""
        counted = super().summary(records)
        normal = self.found().normal
        edges = sum(len(node) for node in normal.nodes)
        return {**counted, "collapsed": float(2 * normal.count("skip_connect") > edges)}

    def artifacts(self, records: Sequence[Record]) -> Mapping[str, Artifact]:
        """The cells; how operation weights, skips and the eigenvalue went."""
        return {**super().artifacts(records), **self.monitor.pictures()}


def autocasting(context: Context) -> bool:
    """Does the run compute in bf16?"""
    with context.autocast():
        return torch.is_autocast_enabled(context.device.type)


def gumbel_choice(alpha: Tensor, noise: Tensor, temperature: float) -> tuple[Tensor, tuple[tuple[int, ...], ...]]:
    """GDAS, eqs. 3 to 5: the one-hot choice of largest α + noise on each edge [E, O], with the gradient of
    softmax((log softmax(α) + noise) / temperature); and which operation that is.
    """
    soft = ((alpha.log_softmax(1) + noise) / temperature).softmax(1)
    chosen = soft.argmax(1, keepdim=True)
    hard = torch.zeros_like(soft).scatter_(1, chosen, 1.0)
    mixture = hard - soft.detach() + soft
    return mixture, tuple((number,) for number in chosen.flatten().tolist())
