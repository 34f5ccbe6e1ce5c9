"""Watching a search by gradients for the collapse to skip connections, and stopping before it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from advml.artifacts import Artifact, Curve
from advml.config import CountInt, PositiveFloat, PositiveInt, settings
from advml.nn.cells.genotype import Genotype
from advml.nn.cells.supernet import Supernet


@settings
class StopSettings:
    """The block `stop` of configs/method/darts.yaml."""

    kind: Literal["none", "eigenvalue", "skips"]
    start: CountInt
    window: PositiveInt
    ratio: PositiveFloat
    delta: PositiveInt
    skips: PositiveInt


class Monitor:
    """Once an epoch: the mean weight of each operation, the skips of the derived cells, λ_max of the Hessian.

    `kept`: the genotype to go back to, once the search was stopped.
    """

    def __init__(self, config: StopSettings, operations: Sequence[str]) -> None:
        self.config, self.operations = config, tuple(operations)
        self.weights: list[Tensor] = []  # of each epoch [kinds, O]
        self.genotypes: list[Genotype] = []
        self.eigenvalues: list[float] = []
        self.kept: Genotype | None = None

    def epoch(self, network: Supernet, eigenvalue: Tensor | None) -> tuple[dict[str, Any], bool]:
        """What to record, and whether to stop."""
        mix = network.mixing()
        self.weights.append(torch.stack([mix[kind].detach().mean(0).cpu() for kind in network.alphas]))
        self.genotypes.append(network.derive())
        told: dict[str, Any] = {
            f"skips_{kind}": cell.count("skip_connect") for kind, cell in self.genotypes[-1].cells.items()
        }
        if eigenvalue is not None:
            self.eigenvalues.append(float(eigenvalue))
            told["eigenvalue"] = self.eigenvalues[-1]
        self.kept = self._rolled_back()
        return told, self.kept is not None

    def _rolled_back(self) -> Genotype | None:
        config, now = self.config, len(self.genotypes)
        if config.kind == "none" or now <= config.start:
            return None
        if config.kind == "skips":
            # DARTS+ (Liang et al. 2019): too many in the normal cell; go back to the last genotype that had fewer.
            if self.genotypes[-1].normal.count("skip_connect") < config.skips:
                return None
            fewer = [one for one in self.genotypes if one.normal.count("skip_connect") < config.skips]
            return fewer[-1] if fewer else self.genotypes[-1]
        before = jumped(self.eigenvalues, config.window, config.ratio, config.delta)
        return None if before is None else self.genotypes[before]

    def state_dict(self) -> dict[str, Any]:
        """The history."""
        return {
            "weights": list(self.weights),
            "genotypes": [genotype.to_dict() for genotype in self.genotypes],
            "eigenvalues": list(self.eigenvalues),
            "kept": None if self.kept is None else self.kept.to_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it."""
        self.weights = list(state["weights"])
        self.genotypes = [Genotype.from_dict(genotype) for genotype in state["genotypes"]]
        self.eigenvalues = list(state["eigenvalues"])
        self.kept = None if state["kept"] is None else Genotype.from_dict(state["kept"])

    def pictures(self) -> dict[str, Artifact]:
        """Curves over epochs; none before the second."""
        epochs = list(range(1, len(self.weights) + 1))
        if len(epochs) < 2:
            return {}
        found: dict[str, Artifact] = {}
        kinds = list(self.genotypes[0].cells)
        for number, kind in enumerate(kinds):
            lines = {
                name: [float(weights[number, place]) for weights in self.weights]
                for place, name in enumerate(self.operations)
            }
            title = f"Operations of the {kind} cell"
            found[f"operations_{kind}"] = Curve(epochs, lines, "epoch", "mean weight over edges", title)
        skips = {kind: [float(one.cells[kind].count("skip_connect")) for one in self.genotypes] for kind in kinds}
        found["skips"] = Curve(epochs, skips, "epoch", "edges that skip", "Skips of the derived cells")
        if len(self.eigenvalues) == len(epochs):
            title = "Curvature of the validation loss"
            found["eigenvalue"] = Curve(epochs, {"largest": self.eigenvalues}, "epoch", "eigenvalue of ∇²α L", title)
        return found


def jumped(eigenvalues: Sequence[float], window: int, ratio: float, delta: int) -> int | None:
    """RobustDARTS' rule (Zela et al. 2020, section 5.1): the index of the epoch to go back to, or None.

    Averages over the last `window` epochs are compared: that of now may be at most `ratio` times that of `delta`
    epochs ago.
    """
    now = len(eigenvalues) - 1
    before = now - delta
    if before < 0:
        return None
    means = [sum(eigenvalues[max(0, at + 1 - window) : at + 1]) / min(window, at + 1) for at in (before, now)]
    return before if means[0] > 0 and means[1] / means[0] > ratio else None
