"""The cell of a supernet computed at once instead of edge by edge: the same sums, the same gradients, the same norms.

What differs from `SuperCell.forward` is only the order of additions:
- All edges out of a state are computed together: their convolutions are one convolution with the edges' filters side
  by side, their norms one norm over m · C channels. ReLU and pooling happen once for a state, not once for an edge.
- Between the depthwise filters D_e and the 1×1 filters P_e of an edge there is nothing, so on few channels they are one
  dense convolution, W_e[o, i] = P_e[o, i] · D_e[i]; it is the faster one although it multiplies more (measured).
- The weight of an operation becomes the scale of its norm; the weights of skips and pools become a 1×1 convolution.
- Images lie in memory with channels last. `none` is left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advml.nn.cells.operations import FactorizedReduce

if TYPE_CHECKING:
    from advml.nn.cells.supernet import Mix, MixedEdge, SuperCell

DENSE_UP_TO = 16
"""Channels up to which two filters in a row are cheaper as one dense filter, on a CPU and on average."""


class Norms:
    """Batch norm of many edges at once; gathers what their running averages are to be moved by."""

    def __init__(self, training: bool) -> None:
        self.training = training
        self.running: list[Tensor] = []
        self.seen: list[Tensor] = []
        self.counts: list[Tensor] = []

    def __call__(self, maps: Tensor, norms: Sequence[nn.BatchNorm2d], weight: Tensor | None) -> Tensor:
        """`maps` [B, m · C, H, W] by the norms of m edges; `weight` [m] multiplies the result of each."""
        scale, shift = _affine(norms, weight)
        first = norms[0]
        mean, variance = self._statistics(norms, maps.shape[1])
        if not self.training:
            return F.batch_norm(maps, mean, variance, scale, shift, False, 0.0, first.eps)
        out = F.batch_norm(maps, mean, variance, scale, shift, True, 1.0, first.eps)
        self._note(norms, mean.split(first.num_features), variance.split(first.num_features))
        return out

    def shared(self, maps: Tensor, norms: Sequence[nn.BatchNorm2d]) -> Tensor:
        """`maps` [B, C, H, W], normalised alike for m edges that all see them; not for affine norms."""
        first = norms[0]
        mean, variance = torch.zeros_like(_mean(first)), torch.ones_like(_mean(first))
        out = F.batch_norm(maps, mean, variance, None, None, True, 1.0, first.eps)
        self._note(norms, [mean] * len(norms), [variance] * len(norms))
        return out

    def _statistics(self, norms: Sequence[nn.BatchNorm2d], channels: int) -> tuple[Tensor, Tensor]:
        """What to normalise by in evaluation; room for this batch's mean and variance in training."""
        if self.training:
            return _mean(norms[0]).new_zeros(channels), _mean(norms[0]).new_ones(channels)
        return torch.cat([_mean(norm) for norm in norms]), torch.cat([_variance(norm) for norm in norms])

    def _note(self, norms: Sequence[nn.BatchNorm2d], means: Sequence[Tensor], variances: Sequence[Tensor]) -> None:
        self.running += [_mean(norm) for norm in norms] + [_variance(norm) for norm in norms]
        self.seen += [*means, *variances]
        self.counts += [cast(Tensor, norm.num_batches_tracked) for norm in norms]

    def finish(self, momentum: float = 0.1) -> None:
        """Move the running averages: r + momentum · (seen − r), as batch norm does."""
        with torch.no_grad():
            if torch._C._are_functorch_transforms_active():  # vmap knows no lists of tensors
                for running, seen in zip(self.running, self.seen, strict=True):
                    running.add_(seen - running, alpha=momentum)
                for count in self.counts:
                    count.add_(1)
            elif self.running:
                torch._foreach_lerp_(self.running, self.seen, momentum)
                torch._foreach_add_(self.counts, 1)


def _mean(norm: nn.BatchNorm2d) -> Tensor:
    return cast(Tensor, norm.running_mean)


