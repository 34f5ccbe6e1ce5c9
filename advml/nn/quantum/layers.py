"""Layers of one-qubit gates as matrices of groups of qubits: all layers of a circuit by a handful of torch operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from advml.nn.quantum.fusing import Local
from advml.nn.quantum.simulator import Angles, Constants, stacked
from advml.nn.quantum.tracing import Gate, Trace

SINGLE = 5  # up to so many qubits a layer is one matrix; beyond, one for each group of about GROUP qubits
GROUP = 4
BATCHED_GROUP = 2  # where every example has matrices of its own: less work, as they serve one state each
Orders = Sequence[tuple["np.ndarray | None", "np.ndarray | None"]]


class Reorder(torch.autograd.Function):
    """x[..., order]; its gradient is gathered by the inverse order, several times as fast as torch's sum by index."""

    generate_vmap_rule = True

    @staticmethod
    def forward(values: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
        """Values [..., N], order and its inverse int64 [N]."""
        return values.index_select(-1, order)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor], output: Tensor) -> None:
        """Keeps the orders."""
        _, order, inverse = inputs
        ctx.save_for_backward(order, inverse)
        ctx.save_for_forward(order, inverse)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        """The gradient in the old order."""
        order, inverse = ctx.saved_tensors
        return Reorder.apply(gradient, inverse, order), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        """The tangent in the new order."""
        order, inverse = ctx.saved_tensors
        moved: Tensor = Reorder.apply(tangent, order, inverse)
        return moved


class LocalMatrices(nn.Module):
    """The 2×2 matrices of several layers of one-qubit gates, all at once: [.., layers, qubits, 2, 2].

    `column`: the first column only, [.., layers, qubits, 2, 1], which is what |0⟩ becomes.
    """

    def __init__(self, layers: Sequence[Local], trace: Trace, batched: bool, column: bool = False) -> None:
        super().__init__()
        self.shape = (len(layers), trace.qubits)
        self.column = column
        wires = [gates for layer in layers for gates in layer.gates]
        self.depth = max(1, *(len(gates) for gates in wires))
        idle = Gate("Identity", (0,), np.eye(2))
        padded = [[*gates, *[idle] * (self.depth - len(gates))] for gates in wires]
        parts = np.stack([np.stack([stacked(gate) for gate in gates]) for gates in padded])  # [slots, depth, 3, 2, 2]
        self.real = not np.iscomplexobj(parts)
        self.moving = bool(np.any(parts[:, :, 1:]))
        self.still = bool(np.any(parts[:, :, 0]))
        self.constants = Constants(parts.transpose(2, 0, 1, 3, 4), self.real)
        formulas = [gate.turned for gates in padded for gate in gates]
        self.angles = Angles(formulas, trace, batched and self.moving)

    def forward(self, inputs: Tensor | None, flat: Tensor) -> Tensor:
        """See the class."""
        constants = self.constants(flat.dtype)  # [3, slots, depth, 2, 2]
        if self.column and self.depth == 1:
            constants = constants[..., :1]
        matrices = constants[0]
        if self.moving:
            angles = self.angles(inputs, flat)
            angles = angles.reshape(*angles.shape[:-1], -1, self.depth, 1, 1)
            cosines, sines = angles.cos() * constants[1], angles.sin() * constants[2]
            matrices = cosines + sines if not self.still else matrices + cosines + sines
        product = matrices[..., 0, :, :]
        if self.column:
            product = product[..., :1]
        for place in range(1, self.depth):
            product = (matrices[..., place, :, :, None] * product[..., None, :, :]).sum(-2)
        return product.reshape(*product.shape[:-3], *self.shape, 2, -1)


