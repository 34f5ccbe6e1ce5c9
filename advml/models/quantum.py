"""Quantum circuits as networks: expectation values are the features, a readout makes the outputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Interval, Len
from torch import Tensor, nn

from advml.artifacts import Artifact
from advml.config import CountFloat, CountInt, PositiveFloat, PositiveInt, settings
from advml.contracts import Network, Nothing, Spec
from advml.models.mlp import flat, flat_size
from advml.nn.quantum.circuits import Circuit, CircuitName, largest, make_circuit
from advml.nn.quantum.drawing import drawing
from advml.nn.quantum.engines import DiffMethod, Engine, EngineName, make_engine, unserved
from advml.nn.quantum.observables import Observable, check_word, pauli_each, z_each, z_pairs

Words = Annotated[tuple[str, ...], Len(1)]
Probability = Annotated[float, Interval(ge=0, le=1)]


@settings
class CircuitSettings:
    """Keys of every network with a circuit in it."""

    circuit: CircuitName
    qubits: PositiveInt
    layers: CountInt
    entangle: bool
    scaling: bool
    observables: Literal["z", "zz", "pauli"] | Words
    trainable: bool
    spread: CountFloat
    engine: EngineName
    device: str
    shots: PositiveInt | None
    noise: Probability
    diff_method: DiffMethod

    def __post_init__(self) -> None:
        """Refuse what PennyLane would refuse in the middle of a run."""
        if wrong := unserved(self.device, self.shots, self.noise, self.diff_method):
            raise ValueError(wrong)


@settings
class QuantumSettings(CircuitSettings):
    """And what is before and behind it."""

    front: Literal["none", "linear"]
    readout: Literal["linear", "scaled"]


@settings
class QuanvolutionSettings(CircuitSettings):
    """And how an image is cut into patches."""

    kernel: PositiveInt
    stride: PositiveInt
    angle: PositiveFloat


class CircuitLayer(nn.Module):
    """A circuit with weights of its own: angles [B, F] → expectation values [B, n_observables].

    `trainable=False` keeps the weights as they are drawn; they are saved nevertheless.
    """

    def __init__(self, settings: CircuitSettings, features: int) -> None:
        super().__init__()
        self.circuit = circuit_of(settings, features)
        observables = observables_of(settings)
        self.outputs = len(observables)
        self.engine = engine_of(settings, self.circuit, observables)
        for name, values in self.circuit.initial(settings.spread).items():
            if settings.trainable:
                self.register_parameter(name, nn.Parameter(values))
            else:
                self.register_buffer(name, values)

    def weights(self) -> dict[str, Tensor]:
        """The weights by name, as they are now: also those that functional_call puts in their place."""
        return {name: getattr(self, name) for name in self.circuit.weights}

    def artifacts(self) -> Mapping[str, Artifact]:
        """The circuit, drawn where it is not too large."""
        drawn = drawing(self.circuit)
        return {} if drawn is None else {"circuit": drawn}

    def forward(self, angles: Tensor) -> Tensor:
        """One row of expectation values an example."""
        values: Tensor = self.engine(angles, self.weights())
        return values


class ScaledReadout(nn.Module):
    """Output c is the c-th expectation value, times a factor, plus an offset: w_c ⟨O_c⟩ + b_c."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(outputs)), nn.Parameter(torch.zeros(outputs))

    def forward(self, values: Tensor) -> Tensor:
        """[B, n_observables] → [B, outputs]."""
        return values[..., : len(self.weight)] * self.weight + self.bias


