"""Running a circuit: by PennyLane, with any device, shots and noise, or by the fast engine, exactly and in torch alone.

Both are modules without weights of their own: `forward(inputs, weights)` is a pure function of what it is given, so
that functional_call, vmap, per-example gradients and averaged weights all reach the circuit.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import entry_points
from typing import Any, Literal

import torch
from torch import Tensor, nn

from advml.errors import ConfigError
from advml.nn.quantum.circuits import Circuit
from advml.nn.quantum.fused import FusedSimulator
from advml.nn.quantum.observables import Expectations, Observable, to_pennylane
from advml.nn.quantum.simulator import PlainSimulator
from advml.nn.quantum.tracing import Untraceable, trace

EngineName = Literal["auto", "pennylane", "fast"]
DiffMethod = Literal["best", "backprop", "adjoint", "parameter-shift", "finite-diff"]
EXACT = ("default.qubit", "default.mixed")  # devices that torch can differentiate through
Weights = Mapping[str, Tensor]


class Engine(nn.Module):
    """Expectation values of a circuit's observables.

    `reason`: why PennyLane runs it although `engine=auto` was asked; None otherwise. `shots`: how many are drawn, by
    torch's generator; None = exact. `mapped`: torch.func.vmap can go through it. `twice_differentiable`: second
    derivatives are right. `countable`: its work is done by operations of torch.
    """

    reason: str | None = None
    shots: int | None = None
    mapped = True
    twice_differentiable = True
    countable = True

    def forward(self, inputs: Tensor | None, weights: Weights) -> Tensor:
        """Inputs [B, F] (None: a circuit without inputs, B = 1) and weights → [B, n_observables]."""
        raise NotImplementedError

    def states(self, inputs: Tensor | None, weights: Weights) -> Tensor:
        """Amplitudes [B, 2^n] before the measurement, qubit 0 the most significant; real if the circuit is."""
        raise NotImplementedError


def make_engine(
    circuit: Circuit,
    observables: Sequence[Observable],
    engine: EngineName = "auto",
    *,
    device: str = "default.qubit",
    shots: int | None = None,
    noise: float = 0.0,
    diff_method: str = "best",
) -> Engine:
    """`auto` is fast where that is exact and possible, and PennyLane otherwise; an unknown operation is told in a line.

    `shots`: measurements an expectation value is estimated from, None = exact. `noise`: probability of a depolarising
    error after each gate, on each of its qubits. `device` and `diff_method` are PennyLane's.
    """
    reason = _beyond_fast(device, shots, noise, diff_method)
    if engine != "pennylane" and reason is None:
        try:
            return FastEngine(circuit, observables)
        except Untraceable as error:
            reason = f"the fast engine does not know {error}"
            if engine == "auto":
                warnings.warn(f"circuit {circuit.name}: {reason}; PennyLane runs it", stacklevel=2)
    if engine == "fast":
        raise ConfigError(f"model.engine=fast: {reason}; use auto or pennylane")
    made = PennyLaneEngine(circuit, observables, device, shots, noise, diff_method)
    made.reason = reason if engine == "auto" else None
    return made


def unserved(device: str, shots: int | None, noise: float, diff_method: DiffMethod) -> str | None:
    """What PennyLane cannot do of what is asked for, as "KEY: what is wrong", or None; told without importing it."""
    if device not in EXACT and device not in (known := entry_points(group="pennylane.plugins").names):
        return f"device: PennyLane has no {device}; use one of {', '.join(sorted({*known, *EXACT}))}, or install it"
    if noise and device not in EXACT:
        return f"noise: {device} has none; use device=default.qubit, or noise=0"
    if diff_method in ("backprop", "adjoint") and shots is not None:
        return f"diff_method: {diff_method} has no shots; use best or parameter-shift, or shots=null"
    if diff_method == "backprop" and device not in EXACT:
        return f"diff_method: backprop does not reach into {device}; use best, or device=default.qubit"
    if diff_method == "adjoint" and (noise or device == "default.mixed"):
        return "diff_method: adjoint needs pure states, and noise mixes them; use best, or noise=0"
    return None


def _beyond_fast(device: str, shots: int | None, noise: float, diff_method: str) -> str | None:
    """What of the settings only PennyLane can do, or None."""
    if shots is not None:
        return "shots are drawn by PennyLane"
    if noise:
        return "noise is PennyLane's"
    if device != "default.qubit":
        return f"device {device} is PennyLane's"
    return None if diff_method in ("best", "backprop") else f"{diff_method} is PennyLane's way to differentiate"


class FastEngine(Engine):
    """The traced circuit in torch alone; values and gradients are exact. Raises Untraceable.

    `plain=True` goes gate by gate, to check the fused steps against.
    """

    def __init__(self, circuit: Circuit, observables: Sequence[Observable], plain: bool = False) -> None:
        super().__init__()
        self.circuit = circuit
        traced = trace(circuit)
        fused = None if plain else FusedSimulator(traced)
        self.simulator = PlainSimulator(traced) if fused is None else fused
        order = None if fused is None else fused.order
        diagonal = all(set(word) <= set("IZ") for observable in observables for word in observable)
        self.folded = diagonal and order is not None
        self.expectations = Expectations(observables, circuit.qubits, order if self.folded else None)

    def forward(self, inputs: Tensor | None, weights: Weights) -> Tensor:
        """See `Engine.forward`."""
        with _full_precision(weights):
            inputs = _prepared(self.circuit, inputs, weights)
            states = self.simulator(inputs, weights, ordered=False) if self.folded else self.simulator(inputs, weights)
            values: Tensor = self.expectations(states)
        return values

    def states(self, inputs: Tensor | None, weights: Weights) -> Tensor:
        """See `Engine.states`."""
        with _full_precision(weights):
            found: Tensor = self.simulator(_prepared(self.circuit, inputs, weights), weights)
        return found


def _prepared(circuit: Circuit, inputs: Tensor | None, weights: Weights) -> Tensor | None:
    if inputs is None:
        return None
    for values in weights.values():
        inputs = inputs.to(values.dtype)
        break
    return circuit.prepared(inputs)


def _full_precision(weights: Weights) -> AbstractContextManager[Any]:
    """No bf16 regions: amplitudes would lose what makes them interfere."""
    for values in weights.values():
        if torch.is_autocast_enabled(values.device.type):
            return torch.autocast(values.device.type, enabled=False)
    return nullcontext()


class PennyLaneEngine(Engine):
    """The circuit as a QNode. Random numbers of shots come from torch's generator, which the runner seeds."""

    countable = False

    def __init__(
        self,
        circuit: Circuit,
        observables: Sequence[Observable],
        device: str = "default.qubit",
        shots: int | None = None,
        noise: float = 0.0,
        diff_method: str = "best",
    ) -> None:
        super().__init__()
        self.node = _Node(circuit, tuple(observables), device, shots, noise, diff_method)
        self.shots, self.twice_differentiable = shots, self.node.by_backprop
        self.mapped = self.node.by_backprop and self.node.device == "default.qubit"

    def forward(self, inputs: Tensor | None, weights: Weights) -> Tensor:
        """See `Engine.forward`; every observable is estimated from its own shots where there are shots."""
        import pennylane as qml

        measured = [to_pennylane(observable) for observable in self.node.observables]
        values = self.node.run(inputs, weights, lambda: [qml.expval(operator) for operator in measured])
        batch = 1 if inputs is None else len(inputs)
        rows = torch.stack([torch.as_tensor(value) for value in values], -1)
        return _like(rows.expand(batch, -1) if rows.ndim == 1 else rows, inputs, weights)

    def states(self, inputs: Tensor | None, weights: Weights) -> Tensor:
        """See `Engine.states`: exact, without shots and noise."""
        import pennylane as qml

        node = _Node(self.node.circuit, (), "default.qubit", None, 0.0, "backprop")
        state = node.run(inputs, weights, lambda: qml.state())
        state = state.expand(1 if inputs is None else len(inputs), -1) if state.ndim == 1 else state
        return _like(state.real if node.circuit.real else state, inputs, weights)


