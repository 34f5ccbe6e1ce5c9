"""The gradient through steps of gradient descent by copies of a chain of affine maps: exact, and without a graph.

Copies set out from common values w_0 = θ and take steps w_{k+1} = w_k − ∇ℓ(w_k), each on examples of its own. With
v_K = ∇L(w_K) for the values after the last step and

    v_k = v_{k+1} − ∇²ℓ(w_k) v_{k+1}

the gradient of L(w_K) in θ is v_0, summed over copies. The product of ∇²ℓ and a vector takes one pass forward and one
back (Pearlmutter 1994, "Fast exact multiplication by the Hessian"): R{x} is the derivative of x along that vector.

The steps of a small network cost calls, not numbers, and torch's graph comes to the same numbers by more of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advml.contracts import Batch
from advml.nn.replicas import Parameters, affine, flat_rows

Values = Mapping[str, Tensor]
"""Name → a value that all copies have in common, [*shape], or one of each, [R, *shape]."""


class Layer(NamedTuple):
    """An affine map, by the names of its parameters, and the elementwise function after it, if any."""

    weight: str
    bias: str | None
    bend: nn.Module | None


def layers_of(chain: Sequence[tuple[str, nn.Module]]) -> list[Layer] | None:
    """The chain as affine maps with at most one elementwise function after each; None for all other chains."""
    layers: list[Layer] = []
    for name, module in chain:
        if isinstance(module, nn.Identity) or (isinstance(module, nn.Dropout) and not module.p):
            continue
        if isinstance(module, nn.Linear):
            layers.append(Layer(f"{name}.weight", None if module.bias is None else f"{name}.bias", None))
        elif isinstance(module, BENDS) and layers and layers[-1].bend is None:
            layers[-1] = layers[-1]._replace(bend=module)
        else:
            return None
    return layers


class Pass:
    """What a pass leaves of each layer: what it read, its bend, the loss's slope by what the map gave and the bend."""

    def __init__(self) -> None:
        self.read: list[Tensor] = []  # [R, B, in]
        self.bends: list[Relu | Smooth | None] = []
        self.slopes: dict[int, Tensor] = {}  # [R, B, out]
        self.outer: dict[int, Tensor] = {}  # the same after the bend


