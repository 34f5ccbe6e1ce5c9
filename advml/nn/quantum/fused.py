"""States of traced circuits by few large steps: what fusing.py made of the gates, each a handful of torch operations.

States are [B, 2^n], qubit 0 the most significant; real for circuits that stay real. What does not depend on inputs is
computed once for the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from advml.nn.quantum.fusing import Local, Other, Part, Permute, Phases, fuse
from advml.nn.quantum.simulator import Angles, Constants, alike, applied, flat_weights, stacked
from advml.nn.quantum.tracing import Gate, Trace

SINGLE = 5  # up to so many qubits a layer is one matrix; beyond, one for each group of about GROUP qubits
GROUP = 4
BATCHED_GROUP = 2  # where every example has matrices of its own: less work, as they serve one state each


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
        return factors[..., 0, :, :]
    if count % 2:
        return _kron_of_two(kron(factors[..., :-1, :, :]), factors[..., -1, :, :])
    return kron(_kron_of_two(factors[..., 0::2, :, :], factors[..., 1::2, :, :]))


def _kron_of_two(first: Tensor, second: Tensor) -> Tensor:
    product = first[..., :, None, :, None] * second[..., None, :, None, :]
    return product.reshape(*product.shape[:-4], first.shape[-2] * second.shape[-2], first.shape[-1] * second.shape[-1])


def group_sizes(qubits: int, most: int) -> list[int]:
    """As few groups of at most `most` neighbouring qubits as there can be, about equally large."""
    count = -(-qubits // most)
    return [qubits // count + (place < qubits % count) for place in range(count)]


class LayerSet(nn.Module):
    """Layers of one-qubit gates as matrices of groups of qubits, for all layers at once.

    `orders`: where a layer is one matrix, the gathers before and after it are done to its columns and rows instead.
    """

    def __init__(
        self,
        layers: Sequence[Local],
        trace: Trace,
        batched: bool,
        orders: Sequence[tuple[np.ndarray | None, np.ndarray | None]],
    ) -> None:
        super().__init__()
        self.matrices = LocalMatrices(layers, trace, batched)
        single = not batched and trace.qubits <= SINGLE
        self.sizes = group_sizes(trace.qubits, trace.qubits if single else BATCHED_GROUP if batched else GROUP)
        self.batched = batched
        size = 2**trace.qubits
        if single and any(order is not None for pair in orders for order in pair):
            index = np.arange(len(layers) * size * size).reshape(len(layers), size, size)
            for place, (before, after) in enumerate(orders):
                if before is not None:  # M x[order] = M[:, inverse order] x
                    index[place] = index[place][:, np.argsort(before)]
                if after is not None:
                    index[place] = index[place][after]
            self.register_buffer("index", torch.tensor(index.reshape(-1)), persistent=False)
            self.register_buffer("inverse", torch.tensor(np.argsort(index.reshape(-1))), persistent=False)
        else:
            assert not any(order is not None for pair in orders for order in pair)
            self.index = None

    def forward(self, inputs: Tensor | None, flat: Tensor) -> list[Tensor]:
        """For each group of qubits [.., layers, d, d]."""
        local = self.matrices(inputs, flat)
        found, first = [], 0
        if len(set(self.sizes)) == 1 and len(self.sizes) > 1:
            split = local.reshape(*local.shape[:-3], len(self.sizes), self.sizes[0], 2, 2)
            found = list(kron(split).unbind(-3))
        else:
            for size in self.sizes:
                found.append(kron(local[..., first : first + size, :, :]))
                first += size
        if self.index is not None:
            moved = Reorder.apply(found[0].reshape(-1), self.index, self.inverse)
            found[0] = moved.reshape(found[0].shape)
        return found


def _through_layer(state: Tensor, matrices: Sequence[Tensor], layer: int, batched: bool) -> Tensor:
    """The state [B, 2^n] through a layer: each group of qubits in turn is the first, and becomes the last."""
    if len(matrices) == 1 and not batched:
        first, state = alike(matrices[0][layer], state)
        return state @ first.mT
    size = state.shape[-1]
    for group in matrices:
        matrix = group[..., layer, :, :]
        width = matrix.shape[-1]
        matrix, state = alike(matrix, state)
        columns = state.reshape(-1, width, size // width).mT
        state = (columns @ matrix.mT).reshape(-1, size)
    return state


class PhaseStep(nn.Module):
    """Multiplies amplitudes by phases; see `advml.nn.quantum.fusing.Phases`."""

    def __init__(self, part: Phases, trace: Trace) -> None:
        super().__init__()
        self.angles = Angles(part.angles, trace, part.reads_inputs(trace.inputs)) if part.angles else None
        self.generators = Constants(part.generators, True)
        constant = part.constant
        self.constant = None if constant is None else Constants(constant, not np.any(np.imag(constant)))

    def forward(self, state: Tensor, inputs: Tensor | None, flat: Tensor) -> Tensor:
        """[B, 2^n] → the same shape."""
        if self.constant is not None:
            factor, state = alike(self.constant(flat.dtype), state)
            state = state * factor
        if self.angles is None:
            return state
        turns = self.angles(inputs, flat) @ self.generators(flat.dtype)
        return state * torch.complex(turns.cos(), turns.sin())


class OtherStep(nn.Module):
    """Any gate on a few qubits."""

    def __init__(self, part: Other, trace: Trace) -> None:
        super().__init__()
        self.gate, self.qubits = part.gate, trace.qubits
        self.angles = Angles((part.gate.turned,), trace, part.reads_inputs(trace.inputs))
        parts = stacked(part.gate)
        self.constants = Constants(parts, not np.iscomplexobj(parts))

    def forward(self, state: Tensor, inputs: Tensor | None, flat: Tensor) -> Tensor:
        """[B, 2^n] → the same shape."""
        constant, cosine, sine = self.constants(flat.dtype)
        angle = self.angles(inputs, flat)[..., None]
        return applied(constant + angle.cos() * cosine + angle.sin() * sine, state, self.gate.wires, self.qubits)


class OrderStep(nn.Module):
    """Amplitudes in another order."""

    def __init__(self, order: np.ndarray) -> None:
        super().__init__()
        self.register_buffer("order", torch.tensor(order), persistent=False)
        self.register_buffer("inverse", torch.tensor(np.argsort(order)), persistent=False)

    def forward(self, state: Tensor, inputs: Tensor | None = None, flat: Tensor | None = None) -> Tensor:
        """[B, 2^n] → the same shape."""
        moved: Tensor = Reorder.apply(state, self.order, self.inverse)
        return moved


class FusedSimulator(nn.Module):
    """The states of a circuit up to a last reordering `order`, which whoever measures them may do to the observables."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace = trace
        parts = fuse(trace)
        self.order: np.ndarray | None = None
        if parts and isinstance(parts[-1], Permute):
            self.order = parts.pop().order
        self.reorder = None if self.order is None else OrderStep(self.order)
        self.start, self.begin = None, None
        if trace.start is not None:
            self.start = Angles(trace.start, trace, True)
        elif parts and isinstance(parts[0], Local):
            first = parts.pop(0)
            assert isinstance(first, Local)
            self.begin = LocalMatrices([first], trace, first.reads_inputs(trace.inputs), column=True)
        self._plan(parts)

    def _plan(self, parts: list[Part]) -> None:
        """Layers of both kinds get their matrices together; `plan` says what to do one after the other."""
        sets: dict[bool, list[Local]] = {False: [], True: []}
        orders: list[tuple[np.ndarray | None, np.ndarray | None]] = []
        steps: list[nn.Module] = []
        self.plan: list[tuple[str, int]] = []
        folded = self.trace.qubits <= SINGLE
        waiting: np.ndarray | None = None  # a reordering that the next layer's matrix can take in
        for place, part in enumerate(parts):
            following = parts[place + 1] if place + 1 < len(parts) else None
            if isinstance(part, Local):
                batched = part.reads_inputs(self.trace.inputs)
                self.plan.append(("batched" if batched else "shared", len(sets[batched])))
                sets[batched].append(part)
                if not batched:
                    orders.append((waiting, None))
                waiting = None
                continue
            if isinstance(part, Permute):
                before = parts[place - 1] if place else None
                if folded and isinstance(before, Local) and not before.reads_inputs(self.trace.inputs):
                    orders[-1] = (orders[-1][0], part.order)
                    continue
                if folded and isinstance(following, Local) and not following.reads_inputs(self.trace.inputs):
                    waiting = part.order
                    continue
                steps.append(OrderStep(part.order))
            elif isinstance(part, Phases):
                steps.append(PhaseStep(part, self.trace))
            else:
                steps.append(OtherStep(part, self.trace))
            self.plan.append(("step", len(steps) - 1))
        self.steps = nn.ModuleList(steps)
        self.shared = LayerSet(sets[False], self.trace, False, orders) if sets[False] else None
        nothing: list[tuple[np.ndarray | None, np.ndarray | None]] = [(None, None)] * len(sets[True])
        self.batched = LayerSet(sets[True], self.trace, True, nothing) if sets[True] else None

    def forward(self, inputs: Tensor | None, weights: Mapping[str, Tensor], ordered: bool = True) -> Tensor:
        """[B, F] → states [B, 2^n]; B = 1 without inputs. `ordered=False`: before the last reordering."""
        flat = flat_weights(self.trace, weights)
        batch = 1 if inputs is None else len(inputs)
        state = self._beginning(inputs, flat)
        shared = None if self.shared is None else self.shared(inputs, flat)
        batched = None if self.batched is None else self.batched(inputs, flat)
        for kind, place in self.plan:
            if kind == "shared":
                assert shared is not None
                state = _through_layer(state, shared, place, False)
            elif kind == "batched":
                assert batched is not None
                state = _through_layer(state, batched, place, True)
            else:
                state = self.steps[place](state, inputs, flat)
        if ordered and self.reorder is not None:
            state = self.reorder(state)
        if len(state) != batch:
            state = state.expand(batch, -1)
        return state if self.trace.real or state.is_complex() else state + 0j

    def _beginning(self, inputs: Tensor | None, flat: Tensor) -> Tensor:
        """The state [B or 1, 2^n] from which the plan starts."""
        if self.start is not None:
            prepared: Tensor = self.start(inputs, flat)
            return prepared
        if self.begin is not None:
            vectors = self.begin(inputs, flat)[..., 0, :, :, :]  # [.., n, 2, 1]
            return kron(vectors).reshape(-1, 2**self.trace.qubits)
        zero = torch.zeros(1, 2**self.trace.qubits, dtype=flat.dtype, device=flat.device)
        return torch.cat([torch.ones_like(zero[:, :1]), zero[:, 1:]], 1)
