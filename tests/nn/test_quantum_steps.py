"""What the fast engine is made of: formulas seen by watching, fused parts, sums of cosines, expectation values."""

import functools
import itertools
import math

import numpy as np
import pennylane as qml
import pytest
import torch

from advml.nn.quantum.circuits import make_circuit
from advml.nn.quantum.fusing import Local, Permute, Phases, fuse
from advml.nn.quantum.layers import cosine_sums, group_sizes, kron, kron_of_vectors, reorder
from advml.nn.quantum.observables import Expectations, pauli_each, to_pennylane, z_each, z_pairs
from advml.nn.quantum.symbols import Undecided, Watch
from advml.nn.quantum.tracing import trace


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def value_of(formula, numbers):
    return sum(coefficient * math.prod(numbers[k] for k in keys) for coefficient, keys in formula)


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: (0.3 - a[..., 1]) / 2 + b[1] * a.flip(0)[0],
        lambda a, b: -(a * b.T[:2, 1].flatten())[1] + 1,
        lambda a, b: torch.stack([a[0], b[0, 1]])[1] * torch.cat([a, a])[3],
        lambda a, b: b.reshape(3, 2).unsqueeze(0).expand(4, 3, 2)[2, :, 1] ** 2 - 0.7 * a[0] * a[1],
        lambda a, b: torch.ones_like(b) * 0.5 + b.unbind(1)[2].unsqueeze(1) * 1.25,
    ],
)
def test_formulas_give_the_values(function):
    values = [torch.rand(2, dtype=torch.float64), torch.rand(2, 3, dtype=torch.float64)]
    watch = Watch()
    watch.number(values[0], 0)
    watch.number(values[1], 2)
    with watch:
        result = function(*values)
    numbers = torch.cat([value.flatten() for value in values]).tolist()
    found = [value_of(formula, numbers) for formula in watch.formulas(result)]
    assert found == pytest.approx(result.flatten().tolist(), abs=1e-15)
    assert any(keys for formula in watch.formulas(result) for _, keys in formula)


def test_what_is_no_formula_is_not_guessed():
    watch, value = Watch(), torch.rand(2)
    watch.number(value, 0)
    with watch:
        wave = torch.sin(value)
        assert watch.formulas(wave * 2) is None
        assert watch.formulas(torch.ones(2) * 2) == [((2.0, ()),)] * 2
        with pytest.raises(Undecided):
            bool(value[0] > 0)


def test_the_classic_is_a_product_state_and_a_gather_after_each_layer():
    parts = fuse(trace(make_circuit("angle_ry", 4, 3)))
    assert [type(part) for part in parts] == [Local, Permute] * 3
    first = parts[0].gates[2]
    assert [(gate.name, len(gate.angle)) for gate in first] == [("RY", 2)]  # RY(x) and RY(θ) are one
    state = torch.rand(16)
    moved = state.numpy()[parts[1].order]
    chain = functools.reduce(lambda after, wire: qml.matrix(qml.CNOT([wire, wire + 1]), range(4)) @ after, range(3),
                             np.eye(16))  # fmt: skip
    assert np.allclose(chain @ state.numpy(), moved)


def test_without_entanglers_all_layers_are_one():
    (part,) = fuse(trace(make_circuit("angle_ry", 3, 5, entangle=False)))
    assert [len(gates) for gates in part.gates] == [1, 1, 1]


def test_all_diagonal_gates_in_a_row_are_one_step():
    kinds = [type(part) for part in fuse(trace(make_circuit("iqp", 4, 0)))]
    assert kinds == [Local, Phases, Local, Phases]


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_products_of_cosines_and_sines(count):
    angles = torch.randn(7, count, dtype=torch.float64).numpy()
    sums, shifts, mixed = cosine_sums(count)
    found = np.cos(angles @ sums + shifts) @ mixed
    for number, choice in enumerate(itertools.product((np.cos, np.sin), repeat=count)):
        expected = math.prod((turn(angles[:, place]) for place, turn in enumerate(choice)), start=np.ones(7))
        assert np.abs(found[:, number] - expected).max() < 1e-15 * 2**count


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_kronecker_products(count):
    factors = torch.randn(2, count, 2, 3)
    expected = functools.reduce(torch.kron, factors[1])
    assert torch.allclose(kron(factors)[1], expected, atol=1e-5)
    vectors = torch.randn(count, 2, 3)
    assert torch.allclose(kron_of_vectors(list(vectors))[1], functools.reduce(torch.kron, vectors[:, 1]), atol=1e-5)


def test_groups_are_about_equally_large():
    assert [group_sizes(qubits, 4) for qubits in (1, 4, 6, 7, 12, 13)] == [
        [1], [4], [3, 3], [4, 3], [4, 4, 4], [4, 3, 3, 3],
    ]  # fmt: skip


def test_a_reordering_has_all_derivatives():
    order = torch.randperm(5)
    moved = lambda values: reorder(values, order, order.argsort()).pow(3)  # noqa: E731
    values = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.equal(moved(values), values[:, order].pow(3))
    assert torch.autograd.gradcheck(moved, values, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(moved, values)


@pytest.mark.parametrize("observables", [z_each(3), z_pairs(3), pauli_each(3), [{"XYZ": 0.5, "ZZI": 2.0, "YIY": -1}]])
def test_expectations_are_those_of_the_operators_matrices(observables):
    states = torch.randn(4, 8, dtype=torch.complex128)
    states /= states.norm(dim=1, keepdim=True)
    matrices = [torch.tensor(qml.matrix(to_pennylane(one), wire_order=range(3))) + 0j for one in observables]
    matrices = [matrix.to(torch.complex128) for matrix in matrices]
    expected = torch.stack([torch.einsum("bi,ij,bj->b", states.conj(), m, states).real for m in matrices], 1)
    assert torch.allclose(Expectations(observables, 3)(states), expected, atol=1e-14)
    real = states.real.contiguous()
    expected = torch.stack([torch.einsum("bi,ij,bj->b", real, m.real, real) for m in matrices], 1)
    assert torch.allclose(Expectations(observables, 3)(real), expected, atol=1e-14)


def test_a_last_reordering_goes_into_the_signs():
    order, states = np.random.default_rng(0).permutation(8), torch.rand(4, 8, dtype=torch.float64)
    direct = Expectations(z_pairs(3), 3)(states[:, torch.tensor(order)])
    assert torch.allclose(Expectations(z_pairs(3), 3, order)(states), direct)
    with pytest.raises(ValueError, match="diagonal"):
        Expectations(pauli_each(3), 3, order)
