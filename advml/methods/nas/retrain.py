"""The second half of a search: the network of what was found, trained from scratch (Liu et al. 2019, section 3.1)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from advml.config import CountFloat, CountInt, Fraction, PositiveFloat, PositiveInt, settings
from advml.contracts import At, Batch, Context, Metrics, Network, Phase, Spec, Split, SplitName
from advml.models.build import placed
from advml.models.genotype import GenotypeSettings, build_genotype
from advml.nn.augment import crop_and_flip, cutout
from advml.nn.cells.genotype import Genotype
from advml.nn.cells.network import CellNetwork
from advml.nn.evaluation import measure
from advml.nn.losses import make_loss
from advml.nn.optimisers import make_optimiser
from advml.nn.training import TrainingSettings, minibatches, train, updates_per_epoch

Augment = Literal["none", "crop_flip"]


@settings
class RetrainSettings:
    """The block `retrain` of every search: configs/method/_base/retrain.yaml."""

    epochs: CountInt
    examples: PositiveInt | None
    channels: PositiveInt
    cells: PositiveInt
    reductions: Annotated[int, Interval(ge=0, le=4)]  # as of a genotype
    batch_size: PositiveInt
    lr: PositiveFloat
    momentum: Fraction
    weight_decay: CountFloat
    clip_norm: PositiveFloat | None
    auxiliary: CountFloat
    drop_path: Fraction
    cutout: CountInt
    augment: Augment
    block: PositiveInt | None

    def __post_init__(self) -> None:
        """Each reduction is a cell of its own."""
        if self.reductions > self.cells:
            raise ValueError(
                f"reductions: {self.cells} cells cannot halve the image {self.reductions} times; use fewer"
            )


class Pace:
    """Updates of a phase dealt to steps: `epochs` of `per_epoch` updates, a step being `block` of them or an epoch."""

    def __init__(self, epochs: int, per_epoch: int, block: int | None) -> None:
        self.epochs, self.per_epoch = epochs, per_epoch
        self.block = per_epoch if block is None else min(block, per_epoch)
        self.steps_per_epoch = -(-per_epoch // self.block)

    @property
    def total(self) -> int:
        """Updates of the whole phase."""
        return self.epochs * self.per_epoch

    def phase(self, name: str) -> Phase:
        """Steps that are epochs, or parts of them: no step crosses the end of an epoch."""
        unit = "epoch" if self.steps_per_epoch == 1 else "block"
        return Phase(name, unit, self.epochs * self.steps_per_epoch)

    def updates(self, index: int) -> tuple[int, int, int]:
        """Of step number `index` its epoch, its first update in the phase, and the one after its last."""
        epoch, place = divmod(index, self.steps_per_epoch)
        start = place * self.block
        first = epoch * self.per_epoch
        return epoch, first + start, first + min(start + self.block, self.per_epoch)

    def ends_epoch(self, index: int) -> bool:
        """Is step number `index` the last of its epoch?"""
        return (index + 1) % self.steps_per_epoch == 0


class _WithAuxiliary(Network):
    """Both heads' outputs as [2, B, C], or those of the only head as [1, B, C]."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """See the class."""
        if not isinstance(self.network, CellNetwork):
            return torch.stack([self.network(inputs)])
        logits, second = self.network.with_auxiliary(inputs)
        return torch.stack([logits] if second is None else [logits, second])


