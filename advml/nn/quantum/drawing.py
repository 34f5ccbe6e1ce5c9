"""A circuit as a picture and in letters, by PennyLane."""

from __future__ import annotations

from typing import Any

import torch

from advml.artifacts import Drawing
from advml.nn.quantum.circuits import Circuit

MOST = 300  # operations in a picture that can still be read


def drawing(circuit: Circuit, title: str = "") -> Drawing | None:
    """The circuit without values: inputs and weights are drawn as gates alone. None for what would fill a wall."""
    import pennylane as qml

    features = None if circuit.features is None else torch.full((circuit.features,), 0.5)
    inputs = circuit.prepared(features)
    weights = {name: torch.zeros(shape) for name, shape in circuit.weights.items()}

    def function() -> Any:
        circuit.apply(inputs, weights)
        return [qml.expval(qml.PauliZ(wire)) for wire in range(circuit.qubits)]

    if len(qml.tape.make_qscript(function)().operations) > MOST:
        return None

    def figure() -> Any:
        from matplotlib import pyplot

        made, axes = qml.draw_mpl(function, style="black_white")()
        axes.set_title(title or f"{circuit.name}, {circuit.qubits} qubits, {circuit.layers} layers")
        pyplot.close(made)  # it stays drawable; pyplot need not remember it
        return made

    return Drawing(str(qml.draw(function, decimals=None, max_length=10**6)()), figure)
