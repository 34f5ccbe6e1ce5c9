"""The classical counterpart of a quantum model: a hidden layer, as wide as gives it the same number of parameters."""

from __future__ import annotations

from typing import ClassVar

from torch import nn

from advml.contracts import Network, Spec
from advml.models.mlp import Mlp, MlpSettings, flat_size
from advml.models.quantum import Quantum, QuantumSettings


class MlpEqual(Mlp):
    """One hidden layer of tanh units, with the keys of the quantum model that it is compared with.

    Its width h is the one whose h (F + 1) + (h + 1) C parameters come nearest to those that the quantum model trains,
    readout included; at least 1. Not rectified: of three units that see angles, never negative, all may be dead.
    """

    settings: ClassVar[type] = QuantumSettings

    @classmethod
    def check(cls, spec: Spec, settings: QuantumSettings) -> str | None:
        """Serves what the quantum model serves."""
        return Quantum.check(spec, settings)

    def __init__(self, spec: Spec, settings: QuantumSettings) -> None:
        width = equal_width(spec, trained(Quantum(spec, settings)))
        super().__init__(spec, MlpSettings(hidden=(width,), activation="tanh", norm="none", dropout=0.0))


def trained(network: Network | nn.Module) -> int:
    """How many numbers of a network are trained."""
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def equal_width(spec: Spec, parameters: int) -> int:
    """The width of the hidden layer, see `MlpEqual`."""
    inputs, outputs = flat_size(spec), spec.outputs
    return max(1, round((parameters - outputs) / (inputs + 1 + outputs)))
