"""Random circuits whose gradients vanish with their size (McClean et al. 2018), many at a time, as states in torch.

Each begins with RY(π/4) on every qubit; a layer turns every qubit and ends with controlled-Z between neighbours. A
turn is about an axis drawn from X, Y, Z (theirs), or about Z, Y and Z in turn, which gives any rotation of the qubit.
Angles are uniform in [0, 2π).
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

AXES = "XYZ"
Turns = Literal["axis", "any"]


class Drawn(NamedTuple):
    """Random circuits: axes int64 [S, depth, n, K] into AXES, angles [S, depth, n, K]; K = 1 turn or 3 in a row."""

    axes: Tensor
    angles: Tensor


def draw(turns: Turns, samples: int, depth: int, qubits: int, generator: torch.Generator) -> Drawn:
    """`samples` circuits, a function of the state of the CPU generator alone."""
    shape = (samples, depth, qubits)
    if turns == "axis":
        axes = torch.randint(3, (*shape, 1), generator=generator)
    else:
        axes = torch.tensor([2, 1, 2]).expand(*shape, 3)
    return Drawn(axes, 2 * math.pi * torch.rand(axes.shape, generator=generator, dtype=torch.float64))


def rotations(axes: Tensor, angles: Tensor) -> Tensor:
    """The turns [..., K] of a qubit as one complex matrix [..., 2, 2]; the first of K is applied first.

    Each is e^{−iθ/2 P} = cos(θ/2) 1 − i sin(θ/2) P.
    """
    matrices = [[[0, 1], [1, 0]], [[0, -1j], [1j, 0]], [[1, 0], [0, -1]]]
    paulis = torch.tensor(matrices, dtype=angles.dtype.to_complex(), device=angles.device)
    half = (angles / 2)[..., None, None]
    turns = half.cos() * torch.eye(2, dtype=angles.dtype, device=angles.device) - 1j * half.sin() * paulis[axes]
    first, *others = turns.unbind(-3)
    for other in others:
        first = other @ first
    return first


def states(drawn: Drawn) -> Tensor:
    """The states of the circuits, complex [S, 2^n], qubit 0 the most significant bit."""
    samples, depth, qubits, _ = drawn.axes.shape
    real, device = drawn.angles.dtype, drawn.angles.device
    start = torch.tensor([math.cos(math.pi / 8), math.sin(math.pi / 8)], dtype=real.to_complex(), device=device)
    state = start
    for _ in range(qubits - 1):
        state = torch.kron(state, start)
    state = state.expand(samples, -1)
    signs = ladder(qubits).to(device, real)
    for layer in range(depth):
        gates = rotations(drawn.axes[:, layer], drawn.angles[:, layer])
        for qubit in range(qubits):
            parts = state.reshape(samples, 2**qubit, 2, -1)
            low, high = parts[:, :, 0], parts[:, :, 1]
            a, b, c, d = (gates[:, qubit, row, column, None, None] for row in (0, 1) for column in (0, 1))
            state = torch.stack([a * low + b * high, c * low + d * high], 2)
        state = state.reshape(samples, -1) * signs
    return state


def ladder(qubits: int) -> Tensor:
    """The diagonal of controlled-Z between all neighbours: −1 for each pair of adjacent ones, float64 [2^n]."""
    index = torch.arange(2**qubits)
    pairs = sum(((index >> place) & (index >> (place + 1)) & 1 for place in range(qubits - 1)), torch.zeros_like(index))
    return (1 - 2 * (pairs % 2)).double()


def local_cost(state: Tensor) -> Tensor:
    """⟨Z_0 Z_1⟩ of states [S, 2^n], n ≥ 2: it looks at two qubits whatever n is."""
    signs = torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=state.real.dtype, device=state.device)
    pairs: Tensor = state.abs().square().unflatten(1, (4, -1)).sum(2)
    return pairs @ signs


def global_cost(state: Tensor) -> Tensor:
    """⟨|0…0⟩⟨0…0|⟩: the chance that every qubit is found to be 0 (Cerezo et al. 2021, one minus their cost)."""
    return state[:, 0].abs().square()


COSTS = {"local": local_cost, "global": global_cost}


def first_gradients(drawn: Drawn, costs: tuple[str, ...]) -> dict[str, Tensor]:
    """∂⟨O⟩/∂θ of qubit 0 in the first layer for each cost, [S]: (⟨O⟩(θ + π/2) − ⟨O⟩(θ − π/2)) / 2, exact.

    Of three turns, θ is the second's, about Y.
    """
    found, turn = [], drawn.angles.shape[-1] // 2
    for shift in (math.pi / 2, -math.pi / 2):
        angles = drawn.angles.clone()
        angles[:, 0, 0, turn] += shift
        state = states(Drawn(drawn.axes, angles))
        found.append({cost: COSTS[cost](state) for cost in costs})
    return {cost: (found[0][cost] - found[1][cost]) / 2 for cost in costs}


def line(x: Tensor, y: Tensor) -> tuple[float, float]:
    """Slope of the least-squares line through (x, y), [N] each, and its standard error (NaN for two points)."""
    centred = x - x.mean()
    spread = centred.square().sum()
    slope = float((centred * y).sum() / spread)
    if len(x) < 3:
        return slope, float("nan")
    residual = y - y.mean() - slope * centred
    return slope, float((residual.square().sum() / (len(x) - 2) / spread).sqrt())
