"""The classic network for an image and a text: two towers, and a head over their vectors and their product."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from advml.contracts import Spec
from advml.models.fusion import Encoded, FusionNetwork, fusion_layer
from advml.nn.multimodal.encoders import TowerSettings, streams_of


class VisionLanguage(FusionNetwork):
    """u = tanh(W_u x_image), v = tanh(W_v x_text), features gelu(W [u, v, u ⊙ v] + b), head.

    The pointwise product of Antol et al. 2015, section 4 (visual question answering), beside the vectors themselves.
    """

    settings: ClassVar[type] = TowerSettings
    fewest: ClassVar[int] = 2
    most: ClassVar[int | None] = 2

    @classmethod
    def check(cls, spec: Spec, settings: Any) -> str | None:
        """Serves an image and a text, and any target but none."""
        kinds = sorted(stream.kind for stream in streams_of(spec).values())
        if kinds != ["image", "tokens"]:
            return "an image and a text (such as dataset=shapes_captions has, with view=modalities)"
        return super().check(spec, settings)

    def __init__(self, spec: Spec, settings: TowerSettings) -> None:
        super().__init__(spec, settings)
        width = settings.width
        self.project = nn.ModuleDict({name: nn.Linear(width, width) for name in self.streams})
        self.join = fusion_layer(3 * width, width)
        self.head = nn.Linear(width, spec.outputs)

    def fuse(self, encoded: Mapping[str, Encoded], inputs: Mapping[str, Tensor]) -> Tensor:
        """[B, D]."""
        u, v = (layer(encoded[name].pooled).tanh() for name, layer in self.project.items())
        features: Tensor = self.join(torch.cat([u, v, u * v], 1))
        return features
