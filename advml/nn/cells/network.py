"""The network of a genotype of two-input cells, to be trained from scratch (Liu et al. 2019; Pham et al. 2018)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from advml.contracts import Network, Spec
from advml.nn.cells.genotype import Cell, Genotype
from advml.nn.cells.operations import operation
from advml.nn.cells.stack import Place, Preprocess, places, reduced, stem

AUXILIARY = (128, 768)
"""Channels of the two convolutions of the auxiliary head."""


class DerivedCell(nn.Module):
    """The chosen operations of a cell, in the order of its genotype's edges."""

    def __init__(self, space: str, place: Place, cell: Cell) -> None:
        super().__init__()
        halve = space == "enas_micro"
        self.cell = cell
        self.preprocess = Preprocess(place, affine=True, halve=halve)
        strided, width = place.kind == "reduce" and not halve, place.channels
        self.operations = nn.ModuleList(
            operation(edge.operation, width, width, 2 if strided and edge.source < 2 else 1, affine=True)
            for node in cell.nodes
            for edge in node
        )

    def forward(self, older: Tensor, newer: Tensor, drop: float) -> Tensor:
        """The outputs of the two cells before → the concatenated states. `drop`: see `drop_path`."""
        states = self.preprocess(older, newer)
        chosen = iter(self.operations)
        for edges in self.cell.nodes:
            terms = []
            for edge in edges:
                operator = next(chosen)
                maps = operator(states[edge.source])
                terms.append(maps if isinstance(operator, nn.Identity) else drop_path(maps, drop))
            states.append(_sum(terms))
        return torch.cat([states[state] for state in self.cell.concat], 1)


def _sum(terms: Sequence[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


def drop_path(maps: Tensor, probability: float) -> Tensor:
    """Zero the whole map [C, H, W] of an example with this probability, scale the others up (Larsson et al. 2017)."""
    if not probability:
        return maps
    return maps * F.dropout(maps.new_ones(len(maps), 1, 1, 1), probability)


class AuxiliaryHead(nn.Sequential):
    """A second classifier at two thirds of the depth, for training only.

    On 8×8 maps it is the authors' (5×5 mean pooling of stride 3, a 2×2 convolution); on others the pooling is chosen
    so that 2×2 values are left, or 1 along a side of 1.
    """

    def __init__(self, channels: int, size: tuple[int, int], outputs: int) -> None:
        height, width = size
        strides = [max(1, 3 * side // 8) for side in size]
        windows = [max(1, side - stride) for side, stride in zip(size, strides, strict=True)]
        sides = (min(2, height), min(2, width))
        first, second = AUXILIARY
        super().__init__(
            nn.ReLU(),
            nn.AvgPool2d((windows[0], windows[1]), (strides[0], strides[1])),
            nn.Conv2d(channels, first, 1, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(),
            nn.Conv2d(first, second, sides, bias=False),
            nn.BatchNorm2d(second),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(second, outputs),
        )


class CellNetwork(Network):
    """A stem, `cells` cells of which `reductions` halve the image, the mean over the image, a linear head.

    `drop_path` is an attribute that the method may raise during training; `auxiliary` says whether there is a second
    head, which only `with_auxiliary` reads.
    """

    def __init__(
        self, spec: Spec, genotype: Genotype, channels: int, cells: int, reductions: int, auxiliary: bool,
        drop_path: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        shape = spec.image
        assert shape is not None, "asked of `misfit` before"
        self.genotype, self.drop_path = genotype, drop_path
        self.stem = stem(shape[0], channels)
        outputs = {kind: len(cell.concat) for kind, cell in genotype.cells.items()}
        stack = places(cells, channels, reductions, outputs)
        self.cells = nn.ModuleList(DerivedCell(genotype.space, place, genotype.cells[place.kind]) for place in stack)
        self.head = nn.Linear(outputs[stack[-1].kind] * stack[-1].channels, spec.outputs)
        self.branch = 2 * cells // 3
        self.auxiliary: AuxiliaryHead | None = None
        if auxiliary:
            at = stack[: self.branch + 1]
            times = sum(place.kind == "reduce" for place in at)
            size = reduced(shape[1], times), reduced(shape[2], times)
            self.auxiliary = AuxiliaryHead(outputs[at[-1].kind] * at[-1].channels, size, spec.outputs)

    def features(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """One image → the mean over the last cell's maps [B, F]."""
        return self._outputs(inputs)[-1].mean((2, 3))

    def with_auxiliary(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Logits of the head and, if there is one, of the auxiliary head."""
        outputs = self._outputs(inputs)
        logits: Tensor = self.head(outputs[-1].mean((2, 3)))
        return logits, None if self.auxiliary is None else self.auxiliary(outputs[self.branch])

    def _outputs(self, inputs: Mapping[str, Tensor]) -> list[Tensor]:
        """What each cell gives."""
        (image,) = inputs.values()
        older = newer = self.stem(image)
        drop = self.drop_path if self.training else 0.0
        outputs = []
        for cell in self.cells:
            older, newer = newer, cell(older, newer, drop)
            outputs.append(newer)
        return outputs


class NasBench201Network(Network):
    """The macro structure of NAS-Bench-201: stages of equal cells, between them residual blocks of stride 2.

    The benchmark's networks have 16 channels, 5 cells in each of 3 stages.
    """

    def __init__(self, spec: Spec, genotype: Genotype, channels: int, cells: int, reductions: int) -> None:
        super().__init__()
        shape = spec.image
        assert shape is not None, "asked of `misfit` before"
        self.genotype = genotype
        layers: list[nn.Module] = [nn.Conv2d(shape[0], channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)]
        for stage in range(reductions + 1):
            if stage:
                layers.append(ResidualHalving(channels, 2 * channels))
                channels *= 2
            layers += [DenseCell(genotype.normal, channels) for _ in range(cells)]
        self.body = nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU())
        self.head = nn.Linear(channels, spec.outputs)

    def features(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """One image → the mean over the last maps [B, F]."""
        (image,) = inputs.values()
        maps: Tensor = self.body(image)
        return maps.mean((2, 3))


class DenseCell(nn.Module):
    """A cell with one input whose output is its last node."""

    def __init__(self, cell: Cell, channels: int) -> None:
        super().__init__()
        self.cell = cell
        self.operations = nn.ModuleList(
            operation(edge.operation, channels, channels, 1, affine=True) for node in cell.nodes for edge in node
        )

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, C, H, W] → the same shape."""
        states, chosen = [inputs], iter(self.operations)
        for edges in self.cell.nodes:
            states.append(_sum([next(chosen)(states[edge.source]) for edge in edges]))
        return torch.cat([states[state] for state in self.cell.concat], 1)


class ResidualHalving(nn.Module):
    """Two 3×3 convolutions, the first of stride 2, beside a mean pooling and a 1×1 convolution."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        self.first = operation("nor_conv_3x3", channels_in, channels_out, 2, affine=True)
        self.second = operation("nor_conv_3x3", channels_out, channels_out, 1, affine=True)
        pool = nn.AvgPool2d(2, 2, ceil_mode=True)  # of odd sides the last pixels alone
        self.shortcut = nn.Sequential(pool, nn.Conv2d(channels_in, channels_out, 1, bias=False))

    def forward(self, inputs: Tensor) -> Tensor:
        """[B, C, H, W] → [B, C', ⌈H/2⌉, ⌈W/2⌉]."""
        maps: Tensor = self.shortcut(inputs) + self.second(self.first(inputs))
        return maps
