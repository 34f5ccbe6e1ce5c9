"""Fully connected networks over any inputs, flattened and joined."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from advml.config import Fraction, PositiveInt, settings
from advml.contracts import Network, Nothing, Spec
from advml.nn.affine import Affine

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "softplus": nn.Softplus, "gelu": nn.GELU}


@settings
class LinearSettings:
    """Nothing to set."""


@settings
class MlpSettings:
    """Widths of the hidden layers, what follows each."""

    hidden: tuple[PositiveInt, ...]
    activation: Literal["relu", "tanh", "softplus", "gelu"]
    norm: Literal["none", "batch", "layer"]
    dropout: Fraction


def flat(inputs: Mapping[str, Tensor]) -> Tensor:
    """All inputs as one row an example: [B, sum of their sizes]."""
    rows = [values.flatten(1) if values.dim() > 1 else values.unsqueeze(1) for values in inputs.values()]
    return rows[0] if len(rows) == 1 else torch.cat(rows, 1)


def flat_size(spec: Spec) -> int:
    """The width of `flat`."""
    return sum(torch.Size(shape).numel() for shape in spec.inputs.values())


class _Flat(Network):
    @classmethod
    def check(cls, spec: Spec, settings: Any) -> str | None:
        """Serves any inputs and any target but none."""
        return "a data set with inputs and a target" if isinstance(spec.target, Nothing) or not spec.inputs else None


class Linear(_Flat):
    """Logistic or linear regression: one affine map."""

    settings: ClassVar[type] = LinearSettings

    def __init__(self, spec: Spec, settings: LinearSettings) -> None:
        super().__init__()
        self.head = nn.Linear(flat_size(spec), spec.outputs)

    def features(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The flattened inputs."""
        return flat(inputs)


class Mlp(_Flat):
    """A multi-layer perceptron: hidden layers of affine map, norm, activation, dropout; then an affine head."""

    settings: ClassVar[type] = MlpSettings

    def __init__(self, spec: Spec, settings: MlpSettings) -> None:
        super().__init__()
        width = flat_size(spec)
        layers: list[nn.Module] = []
        for hidden in settings.hidden:
            layers.append(Affine(width, hidden))
            if settings.norm != "none":
                layers.append(nn.BatchNorm1d(hidden) if settings.norm == "batch" else nn.LayerNorm(hidden))
            layers.append(ACTIVATIONS[settings.activation]())
            if settings.dropout:
                layers.append(nn.Dropout(settings.dropout))
            width = hidden
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(width, spec.outputs)

    def features(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The last hidden layer, [B, hidden[-1]]."""
        hidden: Tensor = self.body(flat(inputs))
        return hidden
