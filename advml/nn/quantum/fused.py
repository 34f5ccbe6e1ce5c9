"""States of traced circuits by few large steps: what fusing.py made of the gates, each a handful of torch operations.

States are [B, 2^n], qubit 0 the most significant; real for circuits that stay real. What does not depend on inputs is
computed once for the batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from advml.nn.quantum.fusing import Local, Other, Part, Permute, Phases, fuse
from advml.nn.quantum.layers import SINGLE, Beginning, LayerSet, OrderStep
from advml.nn.quantum.simulator import Angles, Constants, Start, alike, applied, flat_weights, needs_one, stacked
from advml.nn.quantum.tracing import Trace


def _through_layer(state: Tensor, matrices: Sequence[Sequence[Tensor]], layer: int, batched: bool) -> Tensor:
    """The state [B, 2^n] through a layer: each group of qubits in turn is the first, and becomes the last."""
    if len(matrices) == 1 and not batched:
        first, state = alike(matrices[0][layer], state)
        return state @ first.mT
    size = state.shape[-1]
    for group in matrices:
        matrix = group[layer]
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


class FusedSimulator(nn.Module):
    """The states of a circuit, up to a last reordering `order` that who measures them may do to the observables."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace, self.real = trace, trace.real
        parts = fuse(trace)
        folded = trace.qubits <= SINGLE
        self.order: np.ndarray | None = None
        last = parts[-1] if parts else None
        if isinstance(last, Permute) and not (folded and len(parts) > 2 and self._shared(parts[-2])):
            self.order, parts = last.order, parts[:-1]
        self.reorder = None if self.order is None else OrderStep(self.order)
        first, following = (parts[place] if len(parts) > place else None for place in (0, 1))
        self.start, self.begin = None, None
        if trace.start is not None:
            self.start = Start(trace.start, trace)
        elif isinstance(first, Local):
            taken = isinstance(following, Permute) and Beginning.takes(first, trace)
            order = following.order if taken and isinstance(following, Permute) else None
            self.begin = Beginning(first, trace, order)
            parts = parts[2 if taken else 1 :]
        readers = (part for part in (first, *parts) if part is not None and not isinstance(part, Permute))
        self.reads_inputs = trace.start is not None or any(part.reads_inputs(trace.inputs) for part in readers)
        self._plan(parts)
        self.one = needs_one(self)

    def _shared(self, part: Part) -> bool:
        return isinstance(part, Local) and not part.reads_inputs(self.trace.inputs)

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
                if folded and before is not None and self._shared(before):
                    orders[-1] = (orders[-1][0], part.order)
                    continue
                if folded and following is not None and self._shared(following):
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
        flat = flat_weights(self.trace, weights, self.one, like=inputs)
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
        if inputs is not None and not self.reads_inputs:
            state = state.expand(len(inputs), -1)
        return state if self.real or state.is_complex() else state + 0j

    def _beginning(self, inputs: Tensor | None, flat: Tensor) -> Tensor:
        """The state [B or 1, 2^n] from which the plan starts."""
        if self.start is not None:
            prepared: Tensor = self.start(inputs, flat)
            return prepared
        if self.begin is not None:
            made: Tensor = self.begin(inputs, flat)
            return made
        zero = torch.zeros(1, 2**self.trace.qubits, dtype=flat.dtype, device=flat.device)
        return torch.cat([torch.ones_like(zero[:, :1]), zero[:, 1:]], 1)
