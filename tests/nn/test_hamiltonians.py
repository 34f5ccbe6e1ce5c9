"""Hamiltonians against PennyLane's matrices, exact energies against free fermions and published molecules."""

import itertools
import math
import random

import pytest
import torch
import yaml

from advml.nn.quantum.hamiltonians import ground_energy, ising_chain, matrix_of
from advml.nn.quantum.observables import to_pennylane
from advml.roots import config_root

H2 = yaml.safe_load((config_root() / "method/vqe.yaml").read_text())["hamiltonians"]


def test_matrices_are_pennylanes():
    import pennylane as qml

    chance = random.Random(0)
    for qubits in (1, 2, 3, 4):
        words = ["".join(letters) for letters in itertools.product("IXYZ", repeat=qubits)]
        few = chance.sample(words, min(len(words), 6))
        hamiltonian = {word: chance.uniform(-1, 1) for word in few}
        expected = torch.tensor(qml.matrix(to_pennylane(hamiltonian), wire_order=range(qubits)))
        found = matrix_of(hamiltonian)
        torch.testing.assert_close(found.to(torch.complex128), expected.to(torch.complex128), rtol=0, atol=1e-14)
        assert found.is_complex() == any(word.count("Y") % 2 for word in few)


@pytest.mark.parametrize("field", [0.0, 0.5, 1.0, 1.7])
@pytest.mark.parametrize("qubits", [4, 6])
def test_a_ring_has_the_energy_of_free_fermions(qubits, field):
    """E₀ = −Σ_k √(1 + h² + 2h cos k), momenta k = π(2m + 1)/n of an even number of fermions (Pfeuty 1970)."""
    momenta = [math.pi * (2 * m + 1) / qubits for m in range(qubits)]
    expected = -sum(math.sqrt(1 + field**2 + 2 * field * math.cos(k)) for k in momenta)
    assert ground_energy(ising_chain(qubits, 1.0, field, periodic=True)) == pytest.approx(expected, abs=1e-12)


def test_an_open_chain_without_field_breaks_no_bond():
    assert ground_energy(ising_chain(5, 2.0, 0.0, periodic=False)) == pytest.approx(-8.0)
    assert ising_chain(2, 1.0, 0.5, periodic=True) == {"ZZ": -1.0, "XI": -0.5, "IX": -0.5}


class TestHydrogen:
    def test_is_what_pennylane_computes(self):
        import pennylane as qml
        from pennylane import numpy as pnp

        for written in (H2[2], H2[-1]):
            place = pnp.array([[0.0, 0.0, 0.0], [0.0, 0.0, written["at"] / 0.529177210903]])
            molecule = qml.qchem.Molecule(["H", "H"], place)
            operator, qubits = qml.qchem.molecular_hamiltonian(molecule, method="dhf")
            words = {
                "".join(word.get(wire, "I") for wire in range(qubits)): complex(value).real
                for word, value in operator.pauli_rep.items()
            }
            assert words == pytest.approx(written["words"], abs=1e-11)

    def test_agrees_with_what_was_published(self):
        """Seeley, Richard and Love 2012: 1.401 Bohr, the repulsion of the nuclei 1/1.401 apart."""
        published = {"IIII": -0.81261 + 1 / 1.401, "ZIII": 0.171201, "ZZII": 0.16862325, "IIZI": -0.2227965,
                     "ZIZI": 0.120546, "IZZI": 0.165868, "IIZZ": 0.174349, "YXXY": 0.04532175}  # fmt: skip
        for word, value in published.items():
            assert H2[2]["words"][word] == pytest.approx(value, abs=3e-5), word

    def test_the_ground_state_has_two_electrons_at_every_length(self):
        two = [index for index in range(16) if index.bit_count() == 2]
        for written in H2:
            within = torch.linalg.eigvalsh(matrix_of(written["words"])[two][:, two])[0].item()
            assert within == pytest.approx(ground_energy(written["words"]), abs=1e-12)
