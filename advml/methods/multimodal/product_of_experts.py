"""A network for each modality, trained alone, and Bayes' rule to join them: what any fusion has to beat."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from advml import registry
from advml.artifacts import Artifact
from advml.config import CountFloat, bind_settings, settings
from advml.contracts import (
    At,
    Classes,
    Context,
    Method,
    Metrics,
    Needs,
    Network,
    Objective,
    Phase,
    Record,
    Spec,
    SplitName,
    Step,
)
from advml.data.source import ModalSplit
from advml.errors import ConfigError
from advml.methods.multimodal.common import measured, robustness
from advml.methods.multimodal.pictures import confusion
from advml.models.build import build, placed
from advml.models.experts import Experts, parts
from advml.nn.early_stopping import EarlyStopping, EpochSettings, loss_in
from advml.nn.evaluation import measure, predict
from advml.nn.losses import make_loss
from advml.nn.multimodal.experts import log_prior
from advml.nn.optimisers import make_optimiser
from advml.nn.training import batches_of, minibatches, train, updates_per_epoch


@settings
class Settings(EpochSettings):
    """Models of single modalities, and how the prior is counted."""

    models: Mapping[str, Mapping[str, Any]]
    prior_smoothing: CountFloat


class ProductOfExperts(Method):
    """Each modality's network minimises its own loss on the examples that have the modality; a step is an epoch of all.

    Where the modalities are independent given the class, and the networks calibrated, their product is Bayes' rule.
    An expert is what `supervised` trains on that modality alone with the same seed and settings.
    """

    settings: ClassVar[type] = Settings
    needs = Needs(view="modalities", targets=(Classes,))
    objective = Objective("accuracy", "valid", "max")

    def setup(self, context: Context) -> None:
        """Build the experts and their optimisers; count the classes of the training examples."""
        self.context, self.config, self.data = context, context.settings, context.data
        self.loss = make_loss(self.config.loss, self.data.spec.target, self.config.label_smoothing)
        spec, each = self.data.spec, parts(self.data.spec)
        for name in self.config.models:
            if name not in each:
                raise ConfigError(f"method.models.{name}: no modality; there are {', '.join(each)}")
        self._check_classes()
        experts = {name: self._built(name, part) for name, part in each.items()}
        self.network = Experts(spec, experts).to(context.device, context.dtype)
        classes = spec.outputs
        self.network.get_buffer("prior").copy_(log_prior(self.data.train.target, classes, self.config.prior_smoothing))
        self.training = {name: self._own(name, self.data.train, only_present=True) for name in experts}
        for name, own in self.training.items():
            if not len(own):
                raise ConfigError(f"view.drop.{name}: no training example has {name}; use a smaller share")
        self.optimisers = {name: make_optimiser(expert.parameters(), self.config) for name, expert in experts.items()}
        self.stopping = {name: EarlyStopping(self.config.patience, self.data.valid) for name in experts}

    def _check_classes(self) -> None:
        """Raises ConfigError where a class would have the probability 0 beforehand: its logarithm is −∞."""
        counts = self.data.train.target.bincount(minlength=self.data.spec.outputs)
        absent = (counts == 0).nonzero().flatten().tolist()
        if absent and not self.config.prior_smoothing:
            raise ConfigError(f"method.prior_smoothing=0: train lacks class {absent[0]}; use a number above 0")

    def _built(self, name: str, spec: Spec) -> Network:
        """The network of a modality: the one that `models` names, otherwise the chosen model."""
        block = self.config.models.get(name)
        if block is None:
            try:
                return self.context.build(spec)
            except (ValueError, ConfigError) as error:
                raise ConfigError(f"model: cannot serve {name} alone ({error}); use model=late_fusion") from None
        if not isinstance(block.get("name"), str):
            raise ConfigError(f"method.models.{name}: needs a name and the settings of a model; see configs/model")
        chosen = registry.resolve("model", block["name"])
        values = {key: value for key, value in block.items() if key != "name"}
        bound = bind_settings(chosen.settings, values, f"method.models.{name}.")
        if reason := chosen.check(spec, bound):
            raise ConfigError(f"method.models.{name}: {block['name']} needs {reason}; choose another model")
        seed = int(torch.randint(2**62, (), generator=self.context.rng("build", name)))
        return placed(build(block["name"], bound, spec, seed), self.context.device, self.context.dtype)

    def _own(self, name: str, split: ModalSplit, only_present: bool) -> ModalSplit:
        """What an expert reads of a split; of its training examples only those that have the modality."""
        present, part = self.network.present[name], self.network.parts[name]
        if only_present and present is not None and not bool(split.inputs[present].all()):
            split = split.take(split.inputs[present].nonzero().flatten())
        inputs = {one: split.inputs[one] for one in part.inputs}
        prepare = {one: steps for one, steps in split.prepare.items() if one in inputs}
        return replace(split, inputs=inputs, prepare=prepare, streams=part.streams)

    def phases(self) -> Sequence[Phase]:
        """One phase of epochs."""
        return [Phase("train", "epoch", self.config.epochs)]

    def step(self, at: At) -> Step:
        """An epoch of each expert that has not stopped early; the mean loss of each that trained."""
        found = {}
        for name, own in self.training.items():
            if self.stopping[name].over:
                continue
            each = updates_per_epoch(len(own), self.config.batch_size)
            start = at.index * each
            indices = minibatches(
                len(own), self.config.batch_size, start, start + each, lambda epoch: self.context.rng("shuffle", epoch)
            )
            found[f"loss/{name}"] = train(
                self.network.expert(name),
                batches_of(own, indices),
                self.loss,
                self.optimisers[name],
                settings=self.config,
                update=start,
                total=self.config.epochs * each,
                count=self.context.count,
                autocast=self.context.autocast,
            )
            self.stopping[name].after(partial(self._watched, name))
        return Step(found, end_phase=all(stopping.over for stopping in self.stopping.values()))

    def _watched(self, name: str) -> float | Tensor:
        return loss_in(self._alone(name, "valid"))

    def _alone(self, name: str, split: SplitName) -> Metrics:
        own = self._own(name, self.data.split(split), only_present=True)
        return measure(self.network.expert(name), own, autocast=self.context.autocast)

    def evaluate(self, split: SplitName) -> Metrics:
        """Metrics of the product as it is and under each condition; of each expert accuracy/image_alone."""
        found = measured(self.context, self.network, split)
        if found and split != "train":
            for name in self.training:
                own = self._alone(name, split)
                if own:
                    found[f"accuracy/{name}_alone"] = own["accuracy"]
        return found

    def state_dict(self) -> dict[str, Any]:
        """Experts and prior, their optimisers, early stopping."""
        return {
            "network": self.network.state_dict(),
            "optimisers": {name: optimiser.state_dict() for name, optimiser in self.optimisers.items()},
            "waiting": {name: stopping.state_dict() for name, stopping in self.stopping.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore all of it."""
        self.network.load_state_dict(state["network"])
        for name in self.training:
            self.optimisers[name].load_state_dict(state["optimisers"][name])
            self.stopping[name].load_state_dict(state["waiting"][name])

    def result(self) -> Network:
        """The product."""
        return self.network

    def artifacts(self, records: Sequence[Record]) -> Mapping[str, Artifact]:
        """Robustness bars and the confusion of classes."""
        made: dict[str, Artifact] = dict(robustness(self.context, records))
        if len(self.data.test):
            predicted = predict(self.network, self.data.test, autocast=self.context.autocast).argmax(1)
            made["confusion_matrix"] = confusion(predicted, self.data.test.target, self.data.spec.outputs)
        return made
