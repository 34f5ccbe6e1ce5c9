"""A circuit as data: its gates in order, each a matrix K + cos(f θ) C + sin(f θ) S whose angle θ is a formula.

PennyLane says what each operation does: its matrix, or its decomposition into operations that have one. A gate of one
angle has that form if its generator squares to a projector, as for every rotation; this is checked, not believed.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import cache
from math import pi
from typing import Any

import numpy as np
import torch

from advml.nn.quantum.circuits import Circuit
from advml.nn.quantum.symbols import Formula, Undecided, Watch

FREQUENCY = {
    "RX": 0.5, "RY": 0.5, "RZ": 0.5, "PhaseShift": 1.0, "U1": 1.0, "CRX": 0.5, "CRY": 0.5, "CRZ": 0.5,
    "ControlledPhaseShift": 1.0, "IsingXX": 0.5, "IsingYY": 0.5, "IsingZZ": 0.5, "IsingXY": 0.5,
    "SingleExcitation": 0.5, "DoubleExcitation": 0.5,
}  # fmt: skip
"""f of the gates with one angle: their matrices turn as cos(f θ) and sin(f θ)."""

MOST_WIRES = 4  # of one gate: larger matrices are decomposed


class Untraceable(Exception):
    """The circuit does something that the fast engine does not know; the message says what."""


@dataclass(frozen=True, eq=False)
class Gate:
    """What `name` does to `wires`, the first of which is the most significant in its matrices [2^k, 2^k]."""

    name: str
    wires: tuple[int, ...]
    constant: np.ndarray
    cosine: np.ndarray | None = None
    sine: np.ndarray | None = None
    frequency: float = 0.0
    angle: Formula = ()

    @property
    def turned(self) -> Formula:
        """f θ."""
        return tuple((self.frequency * coefficient, numbers) for coefficient, numbers in self.angle)

    @property
    def matrices(self) -> list[np.ndarray]:
        """Those that are there."""
        return [matrix for matrix in (self.constant, self.cosine, self.sine) if matrix is not None]


@dataclass(frozen=True, eq=False)
class Trace:
    """A traced circuit. Formulas number the inputs first, then the weights in the order of their names in `weights`.

    `start`: the formulas of the amplitudes that the circuit begins with; None = |0…0⟩.
    """

    qubits: int
    inputs: int
    weights: dict[str, tuple[int, ...]]
    gates: tuple[Gate, ...]
    start: tuple[Formula, ...] | None

    @property
    def real(self) -> bool:
        """Can no amplitude have an imaginary part?"""
        return all(not np.iscomplexobj(matrix) for gate in self.gates for matrix in gate.matrices)


@cache
def trace(circuit: Circuit) -> Trace:
    """The circuit as data. Raises Untraceable."""
    import pennylane as qml

    inputs = None
    if circuit.features is not None:
        inputs = circuit.prepared(torch.linspace(0.1, 0.9, circuit.features, dtype=torch.float64))
    weights = {
        name: torch.linspace(0.1, 0.9, torch.Size(shape).numel(), dtype=torch.float64).reshape(shape)
        for name, shape in circuit.weights.items()
    }
    watch, count = Watch(), 0
    for values in ([] if inputs is None else [inputs]) + list(weights.values()):
        watch.number(values, count)
        count += values.numel()
    gates: list[Gate] = []
    start: tuple[Formula, ...] | None = None
    try:
        with torch.no_grad(), watch:
            with qml.queuing.AnnotatedQueue() as queue:
                circuit.apply(inputs, weights)
            script = qml.tape.QuantumScript.from_queue(queue)
            if script.measurements:
                raise Untraceable("a measurement")
            for operation in script.operations:
                if operation.name == "StatePrep" and not gates and start is None:
                    start = _start(operation, watch, circuit.qubits)
                else:
                    gates += _gates(operation, watch, circuit.qubits)
    except Undecided:
        raise Untraceable("operations that depend on the value of an input or a weight") from None
    return Trace(circuit.qubits, 0 if inputs is None else inputs.numel(), dict(circuit.weights), tuple(gates), start)


def _start(operation: Any, watch: Watch, qubits: int) -> tuple[Formula, ...]:
    formulas = watch.formulas(operation.parameters[0])
    if formulas is None or len(formulas) != 2**qubits or list(operation.wires) != list(range(qubits)):
        raise Untraceable("StatePrep of something else than the inputs on all wires in order")
    return tuple(formulas)


def _gates(operation: Any, watch: Watch, qubits: int) -> Iterator[Gate]:
    """The gates that an operation consists of."""
    name, wires = operation.name, tuple(operation.wires)
    if name in ("Barrier", "Identity", "Snapshot", "WireCut"):
        return
    if not all(isinstance(wire, int) and 0 <= wire < qubits for wire in wires):
        raise Untraceable(f"{name} on wires {list(wires)}")
    parameters, kind = operation.parameters, operation.__class__
    if name == "GlobalPhase":  # of the whole state, whatever its wires
        formulas, one = watch.formulas(parameters[0]), np.eye(2)
        if formulas is not None:
            yield Gate(name, (0,), 0 * one, one, -1j * one, 1.0, formulas[0])
            return
    if name == "MultiRZ":
        formulas = watch.formulas(parameters[0])
        if formulas is not None and len(wires) <= MOST_WIRES:
            yield Gate(name, wires, *_turning(kind, len(wires)), 0.5, formulas[0])
            return
    if name in FREQUENCY:
        formulas = watch.formulas(parameters[0])
        if formulas is None or len(formulas) != 1:
            raise Untraceable(f"{name} of an angle that is no sum of products of inputs and weights")
        yield Gate(name, wires, *_turning(kind, None), FREQUENCY[name], formulas[0])
    elif not parameters and operation.has_matrix and len(wires) <= MOST_WIRES:
        yield Gate(name, wires, _plain(np.asarray(operation.matrix())))
    elif operation.has_decomposition:
        import pennylane as qml

        with qml.QueuingManager.stop_recording():
            parts = operation.decomposition()
        try:
            for part in parts:
                yield from _gates(part, watch, qubits)
        except Untraceable as error:
            raise Untraceable(f"{name}, made of {error}") from None
    else:
        raise Untraceable(name)


@cache
def _turning(kind: Hashable, wires: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """K, C and S of a gate class, from its matrices at three angles; checked at two more."""
    operation: Any = kind
    frequency = FREQUENCY.get(operation.__name__, 0.5)

    def at(angle: float) -> np.ndarray:
        found = operation.compute_matrix(angle) if wires is None else operation.compute_matrix(angle, num_wires=wires)
        return np.asarray(found)

    zero, quarter, half = at(0.0), at(pi / 2 / frequency), at(pi / frequency)
    constant, cosine = (zero + half) / 2, (zero - half) / 2
    sine = quarter - constant
    for angle in (0.3, 2.1):
        turned = constant + np.cos(frequency * angle) * cosine + np.sin(frequency * angle) * sine
        if not np.allclose(turned, at(angle), atol=1e-12, rtol=0):
            raise Untraceable(operation.__name__)
    return _plain(constant), _plain(cosine), _plain(sine)


def _plain(matrix: np.ndarray) -> np.ndarray:
    """Without rounding errors around 0 and ±1, and real if it is."""
    rounded = np.round(matrix)
    clean = np.where(np.abs(matrix - rounded) < 1e-15, rounded, matrix)
    return clean if np.any(clean.imag) else np.ascontiguousarray(clean.real)
