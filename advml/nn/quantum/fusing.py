"""From gates to a few large steps: merged rotations, layers of one-qubit gates, one gather for a chain of CNOTs."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from advml.nn.quantum.symbols import Formula
from advml.nn.quantum.tracing import FREQUENCY, Gate, Trace


@dataclass(frozen=True, eq=False)
class Local:
    """One-qubit gates: for each wire those that act on it, in order."""

    gates: tuple[tuple[Gate, ...], ...]

    def reads_inputs(self, inputs: int) -> bool:
        """Is any of its angles different between examples?"""
        return any(_reads(gate.angle, inputs) for wire in self.gates for gate in wire)


@dataclass(frozen=True, eq=False)
class Permute:
    """Amplitude k of the new state is amplitude order[k] of the old."""

    order: np.ndarray


@dataclass(frozen=True, eq=False)
class Phases:
    """Amplitude k times constant[k] · exp(i Σ_j θ_j generators[j, k])."""

    constant: np.ndarray | None
    angles: tuple[Formula, ...]
    generators: np.ndarray

    def reads_inputs(self, inputs: int) -> bool:
        """Is any of its angles different between examples?"""
        return any(_reads(angle, inputs) for angle in self.angles)


@dataclass(frozen=True, eq=False)
class Other:
    """Any other gate on a few wires."""

    gate: Gate

    def reads_inputs(self, inputs: int) -> bool:
        """Is its angle different between examples?"""
        return _reads(self.gate.angle, inputs)


Part = Local | Permute | Phases | Other


def fuse(trace: Trace) -> list[Part]:
    """The gates as few parts in the same effect. A gate waits behind gates on other wires as long as it may."""
    parts: list[Part] = []
    waiting: list[list[Gate]] = [[] for _ in range(trace.qubits)]

    def flush() -> None:
        if any(waiting):
            parts.append(Local(tuple(tuple(gates) for gates in waiting)))
            for gates in waiting:
                gates.clear()

    for gate in trace.gates:
        if len(gate.wires) == 1:
            _append(waiting[gate.wires[0]], gate)
            continue
        if any(waiting[wire] for wire in gate.wires):
            flush()
        part = _entangling(gate, trace.qubits)
        last = parts[-1] if parts else None
        if isinstance(part, Permute) and isinstance(last, Permute):
            parts[-1] = Permute(last.order[part.order])
        elif isinstance(part, Phases) and isinstance(last, Phases):
            parts[-1] = _both(last, part)
        else:
            parts.append(part)
    flush()
    return parts


def _append(gates: list[Gate], gate: Gate) -> None:
    """Two rotations about one axis are one by the sum of their angles."""
    last = gates[-1] if gates else None
    if last is not None and last.name == gate.name and gate.name in FREQUENCY:
        gates[-1] = replace(last, angle=_added(last.angle, gate.angle))
    else:
        gates.append(gate)


def _added(first: Formula, second: Formula) -> Formula:
    sums: dict[tuple[int, ...], float] = {}
    for coefficient, numbers in (*first, *second):
        sums[numbers] = sums.get(numbers, 0.0) + coefficient
    return tuple((coefficient, numbers) for numbers, coefficient in sums.items() if coefficient)


def _entangling(gate: Gate, qubits: int) -> Part:
    places = local_index(gate.wires, qubits)
    if gate.cosine is None or gate.sine is None:
        if _is_permutation(gate.constant):
            source = np.abs(gate.constant).argmax(1)
            return Permute(_moved_to(source[places], gate.wires, qubits))
        if _is_diagonal(gate.constant):
            return Phases(np.diagonal(gate.constant)[places], (), np.zeros((0, 2**qubits)))
    elif all(map(_is_diagonal, gate.matrices)) and np.allclose(gate.constant + gate.cosine, np.eye(len(gate.constant))):
        generator = (gate.frequency * np.diagonal(gate.sine) / 1j).real
        return Phases(None, (gate.angle,), generator[places][None])
    return Other(gate)


def _both(first: Phases, second: Phases) -> Phases:
    constants = [part.constant for part in (first, second) if part.constant is not None]
    constant = None if not constants else constants[0] if len(constants) == 1 else constants[0] * constants[1]
    generators = np.concatenate([first.generators, second.generators])
    return Phases(constant, first.angles + second.angles, generators)


def local_index(wires: tuple[int, ...], qubits: int) -> np.ndarray:
    """For each of the 2^n basis states, the index that the bits of `wires` alone make."""
    index, found = np.arange(2**qubits), np.zeros(2**qubits, int)
    for wire in wires:
        found = 2 * found + ((index >> (qubits - 1 - wire)) & 1)
    return found


def _moved_to(places: np.ndarray, wires: tuple[int, ...], qubits: int) -> np.ndarray:
    """Each basis state with the bits of `wires` set to those of `places`."""
    index = np.arange(2**qubits)
    for position, wire in enumerate(wires):
        shift = qubits - 1 - wire
        bit = (places >> (len(wires) - 1 - position)) & 1
        index = (index & ~(1 << shift)) | (bit << shift)
    return index


def _is_permutation(matrix: np.ndarray) -> bool:
    return bool(np.all((matrix == 0) | (matrix == 1)))


def _is_diagonal(matrix: np.ndarray) -> bool:
    return bool(np.array_equal(matrix, np.diag(np.diagonal(matrix))))


def _reads(formula: Formula, inputs: int) -> bool:
    return any(number < inputs for _, numbers in formula for number in numbers)
