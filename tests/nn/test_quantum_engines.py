"""The fast engine is PennyLane's default.qubit, only faster: values and gradients, on circuits drawn at random."""

import copy
import warnings
from typing import get_args

import pennylane as qml
import pytest
import torch
from circuit_cases import observables, outcome, random_circuit, values_of, worst
from torch.func import functional_call, grad, jacrev, vmap

from advml.errors import ConfigError
from advml.nn.quantum.circuits import Circuit, CircuitName, make_circuit
from advml.nn.quantum.engines import FastEngine, PennyLaneEngine, make_engine
from advml.nn.quantum.observables import Expectations, z_each, z_pairs
from advml.nn.quantum.tracing import trace

NAMES = get_args(CircuitName)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def blocks(count, size):
    return [range(start, start + size) for start in range(0, count, size)]


FIRST, *MORE = blocks(200, 40)


@pytest.mark.parametrize("seeds", [FIRST, *(pytest.param(seeds, marks=pytest.mark.slow) for seeds in MORE)], ids=str)
def test_random_circuits_equal_default_qubit(seeds):
    for seed in seeds:
        qubits = 1 + seed % 4
        circuit = random_circuit(seed, qubits, real=seed % 5 == 0)
        values = values_of(circuit, seed, batch=1 + seed % 3)
        fast = outcome(FastEngine(circuit, observables(qubits)), *values)
        assert worst(fast, outcome(PennyLaneEngine(circuit, observables(qubits)), *values)) < 1e-12, seed


def test_random_circuits_of_more_qubits_equal_the_plain_engine_gate_by_gate():
    for seed in range(16):
        qubits = 5 + seed % 4
        circuit = random_circuit(seed, qubits, gates=30, real=seed % 3 == 0)
        values = values_of(circuit, seed)
        fast = outcome(FastEngine(circuit, observables(qubits)), *values)
        assert worst(fast, outcome(FastEngine(circuit, observables(qubits), plain=True), *values)) < 1e-12, seed


def test_float32():
    for seed in range(15):
        circuit = random_circuit(seed, 3, real=seed % 3 == 0)
        inputs, weights = values_of(circuit, seed, dtype=torch.float32)
        assert FastEngine(circuit, observables(3))(inputs, weights).dtype == torch.float32
        double = (
            inputs.detach().double().requires_grad_(),
            {name: value.detach().double().requires_grad_() for name, value in weights.items()},
        )
        exact = outcome(FastEngine(circuit, observables(3)), *double)
        found = outcome(FastEngine(circuit, observables(3)).float(), inputs, weights)
        scale = max(1.0, *(float(value.abs().max()) for value in exact))
        assert worst(found, exact) < 1e-5 * scale, seed


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("qubits", "layers"), [(1, 2), (2, 1), (4, 3), (7, 2)])
def test_every_circuit_equals_default_qubit(name, qubits, layers):
    for entangle in (True, False):
        circuit = make_circuit(name, qubits, layers, entangle=entangle)
        values = values_of(circuit)
        for measured in (z_each(qubits), observables(qubits)):
            fast = FastEngine(circuit, measured)
            slow = PennyLaneEngine(circuit, measured)
            assert worst(outcome(fast, *values), outcome(slow, *values)) < 1e-12
            states = fast.states(*values)
            assert states.is_complex() != circuit.real
            assert worst([states], [slow.states(*values)]) < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_fused_steps_equal_the_plain_engine(name):
    for qubits, layers, features in ((3, 0, 2), (3, 1, 1), (5, 4, None), (6, 2, None), (7, 2, None)):
        for scaling in (True, False):
            circuit = make_circuit(name, qubits, layers, features=features, scaling=scaling)
            values = values_of(circuit, batch=2)
            plain = FastEngine(circuit, observables(qubits), plain=True)
            assert worst(outcome(FastEngine(circuit, observables(qubits)), *values), outcome(plain, *values)) < 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_backpropagation_adjoint_and_parameter_shift_agree(name):
    circuit = make_circuit(name, 3, 2)
    inputs, weights = values_of(circuit, batch=2)
    inputs = inputs.detach()
    exact = outcome(FastEngine(circuit, z_pairs(3)), inputs.requires_grad_(), weights)
    inputs = inputs.detach()
    for method in ("backprop", "adjoint", "parameter-shift"):
        engine = make_engine(circuit, z_pairs(3), "pennylane", diff_method=method)
        values = engine(inputs, weights)
        loss = (values * torch.linspace(1, 2, values.shape[1])).square().sum()
        found = torch.autograd.grad(loss, list(weights.values()))
        assert worst([values, *found], [exact[0], *exact[2:]]) < 1e-10


