"""Each modality says what it knows, and cross-attention adds what only both together tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn

from advml.contracts import Spec
from advml.models.cross_attention import CrossAttention, CrossAttentionSettings
from advml.models.fusion import Encoded
from advml.models.late_fusion import SumOfHeads

TOGETHER = "together"


class AdditiveCross(CrossAttention):
    """Σ_m W_m x_m + b_m, as a sum of logits, plus W g + b, where g are the features of `CrossAttention`.

    log p(y | x_1, x_2) = Σ_m log p(y | x_m) − log p(y) + an interaction, which is 0 (up to what does not depend on y)
    where the modalities are independent given y: then the first terms alone are Bayes' rule, and where neither
    modality tells anything alone the last one is all there is. The heads are the unimodal ones; train them with
    auxiliary losses too, so that they are the first terms.
    """

    settings: ClassVar[type] = CrossAttentionSettings

    def __init__(self, spec: Spec, settings: CrossAttentionSettings) -> None:
        super().__init__(spec, settings)
        self.heads = nn.ModuleDict()  # they are the head's
        names = (TOGETHER, *self.streams)
        self.head = SumOfHeads(nn.ModuleDict({name: nn.Linear(settings.width, spec.outputs) for name in names}))

    def fuse(self, encoded: Mapping[str, Encoded], inputs: Mapping[str, Tensor]) -> Tensor:
        """What the heads read, [B, 3 D]: the features of both together, then each modality's vector."""
        return torch.cat([super().fuse(encoded, inputs), *(encoded[name].pooled for name in self.streams)], 1)

    def unimodal(self, encoded: Mapping[str, Encoded]) -> dict[str, Tensor]:
        """Outputs [B, C] of each modality's own head: the first terms of the sum."""
        assert isinstance(self.head, SumOfHeads)
        return {name: self.head.heads[name](encoded[name].pooled) for name in self.streams}
