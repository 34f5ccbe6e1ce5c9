"""The circuits, as PennyLane functions that one can read, draw and run anywhere; no measurement in them.

Each takes inputs [..., F] and named weights. `inputs[..., i]` is feature i of every example: `inputs[i]` would be
example i of a batch. PennyLane takes 2 s to import and is imported only when a circuit is applied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from math import pi
from types import ModuleType
from typing import Literal, get_args

import torch
from torch import Tensor

CircuitName = Literal["angle_ry", "strongly_entangling", "data_reuploading", "iqp", "amplitude"]
Weights = Mapping[str, Tensor]


@dataclass(frozen=True, eq=False)
class Circuit:
    """A circuit without measurement: calling it applies PennyLane operations to wires 0 … qubits − 1.

    `weights`: name → shape of what is trained. `features`: how many numbers of an example it reads; None = no inputs.
    `real`: no amplitude ever has an imaginary part. `prepare` turns the features into what `apply` reads.
    """

    name: str
    qubits: int
    layers: int
    weights: Mapping[str, tuple[int, ...]]
    features: int | None
    real: bool
    apply: Callable[[Tensor | None, Weights], None]
    prepare: Callable[[Tensor], Tensor] | None = None

    def __call__(self, inputs: Tensor | None, weights: Weights) -> None:
        """Apply the operations; inputs [..., F] or None, one value of `weights` for each of the declared shapes."""
        self.apply(self.prepared(inputs), weights)

    def prepared(self, inputs: Tensor | None) -> Tensor | None:
        """What the operations read: the inputs, for amplitudes padded and normalised."""
        return inputs if self.prepare is None or inputs is None else self.prepare(inputs)

    def initial(self, spread: float = pi) -> dict[str, Tensor]:
        """Fresh weights, from torch's global generator: angles uniform in ±spread, input scalings 1."""
        return {
            name: torch.ones(shape) if name == "scaling" else (2 * torch.rand(shape) - 1) * spread
            for name, shape in self.weights.items()
        }


@cache
def make_circuit(
    name: CircuitName,
    qubits: int,
    layers: int,
    *,
    entangle: bool = True,
    features: int | None = None,
    scaling: bool = True,
) -> Circuit:
    """One of the circuits of this file. `entangle=False` leaves out every gate on two qubits.

    `features`: how many numbers of an example are read; by default one a qubit, and 2^qubits as amplitudes. With
    fewer features than qubits, qubit i reads feature i mod F. `scaling`: data_reuploading trains a factor an angle.
    The same choices give the same object, so that it is traced once.
    """
    if name not in get_args(CircuitName):
        raise ValueError(f"{name}: unknown circuit; one of {', '.join(get_args(CircuitName))}")
    most = largest(name, qubits)
    count = most if features is None else features
    if not 1 <= count <= most:
        raise ValueError(f"{name}: {qubits} qubits read 1 to {most} features, not {count}")
    make = {
        "angle_ry": _angle_ry,
        "strongly_entangling": _strongly_entangling,
        "data_reuploading": _data_reuploading,
        "iqp": _iqp,
        "amplitude": _amplitude,
    }[name]
    return make(qubits, layers, entangle, count, scaling)


def largest(name: CircuitName, qubits: int) -> int:
    """The most features that a circuit of that size reads."""
    return 2**qubits if name == "amplitude" else qubits


def _angle_ry(qubits: int, layers: int, entangle: bool, features: int, scaling: bool) -> Circuit:
    """The classic: RY(x_i) on each qubit, then layers of RY(θ) and a chain of CNOTs. All amplitudes are real."""

    def apply(inputs: Tensor | None, weights: Weights) -> None:
        qml = _pennylane()
        assert inputs is not None
        for wire in range(qubits):
            qml.RY(inputs[..., wire % features], wires=wire)
        _ry_layers(qml, weights["angles"], qubits, layers, entangle)

    return Circuit("angle_ry", qubits, layers, {"angles": (layers, qubits)}, features, True, apply)


