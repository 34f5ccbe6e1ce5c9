"""A supernet: every edge computes all operations, mixed by weights; an architecture is read off the weights.

One class serves both cell spaces. In `darts_cells` a node reads every earlier state over one edge; in `enas_micro`
over two, one for each half of its block, with convolutions of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Interval
from torch import Tensor, nn
from torch.nn import functional as F

from advml.config import PositiveInt, settings
from advml.contracts import Network, Spec
from advml.errors import ConfigError, did_you_mean
from advml.nn.cells.fused import fused_cell
from advml.nn.cells.genotype import SPACES, Cell, Edge, Genotype
from advml.nn.cells.operations import Zero, operation
from advml.nn.cells.spaces import KINDS, loose_ends
from advml.nn.cells.stack import Place, Preprocess, misfit, places, stem

Mix = Mapping[str, Tensor]
"""Kind → weight of each operation on each edge [E, O]; with partial channels also "normal edges" → [E]."""
Active = Mapping[str, tuple[tuple[int, ...], ...]]
"""Kind → for each edge the operations that are computed at all; the others count as absent, not as zero times."""


@settings
class SupernetSettings:
    """The keys of configs/model/darts_cells.yaml and enas_micro.yaml."""

    channels: PositiveInt
    cells: PositiveInt
    nodes: PositiveInt
    reductions: Annotated[int, Interval(ge=0, le=4)]
    operations: tuple[str, ...]
    partial: PositiveInt
    auxiliary_skip: bool
    affine: bool
    engine: Literal["plain", "fused"]

    def __post_init__(self) -> None:
        """Operations exist and are named once; channels can be divided into parts."""
        if not self.operations or len(set(self.operations)) < len(self.operations):
            raise ValueError("operations: name one or more different operations")
        if self.reductions > self.cells:
            raise ValueError(
                f"reductions: {self.cells} cells cannot halve the image {self.reductions} times; use fewer"
            )
        if self.channels % self.partial:
            raise ValueError(f"partial: {self.channels} channels cannot be divided into {self.partial} equal parts")


def edges_of(space: str, nodes: int) -> tuple[tuple[int, int], ...]:
    """The edges of a supernet's cell as (node, source), in the order of the rows of α."""
    times = 2 if space == "enas_micro" else 1
    return tuple((node, source) for node in range(nodes) for _ in range(times) for source in range(2 + node))


class MixedEdge(nn.Module):
    """One edge: Σ w_o · operation_o(x). Shared by both engines, which differ in how they compute it.

    `partial` = K > 1 (PC-DARTS, Xu et al. 2020): only 1/K of the channels pass through operations, the rest is handed
    on, and channels are shuffled so that every part has its turn. `auxiliary`: the skip of DARTS− (Chu et al. 2021).
    """

    def __init__(self, names: Sequence[str], channels: int, stride: int, config: SupernetSettings, norm: bool) -> None:
        super().__init__()
        width, affine = channels // config.partial, config.affine
        self.names, self.partial, self.width, self.stride = tuple(names), config.partial, width, stride
        self.operations = nn.ModuleList(operation(name, width, width, stride, affine) for name in names)
        pools = ["pool" in name and norm for name in names]
        self.norms = nn.ModuleList(nn.BatchNorm2d(width, affine=affine) if pool else nn.Identity() for pool in pools)
        skips = config.auxiliary_skip
        self.auxiliary = operation("skip_connect", channels, channels, stride, affine) if skips else None

    def forward(self, inputs: Tensor, weights: Tensor, active: Sequence[int], skip: Tensor) -> Tensor | None:
        """`weights` [O] → the mixture of the `active` operations; None where nothing but zeros is to be added."""
        part = inputs[:, : self.width] if self.partial > 1 else inputs
        total: Tensor | None = None
        for number in active:
            chosen = self.operations[number]
            if isinstance(chosen, Zero):
                continue  # zeros, which change neither the sum nor a gradient: that of their weight is 0
            term = weights[number] * self.norms[number](chosen(part))
            total = term if total is None else total + term
        return self.finish(inputs, total, skip)

    def finish(self, inputs: Tensor, total: Tensor | None, skip: Tensor) -> Tensor | None:
        """What comes after the operations: the channels that passed by, the auxiliary skip."""
        if self.partial > 1:
            rest = inputs[:, self.width :]
            rest = F.max_pool2d(rest, 2, ceil_mode=True) if self.stride > 1 else rest
            mixed = rest.new_zeros(len(rest), self.width, *rest.shape[2:]) if total is None else total
            total = shuffled(torch.cat([mixed, rest], 1), self.partial)
        if self.auxiliary is not None:
            kept = skip * self.auxiliary(inputs)
            total = kept if total is None else total + kept
        return total


