"""Evaluating many formulas at once: few operations on whole tensors, whatever the number of gates."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from advml.nn.quantum.symbols import Formula


class SharedFormulas(nn.Module):
    """Formulas of weights alone: one value for the whole batch.

    `flat` holds the weights one after another, then a 1: a term without weights is a coefficient times that.
    """

    index: Tensor
    coefficients: Tensor
    sums: Tensor

    def __init__(self, formulas: Sequence[Formula], first: int, count: int) -> None:
        super().__init__()
        terms = [(place, *term) for place, formula in enumerate(formulas) for term in formula or ((0.0, ()),)]
        degree = max((len(numbers) for _, _, numbers in terms), default=0)
        rows = [[number - first for number in numbers] + [count] * (max(degree, 1) - len(numbers))
                for _, _, numbers in terms]  # fmt: skip
        coefficients = [coefficient for _, coefficient, _ in terms]
        self.one_each = len(terms) == len(formulas)
        self.factor = coefficients[0] if len(set(coefficients)) == 1 and self.one_each else None
        numbers = [row[0] for row in rows]
        self.uses_one = any(number == count for row in rows for number in row)
        run = degree <= 1 and numbers == list(range(numbers[0], numbers[0] + len(numbers))) if numbers else False
        self.run = (numbers[0], len(numbers)) if run else None
        self.register_buffer("index", torch.tensor(rows, dtype=torch.int64).T.contiguous(), persistent=False)
        self.register_buffer("coefficients", torch.tensor(coefficients, dtype=torch.float64), persistent=False)
        if not self.one_each:
            sums = torch.zeros(len(terms), len(formulas), dtype=torch.float64)
            for row, (place, coefficient, _) in enumerate(terms):
                sums[row, place] = coefficient
            self.register_buffer("sums", sums, persistent=False)

    def forward(self, flat: Tensor) -> Tensor:
        """[W + 1] → [G]."""
        if self.run is not None:
            values = flat.narrow(0, *self.run)
        else:
            values = flat.index_select(0, self.index[0])
            for place in range(1, len(self.index)):
                values = values * flat.index_select(0, self.index[place])
        if not self.one_each:
            return values @ self.sums.to(flat.dtype)
        if self.factor is not None:
            return values if self.factor == 1.0 else values * self.factor
        return values * self.coefficients.to(flat.dtype)


class BatchedFormulas(nn.Module):
    """Formulas of inputs and weights: a part of weights alone, plus products of inputs times what multiplies each.

    The sum is a matrix product, [B, M] times [M, G]; where each formula has one product of inputs, such as s x + θ,
    it is gathered and multiplied.
    """

    def __init__(self, formulas: Sequence[Formula], inputs: int, count: int) -> None:
        super().__init__()
        found: dict[tuple[int, ...], list[list[tuple[float, tuple[int, ...]]]]] = {}
        for place, formula in enumerate(formulas):
            for coefficient, numbers in formula:
                read = tuple(number for number in numbers if number < inputs)
                rest = tuple(number for number in numbers if number >= inputs)
                found.setdefault(read, [[] for _ in formulas])[place].append((coefficient, rest))
        alone = found.pop((), None)
        self.alone = None if alone is None else SharedFormulas([tuple(terms) for terms in alone], inputs, count)
        self.products = sorted(found, key=lambda numbers: (len(numbers), numbers))
        self.count = len(formulas)
        factors = [tuple(terms) for product in self.products for terms in found[product]]
        self.fixed = all(not numbers for formula in factors for _, numbers in formula)
        owners = [[row for row, product in enumerate(self.products) if found[product][place]]
                  for place in range(self.count)]  # fmt: skip
        self.gathered = not self.fixed and all(len(rows) == 1 for rows in owners)
        if self.fixed:
            values = [sum(coefficient for coefficient, _ in formula) for formula in factors]
            matrix = torch.tensor(values, dtype=torch.float64).reshape(len(self.products), self.count)
            self.register_buffer("constant", matrix, persistent=False)
            self.factors = None
        elif self.gathered:
            factors = [tuple(found[self.products[rows[0]]][place]) for place, rows in enumerate(owners)]
            self.factors = SharedFormulas(factors, inputs, count)
        else:
            self.factors = SharedFormulas(factors, inputs, count)
        wanted = [self.products[rows[0]] for rows in owners] if self.gathered else self.products
        degree = max((len(product) for product in wanted), default=1)
        padded = [list(product) + [inputs] * (degree - len(product)) for product in wanted]
        self.padding = any(number == inputs for row in padded for number in row)
        columns = torch.tensor(padded, dtype=torch.int64).reshape(len(padded), degree).T.contiguous()
        self.register_buffer("columns", columns, persistent=False)
        self.plain = wanted == [(number,) for number in range(inputs)]

    def forward(self, inputs: Tensor, flat: Tensor) -> Tensor:
        """[B, F], [W + 1] → [B, G]."""
        products = self._products(inputs)
        alone = None if self.alone is None else self.alone(flat)
        if self.gathered:
            assert self.factors is not None
            factors = self.factors(flat)
            return products * factors if alone is None else torch.addcmul(alone, products, factors)
        if self.factors is None:
            matrix = self.get_buffer("constant").to(inputs.dtype)
        else:
            matrix = self.factors(flat).reshape(len(self.products), self.count)
        return products @ matrix if alone is None else torch.addmm(alone, products, matrix)

    def _products(self, inputs: Tensor) -> Tensor:
        """The products of inputs, [B, M], or, gathered, that of each formula, [B, G]."""
        if self.plain:
            return inputs
        columns = self.get_buffer("columns")
        padded = torch.cat([inputs, torch.ones_like(inputs[:, :1])], 1) if self.padding else inputs
        values = padded.index_select(1, columns[0])
        for place in range(1, len(columns)):
            values = values * padded.index_select(1, columns[place])
        return values
