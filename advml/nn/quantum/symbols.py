"""Angles as formulas: which inputs and weights a gate's angle is made of, learned by watching the circuit run once.

A circuit is called with numbered numbers, and every torch operation on them is seen (`Watch`). What is made of them by
indexing, reshaping, sums and products is known as a sum of terms, each a coefficient times numbered numbers.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten

Formula = tuple[tuple[float, tuple[int, ...]], ...]
"""Σ coefficient · Π numbers: a term is (coefficient, the numbers' numbers); () multiplies nothing."""

# Operations that only move elements: done to the numbers' numbers as to the values.
MOVES = {
    aten.select.int, aten.slice.Tensor, aten.unsqueeze.default, aten.squeeze.default, aten.squeeze.dim, aten.t.default,
    aten.squeeze.dims, aten.view.default, aten._unsafe_view.default, aten.reshape.default, aten.permute.default,
    aten.transpose.int, aten.expand.default, aten.alias.default, aten.clone.default, aten.unbind.int,
    aten.split.Tensor, aten.index_select.default, aten.flip.default, aten.repeat.default,
}  # fmt: skip
# Operations whose result is the same whatever the values.
CONSTANT = {
    aten.ones_like.default, aten.zeros_like.default, aten.full_like.default, aten.new_ones.default,
    aten.new_zeros.default, aten.new_full.default,
}  # fmt: skip
REPEATS = {aten.lift_fresh.default, aten._to_copy.default}


class Undecided(Exception):
    """The circuit looks at the value of an input or a weight, so that one call does not tell all."""


class Symbolic:
    """A tensor of formulas: terms of (coefficients, numbers, …), all tensors of the value's shape."""

    def __init__(self, terms: Sequence[tuple[Tensor, tuple[Tensor, ...]]]) -> None:
        self.terms = list(terms)

    def formulas(self) -> list[Formula]:
        """Row by row, the formula of every element; terms of the same numbers are added up."""
        count = self.terms[0][0].numel() if self.terms else 0
        sums: list[dict[tuple[int, ...], float]] = [defaultdict(float) for _ in range(count)]
        for coefficients, factors in self.terms:
            columns = [factor.reshape(-1).tolist() for factor in factors]
            for place, coefficient in enumerate(coefficients.reshape(-1).tolist()):
                sums[place][tuple(sorted(column[place] for column in columns))] += coefficient
        return [tuple((value, key) for key, value in terms.items() if value) for terms in sums]


class Watch(TorchDispatchMode):
    """While active, follows what becomes of the tensors that `number` was given."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.known: dict[int, tuple[Tensor, Symbolic | None]] = {}  # by id; the tensor is kept, so that ids stay apart

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing here is compiled: without this, torch imports its compiler to tell it to stay away

    def number(self, values: Tensor, start: int) -> None:
        """The elements of `values` are the numbers start, start + 1, …"""
        numbers = torch.arange(start, start + values.numel()).reshape(values.shape)
        self._remember(values, Symbolic([(torch.ones(values.shape, dtype=torch.float64), (numbers,))]))

    def formulas(self, value: Any) -> list[Formula] | None:
        """The formulas of a tensor or number; None where an operation on the way is not known."""
        if not isinstance(value, Tensor):
            value = torch.as_tensor(value, dtype=torch.float64)
        if id(value) in self.known:
            found = self.known[id(value)][1]
            return None if found is None else found.formulas()
        return [((float(element), ()),) for element in value.reshape(-1).tolist()]

    def _remember(self, value: Tensor, symbolic: Symbolic | None) -> None:
        self.known[id(value)] = (value, symbolic)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        flat = [leaf for arg in args for leaf in (arg if isinstance(arg, list | tuple) else [arg])]
        if not any(isinstance(leaf, Tensor) and id(leaf) in self.known for leaf in flat):
            return result
        if func in CONSTANT:
            return result
        if func is aten._local_scalar_dense.default:
            raise Undecided
        results = list(result) if isinstance(result, list | tuple) else [result]
        found = self._of(func, args, kwargs or {}, results)
        for value, symbolic in zip(results, found, strict=True):
            if isinstance(value, Tensor):
                self._remember(value, symbolic)
        return result

    def _of(self, func: Any, args: Any, kwargs: Any, results: list[Any]) -> list[Symbolic | None]:
        unknown: list[Symbolic | None] = [None] * len(results)
        operands = [self._operand(arg) for arg in args]
        if func in REPEATS:
            return [operands[0]]
        if func in MOVES:
            return unknown if operands[0] is None else _moved(func, operands[0], args[1:], kwargs, len(results))
        shape = results[0].shape if isinstance(results[0], Tensor) else None
        if shape is None:
            return unknown
        if func in (aten.stack.default, aten.cat.default):
            parts = [self._operand(part) for part in args[0]]
            return [_joined(func, args[0], parts, args[1:], kwargs)]
        if func is aten.neg.default:
            return [_scaled(operands[0], -1.0)]
        if func in (aten.add.Tensor, aten.sub.Tensor, aten.add.Scalar, aten.sub.Scalar):
            sign = -1.0 if func in (aten.sub.Tensor, aten.sub.Scalar) else 1.0
            return [_sum(operands[0], _scaled(operands[1], sign * kwargs.get("alpha", 1)), shape)]
        if func is aten.rsub.Scalar:
            return [_sum(operands[1], _scaled(operands[0], -1.0), shape)]
        if func in (aten.mul.Tensor, aten.mul.Scalar):
            return [_product(operands[0], operands[1], shape)]
        if func in (aten.div.Tensor, aten.div.Scalar) and not self._is_known(args[1]):
            return [_product(operands[0], self._operand(1 / torch.as_tensor(args[1], dtype=torch.float64)), shape)]
        if func is aten.pow.Tensor_Scalar and args[1] in (1, 2, 3):
            power = operands[0]
            for _ in range(int(args[1]) - 1):
                power = _product(power, operands[0], shape)
            return [power]
        return unknown

    def _is_known(self, value: Any) -> bool:
        return isinstance(value, Tensor) and id(value) in self.known

    def _operand(self, value: Any) -> Symbolic | None:
        if isinstance(value, Tensor) and id(value) in self.known:
            return self.known[id(value)][1]
        if isinstance(value, Tensor | int | float):
            constant = value if isinstance(value, Tensor) else torch.tensor(value, dtype=torch.float64)
            return None if constant.is_complex() else Symbolic([(constant.to(torch.float64), ())])
        return None


def _moved(func: Any, value: Symbolic, args: Any, kwargs: Any, count: int) -> list[Symbolic | None]:
    """The same move of coefficients and of numbers."""
    outputs: list[list[tuple[Tensor, tuple[Tensor, ...]]]] = [[] for _ in range(count)]
    for coefficients, factors in value.terms:
        columns = []
        for part in (coefficients, *factors):
            moved = func(part, *args, **kwargs)
            columns.append(list(moved) if isinstance(moved, list | tuple) else [moved])
        for place, (first, *others) in enumerate(zip(*columns, strict=True)):
            outputs[place].append((first, tuple(others)))
    return [Symbolic(terms) for terms in outputs]


def _scaled(value: Symbolic | None, factor: float) -> Symbolic | None:
    return None if value is None else Symbolic([(coefficients * factor, rest) for coefficients, rest in value.terms])


def _sum(first: Symbolic | None, second: Symbolic | None, shape: torch.Size) -> Symbolic | None:
    if first is None or second is None:
        return None
    return Symbolic([_broadcast(term, shape) for term in (*first.terms, *second.terms)])


def _product(first: Symbolic | None, second: Symbolic | None, shape: torch.Size) -> Symbolic | None:
    if first is None or second is None:
        return None
    pairs = [(_broadcast(one, shape), _broadcast(two, shape)) for one in first.terms for two in second.terms]
    return Symbolic([(one[0] * two[0], one[1] + two[1]) for one, two in pairs])


def _broadcast(term: tuple[Tensor, tuple[Tensor, ...]], shape: torch.Size) -> tuple[Tensor, tuple[Tensor, ...]]:
    return term[0].expand(shape), tuple(factor.expand(shape) for factor in term[1])


def _joined(
    func: Any, values: Sequence[Tensor], parts: Sequence[Symbolic | None], args: Any, kwargs: Any
) -> Symbolic | None:
    """Stacked or joined: each part's terms, with coefficient 0 in the places of the others."""
    terms = []
    for place, part in enumerate(parts):
        if part is None:
            return None
        for coefficients, factors in part.terms:
            blank = [torch.zeros(value.shape, dtype=torch.float64) for value in values]
            blank[place] = coefficients.expand(values[place].shape)
            columns = [func(blank, *args, **kwargs)]
            for factor in factors:
                numbers = [torch.zeros(value.shape, dtype=torch.int64) for value in values]
                numbers[place] = factor.expand(values[place].shape)
                columns.append(func(numbers, *args, **kwargs))
            terms.append((columns[0], tuple(columns[1:])))
    return Symbolic(terms)