def shuffled(maps: Tensor, parts: int) -> Tensor:
    """Channels [B, K · c, H, W] in the order 0, c, 2c, …, 1, c + 1, …: one of each part in turn."""
    batch, channels, height, width = maps.shape
    split = maps.view(batch, parts, channels // parts, height, width)
    return split.transpose(1, 2).reshape(batch, channels, height, width)


class SuperCell(nn.Module):
    """All edges of a cell."""

    def __init__(self, space: str, place: Place, config: SupernetSettings) -> None:
        super().__init__()
        enas = space == "enas_micro"
        self.kind, self.nodes, self.loose, self.fused = place.kind, config.nodes, enas, config.engine == "fused"
        self.wiring = edges_of(space, config.nodes)
        self.preprocess = Preprocess(place, config.affine, halve=enas)
        self.stride = 2 if place.kind == "reduce" and not enas else 1  # that of edges from the inputs
        self.edges = nn.ModuleList(
            MixedEdge(config.operations, place.channels, self.stride if source < 2 else 1, config, norm=not enas)
            for _, source in self.wiring
        )

    def forward(self, older: Tensor, newer: Tensor, mix: Mix, active: Active, skip: Tensor) -> Tensor:
        """The outputs of the two cells before → all nodes, concatenated [B, nodes · C, H', W']."""
        weights, chosen = mix[self.kind], active[self.kind]
        if self.fused and all(len(numbers) == weights.shape[1] for numbers in chosen) and self.ordinary_norms():
            return fused_cell(self, older, newer, mix, skip)
        states = self.preprocess(older, newer)
        of_edges = mix.get(f"{self.kind} edges")
        rows = list(enumerate(zip(self.wiring, self.edges, strict=True)))
        for node in range(self.nodes):
            total: Tensor | None = None
            for row, ((target, source), edge) in rows:
                if target != node or not chosen[row]:
                    continue
                term = edge(states[source], weights[row], chosen[row], skip)
                if term is not None:
                    term = term if of_edges is None else of_edges[row] * term
                    total = term if total is None else total + term
            states.append(self.nothing(states) if total is None else total)
        return self.collect(states, chosen)

    def ordinary_norms(self) -> bool:
        """Do batch norms move their running averages as they do when made? Only so the fused cell computes them.

        Who makes them stand still, or puts others in their place, does so with all of the network: two of them tell.
        """
        norms = [module for module in self.preprocess.modules() if isinstance(module, nn.BatchNorm2d)]
        return bool(norms) and all(norm.track_running_stats and norm.momentum == 0.1 for norm in norms)

    def nothing(self, states: Sequence[Tensor]) -> Tensor:
        """A node that gets only zeros, in the size of the cell's nodes."""
        like = states[-1] if len(states) > 2 else states[0][:, :, :: self.stride, :: self.stride]
        return torch.zeros_like(like)

    def collect(self, states: Sequence[Tensor], chosen: Sequence[Sequence[int]]) -> Tensor:
        """The output; of a single ENAS architecture the states that another node reads are zero in it.

        `chosen`: the operations on each edge; () where all are mixed.
        """
        nodes = list(states[2:])
        if self.loose and chosen and self.single(chosen):
            read = {source for (_, source), numbers in zip(self.wiring, chosen, strict=True) if numbers}
            nodes = [torch.zeros_like(node) if 2 + number in read else node for number, node in enumerate(nodes)]
        return torch.cat(nodes, 1)

    def single(self, chosen: Sequence[Sequence[int]]) -> bool:
        """Is this one architecture of ENAS: in each block at most two edges, with one operation each?"""
        edges = [0] * self.nodes
        for (node, _), numbers in zip(self.wiring, chosen, strict=True):
            edges[node] += bool(numbers)
        return max(edges) <= 2 and all(len(numbers) <= 1 for numbers in chosen)


class Supernet(Network):
    """A stack of cells that share the architecture parameters of their kind.

    `alphas`: kind → Parameter [edges, operations], drawn as 1e-3 · N(0, 1); `betas`: with partial channels, kind →
    Parameter [edges], the weights of the edges into a node. `skip_weight`: the factor of DARTS−'s auxiliary skip, a 0-d
    buffer that the method fills; saved where there are such skips. Every key of the state is the same for both engines.
    """

    settings: ClassVar[type] = SupernetSettings
    space: ClassVar[str] = "darts_cells"
    skip_weight: Tensor

    @classmethod
    def check(cls, spec: Spec, settings: Any) -> str | None:
        """Serves one image that is large enough to be halved, and any target but none.

        Raises ConfigError for an operation that the space does not have.
        """
        space = SPACES[cls.space]
        for name in settings.operations:
            if name not in space:
                known = f"{did_you_mean(name, space)}; there are {', '.join(space)}"
                raise ConfigError(f"model.operations: {cls.space} has no operation {name}{known}")
        return misfit(spec, settings.reductions)

    def __init__(self, spec: Spec, settings: SupernetSettings) -> None:
        super().__init__()
        shape = spec.image
        if shape is None or self.check(spec, settings):
            raise ConfigError(f"model={self.space}: needs {self.check(spec, settings)}")
        self.config, self.operations = settings, tuple(settings.operations)
        self.wiring = edges_of(self.space, settings.nodes)
        self.stem = stem(shape[0], settings.channels)
        outputs = dict.fromkeys(KINDS, settings.nodes)
        stack = places(settings.cells, settings.channels, settings.reductions, outputs)
        self.cells = nn.ModuleList(SuperCell(self.space, place, settings) for place in stack)
        self.head = nn.Linear(settings.nodes * stack[-1].channels, spec.outputs)
        size = len(self.wiring), len(self.operations)
        self.alphas = nn.ParameterDict({kind: nn.Parameter(1e-3 * torch.randn(size)) for kind in KINDS})
        edges = {kind: nn.Parameter(1e-3 * torch.randn(size[0])) for kind in KINDS if settings.partial > 1}
        self.betas = nn.ParameterDict(edges)
        self.register_buffer("skip_weight", torch.ones(()), persistent=settings.auxiliary_skip)

    def architecture(self) -> list[nn.Parameter]:
        """α, and β where there are any: never among `weights()`."""
        return [*self.alphas.values(), *self.betas.values()]

    def weights(self) -> list[nn.Parameter]:
        """All parameters but those of the architecture."""
        mine = {id(parameter) for parameter in self.architecture()}
        return [parameter for parameter in self.parameters() if id(parameter) not in mine]

    def mixing(self) -> dict[str, Tensor]:
        """The mixture by today's parameters: softmax of α along operations, of β along the edges into a node."""
        mix = {kind: alpha.softmax(-1) for kind, alpha in self.alphas.items()}
        return mix | {f"{kind} edges": self._per_node(beta) for kind, beta in self.betas.items()}

    def _per_node(self, beta: Tensor) -> Tensor:
        counts = [sum(node == number for node, _ in self.wiring) for number in range(self.config.nodes)]
        return torch.cat([part.softmax(0) for part in beta.split(counts)])

    def features(self, inputs: Mapping[str, Tensor], mix: Mix | None = None, active: Active | None = None) -> Tensor:
        """[B, F]; see `forward`."""
        if active is None:
            every = tuple(range(len(self.operations)))
            active = dict.fromkeys(KINDS, tuple(every for _ in self.wiring)) if mix is None else self.actives(mix)
        mix = self.mixing() if mix is None else mix
        (image,) = inputs.values()
        if self.config.engine == "fused" and not torch._C._are_functorch_transforms_active():
            image = image.contiguous(memory_format=torch.channels_last)
        older = newer = self.stem(image)
        for cell in self.cells:
            older, newer = newer, cell(older, newer, mix, active, self.skip_weight)
        maps: Tensor = newer
        return maps.mean((2, 3))

    def forward(self, inputs: Mapping[str, Tensor], mix: Mix | None = None, active: Active | None = None) -> Tensor:
        """Logits under a mixture: `mixing()` by default, `selection(genotype)` for one architecture.

        `active` spares the operations that it does not name; without it those whose weight in `mix` is 0, which are
        looked at for this: on another device than the CPU that means to wait.
        """
        outputs: Tensor = self.head(self.features(inputs, mix, active))
        return outputs

    def actives(self, mix: Mix) -> dict[str, tuple[tuple[int, ...], ...]]:
        """The operations whose weight is not 0."""
        rows = {kind: mix[kind].detach().tolist() for kind in KINDS}
        return {
            kind: tuple(tuple(o for o, weight in enumerate(row) if weight != 0) for row in rows[kind]) for kind in KINDS
        }

    def selection(self, genotype: Genotype) -> tuple[dict[str, Tensor], dict[str, tuple[tuple[int, ...], ...]]]:
        """(mix, active) under which the supernet computes one architecture: weight 1 on its edges, none elsewhere."""
        mix: dict[str, Tensor] = {}
        active: dict[str, tuple[tuple[int, ...], ...]] = {}
        like = self.alphas["normal"]
        for kind, cell in genotype.cells.items():
            rows = self._rows(cell)
            active[kind] = tuple((rows[row],) if row in rows else () for row in range(len(self.wiring)))
            hot = torch.zeros(len(self.wiring), len(self.operations), dtype=like.dtype)
            for row, number in rows.items():
                hot[row, number] = 1
            mix[kind] = hot.to(like.device)
            if self.betas:
                mix[f"{kind} edges"] = hot.sum(1).to(like.device)
        return mix, active

    def _rows(self, cell: Cell) -> dict[int, int]:
        """Row of α → operation, for the edges of a cell; both halves of an ENAS block have rows of their own."""
        rows: dict[int, int] = {}
        for node, edges in enumerate(cell.nodes):
            for half, edge in enumerate(edges):
                fitting = [row for row, wire in enumerate(self.wiring) if wire == (node, edge.source)]
                if not fitting or edge.operation not in self.operations:
                    raise ConfigError(f"genotype: {edge.operation} from state {edge.source} is not in this supernet")
                rows[fitting[half] if len(fitting) > 1 else fitting[0]] = self.operations.index(edge.operation)
        return rows

    def derive(self) -> Genotype:
        """The architecture that today's parameters favour: see `derived`."""
        return derived(self.space, self.wiring, self.operations, self.mixing())

    def skips(self) -> dict[str, int]:
        """Kind → how many edges of the derived cell are skips."""
        return {kind: cell.count("skip_connect") for kind, cell in self.derive().cells.items()}


def derived(
    space: str, wiring: Sequence[tuple[int, int]], operations: Sequence[str], mix: Mapping[str, Tensor]
) -> Genotype:
    """The genotype of a mixture [E, O] (times the edges' own weights, where there are any); `none` is never chosen.

    DARTS: of each node the two edges whose strongest operation is strongest, each with that operation; of equals the
    one that comes first. ENAS: of each half of a block the strongest pair of source and operation.
    """
    cells = []
    for kind in KINDS:
        weights = mix[kind].detach()
        if f"{kind} edges" in mix:
            weights = weights * mix[f"{kind} edges"].detach().unsqueeze(1)
        best = [_strongest(row, operations) for row in weights.double().cpu().tolist()]
        nodes = [tuple(_chosen(space, node, wiring, best)) for node in range(1 + max(node for node, _ in wiring))]
        concat = loose_ends(nodes) if space == "enas_micro" else tuple(range(2, 2 + len(nodes)))
        cells.append(Cell(tuple(nodes), concat))
    return Genotype(space, *cells)


def _strongest(row: Sequence[float], operations: Sequence[str]) -> tuple[float, str]:
    allowed = [(weight, name) for weight, name in zip(row, operations, strict=True) if name != "none"]
    if not allowed:
        raise ConfigError("operations: a search space of none alone has no architecture")
    return max(allowed, key=lambda pair: pair[0])


def _chosen(
    space: str, node: int, wiring: Sequence[tuple[int, int]], best: Sequence[tuple[float, str]]
) -> Iterator[Edge]:
    rows = [row for row, (target, _) in enumerate(wiring) if target == node]
    if space == "enas_micro":
        halves = rows[: len(rows) // 2], rows[len(rows) // 2 :]
        for half in halves:
            row = max(half, key=lambda row: best[row][0])
            yield Edge(best[row][1], wiring[row][1])
    else:
        for row in sorted(rows, key=lambda row: -best[row][0])[:2]:
            yield Edge(best[row][1], wiring[row][1])
