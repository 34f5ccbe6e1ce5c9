"""Modalities that are encoded apart and meet in a vector each: joined, added or gated."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from advml.config import settings
from advml.contracts import Spec
from advml.models.fusion import Encoded, FusionNetwork, fusion_layer
from advml.nn.multimodal.encoders import TowerSettings


@settings
class LateFusionSettings(TowerSettings):
    """How the vectors are joined."""

    fusion: Literal["concat", "logit_sum", "gated"]


class SumOfHeads(nn.Module):
    """Σ_m W_m x_m + b_m over the M parts of a vector [B, M · D]: every modality adds its own logits."""

    def __init__(self, heads: nn.ModuleDict) -> None:
        super().__init__()
        self.heads = heads

    def forward(self, features: Tensor) -> Tensor:
        """[B, M · D] → [B, C]."""
        parts = features.chunk(len(self.heads), 1)
        return torch.stack([head(part) for head, part in zip(self.heads.values(), parts, strict=True)]).sum(0)


class Gate(nn.Module):
    """Σ_m z_m ⊙ tanh(V_m x_m), z = softmax over the modalities of U [x_1, …, x_M], for each feature by itself.

    Arevalo et al. 2017, equations 1 to 4; for two modalities the softmax is their σ(z), 1 − σ(z).
    """

    def __init__(self, count: int, width: int) -> None:
        super().__init__()
        self.values = nn.ModuleList([nn.Linear(width, width) for _ in range(count)])
        self.gates = nn.Linear(count * width, count * width)

    def forward(self, vectors: Tensor) -> Tensor:
        """[B, M, D] → [B, D]."""
        values = torch.stack([layer(vectors[:, number]) for number, layer in enumerate(self.values)], 1)
        shares = self.gates(vectors.flatten(1)).unflatten(1, vectors.shape[1:]).softmax(1)
        gated: Tensor = (shares * values.tanh()).sum(1)
        return gated


class LateFusion(FusionNetwork):
    """Encoders that know nothing of each other. With one modality: its encoder, a hidden layer and a head.

    `concat`: gelu(W [x_1, …, x_M] + b), then the head. `gated`: see `Gate`. `logit_sum`: a head for each, and their
    sum, which can express no interaction; these heads are the unimodal ones.
    """

    settings: ClassVar[type] = LateFusionSettings

    def __init__(self, spec: Spec, settings: LateFusionSettings) -> None:
        super().__init__(spec, settings)
        width, count = settings.width, len(self.streams)
        self.fusion = settings.fusion
        self.join: nn.Module = nn.Identity()
        self.head: nn.Module
        if settings.fusion == "logit_sum":
            self.heads = nn.ModuleDict()  # they are the head's
            self.head = SumOfHeads(nn.ModuleDict({name: nn.Linear(width, spec.outputs) for name in self.streams}))
            return
        self.join = fusion_layer(count * width, width) if settings.fusion == "concat" else Gate(count, width)
        self.head = nn.Linear(width, spec.outputs)

    def fuse(self, encoded: Mapping[str, Encoded], inputs: Mapping[str, Tensor]) -> Tensor:
        """[B, D]; of a sum of logits what its heads read, [B, M · D]."""
        vectors = torch.stack([encoded[name].pooled for name in self.streams], 1)
        features: Tensor = self.join(vectors if self.fusion == "gated" else vectors.flatten(1))
        return features

    def unimodal(self, encoded: Mapping[str, Encoded]) -> dict[str, Tensor]:
        """Outputs [B, C] of each modality's own head: for a sum of logits its terms."""
        heads = self.head.heads if isinstance(self.head, SumOfHeads) else self.heads
        return {name: head(encoded[name].pooled) for name, head in heads.items()}