def _like(values: Tensor, inputs: Tensor | None, weights: Weights) -> Tensor:
    """PennyLane computes in float64; the result is as precise as what it was made from."""
    given = [*weights.values(), *([] if inputs is None else [inputs])]
    dtype = torch.promote_types(given[0].dtype, given[-1].dtype) if given else values.dtype
    return values.to(dtype.to_complex() if values.is_complex() else dtype)


class _Node:
    """A circuit on a PennyLane device. Stateless: a copy of a module may share it."""

    def __init__(
        self,
        circuit: Circuit,
        observables: tuple[Observable, ...],
        device: str,
        shots: int | None,
        noise: float,
        diff_method: str,
    ) -> None:
        self.circuit, self.observables, self.shots, self.noise = circuit, observables, shots, noise
        self.device, self.diff_method = "default.mixed" if noise and device == "default.qubit" else device, diff_method

    @property
    def by_backprop(self) -> bool:
        """Only backpropagation differentiates a whole batch at once."""
        simulated = self.device in EXACT and self.shots is None
        return simulated and self.diff_method in ("best", "backprop")

    def __deepcopy__(self, memo: dict[int, Any]) -> _Node:
        return self

    def run(self, inputs: Tensor | None, weights: Weights, measure: Any) -> Any:
        import pennylane as qml

        def function(inputs: Tensor | None, **weights: Tensor) -> Any:
            self.circuit.apply(inputs, weights)
            return measure()

        seed = {} if self.shots is None else {"seed": int(torch.randint(2**31 - 1, ()))}
        device = qml.device(self.device, wires=self.circuit.qubits, **seed)
        node = qml.QNode(function, device, interface="torch", diff_method=self.diff_method)
        if self.noise:
            node = qml.noise.insert(node, qml.DepolarizingChannel, self.noise, position="all")
        if inputs is not None and not self.by_backprop:
            node = qml.transforms.broadcast_expand(node)
        if self.shots is not None:
            node = qml.set_shots(node, self.shots)
        return node(self.circuit.prepared(inputs), **weights)
