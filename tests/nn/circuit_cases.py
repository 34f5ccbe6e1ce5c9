"""Random circuits as PennyLane functions, and comparing two engines on one of them."""

import random

import pennylane as qml
import torch

from advml.nn.quantum.circuits import Circuit
from advml.nn.quantum.observables import pauli_each, z_pairs

FIXED = {
    1: [qml.Hadamard, qml.PauliX, qml.PauliY, qml.PauliZ, qml.S, qml.T, qml.SX],
    2: [qml.CNOT, qml.CZ, qml.SWAP, qml.CY, qml.ISWAP],
    3: [qml.Toffoli, qml.CSWAP],
}
TURNING = {
    1: [qml.RX, qml.RY, qml.RZ, qml.PhaseShift, qml.Rot, qml.U2, qml.U3],
    2: [qml.CRX, qml.CRY, qml.CRZ, qml.ControlledPhaseShift, qml.IsingXX, qml.IsingYY, qml.IsingZZ,
        qml.SingleExcitation, qml.MultiRZ],
    3: [qml.MultiRZ],
}  # fmt: skip
REAL = {qml.Hadamard, qml.PauliX, qml.PauliZ, qml.CNOT, qml.CZ, qml.SWAP, qml.Toffoli, qml.CSWAP, qml.RY, qml.CRY,
        qml.SingleExcitation}  # fmt: skip


def random_circuit(seed, qubits, gates=18, features=3, weights=7, real=False):
    """Gates on random wires, their angles inputs, weights, constants, sums and products of these."""
    choose = random.Random(seed)
    plan = []
    for _ in range(gates):
        count = choose.choice([1, 1, 1, 2, 2, 3])
        count = min(count, qubits)
        turning = choose.random() < 0.7
        kinds = [kind for kind in (TURNING if turning else FIXED)[count] if not real or kind in REAL]
        if not kinds:
            continue
        kind = choose.choice(kinds)
        angles = [(choose.randrange(6), choose.randrange(features), choose.randrange(weights), choose.random())
                  for _ in range(kind.num_params if turning else 0)]  # fmt: skip
        plan.append((kind, choose.sample(range(qubits), count), angles))

    def angle(inputs, weights, form, column, number, constant):
        x, w = inputs[..., column], weights["free"][number]
        product = x * inputs[..., 0]
        return [x, w, constant * x + w, x * w - constant, product / 2, 0.3 - w * weights["grid"][0, 1]][form]

    def apply(inputs, weights):
        for kind, wires, angles in plan:
            kind(*(angle(inputs, weights, *form) for form in angles), wires=wires)

    shapes = {"free": (weights,), "grid": (2, 2)}
    return Circuit(f"random{seed}", qubits, gates, shapes, features, real, apply)


def observables(qubits):
    return [*z_pairs(qubits), *pauli_each(qubits), {"Y" * qubits: 0.5, "X" * qubits: -1.5}]


def values_of(circuit, seed=0, batch=3, dtype=torch.float64):
    """Inputs and weights, requiring gradients."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()  # noqa: E731
    inputs = None if circuit.features is None else draw(batch, circuit.features)
    return inputs, {name: draw(*shape) for name, shape in circuit.weights.items()}


def outcome(engine, inputs, weights):
    """Expectation values and the gradients of a weighted sum of their squares, in float64."""
    values = engine(inputs, weights)
    loss = (values.double() * torch.linspace(1, 2, values.shape[1])).square().sum()
    wanted = [*([] if inputs is None else [inputs]), *weights.values()]
    if not loss.requires_grad:
        return [values, *(torch.zeros_like(value) for value in wanted)]
    gradients = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
    return [found.detach().double() for found in (values, *gradients)]


def worst(first, second):
    assert [value.shape for value in first] == [value.shape for value in second]
    return max(float((one - two).detach().abs().max()) for one, two in zip(first, second, strict=True) if one.numel())
