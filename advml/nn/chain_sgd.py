"""Plain gradient descent on many copies of a chain of affine maps, each weight moved while its gradient is computed.

One training step of a small network is bound by memory: it reads the weights, writes a gradient as large, reads both
and writes the weights. Here  W ← β W − η δᵀ x  is one call, so that no gradient is ever stored.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from advml.contracts import Batch
from advml.nn.example_losses import ExampleLosses, losses_and_slopes
from advml.nn.replicas import Batched, Parameters, affine, flat_rows


class ChainSgd:
    """w ← w − η (∇loss(w) + strength · w + offset) for copies side by side; the same numbers as by differentiation."""

    def __init__(
        self,
        replicas: Batched,
        values: Parameters,
        losses: ExampleLosses,
        lr: float,
        strength: float,
        offset: Mapping[str, Tensor] | None,
    ) -> None:
        self.replicas, self.values, self.losses = replicas, values, losses
        self.lr, self.strength, self.offset = lr, strength, offset
        if not replicas.network.training:
            replicas.network.train()

    @staticmethod
    def serves(replicas: Batched) -> frozenset[str]:
        """The names of all parameters, if they are those of affine maps in a chain; otherwise none."""
        affine = {
            f"{name}.{own}"
            for name, module in replicas.chain
            if isinstance(module, nn.Linear)
            for own, _ in module.named_parameters()
        }
        return frozenset(affine if affine == {name for name, _ in replicas.network.named_parameters()} else ())

    def narrow(self, active: int) -> None:
        """From now on only the first so many copies."""
        if active != len(next(iter(self.values.values()))):
            self.values = {name: value[:active] for name, value in self.values.items()}
            if self.offset is not None:
                self.offset = {name: value[:active] for name, value in self.offset.items()}

    @torch.no_grad()
    def step(self, batch: Batch, weight: Tensor | None) -> Tensor:
        """One update; the mean loss of each copy before it, [R]."""
        hidden = flat_rows(batch.inputs)
        below: list[tuple[Tensor, Tensor]] = []  # of each module: what it read, what it gave
        for name, module in self.replicas.chain:
            given = hidden
            if isinstance(module, nn.Linear):
                hidden = affine(given, self.values[f"{name}.weight"], self.values.get(f"{name}.bias"))
            elif isinstance(module, nn.ReLU):
                hidden = torch.relu(given)
            else:
                with torch.enable_grad():  # elementwise: torch knows its derivative
                    given = given.requires_grad_()
                    hidden = module(given)
            below.append((given, hidden))
            hidden = hidden.detach()
        each, slope = losses_and_slopes(self.losses, hidden, batch.target)
        found = each.mean(1) if weight is None else (each * weight).sum(1)
        slope = slope / each.shape[1] if weight is None else slope * weight.unsqueeze(2)
        for place, (name, module) in reversed(list(enumerate(self.replicas.chain))):
            given, got = below[place]
            if isinstance(module, nn.Linear):
                before = torch.bmm(slope, self.values[f"{name}.weight"]) if place else slope
                self._move(f"{name}.weight", slope.transpose(1, 2), given)
                if module.bias is not None:
                    self._move(f"{name}.bias", slope.sum(1), None)
                slope = before
            elif isinstance(module, nn.ReLU):
                slope = torch.ops.aten.threshold_backward(slope, got, 0)  # as torch itself, without a graph
            else:
                (slope,) = torch.autograd.grad(got, given, slope)
        return found

    def _move(self, name: str, slope: Tensor, given: Tensor | None) -> None:
        """value ← (1 − η strength) value − η gradient − η offset; the gradient is `slope`, or slope · given."""
        value, kept = self.values[name], 1 - self.lr * self.strength
        if given is not None:
            value.baddbmm_(slope, given, beta=kept, alpha=-self.lr)
        else:
            (value if kept == 1 else value.mul_(kept)).sub_(slope, alpha=self.lr)
        if self.offset is not None:
            value.sub_(self.offset[name], alpha=self.lr)
