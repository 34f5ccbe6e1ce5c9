"""Contrastive learning: two modalities of one meaning end in one place, so that one finds the other."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from advml.artifacts import Artifact
from advml.config import CountInt, PositiveFloat, PositiveInt, settings
from advml.contracts import (
    At,
    Batch,
    Classes,
    Context,
    Method,
    Metrics,
    Needs,
    Network,
    Nothing,
    Objective,
    Phase,
    Record,
    Split,
    SplitName,
    Step,
)
from advml.errors import ConfigError
from advml.methods.multimodal.common import shuffled
from advml.methods.multimodal.retrieval import complete, keys_of, retrieval_grid, retrieval_metrics
from advml.nn.early_stopping import EarlyStopping
from advml.nn.evaluation import BATCH, evaluating
from advml.nn.losses import at_least_float32
from advml.nn.metrics import accuracy
from advml.nn.multimodal.losses import info_nce, same_meaning, sigmoid_loss
from advml.nn.optimisers import OptimiserSettings, make_optimiser
from advml.nn.training import train, updates_per_epoch


@settings
class Settings(OptimiserSettings):
    """The loss, its scale, and what is searched at the end."""

    batch_size: PositiveInt
    epochs: PositiveInt
    patience: PositiveInt | None
    contrast: Literal["info_nce", "sigmoid"]
    scale: PositiveFloat | None
    max_scale: PositiveFloat
    bias: float
    gallery: PositiveInt | None
    pictures: CountInt


class Pairs(Network):
    """Both embeddings of each example side by side, [B, 2 D]; with the parameters of the loss."""

    def __init__(self, network: Network, names: Sequence[str], bias: float | None) -> None:
        super().__init__()
        self.network, self.names, self.head = network, tuple(names), nn.Identity()
        self.bias = None if bias is None else nn.Parameter(torch.tensor(float(bias)))

    def features(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """See the class."""
        return torch.cat([self.network.embed(name, inputs) for name in self.names], 1)  # type: ignore[operator]


class Contrastive(Method):
    """InfoNCE (Radford et al. 2021) or the sigmoid loss (Zhai et al. 2023) over the pairs of a mini-batch.

    Examples with equal targets mean the same: all of them are positives. One step is an epoch. The logarithm of the
    scale is learned, kept at most log(max_scale), and never decays.
    """

    settings: ClassVar[type] = Settings
    needs = Needs(view="modalities", targets=(Classes, Nothing))
    objective = Objective("recall_at_1", "valid", "max")

    def setup(self, context: Context) -> None:
        """Build the two towers, and one optimiser for what decays, another for scale and bias."""
        self.context, self.config, self.data = context, context.settings, context.data
        self.names = tuple(self.data.spec.streams)
        if len(self.names) != 2:
            raise ConfigError("view: contrastive learning needs two modalities; use another data set or view.use=null")
        if not self.data.spec.matched:
            raise ConfigError("dataset.task: asks which pairs match, so half of them do not; use a task where all do")
        self.stopping = EarlyStopping(self.config.patience, self.data.valid)
        self.network = context.build()
        if not hasattr(self.network, "embed"):
            raise ConfigError("model: embeds no modality by itself; use model=clip")
        if len(getattr(self.network, "heads", ())):
            raise ConfigError("model.unimodal_heads: nothing trains them; use false")
        self.scale = self.network.get_parameter("log_scale")
        if self.config.scale is not None:
            with torch.no_grad():
                self.scale.fill_(self.config.scale).log_()
        self._clamp()
        for part in (self.network.head, getattr(self.network, "missing", None)):
            if part is not None:  # no part in the loss: as they were drawn, for whoever trains the network further
                part.requires_grad_(False)
        bias = self.config.bias if self.config.contrast == "sigmoid" else None
        self.pairs = Pairs(self.network, self.names, bias).to(context.device, context.dtype)
        own = [self.scale, *([] if self.pairs.bias is None else [self.pairs.bias])]
        others = [one for one in self.network.parameters() if one.requires_grad and one is not self.scale]
        self.optimiser = make_optimiser(others, self.config)
        self.of_loss = make_optimiser(own, replace(self.config, weight_decay=0.0))
        self.training = complete(self.data.train, self.data.spec)
        if not len(self.training):
            raise ConfigError("view.drop: no training example has both modalities; use smaller shares")
        self.updates_per_epoch = updates_per_epoch(len(self.training), self.config.batch_size)

    def phases(self) -> Sequence[Phase]:
        """One phase of epochs."""
        return [Phase("train", "epoch", self.config.epochs)]

    def step(self, at: At) -> Step:
        """An epoch: each pair once; every other pair of its mini-batch with another meaning is a negative."""
        start = at.index * self.updates_per_epoch
        stop = start + self.updates_per_epoch
        self.of_loss.zero_grad()
        loss = train(
            self.pairs,
            shuffled(self.context, self.training, start, stop),
            self._loss,
            self.optimiser,
            settings=self.config,
            update=start,
            total=self.config.epochs * self.updates_per_epoch,
            count=self.context.count,
            after=self._move_scale,
            autocast=self.context.autocast,
        )
        over = self.stopping.after(lambda: -self._found("valid")["recall_at_1"])
        return Step({"loss": loss, "scale": self.scale.detach().exp()}, end_phase=over)

    def _loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        one, other = at_least_float32(outputs).chunk(2, 1)
        positives = same_meaning(batch.target, batch.target)
        with torch.autocast(outputs.device.type, enabled=False):  # it would round the product of the two again
            if self.pairs.bias is None:
                return info_nce(one, other, self.scale, positives)
            return sigmoid_loss(one, other, self.scale, self.pairs.bias, positives)

    def _move_scale(self) -> None:
        """Scale and bias move at the same rate as all else, without decay."""
        self.of_loss.lr = self.optimiser.lr
        self.of_loss.step()
        self.of_loss.zero_grad()
        self._clamp()

    @torch.no_grad()
    def _clamp(self) -> None:
        self.scale.clamp_(max=math.log(self.config.max_scale))

    def evaluate(self, split: SplitName) -> Metrics:
        """Recall at 1, 5 and 10 and the median rank, in both directions; zero-shot accuracy with descriptions."""
        if split == "train" or not len(self.data.split(split)):
            return {}
        return {**self._found(split), **self._zero_shot(split)}

    def _asked(self, split: str) -> Split:
        """The examples that ask and are found."""
        part: Split = self.data.split(split)
        most = len(part) if self.config.gallery is None else min(self.config.gallery, len(part))
        return part.take(torch.arange(most))

    def _found(self, split: str) -> dict[str, Tensor]:
        scores, positives = self._scores(split)
        return retrieval_metrics(scores, positives, self.names)

    def _scores(self, split: str) -> tuple[Tensor, Tensor]:
        asked = self._asked(split)
        one, other = (self._embedded(asked, name) for name in self.names)
        return one @ other.T, same_meaning(asked.target, asked.target)

    def _embedded(self, split: Split, name: str) -> Tensor:
        """[N, D] of one modality."""
        batches = (split.batch(slice(at, at + BATCH)).inputs for at in range(0, len(split), BATCH))
        return torch.cat([self._embed(name, inputs) for inputs in batches])

    def _embed(self, name: str, inputs: Mapping[str, Tensor]) -> Tensor:
        with evaluating(self.network), self.context.autocast():
            embedded: Tensor = self.network.embed(name, inputs)  # type: ignore[operator]
        return at_least_float32(embedded)

    def _zero_shot(self, split: SplitName) -> dict[str, Tensor]:
        """The class whose description lies nearest, of each example's other modality; no class was ever an output."""
        prompts: Mapping[str, Tensor] = self.data.prompts
        described = [name for name in self.names if name in prompts]
        if len(described) != 1:
            return {}
        (words,) = described
        (seen,) = (name for name in self.names if name != words)
        part = self.data.split(split)
        of_classes = self._embed(words, {key: prompts[key] for key in keys_of(self.data.spec, words)})
        scores = self._embedded(part, seen) @ of_classes.T
        return {"zero_shot_accuracy": accuracy(scores, part.target)}

    def state_dict(self) -> dict[str, Any]:
        """Network, the loss's bias, both optimisers, early stopping."""
        return {
            "network": self.network.state_dict(),
            "bias": self.pairs.bias,
            "optimiser": self.optimiser.state_dict(),
            "of_loss": self.of_loss.state_dict(),
            "waiting": self.stopping.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore all of it."""
        self.network.load_state_dict(state["network"])
        if self.pairs.bias is not None:
            with torch.no_grad():
                self.pairs.bias.copy_(state["bias"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.of_loss.load_state_dict(state["of_loss"])
        self.stopping.load_state_dict(state["waiting"])

    def result(self) -> Network:
        """The two towers. Its head took no part: `model=run` may train it."""
        self.network.recipe = {**self.network.recipe, "untrained": "head"}
        return self.network

    def artifacts(self, records: Sequence[Record]) -> Mapping[str, Artifact]:
        """What the first test examples find."""
        if not self.config.pictures or not len(self.data.test):
            return {}
        asked = self._asked("test")
        scores, positives = self._scores("test")
        words = [f"meaning {number}" for number in asked.target.tolist()]
        drawn = retrieval_grid(self.data, asked, scores, positives, self.config.pictures, words)
        return {"retrieval": drawn}
