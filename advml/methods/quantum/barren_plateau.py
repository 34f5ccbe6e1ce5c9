"""Barren plateaus (McClean et al. 2018, arXiv 1803.11173): the variance of a gradient over qubits and depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from advml.artifacts import Artifact, Curve, Table
from advml.config import CountInt, PositiveInt, settings
from advml.contracts import At, Context, Method, Metrics, Needs, Nothing, Objective, Phase, Record, SplitName, Step
from advml.errors import ConfigError
from advml.nn.quantum.random_circuits import Drawn, Turns, draw, first_gradients, line

LARGEST = 14  # qubits


@settings
class Settings:
    """Which sizes are measured, on how many random circuits."""

    qubits: tuple[PositiveInt, ...]
    depths: tuple[PositiveInt, ...]
    depths_per_qubit: tuple[PositiveInt, ...]
    turns: Turns
    costs: tuple[Literal["local", "global"], ...]
    samples: CountInt


class BarrenPlateau(Method):
    """Var ∂⟨O⟩/∂θ over random circuits, for every number of qubits and depth; log₂ Var over qubits gets a line.

    A step is one size. Nothing is trained. `slope` is that of the last depth and the last cost: −1 halves the
    variance with each qubit, 0 is no plateau.
    """

    settings = Settings
    needs = Needs(view="none", targets=(Nothing,), model=False, precisions=("float32", "float64"))
    objective = Objective("slope", "valid", "max", keep_best=False)

    def setup(self, context: Context) -> None:
        """The sizes to measure."""
        self.context, self.config = context, context.settings
        config = self.config
        for qubits in config.qubits:
            if not 2 <= qubits <= LARGEST:
                raise ConfigError(f"method.qubits: {qubits}; give 2 to {LARGEST}, since the local cost reads two")
        if not config.qubits or not config.costs or not config.depths + config.depths_per_qubit:
            raise ConfigError("method.qubits, method.costs and one list of depths must not be empty")
        if len(set(config.qubits)) != len(config.qubits):
            raise ConfigError("method.qubits: a size is given twice; give each once")
        if config.samples < 2:
            raise ConfigError("method.samples: a variance needs at least 2")
        fixed = {f"depth{depth}": dict.fromkeys(config.qubits, depth) for depth in config.depths}
        growing = {f"depth{times}n": {n: times * n for n in config.qubits} for times in config.depths_per_qubit}
        self.depths = fixed | growing  # name → qubits → layers
        self.sizes = [(name, qubits) for name in self.depths for qubits in config.qubits]
        shape = (len(self.depths), len(config.qubits), len(config.costs))
        self.variances = torch.zeros(shape, dtype=torch.float64)  # 0: not yet measured

    def phases(self) -> Sequence[Phase]:
        """One phase, a step for each size."""
        return [Phase("variance", "size", len(self.sizes))]

    def step(self, at: At) -> Step:
        """The variance of the gradient for one number of qubits and one depth."""
        name, qubits = self.sizes[at.index]
        config, depth = self.config, self.depths[name][qubits]
        drawn = draw(config.turns, config.samples, depth, qubits, self.context.rng("circuits", qubits, depth))
        angles = drawn.angles.to(self.context.device, self.context.dtype)
        gradients = first_gradients(Drawn(drawn.axes.to(angles.device), angles), config.costs)
        self.context.count(circuits=2 * config.samples)
        place = divmod(at.index, len(config.qubits))
        metrics: dict[str, float | Tensor] = {"qubits": qubits, "depth": depth}
        for column, cost in enumerate(config.costs):
            variance = gradients[cost].double().var()
            self.variances[(*place, column)] = variance.cpu()
            metrics[f"variance_{cost}"] = variance
        return Step(metrics)

    def evaluate(self, split: SplitName) -> Metrics:
        """The slope of log₂ Var over qubits for each depth and cost with at least two sizes, and its standard error.

        `slope` is that of the last depth and the last cost, once all of it is measured.
        """
        if split != "valid":
            return {}
        found: dict[str, float | None] = {"slope": None}
        qubits = torch.tensor(self.config.qubits, dtype=torch.float64)
        for row, name in enumerate(self.depths):
            for column, cost in enumerate(self.config.costs):
                variances = self.variances[row, :, column]
                known = variances > 0
                if int(known.sum()) < 2:
                    continue
                slope, error = line(qubits[known], variances[known].log2())
                found |= {f"slope_{cost}/{name}": slope, f"slope_error_{cost}/{name}": error}
        if bool((self.variances[-1, :, -1] > 0).all()):
            found["slope"] = found.get(f"slope_{self.config.costs[-1]}/{list(self.depths)[-1]}")
        return found

    def state_dict(self) -> dict[str, Any]:
        """What has been measured."""
        return {"variances": self.variances}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it."""
        self.variances = state["variances"].clone()

    def artifacts(self, records: Sequence[Record]) -> Mapping[str, Artifact]:
        """All variances, and log₂ of them over qubits."""
        rows, lines = [], {}
        for row, name in enumerate(self.depths):
            for column, cost in enumerate(self.config.costs):
                values = self.variances[row, :, column]
                for qubits, value in zip(self.config.qubits, values.tolist(), strict=True):
                    rows.append([cost, name, qubits, self.depths[name][qubits], value])
                lines[f"{cost}, {name}"] = _logs(values)
        title = "Variance of a gradient over random circuits"
        curve = Curve([float(n) for n in self.config.qubits], lines, "qubits", "log₂ Var ∂⟨O⟩/∂θ", title)
        table = Table(["cost", "depth", "qubits", "layers", "variance"], rows)
        return {"variances": table, "variance_by_qubits": curve}


def _logs(values: Tensor) -> list[float | None]:
    """log₂, None where nothing was measured or nothing varied."""
    return [float(value.log2()) if value > 0 else None for value in values]