class Unrolled:
    """Copies of a chain, their steps, and the way back through them."""

    def __init__(self, layers: Sequence[Layer]) -> None:
        self.layers = layers

    @torch.no_grad()
    def gradient(
        self, start: Values, support: Batch, query: Batch, steps: int, rate: float, second: bool
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The mean over copies of their loss on `query` after `steps` on `support`, 0-d, and its gradient by `start`.

        Examples are [R, B, ...]; a copy's loss is the mean over its own, cross-entropy of classes [R, B] or the squared
        error of numbers. ℓ is `rate` times that on `support`. Without `second` ∇²ℓ is taken for zero.
        """
        rows, values, trail = flat_rows(support.inputs), start, []
        for _ in range(steps):
            outputs, done = self._forward(values, rows)
            loss = loss_at(outputs, support.target, rate)
            self._back(values, done, loss.slope())
            trail.append((values, done, loss))
            values = self._moved(values, done)
        outputs, done = self._forward(values, flat_rows(query.inputs))
        last = loss_at(outputs, query.target, 1 / len(outputs))
        self._back(values, done, last.slope())
        if not (second and steps):
            return last.total(), self._summed(done)
        along = self._each(done)
        for taken in reversed(trail[1:]):
            self._through(*taken, along)
        return last.total(), self._to_start(*trail[0], along)

    # --- a pass and its gradient ---

    def _forward(self, values: Values, hidden: Tensor) -> tuple[Tensor, Pass]:
        """Outputs [R, B, C] for rows [R, B, in]."""
        done = Pass()
        for layer in self.layers:
            done.read.append(hidden)
            hidden = _mapped(layer, values, hidden)
            done.bends.append(bend := bend_at(layer.bend, hidden))
            hidden = hidden if bend is None else bend.value
        return hidden, done

    def _back(self, values: Values, done: Pass, slope: Tensor) -> None:
        """Slopes of all layers, from that by the outputs."""
        for place, layer in reversed(list(enumerate(self.layers))):
            bend = done.bends[place]
            done.outer[place], slope = slope, slope if bend is None else bend.along(slope)
            done.slopes[place] = slope
            if place:
                slope = torch.matmul(slope, values[layer.weight])

    def _moved(self, values: Values, done: Pass) -> Parameters:
        """w − ∇ℓ(w), of each copy."""
        found = {}
        for place, layer in enumerate(self.layers):
            slope, read = done.slopes[place], done.read[place]
            found[layer.weight] = torch.baddbmm(values[layer.weight], slope.transpose(1, 2), read, alpha=-1)
            if layer.bias is not None:
                found[layer.bias] = values[layer.bias] - slope.sum(1)
        return found

    def _each(self, done: Pass) -> Parameters:
        """The gradient of each copy."""
        found = {}
        for place, layer in enumerate(self.layers):
            found[layer.weight] = torch.bmm(done.slopes[place].transpose(1, 2), done.read[place])
            if layer.bias is not None:
                found[layer.bias] = done.slopes[place].sum(1)
        return found

    def _summed(self, done: Pass) -> dict[str, Tensor]:
        """The gradients of all copies together."""
        found = {}
        for place, layer in enumerate(self.layers):
            found[layer.weight] = done.slopes[place].flatten(0, 1).T @ done.read[place].flatten(0, 1)
            if layer.bias is not None:
                found[layer.bias] = done.slopes[place].sum((0, 1))
        return found

    # --- back through a step ---

    def _through(self, values: Values, done: Pass, loss: Loss, along: Parameters) -> None:
        """v ← v − ∇²ℓ v of each copy, in place."""
        for layer, slope, turned, read, moved in self._turned(values, done, loss, along):
            along[layer.weight].baddbmm_(turned.transpose(1, 2), read, alpha=-1)
            if moved is not None:
                along[layer.weight].baddbmm_(slope.transpose(1, 2), moved, alpha=-1)
            if layer.bias is not None:
                along[layer.bias].sub_(turned.sum(1))

    def _to_start(self, values: Values, done: Pass, loss: Loss, along: Parameters) -> dict[str, Tensor]:
        """The same, summed over copies."""
        found = {}
        for layer, slope, turned, read, moved in self._turned(values, done, loss, along):
            total = along[layer.weight].sum(0)
            total.addmm_(turned.flatten(0, 1).T, read.flatten(0, 1), alpha=-1)
            if moved is not None:
                total.addmm_(slope.flatten(0, 1).T, moved.flatten(0, 1), alpha=-1)
            found[layer.weight] = total
            if layer.bias is not None:
                found[layer.bias] = along[layer.bias].sum(0).sub_(turned.sum((0, 1)))
        return found

    def _turned(
        self, values: Values, done: Pass, loss: Loss, along: Parameters
    ) -> Iterator[tuple[Layer, Tensor, Tensor, Tensor, Tensor | None]]:
        """From the last layer to the first: its slope, R{slope}, what it read, R{that} (None: zero).

        Of ∇W ℓ = slopeᵀ read it follows that ∇²ℓ v is R{slope}ᵀ read + slopeᵀ R{read} there.
        """
        reads: list[Tensor | None] = []
        given: list[Tensor] = []
        moved: Tensor | None = None
        for place, layer in enumerate(self.layers):
            reads.append(moved)
            now = _mapped(layer, along, done.read[place])
            if moved is not None:
                now = now + torch.matmul(moved, values[layer.weight].mT)
            given.append(now)
            bend = done.bends[place]
            moved = now if bend is None else bend.along(now)
        assert moved is not None
        turned = loss.curved(moved)
        for place, layer in reversed(list(enumerate(self.layers))):
            slope, bend = done.slopes[place], done.bends[place]
            if bend is not None:
                turned = bend.along(turned)
                if isinstance(bend, Smooth):
                    turned = turned.addcmul_(bend.curve() * given[place], done.outer[place])
            below = turned
            if place:  # before `along` is changed
                below = torch.bmm(slope, along[layer.weight]) + torch.matmul(turned, values[layer.weight])
            yield layer, slope, turned, done.read[place], reads[place]
            turned = below


def _mapped(layer: Layer, values: Values, rows: Tensor) -> Tensor:
    """rows [R, B, in] → [R, B, out]."""
    return affine(rows, values[layer.weight], None if layer.bias is None else values[layer.bias])


# --- elementwise functions ----------------------------------------------------------------------------------------


class Relu:
    """max(a, 0): no curve."""

    def __init__(self, given: Tensor) -> None:
        self.value = torch.relu(given)

    def along(self, rows: Tensor) -> Tensor:
        """The derivative at a, times `rows`."""
        found: Tensor = torch.ops.aten.threshold_backward(rows, self.value, 0)  # as torch itself, without a graph
        return found


class Smooth:
    """Any other elementwise function at a: torch knows its derivatives."""

    def __init__(self, module: nn.Module, given: Tensor) -> None:
        with torch.enable_grad():
            self.given = given.detach().requires_grad_()
            value = module(self.given)
            (self.slope,) = torch.autograd.grad(value.sum(), self.given, create_graph=True)
        self.value = value.detach()

    def along(self, rows: Tensor) -> Tensor:
        """The derivative at a, times `rows`."""
        return rows * self.slope.detach()

    def curve(self) -> Tensor:
        """The second derivative at a."""
        if not self.slope.requires_grad:
            return torch.zeros_like(self.slope)
        return torch.autograd.grad(self.slope, self.given, torch.ones_like(self.slope), materialize_grads=True)[0]


BENDS = (nn.ReLU, nn.Tanh, nn.Softplus, nn.GELU, nn.Sigmoid, nn.SiLU, nn.ELU, nn.LeakyReLU)


def bend_at(module: nn.Module | None, given: Tensor) -> Relu | Smooth | None:
    """The function at `given`."""
    if module is None:
        return None
    return Relu(given) if isinstance(module, nn.ReLU) else Smooth(module, given)


# --- losses -------------------------------------------------------------------------------------------------------


class Squared:
    """`share` of the mean over a copy's numbers of (output − target)²."""

    def __init__(self, outputs: Tensor, target: Tensor, share: float) -> None:
        self.difference, self.share = outputs - target.reshape(outputs.shape), share / outputs[0].numel()

    def total(self) -> Tensor:
        """Of all copies together."""
        return self.difference.square().sum() * self.share

    def slope(self) -> Tensor:
        """By the outputs."""
        return self.difference * (2 * self.share)

    def curved(self, along: Tensor) -> Tensor:
        """R{slope}, of R{outputs}."""
        return along * (2 * self.share)


class CrossEntropy:
    """`share` of the mean over a copy's examples of −log p(class)."""

    def __init__(self, outputs: Tensor, target: Tensor, share: float) -> None:
        self.log_p, self.place, self.share = F.log_softmax(outputs, 2), target.unsqueeze(2), share / target.shape[1]

    def total(self) -> Tensor:
        """Of all copies together."""
        return self.log_p.gather(2, self.place).sum() * -self.share

    def slope(self) -> Tensor:
        """By the outputs: p minus one for the class."""
        slope = self.log_p.exp() * self.share
        return slope.scatter_(2, self.place, slope.gather(2, self.place) - self.share)

    def curved(self, along: Tensor) -> Tensor:
        """R{slope}, of R{outputs}: (diag p − p pᵀ) along."""
        p = self.log_p.exp()
        weighted = p * along * self.share
        return weighted - p * weighted.sum(2, keepdim=True)


Loss = Squared | CrossEntropy


def loss_at(outputs: Tensor, target: Tensor, share: float) -> Loss:
    """Cross-entropy of classes [R, B], or the squared error of numbers."""
    return (Squared if target.is_floating_point() else CrossEntropy)(outputs, target, share)
