"""Two towers into one space, where what belongs together lies close (Radford et al. 2021)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from advml.config import PositiveFloat, PositiveInt, settings
from advml.contracts import Spec
from advml.models.fusion import Encoded, FusionNetwork
from advml.nn.multimodal.encoders import INITIAL, TowerSettings


@settings
class ClipSettings(TowerSettings):
    """The common space."""

    embedding: PositiveInt
    temperature: PositiveFloat


class Clip(FusionNetwork):
    """x_m → W_m x_m / ‖W_m x_m‖; pairs score exp(log_scale) · ⟨u, v⟩. The scale is learned in log space.

    As a classifier its features are [u, v, exp(log_scale) · u ⊙ v], so that an affine head can read the score.
    """

    settings: ClassVar[type] = ClipSettings
    fewest: ClassVar[int] = 2
    most: ClassVar[int | None] = 2

    @classmethod
    def check(cls, spec: Spec, settings: Any) -> str | None:
        """Serves two modalities, and any target; contrastive learning needs none."""
        return cls.check_streams(spec)

    def __init__(self, spec: Spec, settings: ClipSettings) -> None:
        super().__init__(spec, settings)
        for value in self.missing.values():  # not zeros: a vector of length 0 has no direction
            nn.init.normal_(value, std=INITIAL)
        size = settings.embedding
        self.project = nn.ModuleDict({name: nn.Linear(settings.width, size, bias=False) for name in self.streams})
        self.log_scale = nn.Parameter(torch.tensor(-math.log(settings.temperature)))
        self.head = nn.Linear(3 * size, spec.outputs) if spec.outputs else nn.Identity()

    def embed(self, name: str, inputs: Mapping[str, Tensor]) -> Tensor:
        """One modality in the common space: [B, E], of length 1. `inputs` may lack the other one."""
        return self.projected(name, self.encoded(name, inputs))

    def projected(self, name: str, encoded: Encoded) -> Tensor:
        """The same, of a modality that is encoded already."""
        return F.normalize(self.project[name](encoded.pooled), dim=-1)

    def fuse(self, encoded: Mapping[str, Encoded], inputs: Mapping[str, Tensor]) -> Tensor:
        """[B, 3 E]."""
        u, v = (self.projected(name, encoded[name]) for name in self.streams)
        return torch.cat([u, v, self.log_scale.exp() * u * v], 1)
