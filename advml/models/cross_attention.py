"""Two modalities that look at each other after their encoders."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from advml.config import PositiveInt, settings
from advml.contracts import Spec
from advml.models.fusion import Encoded, FusionNetwork, fusion_layer
from advml.nn.multimodal.blocks import CrossBlock
from advml.nn.multimodal.encoders import TowerSettings


@settings
class CrossAttentionSettings(TowerSettings):
    """How many blocks follow the encoders."""

    cross_depth: PositiveInt


class CrossAttention(FusionNetwork):
    """Encoders, cross blocks in both directions (see `CrossBlock`), masked means, gelu(W [x_1, x_2] + b), head.

    With the output projections of the cross-attention zero it is a late concatenation of encoders that end in one more
    feed-forward layer.
    """

    settings: ClassVar[type] = CrossAttentionSettings
    fewest: ClassVar[int] = 2
    most: ClassVar[int | None] = 2

    def __init__(self, spec: Spec, settings: CrossAttentionSettings) -> None:
        super().__init__(spec, settings)
        size = (settings.width, settings.heads, settings.hidden, settings.dropout)
        self.cross = nn.ModuleList([CrossBlock(self.streams, *size) for _ in range(settings.cross_depth)])
        self.join = fusion_layer(2 * settings.width, settings.width)
        self.head = nn.Linear(settings.width, spec.outputs)

    def fuse(self, encoded: Mapping[str, Encoded], inputs: Mapping[str, Tensor]) -> Tensor:
        """[B, D]."""
        tokens = {name: one.tokens for name, one in encoded.items()}
        masks = {name: one.mask for name, one in encoded.items()}
        for block in self.cross:
            tokens = block(tokens, masks)
        vectors = [self.tower(name).pooled(tokens[name], masks[name]) for name in self.streams]
        features: Tensor = self.join(torch.cat(vectors, 1))
        return features

    def attention(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Of "a→b" and of "b→a" in the last block: [B, heads, Ta, Tb]; see `FusionNetwork.attention`."""
        encoded = self.encode(inputs)
        tokens = {name: one.tokens for name, one in encoded.items()}
        masks = {name: one.mask for name, one in encoded.items()}
        *before, last = self.cross
        for block in before:
            tokens = block(tokens, masks)
        weights: dict[str, Tensor] = last.weights(tokens, masks)  # type: ignore[operator]
        return weights
