"""Trial states: circuits without inputs, as PennyLane functions, for variational eigensolvers."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Literal

import torch
from torch import Tensor

from advml.nn.quantum.circuits import Circuit, Weights

Shapes = dict[str, tuple[int, ...]]
AnsatzName = Literal["pair_excitation", "hardware_efficient", "alternating"]


@cache
def make_ansatz(name: AnsatzName, qubits: int, layers: int, periodic: bool = True) -> Circuit:
    """One of the trial states of this file. Raises ValueError where there is none of that size."""
    match name:
        case "pair_excitation":
            return _pair_excitation(qubits)
        case "hardware_efficient":
            return _hardware_efficient(qubits, layers)
        case "alternating":
            return _alternating(qubits, layers, periodic)


def ramp(circuit: Circuit) -> dict[str, Tensor]:
    """Where an optimisation may begin, float64: for `alternating` a slow passage from field to bonds, else zeros.

    Layer l of L turns by −1.6 s about the bonds and by −1.6 (1 − s) about the fields, s = (l + ½)/L (as annealing).
    """
    zeros = {name: torch.zeros(shape, dtype=torch.float64) for name, shape in circuit.weights.items()}
    if circuit.name != "alternating":
        return zeros
    share = (torch.arange(circuit.layers, dtype=torch.float64) + 0.5) / circuit.layers
    return {"bonds": -1.6 * share, "fields": -1.6 * (1 - share)}


def _circuit(
    name: str, qubits: int, layers: int, shapes: Shapes, real: bool, apply: Callable[[Weights], None]
) -> Circuit:
    def without_inputs(inputs: Tensor | None, weights: Weights) -> None:
        apply(weights)

    return Circuit(name, qubits, layers, shapes, None, real, without_inputs)


def _pair_excitation(qubits: int) -> Circuit:
    """cos(θ/2)|1100⟩ ± sin(θ/2)|0011⟩: unitary coupled cluster of two electrons in four spin orbitals (H2, STO-3G).

    e^{−iθ/2 YXXX} = C · RY(θ) · C⁻¹ with C three CNOTs from qubit 0, applied to the Hartree-Fock state |1100⟩.
    """
    if qubits != 4:
        raise ValueError(f"pair_excitation: is for 4 qubits, not {qubits}; use hardware_efficient")

    def apply(weights: Weights) -> None:
        import pennylane as qml

        for wire in (0, 1):
            qml.PauliX(wires=wire)
        for wire in (3, 2, 1):
            qml.CNOT(wires=[0, wire])
        qml.RY(weights["angle"][0], wires=0)
        for wire in (1, 2, 3):
            qml.CNOT(wires=[0, wire])

    return _circuit("pair_excitation", 4, 1, {"angle": (1,)}, True, apply)


def _hardware_efficient(qubits: int, layers: int) -> Circuit:
    """RY on each qubit, then layers of a chain of CNOTs and RY on each qubit (Kandala et al. 2017, real amplitudes)."""

    def apply(weights: Weights) -> None:
        import pennylane as qml

        for layer in range(layers + 1):
            if layer:
                for wire in range(qubits - 1):
                    qml.CNOT(wires=[wire, wire + 1])
            for wire in range(qubits):
                qml.RY(weights["angles"][layer, wire], wires=wire)

    return _circuit("hardware_efficient", qubits, layers, {"angles": (layers + 1, qubits)}, True, apply)


def _alternating(qubits: int, layers: int, periodic: bool) -> Circuit:
    """|+…+⟩, then layers of e^{−iγ/2 ΣZZ} and e^{−iβ/2 ΣX}: the Ising chain's own terms in turn (Wecker et al. 2015).

    n/2 layers reach the ground state of a ring of n exactly (Ho and Hsieh 2019).
    """
    bonds = [(wire, wire + 1) for wire in range(qubits - 1)] + ([(qubits - 1, 0)] if periodic and qubits > 2 else [])

    def apply(weights: Weights) -> None:
        import pennylane as qml

        for wire in range(qubits):
            qml.Hadamard(wires=wire)
        for layer in range(layers):
            for pair in bonds:
                qml.IsingZZ(weights["bonds"][layer], wires=list(pair))
            for wire in range(qubits):
                qml.RX(weights["fields"][layer], wires=wire)

    return _circuit("alternating", qubits, layers, {"bonds": (layers,), "fields": (layers,)}, False, apply)