class Retraining:
    """The derived network, fresh, with its optimiser. Drop-path rises linearly over the epochs, from 0."""

    def __init__(
        self, context: Context, config: RetrainSettings, genotype: Genotype, split: Split | None = None,
        purpose: str = "retrain", spec: Spec | None = None,
    ) -> None:  # fmt: skip
        self.context, self.config, self.genotype, self.purpose = context, config, genotype, purpose
        self.network = derived_network(context, config, genotype, purpose, spec)
        given = context.data.train if split is None else split
        self.train_split = some_examples(context, given, config.examples, f"{purpose} examples")
        self.settings = training_settings(config)
        self.optimiser = make_optimiser(self.network.parameters(), self.settings)
        self.loss = make_loss("auto", context.data.spec.target)
        self.pace = pace_of(config, len(given))

    def step(self, at: At) -> Metrics:
        """An epoch, or a part of it."""
        config, pace = self.config, self.pace
        epoch, start, stop = pace.updates(at.index)
        if isinstance(self.network, CellNetwork):
            self.network.drop_path = config.drop_path * epoch / config.epochs

        def loss(outputs: Tensor, batch: Batch) -> Tensor:
            value = self.loss(outputs[0], batch)
            return value if len(outputs) == 1 else value + config.auxiliary * self.loss(outputs[1], batch)

        value = train(
            _WithAuxiliary(self.network),
            self._batches(start, stop),
            loss,
            self.optimiser,
            settings=self.settings,
            update=start,
            total=pace.total,
            count=self.context.count,
            autocast=self.context.autocast,
        )
        return {"loss": value}

    def _batches(self, start: int, stop: int) -> Iterator[Batch]:
        rng, split = self.context.rng, self.train_split
        indices = minibatches(
            len(split), self.config.batch_size, start, stop, lambda epoch: rng(f"{self.purpose} order", epoch)
        )
        for update, index in enumerate(indices, start):
            draw = rng(f"{self.purpose} augment", update)
            yield augmented(split, index, draw, self.config.augment, self.config.cutout)

    def evaluate(self, split: SplitName) -> Metrics:
        """As of any trained network."""
        return measure(self.network, self.context.data.split(split), autocast=self.context.autocast)

    def state_dict(self) -> dict[str, Any]:
        """Network and optimiser."""
        return {"network": self.network.state_dict(), "optimiser": self.optimiser.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])


def derived_network(
    context: Context, config: RetrainSettings, genotype: Genotype, purpose: str, spec: Spec | None = None
) -> Network:
    """The network of a genotype in the size of `retrain`, for `spec` (default: the view's): a pure function of
    (seed, purpose, spec).
    """
    like = GenotypeSettings(
        path=None, published=None, genotype=None, channels=config.channels, cells=config.cells,
        reductions=config.reductions, auxiliary=config.auxiliary > 0, drop_path=0.0,
    )  # fmt: skip
    seed = int(torch.randint(2**62, (), generator=context.rng("build", purpose)))
    return placed(build_genotype(genotype, spec or context.data.spec, like, seed), context.device, context.dtype)


def pace_of(config: RetrainSettings, examples: int) -> Pace:
    """How retraining on some of these examples is dealt to steps: known before anything is found."""
    count = min(examples, config.examples or examples)
    return Pace(config.epochs, updates_per_epoch(count, config.batch_size), config.block)


def training_settings(config: RetrainSettings) -> TrainingSettings:
    """SGD with momentum whose rate falls to 0 along a cosine."""
    return TrainingSettings(
        optimiser="sgd", lr=config.lr, momentum=config.momentum, nesterov=False, betas=(0.9, 0.999),
        weight_decay=config.weight_decay, schedule="cosine", warmup=0, step_every=1, step_factor=1.0,
        clip_norm=config.clip_norm, batch_size=config.batch_size, loss="auto", label_smoothing=0.0,
    )  # fmt: skip


def augmented(split: Split, index: Tensor, rng: torch.Generator, augment: Augment, hole: int = 0) -> Batch:
    """The examples at `index`: raw images shifted and mirrored, prepared, then with a square of side `hole` cut out."""
    index = index.to(split.device, non_blocking=True)
    (name,) = split.inputs
    if augment == "crop_flip" and split.inputs[name].dim() == 4:
        # Before they are prepared, so that what is shifted in is black, whatever the normalisation.
        raw = crop_and_flip(split.inputs[name].index_select(0, index), 4, rng)
        images, target = split.prepared({name: raw})[name], split.target.index_select(0, index)
    else:
        inputs, target, _ = split.batch(index)
        images = crop_and_flip(inputs[name], 4, rng) if augment == "crop_flip" else inputs[name]
    if hole:
        images = cutout(images, hole, rng)
    return Batch({name: images}, target)


def some_examples(context: Context, split: Split, count: int | None, purpose: str) -> Split:
    """`count` examples of a split, drawn by the seed; all, if it has no more."""
    if count is None or count >= len(split):
        return split
    return split.take(torch.randperm(len(split), generator=context.rng(purpose))[:count])
