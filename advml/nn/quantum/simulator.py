"""States of traced circuits in torch, gate by gate: the plain way, to which the fused one must be equal.

States are [B, 2^n], qubit 0 the most significant; real for circuits that stay real.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from advml.nn.quantum.formulas import BatchedFormulas, SharedFormulas
from advml.nn.quantum.symbols import Formula
from advml.nn.quantum.tracing import Gate, Trace


class Angles(nn.Module):
    """A list of formulas, for the batch if any of them reads inputs: [B, G], otherwise [G]."""

    def __init__(self, formulas: Sequence[Formula], trace: Trace, batched: bool) -> None:
        super().__init__()
        count = sum(torch.Size(shape).numel() for shape in trace.weights.values())
        self.batched = batched
        self.values = (
            BatchedFormulas(formulas, trace.inputs, count) if batched else SharedFormulas(formulas, trace.inputs, count)
        )

    def forward(self, inputs: Tensor | None, flat: Tensor) -> Tensor:
        """Inputs [B, F] and flat weights [W + 1]."""
        values: Tensor = self.values(inputs, flat) if self.batched else self.values(flat)
        return values


class Start(nn.Module):
    """Amplitudes that a circuit begins with, from their formulas; mostly they are the inputs themselves."""

    def __init__(self, formulas: Sequence[Formula], trace: Trace) -> None:
        super().__init__()
        inputs = tuple(((1.0, (number,)),) for number in range(trace.inputs))
        self.amplitudes = None if formulas == inputs else Angles(formulas, trace, True)

    def forward(self, inputs: Tensor, flat: Tensor) -> Tensor:
        """[B, F] → [B, 2^n]."""
        made: Tensor = inputs if self.amplitudes is None else self.amplitudes(inputs, flat)
        return made


class Constants(nn.Module):
    """A constant array; complex ones are kept as pairs of real numbers, which `module.to(dtype)` can convert."""

    def __init__(self, values: np.ndarray, real: bool) -> None:
        super().__init__()
        found = torch.tensor(values.real if real else values)
        self.real = real
        stored = found.double() if real else torch.view_as_real(found.to(torch.complex128)).contiguous()
        self.register_buffer("stored", stored, persistent=False)

    def forward(self, dtype: torch.dtype) -> Tensor:
        """In a real dtype, or the complex one of its precision."""
        stored = self.get_buffer("stored").to(dtype)
        return stored if self.real else torch.view_as_complex(stored)


def flat_weights(trace: Trace, weights: Mapping[str, Tensor], one: bool = True, like: Tensor | None = None) -> Tensor:
    """All weights one after another, then, if asked for, a 1: [W + 1]; a circuit without weights is as `like`."""
    parts = [weights[name].reshape(-1) for name in trace.weights]
    if not parts:
        return torch.ones(1) if like is None else like.new_ones(1)
    if one:
        parts.append(parts[0].new_ones(1))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def needs_one(simulator: nn.Module) -> bool:
    """Does any formula in it use the 1 behind the weights?"""
    return any(isinstance(module, SharedFormulas) and module.uses_one for module in simulator.modules())


class PlainSimulator(nn.Module):
    """The reference: one gate after the other."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace, self.real = trace, trace.real
        self.start = None if trace.start is None else Start(trace.start, trace)
        self.angles = nn.ModuleList(Angles((gate.turned,), trace, reads(gate, trace)) for gate in trace.gates)
        self.matrices = nn.ModuleList(
            Constants(stacked(gate), not np.iscomplexobj(stacked(gate))) for gate in trace.gates
        )

    def forward(self, inputs: Tensor | None, weights: Mapping[str, Tensor]) -> Tensor:
        """[B, F] → states [B, 2^n]; B = 1 without inputs."""
        flat = flat_weights(self.trace, weights, like=inputs)
        qubits, batch = self.trace.qubits, 1 if inputs is None else len(inputs)
        if self.start is not None:
            state: Tensor = self.start(inputs, flat)
        else:
            state = torch.zeros(batch, 2**qubits, dtype=flat.dtype, device=flat.device)
            state[:, 0] = 1
        for gate, angles, constants in zip(self.trace.gates, self.angles, self.matrices, strict=True):
            angle = angles(inputs, flat)[..., None]
            constant, cosine, sine = constants(flat.dtype)
            matrix = constant + angle.cos() * cosine + angle.sin() * sine
            state = applied(matrix, state, gate.wires, qubits)
        return state if self.real or state.is_complex() else state + 0j


def reads(gate: Gate, trace: Trace) -> bool:
    """Is the gate's angle different between examples?"""
    return any(number < trace.inputs for _, numbers in gate.angle for number in numbers)


def stacked(gate: Gate) -> np.ndarray:
    """K, C and S of a gate, [3, d, d]."""
    nothing = np.zeros_like(gate.constant)
    return np.stack([gate.constant, *(nothing if m is None else m for m in (gate.cosine, gate.sine))])


def applied(matrix: Tensor, state: Tensor, wires: tuple[int, ...], qubits: int) -> Tensor:
    """The gate [d, d] or [B, d, d] on some wires of the states [B, 2^n]."""
    matrix, state = alike(matrix, state)
    rest = [wire for wire in range(qubits) if wire not in wires]
    order = [0, *(1 + wire for wire in (*rest, *wires))]
    moved = state.reshape(-1, *[2] * qubits).permute(order)
    product = moved.reshape(len(state), -1, 2 ** len(wires)) @ matrix.mT
    back = [0, *(1 + (*rest, *wires).index(wire) for wire in range(qubits))]
    return product.reshape(-1, *[2] * qubits).permute(back).reshape(-1, 2**qubits)


def alike(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Both complex if either is."""
    if first.is_complex() == second.is_complex():
        return first, second
    return (first, second + 0j) if first.is_complex() else (first + 0j, second)
