"""All modalities as one sequence, from the first layer on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from advml.contracts import Spec
from advml.models.fusion import Encoded, FusionNetwork
from advml.nn.multimodal.attention import joined, masked_mean
from advml.nn.multimodal.blocks import SelfBlock
from advml.nn.multimodal.encoders import TowerSettings


class EarlyFusion(FusionNetwork):
    """The embeddings of all modalities, side by side, through one transformer; the mean of all real tokens; the head.

    `depth` is the transformer's: the encoders are embeddings only. A modality's own head reads what the same
    transformer makes of this modality alone.
    """

    settings: ClassVar[type] = TowerSettings

    def __init__(self, spec: Spec, settings: TowerSettings) -> None:
        super().__init__(spec, settings, depth=0)
        size = (settings.width, settings.heads, settings.hidden, settings.dropout)
        self.blocks = nn.ModuleList([SelfBlock(*size) for _ in range(settings.depth)])
        self.norm = nn.LayerNorm(settings.width)
        self.head = nn.Linear(settings.width, spec.outputs)

    def fuse(self, encoded: Mapping[str, Encoded], inputs: Mapping[str, Tensor]) -> Tensor:
        """[B, D]."""
        return self.mean([encoded[name] for name in self.streams])

    def mean(self, parts: list[Encoded]) -> Tensor:
        """These modalities through the transformer: the mean of their tokens, [B, D]."""
        tokens, mask = joined([part.tokens for part in parts], [part.mask for part in parts])
        for block in self.blocks:
            tokens = block(tokens, mask)
        return masked_mean(self.norm(tokens), mask)

    def unimodal(self, encoded: Mapping[str, Encoded]) -> dict[str, Tensor]:
        """Outputs [B, C] of each modality's own head; empty without `unimodal_heads`."""
        return {name: head(self.mean([encoded[name]])) for name, head in self.heads.items()}
