"""What the multimodal methods share: batches, early stopping, measuring under conditions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor

from advml.artifacts import Artifact
from advml.config import PositiveInt, settings
from advml.contracts import Batch, Classes, Context, Metrics, Network, Real, Record, Split, SplitName
from advml.data.modalities import AS_IS
from advml.errors import ConfigError
from advml.methods.multimodal.pictures import bars
from advml.nn.evaluation import measure
from advml.nn.losses import Loss, make_loss
from advml.nn.training import TrainingSettings, batches_of, minibatches


@settings
class EpochSettings(TrainingSettings):
    """Passes over the data, and how long to wait for an improvement."""

    epochs: PositiveInt
    patience: PositiveInt | None


def check_patience(context: Context) -> None:
    """Raises ConfigError where early stopping has nothing to look at."""
    if context.settings.patience is not None and not len(context.data.valid):
        raise ConfigError("method.patience: needs validation examples; set dataset.valid above 0")


def loss_of(context: Context) -> Loss:
    """The loss that the settings name. Raises ConfigError where it does not fit the target."""
    config = context.settings
    try:
        return make_loss(config.loss, context.data.spec.target, config.label_smoothing)
    except ValueError as error:
        raise ConfigError(f"method.{error}") from None


def shuffled(context: Context, split: Split, start: int, stop: int) -> Iterator[Batch]:
    """The training batches of updates `start` to `stop`."""
    size = context.settings.batch_size
    return batches_of(split, minibatches(len(split), size, start, stop, lambda epoch: context.rng("shuffle", epoch)))


class Waiting:
    """Early stopping: how long ago a validation number was lowest."""

    def __init__(self, patience: int | None) -> None:
        self.patience = patience
        self.lowest: float | None = None
        self.waited = 0

    def over(self, value: float) -> bool:
        """No lower value for `patience` asks in a row?"""
        if self.lowest is None or value < self.lowest:
            self.lowest, self.waited = value, 0
        else:
            self.waited += 1
        return self.patience is not None and self.waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """Two numbers."""
        return {"lowest": self.lowest, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Wait on."""
        self.lowest, self.waited = state["lowest"], state["waited"]


def watched(found: Metrics) -> float:
    """The number that early stopping looks at."""
    return float(found["loss" if "loss" in found else "mse"])  # type: ignore[arg-type]


def main_metric(context: Context) -> str:
    """What ranks: accuracy of classes, the squared error of real targets."""
    return "mse" if isinstance(context.data.spec.target, Real) else "accuracy"


def measured(context: Context, network: Network, split: SplitName) -> dict[str, Any]:
    """All metrics of a split as it is; of the main one also what it is under each condition: accuracy/without_image.

    Training examples are measured as they are only.
    """
    found = dict(measure(network, context.data.split(split), autocast=context.autocast))
    if not found or split == "train":
        return found
    main = main_metric(context)
    for name, changed in context.data.conditions(split).items():
        if name != AS_IS:
            found[f"{main}/{name}"] = measure(network, changed, autocast=context.autocast)[main]
    return found


def robustness(context: Context, records: Sequence[Record]) -> dict[str, Artifact]:
    """Bars of the main metric under each condition, from the record of the test split; nothing if there is none."""
    main = main_metric(context)
    tested = next((record for record in reversed(records) if record["split"] == "test"), None)
    if tested is None or tested.get(main) is None:
        return {}
    conditions = {name: tested.get(f"{main}/{name}") for name in context.data.conditions("test") if name != AS_IS}
    heights: dict[str, float | None] = {AS_IS: tested[main], **conditions}
    chance = None
    target = context.data.spec.target
    if isinstance(target, Classes):
        chance = 1 / target.count
    return {"robustness": bars(heights, f"test {main}", "What is missing or noisy", chance)}


def on_device(values: Mapping[str, Tensor], like: Tensor) -> dict[str, Tensor]:
    """Tensors that were drawn on the CPU, where the batch is."""
    return {name: value.to(like.device, non_blocking=True) for name, value in values.items()}