def _variance(norm: nn.BatchNorm2d) -> Tensor:
    return cast(Tensor, norm.running_var)


def _affine(norms: Sequence[nn.BatchNorm2d], weight: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Scale and shift [m · C] of the norms, multiplied by each edge's weight [m]."""
    channels = norms[0].num_features
    spread = None if weight is None else weight.repeat_interleave(channels)
    if not norms[0].affine:
        return spread, None
    scale, shift = torch.cat([norm.weight for norm in norms]), torch.cat([norm.bias for norm in norms])
    return (scale, shift) if spread is None else (scale * spread, shift * spread)


def fused_cell(cell: SuperCell, older: Tensor, newer: Tensor, mix: Mix, skip: Tensor) -> Tensor:
    """What `SuperCell.forward` gives when no operation is spared."""
    states = cell.preprocess(older, newer)
    weights, of_edges = mix[cell.kind], mix.get(f"{cell.kind} edges")
    norms = Norms(cell.training)
    totals: list[Tensor | None] = [None] * cell.nodes
    for source in range(2 + cell.nodes):
        rows = [row for row, (_, read) in enumerate(cell.wiring) if read == source]
        if source >= 2:
            total = totals[source - 2]
            states.append(cell.nothing(states) if total is None else total)
        if not rows:
            continue
        edges = [cast("MixedEdge", cell.edges[row]) for row in rows]
        for row, edge, term in zip(rows, edges, _terms(edges, states[source], weights[rows], norms), strict=True):
            finished = edge.finish(states[source], term, skip)
            if finished is not None:
                finished = finished if of_edges is None else of_edges[row] * finished
                node = cell.wiring[row][0]
                before = totals[node]
                totals[node] = finished if before is None else before + finished
    norms.finish()
    return cell.collect(states, ())


def _terms(edges: Sequence[MixedEdge], state: Tensor, weights: Tensor, norms: Norms) -> Sequence[Tensor | None]:
    """Σ_o w_o · o(state) on each of the m edges out of a state; `weights` [m, O]."""
    first = edges[0]
    part = state[:, : first.width] if first.partial > 1 else state
    parts = list(_convolved(edges, part, weights, norms)) + list(_passed(edges, part, weights, norms))
    if not parts:
        return [None] * len(edges)
    total = parts[0]
    for more in parts[1:]:
        total = total + more
    return list(total.split(first.width, 1))


def _convolved(edges: Sequence[MixedEdge], part: Tensor, weights: Tensor, norms: Norms) -> Iterator[Tensor]:
    """The operations that have filters, [B, m · C, H', W'] each."""
    relu: Tensor | None = None
    for number, name in enumerate(edges[0].names):
        chosen = [edge.operations[number] for edge in edges]
        weight = weights[:, number]
        if isinstance(chosen[0], FactorizedReduce):
            relu = F.relu(part) if relu is None else relu
            yield norms(_halved(chosen, relu), [one.norm for one in cast("list[Any]", chosen)], weight)
        elif "_conv_" in name:
            relu = F.relu(part) if relu is None else relu
            layers = [list(cast(nn.Sequential, one)) for one in chosen]
            maps = _separable(layers, relu)
            if len(layers[0]) > 4:  # a second separable convolution after the first
                maps = F.relu(norms(maps, [_norm(one[3]) for one in layers], None))
                maps = _second(layers, maps)
            yield norms(maps, [_norm(one[-1]) for one in layers], weight)


def _norm(module: nn.Module) -> nn.BatchNorm2d:
    return cast(nn.BatchNorm2d, module)


def _separable(layers: Sequence[Sequence[nn.Module]], relu: Tensor) -> Tensor:
    """The first depthwise and 1×1 convolution of m edges: [B, C, H, W] → [B, m · C, H', W']."""
    like = cast(nn.Conv2d, layers[0][1])
    depthwise = torch.stack([cast(Tensor, one[1].weight) for one in layers])  # [m, C, 1, k, k]
    pointwise = torch.stack([cast(Tensor, one[2].weight) for one in layers])  # [m, C', C, 1, 1]
    edges, channels = depthwise.shape[:2]
    stride, padding, dilation = like.stride, cast("tuple[int, int]", like.padding), like.dilation
    if channels <= DENSE_UP_TO:
        dense = (pointwise * depthwise.transpose(1, 2)).flatten(0, 1)  # [m · C', C, k, k]
        return F.conv2d(relu, dense, None, stride, padding, dilation)
    # Each channel goes through its m filters, in the order (channel, edge); then to (edge, channel), and 1×1 by groups.
    filters = depthwise.transpose(0, 1).flatten(0, 1)
    maps = F.conv2d(relu, filters, None, stride, padding, dilation, groups=channels).permute(0, 2, 3, 1)
    maps = maps.unflatten(3, (channels, edges)).transpose(3, 4).flatten(3).permute(0, 3, 1, 2)
    return F.conv2d(maps, pointwise.flatten(0, 1), groups=edges)


def _second(layers: Sequence[Sequence[nn.Module]], maps: Tensor) -> Tensor:
    """The second depthwise and 1×1 convolution of m edges, each on its own maps: [B, m · C, H, W] → the same."""
    like = cast(nn.Conv2d, layers[0][5])
    depthwise = torch.cat([cast(Tensor, one[5].weight) for one in layers])
    pointwise = torch.cat([cast(Tensor, one[6].weight) for one in layers])
    maps = F.conv2d(maps, depthwise, None, 1, cast("tuple[int, int]", like.padding), groups=len(depthwise))
    return F.conv2d(maps, pointwise, groups=len(layers))


def _halved(chosen: Sequence[nn.Module], relu: Tensor) -> Tensor:
    """The two 1×1 convolutions of a FactorizedReduce, for m edges, as one 2×2 convolution of stride 2."""
    reduces = cast("list[FactorizedReduce]", chosen)
    even, odd = torch.cat([one.even.weight for one in reduces]), torch.cat([one.odd.weight for one in reduces])
    first, second = (half.view(len(reduces), -1, *half.shape[1:]) for half in (even, odd))
    corner = torch.cat([F.pad(first, (0, 1, 0, 1)), F.pad(second, (1, 0, 1, 0))], 1).flatten(0, 1)
    height, width = relu.shape[2:]
    return F.conv2d(F.pad(relu, (0, width % 2, 0, height % 2)), corner, None, 2)


def _passed(edges: Sequence[MixedEdge], part: Tensor, weights: Tensor, norms: Norms) -> Iterator[Tensor]:
    """Skips and pools: maps that are the same for all edges, [B, m · C, H', W'] after their weights."""
    shared: list[Tensor] = []
    numbers: list[int] = []
    for number, name in enumerate(edges[0].names):
        chosen = edges[0].operations[number]
        if isinstance(chosen, nn.Identity):
            shared.append(part)
            numbers.append(number)
        elif "pool" in name:
            pooled, after = chosen(part), [edge.norms[number] for edge in edges]
            if isinstance(after[0], nn.Identity):
                shared.append(pooled)
                numbers.append(number)
            elif norms.training and not _norm(after[0]).affine:
                shared.append(norms.shared(pooled, [_norm(one) for one in after]))
                numbers.append(number)
            else:  # every edge has statistics, or a scale, of its own
                many = pooled.repeat(1, len(edges), 1, 1)
                yield norms(many, [_norm(one) for one in after], weights[:, number])
    if shared:
        identity = torch.eye(part.shape[1], dtype=weights.dtype, device=weights.device)
        # [m · C, K · C]: row (edge, c) holds the weight of map k at (k, c).
        filters = torch.einsum("ek,cd->eckd", weights[:, numbers], identity).reshape(
            len(edges) * part.shape[1], len(numbers) * part.shape[1], 1, 1
        )
        yield F.conv2d(torch.cat(shared, 1), filters)