def test_a_circuit_without_inputs():
    def apply(inputs, weights):
        qml.Hadamard(0)
        qml.StronglyEntanglingLayers(weights["w"], wires=range(4))
        qml.DoubleExcitation(weights["w"][0, 0, 0], wires=range(4))
        qml.IsingXY(weights["w"][1, 0, 0], wires=[0, 2])
        qml.GlobalPhase(weights["w"][0, 0, 1])

    circuit = Circuit("free", 4, 2, {"w": (2, 4, 3)}, None, False, apply)
    values = values_of(circuit)
    fast, slow = FastEngine(circuit, observables(4)), PennyLaneEngine(circuit, observables(4))
    assert worst(outcome(fast, *values), outcome(slow, *values)) < 1e-12
    assert fast.states(*values).shape == (1, 16)
    assert worst([fast.states(*values)], [slow.states(*values)]) < 1e-12


# --- what must hold exactly ---


def test_reductions():
    inputs = torch.randn(5, 3, dtype=torch.float64)
    for name, expected in (("angle_ry", inputs.cos()), ("data_reuploading", torch.ones(5, 3, dtype=torch.float64))):
        circuit = make_circuit(name, 3, 0)
        weights = {key: torch.zeros(shape, dtype=torch.float64) for key, shape in circuit.weights.items()}
        assert worst([make_engine(circuit, z_each(3))(inputs, weights)], [expected]) < 1e-14


@pytest.mark.parametrize("name", [name for name in NAMES if name != "amplitude"])
def test_without_entanglers_a_qubit_sees_its_own_feature_only(name):
    for entangle in (False, True):
        circuit = make_circuit(name, 3, 2, entangle=entangle)
        engine, (inputs, weights) = make_engine(circuit, z_each(3)), values_of(circuit, batch=1)
        jacobian = jacrev(lambda one: engine(one[None], weights)[0])(inputs[0])  # noqa: B023
        others = jacobian[~torch.eye(3, dtype=torch.bool)].abs().max()
        assert (others < 1e-14) if not entangle else (others > 1e-3)


# --- what PennyLane alone does ---


def test_shots_are_unbiased_with_the_variance_of_a_coin():
    circuit = make_circuit("angle_ry", 2, 1)
    weights = circuit.initial()
    row = torch.tensor([[0.4, 1.3]])
    exact = make_engine(circuit, z_each(2))(row, weights)[0].double()
    found = make_engine(circuit, z_each(2), shots=50)(row.expand(400, 2), weights).double()
    variance = (1 - exact.square()) / 50
    assert ((found.mean(0) - exact).abs() < 5 * (variance / 400).sqrt()).all()
    assert (((found.var(0) / variance) - 1).abs() < 0.35).all()  # 5 standard deviations of an estimate from 400


def test_shots_follow_torchs_generator():
    circuit = make_circuit("angle_ry", 2, 1)
    engine, weights, row = make_engine(circuit, z_each(2), shots=20), circuit.initial(), torch.ones(3, 2)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(engine(row, weights))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])


def test_noise_shrinks_expectations_by_the_depolarising_factor():
    circuit = make_circuit("angle_ry", 2, 0)
    inputs = torch.tensor([[0.3, 2.0]], dtype=torch.float64)
    weights = {"angles": torch.zeros(0, 2, dtype=torch.float64)}
    found = make_engine(circuit, z_each(2), noise=0.06)(inputs, weights)
    assert worst([found], [(1 - 4 * 0.06 / 3) * inputs.cos()]) < 1e-12


def test_what_the_settings_ask_for_decides_the_engine():
    circuit = make_circuit("angle_ry", 2, 1)
    assert isinstance(make_engine(circuit, z_each(2)), FastEngine)
    for asked in ({"shots": 10}, {"noise": 0.1}, {"device": "lightning.qubit"}, {"diff_method": "adjoint"}):
        engine = make_engine(circuit, z_each(2), **asked)
        assert isinstance(engine, PennyLaneEngine)
        assert "PennyLane" in engine.reason
        with pytest.raises(ConfigError, match=r"model\.engine=fast"):
            make_engine(circuit, z_each(2), "fast", **asked)


