"""Layers of one-qubit gates as matrices of groups of qubits: all layers of a circuit by a few torch operations."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from advml.nn.quantum.fusing import Local
from advml.nn.quantum.simulator import Angles, Constants, stacked
from advml.nn.quantum.tracing import Gate, Trace

SINGLE = 5  # up to so many qubits a layer is one matrix; beyond, one for each group of about GROUP qubits
GROUP = 4
BATCHED_GROUP = 3  # where every example has matrices of its own: less work, as they serve one state each
DEEPEST = 6  # gates with an angle on one qubit in a layer, up to which they are one sum of cosines
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
        return reorder(gradient, inverse, order), None, None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: Any) -> Tensor:
        """The tangent in the new order."""
        order, inverse = ctx.saved_tensors
        return reorder(tangent, order, inverse)


def reorder(values: Tensor, order: Tensor, inverse: Tensor) -> Tensor:
    """values[..., order] by `Reorder`; in an exported program, which knows nothing of advml, by torch itself."""
    if torch.compiler.is_exporting():
        return values.index_select(-1, order)
    moved: Tensor = Reorder.apply(values, order, inverse)  # type: ignore[no-untyped-call]
    return moved


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
        return reorder(state, self.order, self.inverse)


# --- sums of cosines ---


def cosine_sums(count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """R [m, 2^m], b [2^m] and Q [2^m, 2^m] with cos(a R + b) Q = all products Π (cos or sin) a_g, for m angles a.

    Π f_g(a_g) = 2^(1−m) Σ_s ε_s F(Σ s_g a_g) over signs s with s_0 = 1; F is cos for an even number k of sines and sin
    otherwise, ε_s = (−1)^⌊k/2⌋ times the signs of the sines. In product number j, bit g of j (the first angle's is the
    most significant) says sine. sin is cos shifted by π/2, so that one cosine serves both.
    """
    patterns = np.array([(1, *signs) for signs in product((1, -1), repeat=count - 1)])
    half = len(patterns)
    sums = np.concatenate([patterns.T, patterns.T], 1).astype(float)
    shifts = np.concatenate([np.zeros(half), np.full(half, -np.pi / 2)])
    mixed = np.zeros((2 * half, 2 * half))
    for number, sines in enumerate(product((0, 1), repeat=count)):
        signs = np.prod(np.where(np.array(sines) == 1, patterns, 1), 1)
        start = half * (sum(sines) % 2)
        mixed[start : start + half, number] = (-1) ** (sum(sines) // 2) * signs / half
    return sums, shifts, mixed


class CosineSums(nn.Module):
    """Angles [.., m] → Π (cos or sin) f_g a_g for all choices, times a constant matrix [2^m, D]: [.., D]."""

    def __init__(self, frequencies: Sequence[float], after: np.ndarray | None = None) -> None:
        super().__init__()
        sums, shifts, mixed = cosine_sums(len(frequencies))
        matrix = mixed if after is None else mixed @ after
        self.register_buffer("sums", torch.tensor(np.array(frequencies)[:, None] * sums), persistent=False)
        self.register_buffer("shifts", torch.tensor(shifts), persistent=False)
        self.register_buffer("matrix", torch.tensor(matrix), persistent=False)

    def forward(self, angles: Tensor) -> Tensor:
        """See the class."""
        dtype = angles.dtype
        sums, shifts, matrix = (self.get_buffer(name).to(dtype) for name in ("sums", "shifts", "matrix"))
        cosines = torch.addmm(shifts, angles.reshape(-1, len(sums)), sums).cos()
        found: Tensor = cosines @ matrix
        return found.reshape(*angles.shape[:-1], matrix.shape[1])


# --- matrices of single qubits ---


class LocalMatrices(nn.Module):
    """The 2×2 matrices of several layers of one-qubit gates, all at once: [.., layers, qubits, 2, 2].

    `column`: the first column only, [.., layers, qubits, 2, 1], which is what |0⟩ becomes. Where the same gates are on
    every qubit of every layer, each matrix is a sum of cosines; otherwise gates are multiplied one by one.
    """

    def __init__(self, layers: Sequence[Local], trace: Trace, batched: bool, column: bool = False) -> None:
        super().__init__()
        self.shape, self.column = (len(layers), trace.qubits, 2, 1 if column else 2), column
        wires = [gates for layer in layers for gates in layer.gates]
        self.real = all(not np.iscomplexobj(matrix) for gates in wires for gate in gates for matrix in gate.matrices)
        self.even = _alike(wires)
        if self.even:
            turning = [gate for gate in wires[0] if gate.cosine is not None]
            matrix = _products(wires[0], column, self.real)
            self.sums = CosineSums([gate.frequency for gate in turning], matrix)
            formulas = [gate.angle for gates in wires for gate in gates if gate.cosine is not None]
            self.depth = len(turning)
        else:
            self.depth = max(1, *(len(gates) for gates in wires))
            idle = Gate("Identity", (0,), np.eye(2))
            padded = [[*gates, *[idle] * (self.depth - len(gates))] for gates in wires]
            parts = np.stack([np.stack([stacked(gate) for gate in gates]) for gates in padded])
            self.constants = Constants(parts.transpose(2, 0, 1, 3, 4), self.real)  # [3, slots, depth, 2, 2]
            formulas = [gate.turned for gates in padded for gate in gates]
        self.angles = Angles(formulas, trace, batched)

    def forward(self, inputs: Tensor | None, flat: Tensor) -> Tensor:
        """See the class."""
        angles: Tensor = self.angles(inputs, flat)
        angles = angles.reshape(*angles.shape[:-1], -1, self.depth)
        if self.even:
            found: Tensor = self.sums(angles)
            if not self.real:
                found = torch.view_as_complex(found.unflatten(-1, (-1, 2)))
            return found.reshape(*angles.shape[:-2], *self.shape)
        constants: Tensor = self.constants(flat.dtype)
        angles = angles[..., None, None]
        matrices = constants[0] + angles.cos() * constants[1] + angles.sin() * constants[2]
        result = matrices[..., 0, :, :1] if self.column else matrices[..., 0, :, :]
        for place in range(1, self.depth):
            result = (matrices[..., place, :, :, None] * result[..., None, :, :]).sum(-2)
        return result.reshape(*result.shape[:-3], *self.shape)


def _alike(wires: Sequence[Sequence[Gate]]) -> bool:
    """The same gates everywhere, one of them at least with an angle, and none that is more than a turn."""
    names = {tuple(gate.name for gate in gates) for gates in wires}
    turning = [gate for gate in wires[0] if gate.cosine is not None]
    turns = all(not np.any(gate.constant) for gate in turning)
    return len(names) == 1 and turns and 1 <= len(turning) <= DEEPEST


def _products(gates: Sequence[Gate], column: bool, real: bool) -> np.ndarray:
    """For every choice of C or S in each gate with an angle, the product of all matrices: [2^m, 4 or 2], flattened.

    Complex numbers are pairs, [2^m, 8 or 4].
    """
    count = sum(gate.cosine is not None for gate in gates)
    rows = []
    for choice in product((0, 1), repeat=count):
        chosen, matrix = iter(choice), np.eye(2)
        for gate in gates:
            factor = gate.constant if gate.cosine is None else (gate.cosine, gate.sine)[next(chosen)]
            matrix = factor @ matrix  # type: ignore[operator]
        rows.append((matrix[:, :1] if column else matrix).reshape(-1))
    found = np.array(rows)
    if real:
        return found
    return np.stack([found.real, found.imag], -1).reshape(len(rows), -1)


# --- Kronecker products ---


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
    made = first[..., :, None, :, None] * second[..., None, :, None, :]
    return made.reshape(*made.shape[:-4], first.shape[-2] * second.shape[-2], first.shape[-1] * second.shape[-1])


def kron_of_vectors(vectors: Sequence[Tensor]) -> Tensor:
    """Kronecker product of vectors [.., d_i] → [.., Π d_i], in pairs."""
    while len(vectors) > 1:
        pairs = [(one.unsqueeze(-1) * two.unsqueeze(-2)).flatten(-2)
                 for one, two in zip(vectors[::2], vectors[1::2], strict=False)]  # fmt: skip
        vectors = [*pairs, *vectors[2 * len(pairs) :]]
    return vectors[0]


def group_sizes(qubits: int, most: int) -> list[int]:
    """As few groups of at most `most` neighbouring qubits as there can be, about equally large."""
    count = -(-qubits // most)
    return [qubits // count + (place < qubits % count) for place in range(count)]


def only_ry(layers: Sequence[Local]) -> bool:
    """Is there nothing but one RY or nothing on each qubit?"""
    return all(not gates or (len(gates) == 1 and gates[0].name == "RY") for layer in layers for gates in layer.gates)


class RyProducts(nn.Module):
    """What layers of nothing but RY(θ) make of |0…0⟩, for groups of qubits, and of that what a constant matrix makes.

    The amplitudes of a group are products of cos and sin of θ_i/2: all of them are one sum of cosines.
    """

    def __init__(
        self, layers: Sequence[Local], trace: Trace, batched: bool, sizes: Sequence[int], after: Sequence[Any]
    ) -> None:
        super().__init__()
        gates = [gates for layer in layers for gates in layer.gates]
        self.angles = Angles([gate[0].angle if gate else () for gate in gates], trace, batched)
        self.shape, self.sizes = (len(layers), trace.qubits), list(sizes)
        self.sums = nn.ModuleList(CosineSums([0.5] * size, matrix) for size, matrix in zip(sizes, after, strict=True))

    def forward(self, inputs: Tensor | None, flat: Tensor) -> list[Tensor]:
        """For each group of k qubits [.., layers, D]; without a matrix D = 2^k."""
        angles = self.angles(inputs, flat)
        angles = angles.reshape(*angles.shape[:-1], *self.shape)
        parts = [angles] if len(self.sizes) == 1 else angles.split(self.sizes, -1)
        return [sums(part) for sums, part in zip(self.sums, parts, strict=True)]


# --- layers ---


class Beginning(nn.Module):
    """The product state that a first layer of one-qubit gates makes of |0…0⟩, reordered if asked: [B or 1, 2^n]."""

    @staticmethod
    def takes(layer: Local, trace: Trace) -> bool:
        """Can it take a reordering in?"""
        return trace.qubits <= SINGLE and only_ry([layer])

    def __init__(self, layer: Local, trace: Trace, order: np.ndarray | None = None) -> None:
        super().__init__()
        batched, self.turns, self.columns = layer.reads_inputs(trace.inputs), None, None
        if only_ry([layer]):
            sizes = group_sizes(trace.qubits, SINGLE)
            after = [None] * len(sizes) if order is None else [np.eye(2**trace.qubits)[:, order]]
            self.turns = RyProducts([layer], trace, batched, sizes, after)
        else:
            self.columns = LocalMatrices([layer], trace, batched, column=True)
        self.size = 2**trace.qubits

    def forward(self, inputs: Tensor | None, flat: Tensor) -> Tensor:
        """See the class."""
        if self.turns is not None:
            vectors = self.turns(inputs, flat)
        else:
            assert self.columns is not None
            vectors = self.columns(inputs, flat).squeeze(-1).unbind(-2)
        return kron_of_vectors(vectors).reshape(-1, self.size)


class LayerSet(nn.Module):
    """Layers of one-qubit gates as matrices of groups of qubits, for all layers at once.

    `orders`: where a layer is one matrix, the gathers before and after it are done to its columns and rows instead.
    Of layers of RY alone, the matrix is ±p[a ⊕ b] in row a, column b, with p what the layer makes of |0…0⟩ and a minus
    for every qubit that is 0 in a and 1 in b.
    """

    def __init__(self, layers: Sequence[Local], trace: Trace, batched: bool, orders: Orders) -> None:
        super().__init__()
        single = not batched and trace.qubits <= SINGLE
        self.sizes = group_sizes(trace.qubits, trace.qubits if single else BATCHED_GROUP if batched else GROUP)
        moved = any(order is not None for pair in orders for order in pair)
        assert single or not moved
        index = np.arange(4**trace.qubits).reshape(2**trace.qubits, -1) if moved else np.zeros((1, 1), int)
        places = [_reordered(index, *pair) for pair in orders]
        same = all(np.array_equal(place, places[0]) for place in places)
        self.turns = self.matrices = self.reorder = None
        if not batched and only_ry(layers):
            after = [_signs(size) for size in self.sizes]
            if moved and same:
                after, moved = [after[0][:, places[0].reshape(-1)]], False
            self.turns = RyProducts(layers, trace, batched, self.sizes, after)
        else:
            self.matrices = LocalMatrices(layers, trace, batched)
        if moved:
            whole = [place.reshape(-1) + number * 4**trace.qubits for number, place in enumerate(places)]
            self.reorder = OrderStep(np.concatenate(whole))

    def forward(self, inputs: Tensor | None, flat: Tensor) -> list[Sequence[Tensor]]:
        """For each group of qubits and each layer [.., d, d]."""
        if self.turns is not None:
            parts = self.turns(inputs, flat)
            found = [part.unflatten(-1, (2**size, 2**size)) for part, size in zip(parts, self.sizes, strict=True)]
        else:
            assert self.matrices is not None
            local = self.matrices(inputs, flat)
            split = [local] if len(self.sizes) == 1 else local.split(self.sizes, -3)
            found = [kron(part) for part in split]
        if self.reorder is not None:
            found = [self.reorder(found[0].reshape(-1)).reshape(found[0].shape)]
        return [group.unbind(-3) for group in found]


def _reordered(index: np.ndarray, before: np.ndarray | None, after: np.ndarray | None) -> np.ndarray:
    """M x[before] = M[:, before⁻¹] x, and (M x)[after] = M[after] x."""
    columns = index if before is None else index[:, np.argsort(before)]
    return columns if after is None else columns[after]


def _signs(size: int) -> np.ndarray:
    """[d, d²]: the product state's element a ⊕ b goes to row a, column b, with its sign."""
    dimension = 2**size
    first, second = np.indices((dimension, dimension))
    negative = ~first & second
    parity = np.bitwise_xor.reduce([(negative >> bit) & 1 for bit in range(size)])
    found = np.zeros((dimension, dimension, dimension))
    found[first ^ second, first, second] = 1 - 2 * parity
    return found.reshape(dimension, -1)