def kron(factors: Tensor) -> Tensor:
    """Kronecker product over the axis before the matrices, [.., k, r, c] → [.., r^k, c^k]; in pairs where k is even."""
    count = factors.shape[-3]
    if count == 1:
        return factors.squeeze(-3)
    if count % 2:
        return _kron_of_two(kron(factors[..., :-1, :, :]), factors[..., -1, :, :])
    first, second = factors.unflatten(-3, (count // 2, 2)).unbind(-3)
    return kron(_kron_of_two(first, second))


def _kron_of_two(first: Tensor, second: Tensor) -> Tensor:
    product = first[..., :, None, :, None] * second[..., None, :, None, :]
    return product.reshape(*product.shape[:-4], first.shape[-2] * second.shape[-2], first.shape[-1] * second.shape[-1])


def kron_vectors(factors: Tensor) -> Tensor:
    """Kronecker product of vectors, [.., k, d] → [.., d^k]."""
    count = factors.shape[-2]
    if count == 1:
        return factors.squeeze(-2)
    if count % 2:
        first, second = kron_vectors(factors[..., :-1, :]), factors[..., -1, :]
    else:
        first, second = factors.unflatten(-2, (count // 2, 2)).unbind(-2)
    product = (first.unsqueeze(-1) * second.unsqueeze(-2)).flatten(-2)
    return product if count % 2 else kron_vectors(product)


def group_sizes(qubits: int, most: int) -> list[int]:
    """As few groups of at most `most` neighbouring qubits as there can be, about equally large."""
    count = -(-qubits // most)
    return [qubits // count + (place < qubits % count) for place in range(count)]


class RyVectors(nn.Module):
    """What layers of nothing but RY(θ) make of |0⟩: (cos θ/2, sin θ/2) for each qubit, [.., layers, qubits, 2]."""

    def __init__(self, layers: Sequence[Local], trace: Trace, batched: bool) -> None:
        super().__init__()
        self.shape = (len(layers), trace.qubits, 2)
        gates = [gates for layer in layers for gates in layer.gates]
        self.angles = Angles([gate[0].turned if gate else () for gate in gates], trace, batched)

    @staticmethod
    def serves(layers: Sequence[Local]) -> bool:
        """Is there nothing but one RY or nothing on each qubit?"""
        return all(
            not gates or (len(gates) == 1 and gates[0].name == "RY") for layer in layers for gates in layer.gates
        )

    def forward(self, inputs: Tensor | None, flat: Tensor) -> Tensor:
        """See the class."""
        angles = self.angles(inputs, flat)
        vectors = torch.stack([angles.cos(), angles.sin()], -1)
        return vectors.reshape(*angles.shape[:-1], *self.shape)


class Beginning(nn.Module):
    """The product state that a first layer of one-qubit gates makes of |0…0⟩: [B or 1, 2^n]."""

    def __init__(self, layer: Local, trace: Trace) -> None:
        super().__init__()
        batched = layer.reads_inputs(trace.inputs)
        self.turns = RyVectors([layer], trace, batched) if RyVectors.serves([layer]) else None
        self.columns = None if self.turns is not None else LocalMatrices([layer], trace, batched, column=True)
        self.size = 2**trace.qubits

    def forward(self, inputs: Tensor | None, flat: Tensor) -> Tensor:
        """See the class."""
        if self.turns is not None:
            vectors: Tensor = self.turns(inputs, flat)
        else:
            assert self.columns is not None
            vectors = self.columns(inputs, flat).squeeze(-1)
        return kron_vectors(vectors).reshape(-1, self.size)


class LayerSet(nn.Module):
    """Layers of one-qubit gates as matrices of groups of qubits, for all layers at once.

    `orders`: where a layer is one matrix, the gathers before and after it are done to its columns and rows instead.
    Of layers of RY alone, the matrix is ±p[a ⊕ b] in row a, column b, with p what the layer makes of |0…0⟩ and a minus
    for every qubit that is 0 in a and 1 in b: one product with a constant matrix.
    """

    def __init__(self, layers: Sequence[Local], trace: Trace, batched: bool, orders: Orders) -> None:
        super().__init__()
        single = not batched and trace.qubits <= SINGLE
        self.sizes = group_sizes(trace.qubits, trace.qubits if single else BATCHED_GROUP if batched else GROUP)
        assert single or all(order is None for pair in orders for order in pair)
        index = np.arange(4**trace.qubits).reshape(2**trace.qubits, -1) if single else None
        places = [index if index is None else _reordered(index, *pair) for pair in orders]
        self.turns = RyVectors(layers, trace, batched) if not batched and RyVectors.serves(layers) else None
        if self.turns is not None:
            for size in set(self.sizes):
                signs = _signs(size)
                if single and all(np.array_equal(place, places[0]) for place in places):
                    signs = signs[:, places[0].reshape(-1)]
                elif single:
                    signs = np.stack([signs[:, place.reshape(-1)] for place in places])
                self.register_buffer(f"signs{size}", torch.tensor(signs), persistent=False)
            return
        self.matrices = LocalMatrices(layers, trace, batched)
        moved = single and any(order is not None for pair in orders for order in pair)
        self.reorder = None
        if moved:
            whole = np.concatenate([place.reshape(-1) + number * 4**trace.qubits for number, place in enumerate(places)])
            self.reorder = OrderStep(whole)

    def forward(self, inputs: Tensor | None, flat: Tensor) -> list[Sequence[Tensor]]:
        """For each group of qubits and each layer [.., d, d]."""
        if self.turns is not None:
            vectors = self.turns(inputs, flat)
            return [self._turned(part, size).unbind(-3) for part, size in _split(vectors, self.sizes, -2)]
        local = self.matrices(inputs, flat)
        found = [kron(part) for part, _ in _split(local, self.sizes, -3)]
        if self.reorder is not None:
            found = [self.reorder(found[0].reshape(-1)).reshape(found[0].shape)]
        return [group.unbind(-3) for group in found]

    def _turned(self, vectors: Tensor, size: int) -> Tensor:
        """[layers, k, 2] → [layers, 2^k, 2^k]."""
        signs = self.get_buffer(f"signs{size}").to(vectors.dtype)
        products = kron_vectors(vectors)
        flat = (products.unsqueeze(-2) @ signs).squeeze(-2) if signs.ndim == 3 else products @ signs
        return flat.reshape(*flat.shape[:-1], 2**size, 2**size)


def _split(values: Tensor, sizes: Sequence[int], axis: int) -> list[tuple[Tensor, int]]:
    """The qubits on `axis` in their groups."""
    if len(sizes) == 1:
        return [(values, sizes[0])]
    return list(zip(values.split(list(sizes), axis), sizes, strict=True))


def _reordered(index: np.ndarray, before: np.ndarray | None, after: np.ndarray | None) -> np.ndarray:
    """M x[before] = M[:, before⁻¹] x, and (M x)[after] = M[after] x."""
    columns = index if before is None else index[:, np.argsort(before)]
    return columns if after is None else columns[after]


def _signs(size: int) -> np.ndarray:
    """[d, d²]: the product state's element a ⊕ b goes to row a, column b, with its sign."""
    dimension = 2**size
    first, second = np.indices((dimension, dimension))
    negative = ~first & second
    parity = sum((negative >> bit) & 1 for bit in range(size)) & 1
    found = np.zeros((dimension, dimension, dimension))
    found[first ^ second, first, second] = 1 - 2 * parity
    return found.reshape(dimension, -1)


class OrderStep(nn.Module):
    """Amplitudes in another order."""

    order: Tensor
    inverse: Tensor

    def __init__(self, order: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("order", torch.tensor(order), persistent=False)
        self.register_buffer("inverse", torch.tensor(np.argsort(order)), persistent=False)

    def forward(self, state: Tensor, inputs: Tensor | None = None, flat: Tensor | None = None) -> Tensor:
        """[.., N] → the same shape."""
        moved: Tensor = Reorder.apply(state, self.order, self.inverse)
        return moved