def _strongly_entangling(qubits: int, layers: int, entangle: bool, features: int, scaling: bool) -> Circuit:
    """RY(x_i), then layers of Rot(φ, θ, ω) and a ring of CNOTs of growing range (Schuld et al. 2020, circuit 15).

    Layer l entangles qubit i with i + 1 + (l mod (n − 1)), as PennyLane's StronglyEntanglingLayers does.
    """

    def apply(inputs: Tensor | None, weights: Weights) -> None:
        qml = _pennylane()
        assert inputs is not None
        for wire in range(qubits):
            qml.RY(inputs[..., wire % features], wires=wire)
        for layer in range(layers):
            for wire in range(qubits):
                phi, theta, omega = (weights["angles"][layer, wire, axis] for axis in range(3))
                qml.Rot(phi, theta, omega, wires=wire)
            if entangle and qubits > 1:
                reach = 1 + layer % (qubits - 1)
                for wire in range(qubits):
                    qml.CNOT(wires=[wire, (wire + reach) % qubits])

    shapes = {"angles": (layers, qubits, 3)}
    return Circuit("strongly_entangling", qubits, layers, shapes, features, False, apply)


def _data_reuploading(qubits: int, layers: int, entangle: bool, features: int, scaling: bool) -> Circuit:
    """Each layer reads the data again: Rot(s·x_i + θ) with a scaling and an offset an angle, then a chain of CNOTs.

    Pérez-Salinas et al. 2020, eq. 7: U(θ + w ∘ x). Without layers the state is |0…0⟩.
    """

    def apply(inputs: Tensor | None, weights: Weights) -> None:
        qml = _pennylane()
        assert inputs is not None
        for layer in range(layers):
            for wire in range(qubits):
                value = inputs[..., wire % features]
                angles = []
                for axis in range(3):
                    read = weights["scaling"][layer, wire, axis] * value if scaling else value
                    angles.append(read + weights["angles"][layer, wire, axis])
                qml.Rot(*angles, wires=wire)
            if entangle:
                _chain(qml, qubits)

    shapes = {"angles": (layers, qubits, 3)} | ({"scaling": (layers, qubits, 3)} if scaling else {})
    return Circuit("data_reuploading", qubits, layers, shapes, features, False, apply)


def _iqp(qubits: int, layers: int, entangle: bool, features: int, scaling: bool) -> Circuit:
    """Twice H, RZ(x_i), ZZ(x_i x_j) over all pairs (Havlíček et al. 2019), then layers of RY(θ) and a CNOT chain."""

    def apply(inputs: Tensor | None, weights: Weights) -> None:
        qml = _pennylane()
        assert inputs is not None
        for _ in range(2):
            for wire in range(qubits):
                qml.Hadamard(wires=wire)
                qml.RZ(inputs[..., wire % features], wires=wire)
            if entangle:
                for first in range(qubits):
                    for second in range(first + 1, qubits):
                        product = inputs[..., first % features] * inputs[..., second % features]
                        qml.IsingZZ(product, wires=[first, second])
        _ry_layers(qml, weights["angles"], qubits, layers, entangle)

    return Circuit("iqp", qubits, layers, {"angles": (layers, qubits)}, features, False, apply)


def _amplitude(qubits: int, layers: int, entangle: bool, features: int, scaling: bool) -> Circuit:
    """The features, padded with zeros and normalised, are the amplitudes; then layers of RY(θ) and a CNOT chain."""

    def prepare(inputs: Tensor) -> Tensor:
        padding = inputs.new_zeros((*inputs.shape[:-1], 2**qubits - features))
        padded = torch.cat([inputs, padding], -1) if features < 2**qubits else inputs
        norm = torch.linalg.vector_norm(padded, dim=-1, keepdim=True)
        normal: Tensor = padded / norm.clamp_min(torch.finfo(inputs.dtype).tiny)
        return normal

    def apply(inputs: Tensor | None, weights: Weights) -> None:
        qml = _pennylane()
        qml.StatePrep(inputs, wires=range(qubits), validate_norm=False)
        _ry_layers(qml, weights["angles"], qubits, layers, entangle)

    return Circuit("amplitude", qubits, layers, {"angles": (layers, qubits)}, features, True, apply, prepare)


def _ry_layers(qml: ModuleType, angles: Tensor, qubits: int, layers: int, entangle: bool) -> None:
    """Layers of RY on each qubit, each followed by a chain of CNOTs."""
    for layer in range(layers):
        for wire in range(qubits):
            qml.RY(angles[layer, wire], wires=wire)
        if entangle:
            _chain(qml, qubits)


def _chain(qml: ModuleType, qubits: int) -> None:
    """CNOT(0, 1), CNOT(1, 2), …"""
    for wire in range(qubits - 1):
        qml.CNOT(wires=[wire, wire + 1])


def _pennylane() -> ModuleType:
    import pennylane

    module: ModuleType = pennylane
    return module
