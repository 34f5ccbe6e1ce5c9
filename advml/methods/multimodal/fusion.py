"""Supervised learning from several modalities at once, and what keeps one of them from being neglected."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from advml.artifacts import Artifact
from advml.config import CountFloat, CountInt, PositiveFloat, PositiveInt, settings
from advml.contracts import (
    At,
    Batch,
    Classes,
    Context,
    Method,
    Metrics,
    Needs,
    Network,
    Objective,
    Phase,
    Real,
    Record,
    Split,
    SplitName,
    Step,
)
from advml.errors import ConfigError
from advml.methods.multimodal.common import (
    main_metric,
    measured,
    robustness,
    shuffled,
)
from advml.methods.multimodal.heads import Alone, with_heads
from advml.methods.multimodal.pictures import as_cpu, attention_picture, confusion, seen
from advml.methods.multimodal.retrieval import pair_scores, retrieval_grid, retrieval_metrics
from advml.models.blind import Blind
from advml.models.fusion import FusionNetwork
from advml.nn.early_stopping import EarlyStopping, EpochSettings, loss_in
from advml.nn.evaluation import evaluating, measure, predict
from advml.nn.losses import make_loss
from advml.nn.multimodal.losses import same_meaning
from advml.nn.multimodal.modulation import coefficients, confidence, modulate
from advml.nn.multimodal.presence import draw_gone, without
from advml.nn.optimisers import make_optimiser
from advml.nn.training import train, updates_per_epoch

Probability = Annotated[float, Interval(ge=0, le=1)]


@settings
class ModulationSettings:
    """Whether the modality that is ahead is slowed down, how much, and for how long."""

    kind: Literal["none", "ogm", "ogm_ge"]
    alpha: PositiveFloat
    epochs: PositiveInt | None


@settings
class Settings(EpochSettings):
    """The remedies, and what is drawn at the end."""

    unimodal_weight: CountFloat
    modality_dropout: Probability | Mapping[str, Probability]
    modulation: ModulationSettings
    gallery: CountInt
    pictures: CountInt


class Fusion(Method):
    """Minimise loss(fused) + λ Σ_m loss(head of m) over training examples that now and then lack a modality.

    One step is an epoch. Serves any network; auxiliary losses and modulation need one with a head a modality.
    """

    settings: ClassVar[type] = Settings
    needs = Needs(view="modalities", targets=(Classes, Real))
    objective = Objective("accuracy", "valid", "max")

    def setup(self, context: Context) -> None:
        """Build the network, its optimiser and the loss; check that the remedies fit."""
        self.context, self.config, self.data = context, context.settings, context.data
        if isinstance(self.data.spec.target, Real):
            self.objective = Objective("mse", "valid", "min")
        self.loss = make_loss(self.config.loss, self.data.spec.target, self.config.label_smoothing)
        self.stopping = EarlyStopping(self.config.patience, self.data.valid)
        self.network = context.build()
        self.heads = with_heads(self.network, self.data)
        self.rates = self._rates()
        self._check_remedies()
        self.optimiser = make_optimiser(self.network.parameters(), self.config)
        self.updates_per_epoch = updates_per_epoch(len(self.data.train), self.config.batch_size)
        self.scores: dict[str, Tensor] = {}  # of the batch at hand: what each modality alone gives to the truth

    def _rates(self) -> dict[str, float]:
        """Modality → how often it is taken away in training; nothing where there is one modality only."""
        streams, given = self.data.spec.streams, self.config.modality_dropout
        if len(streams) < 2:
            return {}
        if isinstance(given, Mapping):
            for name in given:
                if name not in streams:
                    raise ConfigError(f"method.modality_dropout.{name}: no modality; there are {', '.join(streams)}")
            rates = {name: float(given.get(name, 0.0)) for name in streams}
        else:
            rates = dict.fromkeys(streams, float(given))
        for name, rate in rates.items():
            if rate and streams[name].present is None:
                raise ConfigError(f"method.modality_dropout: {name} is never missing in this view; use 0")
        if all(rate == 1 for rate in rates.values()):
            raise ConfigError("method.modality_dropout: 1 for every modality leaves nothing; use less for one of them")
        return rates

    def _check_remedies(self) -> None:
        """Raises ConfigError for a remedy that this network or target cannot have."""
        config, kind = self.config, self.config.modulation.kind
        wants = "method.unimodal_weight" if config.unimodal_weight else "method.modulation.kind"
        if (config.unimodal_weight or kind != "none") and len(self.data.spec.streams) > 1 and self.heads is None:
            raise ConfigError(
                f"{wants}: the model has no head for each modality; use one that has, with model.unimodal_heads=true"
            )
        if self.heads is not None and not config.unimodal_weight and len(self.heads.network.heads):
            raise ConfigError(
                "model.unimodal_heads: nothing trains them; set method.unimodal_weight above 0, or use false"
            )
        if config.gallery and (len(self.data.spec.streams) != 2 or self.data.spec.target != Classes(2)):
            raise ConfigError("method.gallery: needs two modalities and two classes, the second a match; use 0")
        if kind != "none" and not isinstance(self.data.spec.target, Classes):
            raise ConfigError("method.modulation.kind: compares probabilities of classes; use none")

    def phases(self) -> Sequence[Phase]:
        """One phase of epochs."""
        return [Phase("train", "epoch", self.config.epochs)]

    def step(self, at: At) -> Step:
        """An epoch: each example once, shuffled by the epoch's number."""
        start = at.index * self.updates_per_epoch
        stop, total = start + self.updates_per_epoch, self.config.epochs * self.updates_per_epoch
        loss = train(
            self.network if self.heads is None else self.heads,
            self._batches(start, stop),
            self.loss if self.heads is None else self._joint_loss,
            self.optimiser,
            settings=self.config,
            update=start,
            total=total,
            count=self.context.count,
            transform=self._modulation(at.index, start),
            autocast=self.context.autocast,
        )
        return Step({"loss": loss}, end_phase=self.stopping.after(lambda: loss_in(self._measure("valid"))))

    def _batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Training batches; examples lack what modality dropout took."""
        for update, batch in enumerate(shuffled(self.context, self.data.train, start, stop), start):
            yield batch._replace(inputs=self._thinned(batch, update))

    def _thinned(self, batch: Batch, update: int) -> Mapping[str, Tensor]:
        if not any(self.rates.values()):
            return batch.inputs
        streams, rng = self.data.spec.streams, self.context.rng("modality_dropout", update)
        present = {name: batch.inputs[one.present] for name, one in streams.items() if one.present is not None}
        return without(batch.inputs, streams, draw_gone(self.rates, len(batch.target), rng, present))

    def _joint_loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """loss(fused) + λ Σ_m loss(head of m); notes how sure each head is of the truth."""
        fused, *alone = outputs.chunk(1 + len(self.data.spec.streams), 1)
        loss = self.loss(fused, batch)
        if self.config.modulation.kind != "none":
            self.scores = {
                name: confidence(own, batch.target) for name, own in zip(self.data.spec.streams, alone, strict=True)
            }
        if self.config.unimodal_weight:
            loss = loss + self.config.unimodal_weight * sum(self.loss(own, batch) for own in alone)
        return loss

    def _modulation(self, epoch: int, start: int) -> Any:
        """What changes the gradients of this epoch's updates; None = nothing."""
        chosen = self.config.modulation
        if chosen.kind == "none" or self.heads is None or (chosen.epochs is not None and epoch >= chosen.epochs):
            return None
        network, update = self.heads.network, iter(range(start, start + self.updates_per_epoch))

        def transform() -> None:
            number = next(update)

            def draw(name: str, parameter: int, like: Tensor) -> Tensor:
                generator = self.context.rng("modulation", number, name, parameter)
                return torch.randn(like.shape, generator=generator).to(like, non_blocking=True)

            towers = {name: network.tower(name).parameters() for name in self.scores}
            modulate(towers, coefficients(self.scores, chosen.alpha), draw if chosen.kind == "ogm_ge" else None)

        return transform

    def evaluate(self, split: SplitName) -> Metrics:
        """Metrics as it is and under each condition; with heads, what each modality's own says: accuracy/image_head."""
        found = measured(self.context, self.tested, split)
        if found and self.heads is not None and split != "train":
            main = main_metric(self.context)
            for name in self.data.spec.streams:
                alone = Alone(self.heads.network, name)
                own = measure(alone, self.data.split(split), autocast=self.context.autocast)
                found[f"{main}/{name}_head"] = own[main]
        if found and self.config.gallery and split != "train" and self._matches(split):
            _, scores, positives = self._gallery(split)
            found |= retrieval_metrics(scores, positives, tuple(self.data.spec.streams))
        return found

    def _matches(self, split: SplitName) -> bool:
        """Has the split a pair that matches? Without one there is nobody to look for."""
        return bool((self.data.split(split).target == 1).any())

    def _gallery(self, split: SplitName) -> tuple[Split, Tensor, Tensor]:
        """Matching examples, the score of each pair of them, and which pairs mean the same."""
        part: Split = self.data.split(split)
        part = part.take((part.target == 1).nonzero().flatten()[: self.config.gallery])
        meaning = torch.arange(len(part), device=part.device) if part.meaning is None else part.meaning
        scores = pair_scores(self.tested, part, self.data.spec, self.context.autocast)
        return part, scores, same_meaning(meaning, meaning)

    @property
    def tested(self) -> Network:
        """The network; what training never shows it, no test shows it either."""
        never = [name for name, rate in self.rates.items() if rate == 1]
        return Blind(self.network, never) if never else self.network

    def _measure(self, split: SplitName) -> Metrics:
        return measure(self.tested, self.data.split(split), autocast=self.context.autocast)

    def state_dict(self) -> dict[str, Any]:
        """Network, optimiser, early stopping."""
        return {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "waiting": self.stopping.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore all of it."""
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.stopping.load_state_dict(state["waiting"])

    def result(self) -> Network:
        """The trained network, as it was tested."""
        return self.tested

    def artifacts(self, records: Sequence[Record]) -> Mapping[str, Artifact]:
        """Robustness bars, the confusion of classes, attention where the network has it."""
        made: dict[str, Artifact] = dict(robustness(self.context, records))
        target, test = self.data.spec.target, self.data.test
        if not isinstance(target, Classes) or not len(test):
            return made
        predicted = predict(self.tested, test, autocast=self.context.autocast).argmax(1)
        made["confusion_matrix"] = confusion(predicted, test.target, target.count)
        if self.config.gallery and self.config.pictures and self._matches("test"):
            part, scores, positives = self._gallery("test")
            meaning = torch.arange(len(part)) if part.meaning is None else as_cpu(part.meaning)
            words = [f"meaning {number}" for number in meaning.tolist()]
            made["retrieval"] = retrieval_grid(self.data, part, scores, positives, self.config.pictures, words)
        return {**made, **self._attention(predicted)}

    def _attention(self, predicted: Tensor) -> Mapping[str, Artifact]:
        """Heads averaged, for the first test examples."""
        count = min(self.config.pictures, len(predicted))
        if not count or not isinstance(self.network, FusionNetwork):
            return {}
        inputs = self.data.test.batch(slice(0, count)).inputs
        with evaluating(self.network):
            found = self.network.attention(inputs)
            real = {name: one.mask for name, one in self.network.encode(inputs).items()} if found else {}
        if not found:
            return {}
        maps = {}
        for name, weights in found.items():
            query, _, key = name.partition("→")
            mean = as_cpu(weights).mean(1)
            for mask, axis in ((real[query], 2), (real[key], 1)):
                mean = mean if mask is None else mean.masked_fill(~as_cpu(mask).unsqueeze(axis), torch.nan)
            maps[name] = mean
        truth, said = as_cpu(self.data.test.target[:count]).tolist(), as_cpu(predicted[:count]).tolist()
        examples = [
            seen(self.data, self.data.test, place, f"true {truth[place]}, said {said[place]}") for place in range(count)
        ]
        return {"attention": attention_picture(examples, maps, "Where each modality looks in the other")}
