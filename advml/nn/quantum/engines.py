"""Running a circuit: by PennyLane, with any device, shots and noise, or by the fast engine, exactly and in torch alone.

Both are modules without weights of their own: `forward(inputs, weights)` is a pure function of what it is given, so
that functional_call, vmap, per-example gradients and averaged weights all reach the circuit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from advml.nn.quantum.circuits import Circuit
from advml.nn.quantum.observables import Observable, to_pennylane

EngineName = Literal["auto", "pennylane", "fast"]
Weights = Mapping[str, Tensor]


class Engine(nn.Module):
    """Expectation values of a circuit's observables.

    `reason`: why PennyLane runs it although `engine=auto` was asked; None otherwise.
    """

    reason: str | None = None

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
    """`auto` is fast where that is exact and possible, and PennyLane otherwise.

    `shots`: measurements an expectation value is estimated from, None = exact. `noise`: probability of a depolarising
    error after each gate, on each of its qubits. `device` and `diff_method` are PennyLane's.
    """
    made = PennyLaneEngine(circuit, observables, device, shots, noise, diff_method)
    made.reason = None
    return made


class PennyLaneEngine(Engine):
    """The circuit as a QNode. Random numbers of shots come from torch's generator, which the runner seeds."""

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
        simulated = self.device in ("default.qubit", "default.mixed") and self.shots is None
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
