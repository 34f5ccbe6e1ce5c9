"""QAOA for MaxCut (Farhi, Goldstone, Gutmann 2014, arXiv 1411.4028), beside exhaustive search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval
from torch import Tensor, nn

from advml.artifacts import Artifact, Curve, Table
from advml.config import PositiveFloat, PositiveInt, settings
from advml.contracts import At, Context, Method, Metrics, Needs, Nothing, Objective, Phase, Record, SplitName, Step
from advml.errors import ConfigError
from advml.nn.optimisers import OptimiserSettings, clip_gradients, learning_rate, make_optimiser
from advml.nn.quantum import maxcut

LARGEST = 16  # nodes: 65,536 amplitudes, and as many cuts to search


@settings
class Settings(OptimiserSettings):
    """Which graphs, how deep a circuit, how long each depth is optimised."""

    graph: Literal["regular", "erdos_renyi", "ring", "listed"]
    nodes: PositiveInt
    degree: PositiveInt
    probability: Annotated[float, Interval(gt=0, le=1)]
    edges: tuple[tuple[int, int], ...]
    weights: Literal["one", "uniform"]
    graphs: PositiveInt
    depth: PositiveInt
    iterations: PositiveInt
    block: PositiveInt
    nudge: PositiveFloat


class Qaoa(Method):
    """Maximise the mean cut ⟨C⟩ over γ, β, for depth p = 1, 2, … in turn; a step is a block of iterations.

    Depth p starts from the best angles of p − 1 with a layer of zeros, which changes nothing: the ratio ⟨C⟩ / max C
    cannot fall. From there two searches go, one each way along the direction of largest curvature; all graphs and both
    searches run side by side. States are complex128.
    """

    settings = Settings
    needs = Needs(view="none", targets=(Nothing,), model=False, precisions=("float32", "float64"))
    objective = Objective("ratio", "valid", "max", keep_best=False)

    def setup(self, context: Context) -> None:
        """Graphs, and all their cuts."""
        self.context, self.config = context, context.settings
        config = self.config
        if not 2 <= config.nodes <= LARGEST:
            raise ConfigError(f"method.nodes={config.nodes}: 2 to {LARGEST}, whose cuts can all be searched")
        if config.graph == "ring" and config.nodes == 2:
            raise ConfigError("method.nodes=2: a ring needs 3; use more, or method.graph=listed method.edges=[[0,1]]")
        self.edges = [self._edges(number) for number in range(config.graphs)]
        self.weights = [self._weights(number) for number in range(config.graphs)]
        cuts = [maxcut.cut_values(e, w, config.nodes) for e, w in zip(self.edges, self.weights, strict=True)]
        self.cuts = torch.stack(cuts).to(context.device)
        self.largest = self.cuts.amax(1)
        if not bool((self.largest > 0).all()):
            raise ConfigError("method.graph: a graph has no edge; use more edges, or another seed")
        if config.graphs > 1 and config.graph in ("ring", "listed") and config.weights == "one":
            raise ConfigError(
                f"method.graphs={config.graphs}: all would be this one; use method.graphs=1 or method.weights=uniform"
            )
        self.angles = nn.Parameter(self.cuts.new_zeros(config.graphs, 2, 2 * config.depth))  # γ, β of both searches
        self.best = self.cuts.new_zeros(config.graphs, 2 * config.depth)
        self.value = self._values(self.best.unsqueeze(1))[:, 0]  # ⟨C⟩ at the best angles so far
        self.optimiser = make_optimiser([self.angles], config)

    def _edges(self, number: int) -> maxcut.Edges:
        config, generator = self.config, self.context.rng("graph", number)
        match config.graph:
            case "ring":
                return maxcut.ring(config.nodes)
            case "erdos_renyi":
                return maxcut.erdos_renyi(config.nodes, config.probability, generator)
            case "regular":
                try:
                    return maxcut.random_regular(config.nodes, config.degree, generator)
                except ValueError as error:
                    raise ConfigError(f"method.degree: {error}") from None
        for edge in config.edges:
            if edge[0] == edge[1] or not all(0 <= node < config.nodes for node in edge):
                raise ConfigError(f"method.edges: {list(edge)}: give two different nodes of 0 to {config.nodes - 1}")
        return list(config.edges)

    def _weights(self, number: int) -> list[float]:
        """1 for each edge, or uniform in [0, 1)."""
        count = len(self.edges[number])
        if self.config.weights == "one":
            return [1.0] * count
        drawn = torch.rand(count, generator=self.context.rng("weights", number), dtype=torch.float64)
        return [float(weight) for weight in drawn]

    def phases(self) -> Sequence[Phase]:
        """A phase for each depth."""
        blocks = -(-self.config.iterations // self.config.block)
        return [Phase(f"p{depth}", "block", blocks) for depth in range(1, self.config.depth + 1)]

    def _values(self, angles: Tensor) -> Tensor:
        """⟨C⟩ [G, S] of angles [G, S, 2·depth]; layers whose angles are zero do nothing."""
        gammas, betas = angles.unflatten(-1, (2, -1)).unbind(-2)
        return maxcut.expected_cut(self.cuts.unsqueeze(1), gammas, betas)

    def step(self, at: At) -> Step:
        """A block of iterations at one depth; the angles of layers beyond it stay zero."""
        config, depth = self.config, at.phase + 1
        if at.index == 0:
            self._begin(depth)
        start = at.index * config.block
        stop = min(start + config.block, config.iterations)
        for iteration in range(start, stop):
            self.optimiser.lr = learning_rate(config, iteration, config.iterations)
            self.optimiser.zero_grad()
            active = self.angles.unflatten(-1, (2, -1))[..., :depth]
            values = maxcut.expected_cut(self.cuts.unsqueeze(1), active[..., 0, :], active[..., 1, :])
            self._keep(values.detach())
            (-values.sum()).backward()
            if config.clip_norm is not None:
                clip_gradients([self.angles], config.clip_norm)
            self.optimiser.step()
        self.optimiser.zero_grad()
        with torch.no_grad():
            self._keep(self._values(self.angles))
        self.context.count(updates=stop - start, circuits=(stop - start) * 2 * config.graphs)
        return Step({"ratio": (self.value / self.largest).mean(), "cut": self.value.mean()})

    @torch.no_grad()
    def _begin(self, depth: int) -> None:
        """Both searches from the best angles so far, nudged one way and the other; the optimiser forgets."""
        columns = [*range(depth), *range(self.config.depth, self.config.depth + depth)]
        for graph, cuts in enumerate(self.cuts):
            with torch.enable_grad():
                direction = maxcut.escape(cuts, self.best[graph, columns])
            self.angles[graph] = self.best[graph]
            self.angles[graph, 0, columns] += self.config.nudge * direction
            self.angles[graph, 1, columns] -= self.config.nudge * direction
        self.optimiser = make_optimiser([self.angles], self.config)

    @torch.no_grad()
    def _keep(self, values: Tensor) -> None:
        """Remember the better of both searches where it beats the best so far; values [G, 2]."""
        value, search = values.max(1)
        better = value > self.value
        found = self.angles[torch.arange(len(search), device=search.device), search]
        self.best = torch.where(better.unsqueeze(1), found, self.best)
        self.value = torch.where(better, value, self.value)

    def evaluate(self, split: SplitName) -> Metrics:
        """Over graphs: the mean and the smallest ratio ⟨C⟩ / max C; the mean probability to measure a largest cut."""
        if split != "valid":
            return {}
        ratio = self.value / self.largest
        gammas, betas = self.best.unflatten(-1, (2, -1)).unbind(-2)
        chances = maxcut.qaoa_states(self.cuts, gammas, betas).abs().square()
        hit = (chances * (self.cuts > self.largest.unsqueeze(1) - 1e-9)).sum(1)
        return {"ratio": ratio.mean(), "ratio_min": ratio.min(), "hit": hit.mean()}

    def state_dict(self) -> dict[str, Any]:
        """Both searches, the best so far, the optimiser."""
        angles = self.angles.detach()
        return {"angles": angles, "best": self.best, "value": self.value, "optimiser": self.optimiser.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        with torch.no_grad():
            self.angles.copy_(state["angles"])
        self.best, self.value = state["best"].to(self.best), state["value"].to(self.value)
        self.optimiser.load_state_dict(state["optimiser"])

    def summary(self, records: Sequence[Record]) -> Metrics:
        """`ratio_p1`, `ratio_p2`, …: the mean ratio when each depth was done."""
        return {f"ratio_{phase}": value for phase, value in self._by_depth(records).items()}

    def _by_depth(self, records: Sequence[Record]) -> dict[str, float]:
        """Phase → the last training record of its ratio."""
        return {r["phase"]: r["ratio"] for r in records if r["split"] == "train" and r.get("ratio") is not None}

    def artifacts(self, records: Sequence[Record]) -> Mapping[str, Artifact]:
        """Graphs, their largest cuts and best angles; the ratio over depths."""
        columns = ["graph", "edges", "largest cut", "mean cut", "ratio", "γ", "β"]
        rows = []
        for number, edges in enumerate(self.edges):
            gammas, betas = self.best[number].unflatten(0, (2, -1)).tolist()
            largest, value = float(self.largest[number]), float(self.value[number])
            shown = " ".join(f"{a}-{b}" for a, b in edges)
            rows.append([number, shown, largest, value, value / largest, _row(gammas), _row(betas)])
        made: dict[str, Artifact] = {"graphs": Table(columns, rows)}
        found = self._by_depth(records)
        if len(found) > 1:
            depths = [int(phase.removeprefix("p")) for phase in found]
            lines = {"mean over graphs": list(found.values())}
            made["ratio_by_depth"] = Curve(depths, lines, "depth p", "approximation ratio", "QAOA on MaxCut")
        return made


def _row(angles: Sequence[float]) -> str:
    return " ".join(f"{angle:.6f}" for angle in angles)
