"""The fast engine against PennyLane's TorchLayer (default.qubit, backprop), lightning.qubit and, compiled, itself.

    python benchmarks/quantum.py [--device cuda] [--large] [--compile] [--lightning] [--jax]

Forward and backward of Σ ⟨Z_i⟩² through `angle_ry` (RY encoding, layers of RY and a chain of CNOTs), one thread.
Gradients are compared first: from float64 they may differ by 1e-5 in float32, or nothing is timed. TorchLayer is
PennyLane's own way to put a circuit into torch; lightning.qubit differentiates by adjoint, example by example.
`jax.jit` (extra bench-quantum) is PennyLane's default.qubit traced by JAX, loss and gradient compiled as one; its
first call, which compiles, is printed apart. Times are CPU times of this process (on CUDA: wall clock after
synchronising); all runs take turns, short ones a few in a row as in training, and what is
printed are medians and ratios of medians.
`share` is the part of the machine's own rate, of a float32 product of 1024×1024 matrices measured in between, that the
matrix products of the fused steps are carried out at. `memory` is what a forward pass keeps for the backward one.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import numpy as np
import torch
from common import machine, medians
from torch import Tensor

from advml.nn.quantum.circuits import Circuit, make_circuit
from advml.nn.quantum.engines import FastEngine, make_engine
from advml.nn.quantum.observables import z_each
from advml.runner.finish import FlopCounter

TOLERANCE = 1e-5
SIZES = [(4, 3, 32), (4, 3, 128), (8, 4, 32), (8, 4, 128), (12, 6, 32), (12, 6, 128)]
REACH = {(4, 32): 15, (4, 128): 15, (8, 32): 9, (8, 128): 9, (12, 32): 15, (12, 128): 25}  # times as fast, eager
BURST = {
    ("fast", 4): 20, ("fast, compiled", 4): 20, ("fast", 8): 10, ("TorchLayer", 4): 4, ("TorchLayer", 8): 2,
    ("jax.jit", 4): 20, ("jax.jit", 8): 10,
}  # fmt: skip
COMPILED_REACH = 25  # at 4 qubits
Run = Callable[[], list[Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=40, help="of the fast engine at 4 qubits; others run less often")
    parser.add_argument("--qubits", type=int, nargs="+", default=[4, 8, 12])
    parser.add_argument("--large", action="store_true", help="the fast engine alone with up to 8,192 examples")
    parser.add_argument("--compile", action="store_true", help="and compiled, at 4 qubits: needs a C++ compiler")
    parser.add_argument("--lightning", action="store_true", help="and lightning.qubit, which takes long")
    parser.add_argument("--jax", action="store_true", help="and PennyLane traced and compiled by JAX, which takes long")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(machine())
    for qubits, layers, batch in SIZES:
        if qubits in options.qubits:
            compare(qubits, layers, batch, options)
    if options.large:
        for batch in (512, 2048, 8192):
            alone(8, 4, batch, options.device)


def compare(qubits: int, layers: int, batch: int, options: argparse.Namespace) -> None:
    """Check that all agree, time them and print the ratios."""
    circuit = make_circuit("angle_ry", qubits, layers)
    weights = {name: value.to(options.device) for name, value in circuit.initial().items()}
    inputs = (torch.rand(batch, qubits) * torch.pi).to(options.device)
    runs = {"fast": ours(circuit, inputs, weights), "TorchLayer": torch_layer(circuit, inputs, weights)}
    repeats = {"fast": options.repeats, "TorchLayer": max(3, options.repeats // 2**qubits * 16)}
    if options.compile and qubits == 4:
        runs["fast, compiled"] = ours(circuit, inputs, weights, compiled=True)
        repeats["fast, compiled"] = options.repeats
    if options.lightning:
        runs["lightning.qubit"] = lightning(circuit, inputs, weights)
        repeats["lightning.qubit"] = 3
    if options.jax:
        runs["jax.jit"] = jax_jit(circuit, inputs, weights)
        repeats["jax.jit"] = options.repeats
    double = {name: value.double() for name, value in weights.items()}
    reference = ours(circuit, inputs.double(), double)()
    for name, run in list(runs.items()):
        error = max(float((found - right).abs().max() / right.abs().max())
                    for found, right in zip(run(), reference, strict=True))  # fmt: skip
        if error > TOLERANCE and name in ("jax.jit", "lightning.qubit"):
            print(f"  {name}: off by {error:.1e} at {qubits} qubits, so it is not timed")
            del runs[name], repeats[name]
        elif error > TOLERANCE:
            raise SystemExit(f"{name}: off by {error:.1e} at {qubits} qubits, so there is nothing to time")
    if options.device == "cpu":
        square = torch.randn(1024, 1024)
        runs["matrices"] = lambda: [square @ square]
        repeats["matrices"] = 10
        bursts = {name: BURST.get((name, qubits), 1) for name in runs}
        times = medians({name: several(run, bursts[name]) for name, run in runs.items()}, repeats)
        times = {name: taken / bursts[name] for name, taken in times.items()}
        rate = 2 * 1024**3 / times.pop("matrices")
    else:
        times, rate = medians(runs, dict.fromkeys(runs, 5), device=options.device), 0.0
    print(f"{qubits} qubits, {layers} layers, B = {batch}")
    for name, taken in times.items():
        line = f"  {name:<16} {taken * 1e3:10,.3f} ms"
        if name == "jax.jit":
            line += f"  {times['TorchLayer'] / taken:6.1f} times as fast as TorchLayer"
        if name.startswith("fast"):
            ratio, goal = times["TorchLayer"] / taken, REACH[qubits, batch] if name == "fast" else COMPILED_REACH
            line += f"  {ratio:6.1f} times as fast as TorchLayer (to reach: {goal})"
        if name == "fast" and rate:
            with FlopCounter() as counter:
                runs[name]()
            line += f"; share {counter.total / taken / rate:.0%} of {rate / 1e9:.0f} GFLOP/s"
            line += f"; memory {saved_bytes(circuit, inputs, weights) / 1e6:.1f} MB kept for backward"
        print(line, flush=True)


def alone(qubits: int, layers: int, batch: int, device: str) -> None:
    """The fast engine without anything beside it."""
    circuit = make_circuit("angle_ry", qubits, layers)
    weights = {name: value.to(device) for name, value in circuit.initial().items()}
    run = ours(circuit, torch.rand(batch, qubits).to(device), weights)
    run()
    taken = medians({"fast": run}, {"fast": 20}, device=device)["fast"]
    print(f"{qubits} qubits, {layers} layers, B = {batch:,}: fast {taken * 1e3:.2f} ms")


def several(run: Run, count: int) -> Callable[[], object]:
    """The run `count` times in a row."""
    return lambda: [run() for _ in range(count)]


def differentiated(
    forward: Callable[..., Tensor], inputs: Tensor, weights: dict[str, Tensor], compiled: bool = False
) -> Run:
    """Gradients of Σ ⟨Z_i⟩² in the weights, once a call; `compiled`: the loss with all that is in it."""
    leaves = {name: value.detach().clone().requires_grad_() for name, value in weights.items()}

    def loss(inputs: Tensor, weights: dict[str, Tensor]) -> Tensor:
        return forward(inputs, weights).square().sum()

    function = torch.compile(loss, fullgraph=True) if compiled else loss

    def run() -> list[Tensor]:
        return list(torch.autograd.grad(function(inputs, leaves), list(leaves.values())))

    return run


def ours(circuit: Circuit, inputs: Tensor, weights: dict[str, Tensor], compiled: bool = False) -> Run:
    """The fast engine."""
    engine = FastEngine(circuit, z_each(circuit.qubits)).to(inputs.device, inputs.dtype)
    return differentiated(engine, inputs, weights, compiled)


def lightning(circuit: Circuit, inputs: Tensor, weights: dict[str, Tensor]) -> Run:
    """lightning.qubit by adjoint."""
    engine = make_engine(circuit, z_each(circuit.qubits), device="lightning.qubit", diff_method="adjoint")
    return differentiated(engine, inputs, weights)


def jax_jit(circuit: Circuit, inputs: Tensor, weights: dict[str, Tensor]) -> Run:
    """default.qubit under jax.jit, the whole batch in one simulation, on one thread."""
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    import jax
    import pennylane as qml

    @qml.qnode(qml.device("default.qubit", wires=circuit.qubits), interface="jax", diff_method="backprop")
    def node(inputs: object, weights: object) -> list[object]:
        circuit(inputs, weights)  # type: ignore[arg-type]
        return [qml.expval(qml.PauliZ(wire)) for wire in range(circuit.qubits)]

    def loss(weights: object, inputs: object) -> object:
        return (jax.numpy.stack(node(inputs, weights)) ** 2).sum()

    gradient = jax.jit(jax.grad(loss))
    theirs = {name: jax.numpy.asarray(value.cpu().numpy()) for name, value in weights.items()}
    angles = jax.numpy.asarray(inputs.cpu().numpy())
    start = time.perf_counter()
    jax.block_until_ready(gradient(theirs, angles))
    print(f"  jax.jit: compiled in {time.perf_counter() - start:.1f} s")

    def run() -> list[Tensor]:
        found = jax.block_until_ready(gradient(theirs, angles))
        return [torch.from_numpy(np.array(found[name])) for name in weights]

    return run


def torch_layer(circuit: Circuit, inputs: Tensor, weights: dict[str, Tensor]) -> Run:
    """qml.qnn.TorchLayer over default.qubit, the whole batch in one simulation."""
    import pennylane as qml

    @qml.qnode(qml.device("default.qubit", wires=circuit.qubits), interface="torch", diff_method="backprop")
    def node(inputs: Tensor, angles: Tensor) -> list[object]:
        circuit(inputs, {"angles": angles})
        return [qml.expval(qml.PauliZ(wire)) for wire in range(circuit.qubits)]

    layer = qml.qnn.TorchLayer(node, {name: tuple(value.shape) for name, value in weights.items()}).to(inputs.device)
    layer.load_state_dict(weights)

    def run() -> list[Tensor]:
        return list(torch.autograd.grad(layer(inputs).square().sum(), list(layer.parameters())))

    return run


def saved_bytes(circuit: Circuit, inputs: Tensor, weights: dict[str, Tensor]) -> int:
    """Bytes of tensors that the forward pass keeps for the backward pass; one storage counts once."""
    kept: dict[int, int] = {}

    def keep(value: Tensor) -> Tensor:
        kept[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    leaves = {name: value.detach().clone().requires_grad_() for name, value in weights.items()}
    engine = FastEngine(circuit, z_each(circuit.qubits)).to(inputs.device, inputs.dtype)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
        engine(inputs, leaves).square().sum()
    return sum(kept.values())


if __name__ == "__main__":
    main()
