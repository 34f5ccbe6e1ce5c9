"""What all networks of several modalities share: an encoder for each, what stands in for a missing one, heads."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from advml.contracts import Network, Nothing, Spec
from advml.nn.multimodal.encoders import Tower, TowerSettings, streams_of


@dataclass(frozen=True)
class Encoded:
    """One modality after its encoder: tokens [B, T, D], the first of them its modality token; which are real, bool
    [B, T], None = all; the mean of the real ones after the encoder's norm, [B, D].
    """

    tokens: Tensor
    mask: Tensor | None
    pooled: Tensor


class FusionNetwork(Network):
    """A network of one or more modalities: forward = head ∘ fuse ∘ encode.

    A modality that an example lacks (its `present` input is false) becomes a learned vector in all its places, after
    the encoder; nothing that was stored for it has any part in the output. `unimodal_heads` adds a head to each
    encoder, for auxiliary losses and for modulation.
    """

    settings: ClassVar[type] = TowerSettings
    reads_tokens: ClassVar[bool] = True
    fewest: ClassVar[int] = 1
    most: ClassVar[int | None] = None

    @classmethod
    def check(cls, spec: Spec, settings: Any) -> str | None:
        """Serves as many modalities as its kind of fusion joins, and any target but none."""
        reason = cls.check_streams(spec)
        return reason or ("a data set with a target" if isinstance(spec.target, Nothing) else None)

    @classmethod
    def check_streams(cls, spec: Spec) -> str | None:
        """The part of `check` that asks for the inputs only."""
        streams = streams_of(spec)
        if not streams:
            return "images [channels, height, width], frames [length, features] or tokens [length]"
        if not cls.fewest <= len(streams) <= (cls.most or len(streams)):
            count = f"{cls.fewest}" if cls.fewest == cls.most else f"at least {cls.fewest}"
            return f"{count} modalities (view=modalities, a data set that has them, and view.use=null)"
        return None

    def __init__(self, spec: Spec, settings: TowerSettings, depth: int | None = None) -> None:
        """`depth`: of the encoders, where the settings' is another part's."""
        if reason := self.check_streams(spec):
            raise ValueError(f"needs {reason}")
        super().__init__()
        self.kinds = streams_of(spec)
        self.streams = tuple(self.kinds)
        self.towers = nn.ModuleDict(
            {
                name: Tower(stream, spec.inputs[name], spec.tokens.get(name, 0), settings, depth)
                for name, stream in self.kinds.items()
            }
        )
        # Zeros: until it is trained, a missing modality adds next to nothing.
        absent = {name: nn.Parameter(torch.zeros(settings.width)) for name in self.streams if self.kinds[name].present}
        self.missing = nn.ParameterDict(absent)
        heads = self.streams if settings.unimodal_heads else ()
        self.heads = nn.ModuleDict({name: nn.Linear(settings.width, spec.outputs) for name in heads})

    def encode(self, inputs: Mapping[str, Tensor]) -> dict[str, Encoded]:
        """Each modality by itself."""
        return {name: self.encoded(name, inputs) for name in self.streams}

    def encoded(self, name: str, inputs: Mapping[str, Tensor]) -> Encoded:
        """One modality by itself."""
        stream, tower = self.kinds[name], self.tower(name)
        values, mask = inputs[name], None if stream.mask is None else inputs[stream.mask]
        if stream.present is None:
            tokens, mask = tower(values, mask)
            return Encoded(tokens, mask, tower.pooled(tokens, mask))
        present = inputs[stream.present]
        there = present.reshape(-1, *[1] * (values.dim() - 1))
        tokens, mask = tower(values.masked_fill(~there, 0), mask)  # so that not even NaN gets into a gradient
        tokens = torch.where(present[:, None, None], tokens, self.missing[name])
        if mask is not None:  # of a missing modality only the first token is left
            mask = torch.cat([mask[:, :1], mask[:, 1:] & present.unsqueeze(1)], 1)
        return Encoded(tokens, mask, tower.pooled(tokens, mask))

    def fuse(self, encoded: Mapping[str, Encoded], inputs: Mapping[str, Tensor]) -> Tensor:
        """What the modalities say together: [B, F], which `head` reads."""
        raise NotImplementedError

    def features(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The representation [B, F] that the head reads."""
        return self.fuse(self.encode(inputs), inputs)

    def unimodal(self, encoded: Mapping[str, Encoded]) -> dict[str, Tensor]:
        """Outputs [B, C] of each modality's own head; empty without `unimodal_heads`."""
        return {name: head(encoded[name].pooled) for name, head in self.heads.items()}

    def tower(self, name: str) -> Tower:
        """The encoder of a modality."""
        tower = self.towers[name]
        assert isinstance(tower, Tower)
        return tower

    def attention(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """By "a→b", where the network has cross-attention: how much each token of a looks at each of b (last block).

        [B, heads, Ta, Tb], rows sum to 1; place 0 of either is the modality token. `tower(name).grid` says which places
        of an image the others are.
        """
        return {}


def fusion_layer(inputs: int, width: int) -> nn.Sequential:
    """What joins vectors of several modalities into features: gelu(W x + b). An affine head alone could only add."""
    return nn.Sequential(nn.Linear(inputs, width), nn.GELU())