@pytest.mark.parametrize(
    ("operation", "said"),
    [
        (lambda x, w: qml.QubitUnitary(torch.eye(2) * torch.exp(1j * w[0]), wires=0), "QubitUnitary, made of RZ"),
        (lambda x, w: qml.RY(torch.sin(w[0]), wires=0), "RY of an angle that is no sum of products"),
        (lambda x, w: qml.RY(w[0], wires=0) if w[0] > 0 else None, "depend on the value"),
        (lambda x, w: qml.DepolarizingChannel(0.1, wires=0), "DepolarizingChannel"),
    ],
    ids=["matrix", "sine", "branch", "channel"],
)
def test_an_operation_that_is_not_known_falls_back_with_a_line(operation, said):
    def apply(inputs, weights):
        qml.RX(inputs[..., 0], wires=1)
        operation(inputs, weights["w"])

    circuit = Circuit("odd", 2, 1, {"w": (2,)}, 2, False, apply)
    with pytest.warns(UserWarning, match=f"circuit odd: the fast engine does not know .*{said}"):
        engine = make_engine(circuit, z_each(2))
    assert isinstance(engine, PennyLaneEngine)
    with pytest.raises(ConfigError, match=said):
        make_engine(circuit, z_each(2), "fast")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_engine(circuit, z_each(2), "pennylane")


# --- weights are what is given ---


def test_vmap_second_derivatives_and_copies():
    for name in NAMES:
        circuit = make_circuit(name, 3, 2)
        engine = copy.deepcopy(make_engine(circuit, z_each(3)))
        inputs, weights = values_of(circuit)
        many = {key: torch.stack([value.detach(), -value.detach()]) for key, value in weights.items()}
        found = vmap(lambda w: engine(inputs, w))(many)  # noqa: B023
        assert worst([found[1]], [engine(inputs, {key: -value for key, value in weights.items()})]) < 1e-13
        loss = lambda w, x: engine(x[None], w).square().sum()  # noqa: B023, E731
        single = vmap(grad(loss), (None, 0))(weights, inputs)
        total = torch.autograd.grad(engine(inputs, weights).square().sum(), list(weights.values()))
        assert worst([value.sum(0) for value in single.values()], list(total)) < 1e-12
        tuned = lambda *w: engine(inputs.detach()[:1], dict(zip(circuit.weights, w, strict=True)))  # noqa: B023, E731
        assert torch.autograd.gradgradcheck(tuned, tuple(weights.values()))


def test_functional_call_substitutes_weights_here_and_not_in_torch_layer():
    device = qml.device("default.qubit", wires=2)

    @qml.qnode(device, interface="torch")
    def node(inputs, angles):
        make_circuit("angle_ry", 2, 1)(inputs, {"angles": angles})
        return [qml.expval(qml.PauliZ(wire)) for wire in range(2)]

    class Ours(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.engine = make_engine(make_circuit("angle_ry", 2, 1), z_each(2))
            self.angles = torch.nn.Parameter(torch.tensor([[0.1, 0.2]]))

        def forward(self, inputs):
            return self.engine(inputs, {"angles": self.angles})

    inputs, other = torch.rand(3, 2), {"angles": torch.tensor([[1.0, -2.0]])}
    layer = qml.qnn.TorchLayer(node, {"angles": (1, 2)})
    with torch.no_grad():
        assert torch.equal(functional_call(layer, other, (inputs,)), layer(inputs))
        ours = Ours()
        moved = functional_call(ours, other, (inputs,))
        assert not torch.allclose(moved, ours(inputs))
        layer.load_state_dict(other)
        assert torch.allclose(moved, layer(inputs).float(), atol=1e-6)


def test_tracing_touches_no_generator():
    before = torch.get_rng_state()
    trace(make_circuit("iqp", 2, 7))
    assert torch.equal(before, torch.get_rng_state())


def test_expectations_of_wrong_words_are_refused():
    for word in ("ZZ", "ZIA", "ZIIZ"):
        with pytest.raises(ValueError, match=word):
            Expectations([{word: 1.0}], 3)
