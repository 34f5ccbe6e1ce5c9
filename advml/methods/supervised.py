"""Plain supervised learning: mini-batch training with a schedule and early stopping, for classes or real targets.

With `privacy` (method=dp_sgd) no single training example shows in the network (Abadi et al. 2016). `Rates`
(method=qnn) tries several learning rates.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from advml.artifacts import Artifact, Heatmap, Json
from advml.config import PositiveFloat, PositiveInt, settings
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
    Real,
    Record,
    SplitName,
    Step,
)
from advml.errors import ConfigError
from advml.nn.abilities import mixing
from advml.nn.early_stopping import EarlyStopping, EpochSettings, loss_in
from advml.nn.evaluation import measure, predict
from advml.nn.losses import make_loss
from advml.nn.membership import attacked
from advml.nn.metrics import confusion_matrix
from advml.nn.optimisers import make_optimiser
from advml.nn.private_training import Privacy, PrivacySettings, train_privately
from advml.nn.training import batches_of, minibatches, train, updates_per_epoch


@settings
class Settings(EpochSettings):
    """Whether a membership attack is tried at the end, and whether examples are protected."""

    attack: Literal["none", "loss"]
    privacy: PrivacySettings


class Supervised(Method):
    """Minimise the mean loss over the training examples. One step is an epoch."""

    settings: ClassVar[type] = Settings
    needs = Needs(view=("plain", "modalities"), targets=(Classes, Real))
    objective = Objective("accuracy", "valid", "max")

    def setup(self, context: Context) -> None:
        """Build the network, its optimiser and the loss."""
        self.context, self.config, self.data = context, context.settings, context.data
        target = self.data.spec.target
        if isinstance(target, Real):
            self.objective = Objective("mse", "valid", "min")
        self.loss = make_loss(self.config.loss, target, self.config.label_smoothing)
        self.stopping = EarlyStopping(self.config.patience, self.data.valid)
        if self.config.attack != "none" and (isinstance(target, Real) or not len(self.data.test)):
            raise ConfigError("method.attack: needs classes and test examples; use method.attack=none")
        self.network = context.build()
        self.optimiser = make_optimiser(self.network.parameters(), self.config)
        self.updates_per_epoch = updates_per_epoch(len(self.data.train), self.config.batch_size)
        self.privacy = None if self.config.privacy.kind == "none" else self._private()

    def _private(self) -> Privacy:
        """Raises ConfigError where gradients of single examples cannot be had, or the target not be met."""
        if (mixed := mixing(self.network)) is not None:
            raise ConfigError(mixed)
        with self.context.autocast():
            if torch.is_autocast_enabled(self.context.device.type):
                raise ConfigError("precision=bf16: privacy does not support it; use float32 or float64")
        planned = self.config.epochs * self.updates_per_epoch
        data, batch_size = self.data.train, self.config.batch_size
        try:
            return Privacy(self.config.privacy, len(data), batch_size, planned, self.context.rng)
        except ValueError as error:
            raise ConfigError(f"method.privacy.{error}") from None

    def phases(self) -> Sequence[Phase]:
        """One phase of epochs."""
        return [Phase("train", "epoch", self.config.epochs)]

    def step(self, at: At) -> Step:
        """An epoch: each example once, shuffled by the epoch's number; with privacy, as many samples of all."""
        start = at.index * self.updates_per_epoch
        stop, total = start + self.updates_per_epoch, self.config.epochs * self.updates_per_epoch
        if self.privacy is not None:
            metrics = train_privately(
                self.network,
                self.data.train,
                self.loss,
                self.optimiser,
                self.privacy,
                settings=self.config,
                start=start,
                stop=stop,
                total=total,
                count=self._count,
            )
            return Step(metrics, end_phase=self._has_stalled())
        indices = minibatches(
            len(self.data.train), self.config.batch_size, start, stop, lambda epoch: self.context.rng("shuffle", epoch)
        )
        loss = train(
            self.network,
            batches_of(self.data.train, indices),
            self.loss,
            self.optimiser,
            settings=self.config,
            update=start,
            total=total,
            count=self._count,
            autocast=self.context.autocast,
        )
        return Step({"loss": loss}, end_phase=self._has_stalled())

    def _count(self, **work: int) -> None:
        """And the circuits that a quantum network runs for these examples."""
        each = getattr(self.network, "circuits", 0)
        circuits = {"circuits": each * work["samples"]} if each else {}
        self.context.count(**circuits, **work)

    def _has_stalled(self) -> bool:
        return self.stopping.after(lambda: loss_in(self._measure("valid")))

    def evaluate(self, split: SplitName) -> Metrics:
        """Loss, accuracy, macro-F1, calibration error and, for two classes, ROC-AUC; or MSE, MAE and R²; and ε."""
        found = self._measure(split)
        return {**found, "epsilon": self.privacy.epsilon()} if found and self.privacy is not None else found

    def _measure(self, split: SplitName) -> Metrics:
        return measure(self.network, self.data.split(split), autocast=self.context.autocast)

    def state_dict(self) -> dict[str, Any]:
        """Network, optimiser, early stopping."""
        return {
            "network": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            **self.stopping.state_dict(),
            **({} if self.privacy is None else {"private_updates": self.privacy.released}),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore all of it."""
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.stopping.load_state_dict(state)
        if self.privacy is not None:
            self.privacy.restore(state["private_updates"])

    def result(self) -> Network:
        """The trained network."""
        return self.network

    def summary(self, records: Sequence[Record]) -> Metrics:
        """With privacy, ε and δ of the whole run; and how well an attack tells who was trained on, where asked for."""
        spent = {} if self.privacy is None else {"epsilon": self.privacy.epsilon(), "delta": self.privacy.delta}
        if self.config.attack == "none":
            return spent
        return {**spent, **attacked(self.network, self.data.train, self.data.test, self.context.autocast)}

    def artifacts(self, records: Sequence[Record]) -> Mapping[str, Artifact]:
        """For classes, the confusion matrix of the test split; with privacy, the statement of what is promised."""
        promised = {} if self.privacy is None else {"privacy": Json(self.privacy.to_dict())}
        return {**promised, **self._confusion()}

    def _confusion(self) -> Mapping[str, Artifact]:
        target = self.data.spec.target
        if not isinstance(target, Classes) or not len(self.data.test):
            return {}
        predicted = predict(self.network, self.data.test, autocast=self.context.autocast).argmax(1)
        counts = confusion_matrix(predicted, self.data.test.target, target.count)
        names = [str(label) for label in range(target.count)]
        title = "Confusion on the test split"
        limits = (0.0, float(counts.max()))  # the colour of no examples is the same in all pictures
        matrix = Heatmap(counts.tolist(), names, names, "true class", "predicted class", title, "examples", 0, limits)
        return {"confusion_matrix": matrix}


@settings
class RatesSettings(Settings):
    """And the learning rates that are tried, and the end of each."""

    rates: tuple[PositiveFloat, ...]
    max_updates: PositiveInt | None


class Rates(Supervised):
    """Minimise the mean loss over the training examples; a step is an epoch.

    With `rates` each is a phase, which starts from the same weights; the weights with the lowest validation loss of
    all epochs and rates are the result. So every model gets the same search, and test examples choose nothing. Of a
    quantum model the circuits of each example are counted, as a simulator runs them; differentiated by parameter
    shift, a circuit costs two more for each angle.
    """

    settings: ClassVar[type] = RatesSettings

    def setup(self, context: Context) -> None:
        """And what every rate starts from."""
        super().setup(context)
        if self.config.rates and self.config.patience is None:
            raise ConfigError("method.rates: are compared by early stopping; set method.patience, or method.rates=[]")
        if self.config.rates and self.privacy is not None:  # every rate would draw the same noise, and ε count one
            raise ConfigError("method.rates: privacy is accounted for one training; use method.rates=[] and method.lr")
        if self.config.max_updates is not None:  # whole epochs, at least one
            most = max(1, self.config.max_updates // self.updates_per_epoch)
            self.config = replace(self.config, epochs=min(self.config.epochs, most))
        self.start = self._weights()
        self.chosen: dict[str, Any] = {"loss": math.inf, "rate": None, "weights": None}

    def _weights(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.network.state_dict().items()}

    def phases(self) -> Sequence[Phase]:
        """One phase of epochs for each rate."""
        if not self.config.rates:
            return super().phases()
        return [Phase(f"lr {rate:g}", "epoch", self.config.epochs) for rate in self.config.rates]

    def step(self, at: At) -> Step:
        """An epoch."""
        if not self.config.rates:
            return super().step(at)
        if at.index == 0:
            self._begin(at.phase)
        step = super().step(at)
        lowest = self.stopping.lowest
        if not self.stopping.waited and lowest is not None and lowest < self.chosen["loss"]:
            self.chosen = {"loss": lowest, "rate": self.config.lr, "weights": self._weights()}
        if at.phase == len(self.config.rates) - 1 and (at.last or step.end_phase) and self.chosen["weights"]:
            self.network.load_state_dict(self.chosen["weights"])
        return step

    def _begin(self, phase: int) -> None:
        """The same weights, another rate, nothing remembered."""
        self.network.load_state_dict(self.start)
        self.config = replace(self.config, lr=self.config.rates[phase])
        self.optimiser = make_optimiser(self.network.parameters(), self.config)
        self.stopping = EarlyStopping(self.config.patience, self.data.valid)

    def state_dict(self) -> dict[str, Any]:
        """And the rate at hand, the best weights so far."""
        tried = {"lr": self.config.lr, "chosen": dict(self.chosen)} if self.config.rates else {}
        return {**super().state_dict(), **tried}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore all of it."""
        super().load_state_dict(state)
        if self.config.rates:
            self.config, self.chosen = replace(self.config, lr=state["lr"]), dict(state["chosen"])

    def summary(self, records: Sequence[Record]) -> Metrics:
        """And the chosen rate."""
        return {**super().summary(records), **({"chosen_lr": self.chosen["rate"]} if self.config.rates else {})}
