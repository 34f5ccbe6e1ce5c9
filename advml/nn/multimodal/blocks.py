"""Pre-norm transformer blocks of one stream, of two that look at each other, and of several that meet in a few tokens.

All are made of the same `Half`: what happens to one stream in a block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from advml.nn.multimodal.attention import Attention

Tokens = Mapping[str, Tensor]
"""Stream → its sequence [B, T, D]."""
Masks = Mapping[str, "Tensor | None"]
"""Stream → which of its tokens are real, bool [B, T]; None = all."""


def dropped(share: float) -> nn.Module:
    """Dropout, or nothing where there is none."""
    return nn.Dropout(share) if share else nn.Identity()


class Half(nn.Module):
    """One stream's part in a block, with parameters that are its own: attention, then feed-forward (Xiong et al. 2020).

        x ← x + A(N(x), context),   x ← x + W₂ gelu(W₁ N'(x))

    `forward` takes N(x) from outside, since another stream may need it as its context.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm_feed = nn.LayerNorm(width)
        self.feed = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), dropped(dropout), nn.Linear(hidden, width))
        self.drop = dropped(dropout)

    def forward(self, x: Tensor, normed: Tensor, context: Tensor, mask: Tensor | None) -> Tensor:
        """x and normed = N(x) [B, Tq, D], normed context [B, Tk, D] with its mask → the stream after the block."""
        x = x + self.drop(self.attention(normed, context, mask))
        updated: Tensor = x + self.drop(self.feed(self.norm_feed(x)))
        return updated


class SelfBlock(nn.Module):
    """A stream that attends to itself: the block of a transformer encoder."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.part = Half(width, heads, hidden, dropout)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """[B, T, D] → [B, T, D]."""
        normed = self.part.norm(x)
        updated: Tensor = self.part(x, normed, normed, mask)
        return updated


class CrossBlock(nn.Module):
    """Two streams, each of which attends to the other (Lu et al. 2019, co-attention).

    Each direction has parameters of its own, each stream a norm of its own for either sublayer, and both directions
    read the streams as they come in: neither sees what the other makes of them. The residual is the query's.
    """

    def __init__(self, names: Sequence[str], width: int, heads: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        if len(names) != 2:
            raise ValueError(f"a cross block joins 2 streams, not {len(names)}")
        self.pairs = ((names[0], names[1]), (names[1], names[0]))
        self.halves = nn.ModuleDict({name: Half(width, heads, hidden, dropout) for name in names})

    def forward(self, streams: Tokens, masks: Masks) -> dict[str, Tensor]:
        """Stream → [B, T, D], the same after the block."""
        normed = self.normed(streams)
        return {
            name: self.of(name)(streams[name], normed[name], normed[other], masks[other]) for name, other in self.pairs
        }

    def weights(self, streams: Tokens, masks: Masks) -> dict[str, Tensor]:
        """By "a→b": how much each token of a looks at each of b, [B, heads, Ta, Tb]."""
        normed = self.normed(streams)
        return {
            f"{name}→{other}": self.of(name).attention.weights(normed[name], normed[other], masks[other])
            for name, other in self.pairs
        }

    def normed(self, streams: Tokens) -> dict[str, Tensor]:
        """Each stream after its own norm."""
        return {name: self.of(name).norm(streams[name]) for name, _ in self.pairs}

    def of(self, name: str) -> Half:
        """A stream's own part."""
        half = self.halves[name]
        assert isinstance(half, Half)
        return half


class BottleneckBlock(nn.Module):
    """Streams that exchange through a few shared tokens only (Nagrani et al. 2021, equations 8 and 9).

    Each stream attends to itself and the bottleneck; the bottleneck becomes the mean of what the streams make of it.
    """

    def __init__(self, names: Sequence[str], width: int, heads: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict({name: SelfBlock(width, heads, hidden, dropout) for name in names})

    def forward(self, streams: Tokens, masks: Masks, shared: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """Streams [B, T, D] and the bottleneck [B, K, D] → the same after the block."""
        count = shared.shape[1]
        updated, views = {}, []
        for name, block in self.blocks.items():
            mask = masks[name]
            if mask is not None:
                mask = torch.cat([mask.new_ones(mask.shape[0], count), mask], 1)
            both = block(torch.cat([shared, streams[name]], 1), mask)
            views.append(both[:, :count])
            updated[name] = both[:, count:]
        return updated, torch.stack(views).mean(0)
