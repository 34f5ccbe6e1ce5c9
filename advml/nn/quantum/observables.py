"""What is measured: sums of Pauli words, as plain data, and their expectation values from amplitudes.

A word has a letter a qubit, "ZIXI": Z on qubit 0, X on qubit 2. An observable is {word: coefficient}.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Observable = Mapping[str, float]


def z_each(qubits: int) -> list[Observable]:
    """⟨Z_i⟩ of every qubit."""
    return [{_word(qubits, "Z", (wire,)): 1.0} for wire in range(qubits)]


def z_pairs(qubits: int) -> list[Observable]:
    """⟨Z_i⟩ of every qubit, then ⟨Z_i Z_j⟩ of every pair."""
    pairs = [(i, j) for i in range(qubits) for j in range(i + 1, qubits)]
    return [*z_each(qubits), *({_word(qubits, "Z", pair): 1.0} for pair in pairs)]


def pauli_each(qubits: int) -> list[Observable]:
    """⟨X_i⟩, ⟨Y_i⟩ and ⟨Z_i⟩ of every qubit."""
    return [{_word(qubits, letter, (wire,)): 1.0} for wire in range(qubits) for letter in "XYZ"]


def _word(qubits: int, letter: str, wires: Sequence[int]) -> str:
    return "".join(letter if wire in wires else "I" for wire in range(qubits))


def check_word(word: str, qubits: int) -> str | None:
    """What is wrong with a Pauli word, or None."""
    if len(word) != qubits or set(word) - set("IXYZ"):
        return f"{word}: must be {qubits} letters out of I, X, Y, Z, one a qubit"
    return None


def to_pennylane(observable: Observable) -> Any:
    """The observable as a PennyLane operator."""
    import pennylane as qml

    (count,) = {len(word) for word in observable}
    order = {wire: wire for wire in range(count)}
    words = [qml.pauli.string_to_pauli_word(word, wire_map=order) for word in observable]
    return words[0] if list(observable.values()) == [1.0] else qml.dot(list(observable.values()), words)


class Expectations(nn.Module):
    """⟨ψ|O|ψ⟩ of several observables: one matrix product for all whose words flip the same qubits.

    P|k⟩ = phase(k)|k ⊕ x⟩, where x marks X and Y: ⟨P⟩ = Σ_k conj(ψ[k ⊕ x]) ψ[k] phase(k), phase(k) = i^#Y (−1)^(k·z)
    with z marking Y and Z. Diagonal words have x = 0, and need |ψ|² only. `order`: the states given are those before a
    last reordering ψ[order], which is done to the signs of diagonal words instead.
    """

    def __init__(self, observables: Sequence[Observable], qubits: int, order: np.ndarray | None = None) -> None:
        super().__init__()
        self.count, self.qubits = len(observables), qubits
        groups: dict[int, np.ndarray] = {}
        index = np.arange(2**qubits)
        for column, observable in enumerate(observables):
            for word, coefficient in observable.items():
                if wrong := check_word(word, qubits):
                    raise ValueError(wrong)
                flips = sum(1 << (qubits - 1 - wire) for wire, letter in enumerate(word) if letter in "XY")
                signs = sum(1 << (qubits - 1 - wire) for wire, letter in enumerate(word) if letter in "YZ")
                parity = np.array([int(k & signs).bit_count() & 1 for k in index])
                phase = (1j ** word.count("Y")) * np.where(parity == 1, -1.0, 1.0)
                matrix = groups.setdefault(flips, np.zeros((2**qubits, len(observables)), complex))
                matrix[:, column] += coefficient * phase
        if order is not None:
            if list(groups) != [0]:
                raise ValueError("only diagonal observables can take a reordering in")
            groups[0] = groups[0][np.argsort(order)]
        self.flips = list(groups)
        for number, (flips, matrix) in enumerate(groups.items()):
            self.register_buffer(f"real{number}", torch.tensor(matrix.real), persistent=False)
            self.register_buffer(f"imag{number}", torch.tensor(matrix.imag), persistent=False)
            if flips:
                self.register_buffer(f"order{number}", torch.tensor(index ^ flips), persistent=False)

    def forward(self, states: Tensor) -> Tensor:
        """States [..., 2^n], real or complex → expectation values [..., n_observables], real."""
        total: Tensor | None = None
        for number, flips in enumerate(self.flips):
            other = states[..., getattr(self, f"order{number}")] if flips else states
            products = states * other.conj() if states.is_complex() else states * other
            real = products.real if states.is_complex() else products
            values = real @ getattr(self, f"real{number}").to(real.dtype)
            if states.is_complex() and flips:
                values = values - products.imag @ getattr(self, f"imag{number}").to(real.dtype)
            total = values if total is None else total + values
        assert total is not None
        return total
