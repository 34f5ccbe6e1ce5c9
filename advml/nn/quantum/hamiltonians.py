"""Hamiltonians as sums of Pauli words, {word: coefficient}, and their exact energies by diagonalisation."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

Hamiltonian = Mapping[str, float]

LARGEST = 12  # qubits of which a dense matrix is made: 4096 × 4096, 128 MB where it is real


def ising_chain(qubits: int, coupling: float, field: float, periodic: bool) -> dict[str, float]:
    """The transverse-field Ising chain H = −J Σ Z_i Z_{i+1} − h Σ X_i (Pfeuty 1970); `periodic` closes the ring."""
    bonds = qubits if periodic and qubits > 2 else qubits - 1
    words = {_word(qubits, {bond: "Z", (bond + 1) % qubits: "Z"}): -coupling for bond in range(bonds)}
    return words | {_word(qubits, {site: "X"}): -field for site in range(qubits)}


def _word(qubits: int, letters: Mapping[int, str]) -> str:
    return "".join(letters.get(wire, "I") for wire in range(qubits))


def matrix_of(hamiltonian: Hamiltonian) -> Tensor:
    """The matrix [2^n, 2^n] in float64 where every word has an even number of Y, in complex128 otherwise.

    P|k⟩ = i^#Y (−1)^(k·z) |k ⊕ x⟩, where x marks the letters X and Y, z marks Y and Z, and qubit 0 is the most
    significant bit of k.
    """
    (qubits,) = {len(word) for word in hamiltonian}
    real = all(word.count("Y") % 2 == 0 for word in hamiltonian)
    matrix = torch.zeros(2**qubits, 2**qubits, dtype=torch.float64 if real else torch.complex128)
    index = torch.arange(2**qubits)
    for word, coefficient in hamiltonian.items():
        bits = {letters: sum(1 << (qubits - 1 - wire) for wire, letter in enumerate(word) if letter in letters)
                for letters in ("XY", "YZ")}  # fmt: skip
        signs = 1 - 2 * _parity(index & bits["YZ"], qubits)
        phase = 1j ** word.count("Y")
        values = coefficient * signs.to(matrix.dtype) * (phase.real if real else phase)
        matrix[index ^ bits["XY"], index] += values
    return matrix


def _parity(bits: Tensor, qubits: int) -> Tensor:
    """Is the number of ones odd? 0 or 1."""
    return sum(((bits >> place) & 1 for place in range(qubits)), torch.zeros_like(bits)) % 2


def ground_energy(hamiltonian: Hamiltonian) -> float:
    """The smallest eigenvalue, from all of them."""
    return float(torch.linalg.eigvalsh(matrix_of(hamiltonian))[0])
