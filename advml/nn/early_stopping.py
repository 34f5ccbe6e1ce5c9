"""Early stopping: training ends where a validation number has not fallen for a while."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from advml.config import PositiveInt, settings
from advml.contracts import Metrics, Split
from advml.errors import ConfigError
from advml.nn.training import TrainingSettings


@settings
class EpochSettings(TrainingSettings):
    """Passes over the data, and how many of them to wait for an improvement."""

    epochs: PositiveInt
    patience: PositiveInt | None


class EarlyStopping:
    """How long ago a number of the validation examples `valid` was lowest; with patience None never asked.

    Raises ConfigError where there are no such examples to look at.
    """

    def __init__(self, patience: int | None, valid: Split) -> None:
        if patience is not None and not len(valid):
            raise ConfigError("method.patience: needs validation examples; set dataset.valid above 0")
        self.patience = patience
        self.lowest: float | None = None
        self.waited = 0

    def after(self, measure: Callable[[], float | Tensor]) -> bool:
        """Measure, and tell whether training is over; nothing is measured where nobody waits."""
        if self.patience is not None:
            value = float(measure())
            if self.lowest is None or value < self.lowest:
                self.lowest, self.waited = value, 0
            else:
                self.waited += 1
        return self.over

    @property
    def over(self) -> bool:
        """No lower value for `patience` times in a row?"""
        return self.patience is not None and self.waited >= self.patience

    def state_dict(self) -> dict[str, Any]:
        """Two numbers."""
        return {"lowest": self.lowest, "waited": self.waited}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Wait on."""
        self.lowest, self.waited = state["lowest"], state["waited"]


def loss_in(found: Metrics) -> float | Tensor:
    """The number that supervised methods watch: the loss of classes, the squared error of real targets."""
    value = found["loss" if "loss" in found else "mse"]
    assert value is not None
    return value
