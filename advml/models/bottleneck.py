"""Modalities that tell each other what fits through a few tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge
from torch import Tensor, nn

from advml.config import PositiveInt, settings
from advml.contracts import Spec
from advml.models.fusion import Encoded, FusionNetwork, fusion_layer
from advml.nn.multimodal.blocks import BottleneckBlock
from advml.nn.multimodal.encoders import INITIAL, TowerSettings


@settings
class BottleneckSettings(TowerSettings):
    """How many tokens are shared, and for how many blocks."""

    shared: PositiveInt
    fusion_depth: Annotated[int, Ge(2)]


class Bottleneck(FusionNetwork):
    """Encoders, blocks that exchange through shared tokens (Nagrani et al. 2021), masked means, gelu(W x + b), head.

    Two blocks at least: what one modality writes into the shared tokens, the other reads in the block that follows.
    """

    settings: ClassVar[type] = BottleneckSettings
    fewest: ClassVar[int] = 2

    def __init__(self, spec: Spec, settings: BottleneckSettings) -> None:
        super().__init__(spec, settings)
        size = (settings.width, settings.heads, settings.hidden, settings.dropout)
        self.shared = nn.Parameter(torch.randn(settings.shared, settings.width) * INITIAL)
        self.exchange = nn.ModuleList([BottleneckBlock(self.streams, *size) for _ in range(settings.fusion_depth)])
        self.join = fusion_layer(len(self.streams) * settings.width, settings.width)
        self.head = nn.Linear(settings.width, spec.outputs)

    def fuse(self, encoded: Mapping[str, Encoded], inputs: Mapping[str, Tensor]) -> Tensor:
        """[B, D]."""
        tokens = {name: one.tokens for name, one in encoded.items()}
        masks = {name: one.mask for name, one in encoded.items()}
        shared = self.shared.expand(next(iter(tokens.values())).shape[0], -1, -1)
        for block in self.exchange:
            tokens, shared = block(tokens, masks, shared)
        vectors = [self.tower(name).pooled(tokens[name], masks[name]) for name in self.streams]
        features: Tensor = self.join(torch.cat(vectors, 1))
        return features