class Quantum(Network):
    """A variational circuit; with `front=linear` dressed between two affine maps (Mari et al. 2020).

    Inputs are flattened to angles, one a qubit. The front maps any number of inputs to angles (π/2) tanh(W x + b).
    """

    circuits = 1  # run for an example
    settings: ClassVar[type] = QuantumSettings

    @classmethod
    def check(cls, spec: Spec, settings: Any) -> str | None:
        """Serves inputs that the circuit has room for, and any target but none."""
        if isinstance(spec.target, Nothing) or not spec.inputs:
            return "a data set with inputs and a target"
        if wrong := wrong_words(settings):
            return wrong
        most, found = largest(settings.circuit, settings.qubits), flat_size(spec)
        if settings.front == "none" and found > most:
            return f"at most {most} features for {settings.qubits} qubits, or model.front=linear before them"
        if settings.readout == "scaled" and len(observables_of(settings)) < spec.outputs:
            return f"as many observables as outputs ({spec.outputs}) under model.readout=scaled"
        return None

    def __init__(self, spec: Spec, settings: QuantumSettings) -> None:
        super().__init__()
        most, found = largest(settings.circuit, settings.qubits), flat_size(spec)
        self.front = nn.Linear(found, most) if settings.front == "linear" else None
        self.layer = CircuitLayer(settings, most if self.front is not None else found)
        linear = settings.readout == "linear"
        self.head = nn.Linear(self.layer.outputs, spec.outputs) if linear else ScaledReadout(spec.outputs)

    def artifacts(self) -> Mapping[str, Artifact]:
        """The circuit, drawn."""
        return self.layer.artifacts()

    def features(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Expectation values [B, n_observables]."""
        values = flat(inputs)
        if self.front is not None:
            values = torch.tanh(self.front(values)) * (torch.pi / 2)
        measured: Tensor = self.layer(values)
        return measured


class Quanvolution(Network):
    """A circuit slides over the image, its expectation values are channels (Henderson et al. 2020); an affine head.

    Every patch of kernel × kernel pixels of one channel is a row of angles; the published circuit is random and fixed.
    """

    settings: ClassVar[type] = QuanvolutionSettings

    @classmethod
    def check(cls, spec: Spec, settings: Any) -> str | None:
        """Serves one image that holds a patch which the circuit has room for, and any target but none."""
        shape = spec.image
        if shape is None or min(shape[1:]) < settings.kernel:
            return f"one image input [channels, height, width] of at least {settings.kernel}×{settings.kernel}"
        if isinstance(spec.target, Nothing):
            return "a data set with a target"
        most = largest(settings.circuit, settings.qubits)
        if settings.kernel**2 > most:
            return f"patches of at most {most} pixels for {settings.qubits} qubits (model.kernel, model.qubits)"
        return wrong_words(settings)

    def __init__(self, spec: Spec, settings: QuanvolutionSettings) -> None:
        super().__init__()
        ((channels, height, width),) = spec.inputs.values()
        self.layer = CircuitLayer(settings, settings.kernel**2)
        self.kernel, self.stride, self.angle = settings.kernel, settings.stride, settings.angle
        rows, columns = ((side - self.kernel) // self.stride + 1 for side in (height, width))
        self.circuits = channels * rows * columns  # run for an example
        self.head = nn.Linear(self.circuits * self.layer.outputs, spec.outputs)

    def artifacts(self) -> Mapping[str, Artifact]:
        """The circuit, drawn."""
        return self.layer.artifacts()

    def features(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """One image [B, channels, height, width] → the expectation values of all patches [B, F]."""
        (image,) = inputs.values()
        patches = image.unfold(-2, self.kernel, self.stride).unfold(-2, self.kernel, self.stride)
        values: Tensor = self.layer(patches.reshape(-1, self.kernel**2) * self.angle)
        return values.reshape(image.shape[0], -1)


def circuit_of(settings: CircuitSettings, features: int) -> Circuit:
    """The circuit that the settings describe."""
    return make_circuit(
        settings.circuit,
        settings.qubits,
        settings.layers,
        entangle=settings.entangle,
        features=features,
        scaling=settings.scaling,
    )


def observables_of(settings: CircuitSettings) -> list[Observable]:
    """What the settings measure."""
    named = {"z": z_each, "zz": z_pairs, "pauli": pauli_each}
    if isinstance(settings.observables, str):
        return named[settings.observables](settings.qubits)
    return [{word: 1.0} for word in settings.observables]


def engine_of(settings: CircuitSettings, circuit: Circuit, observables: list[Observable]) -> Engine:
    """What runs the circuit."""
    return make_engine(
        circuit,
        observables,
        settings.engine,
        device=settings.device,
        shots=settings.shots,
        noise=settings.noise,
        diff_method=settings.diff_method,
    )


def wrong_words(settings: CircuitSettings) -> str | None:
    """What is wrong with the Pauli words that the settings measure, or None."""
    if isinstance(settings.observables, str):
        return None
    wrong = [found for word in settings.observables if (found := check_word(word, settings.qubits))]
    return f"model.observables that fit: {wrong[0]}" if wrong else None
