"""Kernels of quantum states against PennyLane and against definitions written out."""

import numpy as np
import pytest
import torch

from advml.nn.quantum import kernels
from advml.nn.quantum.circuits import make_circuit
from advml.nn.quantum.engines import make_engine
from advml.nn.quantum.observables import pauli_each


def angles(count, features, seed=0):
    return torch.rand(count, features, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 3


def weights_of(circuit):
    torch.manual_seed(1)
    return {name: value.double() for name, value in circuit.initial().items()}


@pytest.mark.parametrize(("name", "layers"), [("iqp", 0), ("angle_ry", 0), ("data_reuploading", 2)])
def test_fidelity_is_the_chance_to_return(name, layers):
    """|⟨φ(x)|φ(y)⟩|² = the probability of |0…0⟩ after U(x), then U†(y): as it is measured on hardware."""
    import pennylane as qml

    circuit = make_circuit(name, 3, layers)
    weights, x = weights_of(circuit), angles(4, 3)
    states = make_engine(circuit, pauli_each(3)).states(x, weights)
    found = kernels.fidelity(states, states)

    @qml.qnode(qml.device("default.qubit", wires=3), interface="torch")
    def back_and_forth(first, second):
        circuit(first, weights)
        qml.adjoint(circuit)(second, weights)
        return qml.probs(wires=range(3))

    for i in range(4):
        for j in range(4):
            torch.testing.assert_close(found[i, j], back_and_forth(x[i], x[j])[0], rtol=0, atol=1e-12)


def test_fidelity_of_ry_is_a_product_of_cosines():
    circuit = make_circuit("angle_ry", 3, 0)
    x = angles(5, 3)
    states = make_engine(circuit, pauli_each(3)).states(x, weights_of(circuit))
    expected = ((x.unsqueeze(1) - x) / 2).cos().square().prod(2)
    torch.testing.assert_close(kernels.fidelity(states, states), expected, rtol=0, atol=1e-12)


def test_layers_after_the_inputs_change_no_overlap():
    x = angles(5, 3)
    found = []
    for layers in (0, 2):
        circuit = make_circuit("iqp", 3, layers)
        states = make_engine(circuit, pauli_each(3)).states(x, weights_of(circuit))
        found.append(kernels.fidelity(states, states))
    torch.testing.assert_close(*found, rtol=0, atol=1e-12)


def test_projected_is_that_of_density_matrices():
    import pennylane as qml

    circuit = make_circuit("iqp", 3, 1)
    engine, weights, x = make_engine(circuit, pauli_each(3)), weights_of(circuit), angles(4, 3)
    found = kernels.projected(engine(x, weights), engine(x, weights), 0.7)
    states = engine.states(x, weights).numpy()
    reduced = np.array([[qml.math.reduce_statevector(state, [k]) for k in range(3)] for state in states])
    distances = (np.abs(reduced[:, None] - reduced[None]) ** 2).sum((2, 3, 4))
    np.testing.assert_allclose(found.numpy(), np.exp(-0.7 * distances), rtol=0, atol=1e-12)


def test_gaussian_is_scikit_learns():
    from sklearn.metrics.pairwise import rbf_kernel

    x, y = angles(6, 4), angles(5, 4, seed=3)
    np.testing.assert_allclose(kernels.gaussian(x, y, 0.3).numpy(), rbf_kernel(x, y, gamma=0.3), atol=1e-12)


def test_alignment_written_out():
    target = torch.tensor([0, 0, 1, 2])
    ideal = (target.unsqueeze(1) == target).double()
    assert kernels.alignment(3 * ideal + 5, target).item() == pytest.approx(1)
    kernel = angles(4, 4)
    kernel = kernel @ kernel.T
    centre = np.eye(4) - 1 / 4
    ours, theirs = centre @ kernel.numpy() @ centre, centre @ ideal.numpy() @ centre
    expected = (ours * theirs).sum() / np.linalg.norm(ours) / np.linalg.norm(theirs)
    assert kernels.alignment(kernel, target).item() == pytest.approx(expected)
