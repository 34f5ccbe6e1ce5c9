"""Attention of one sequence over another (Vaswani et al. 2017)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# On a CPU, by benchmarks/multimodal.py: up to so many pairs of a query and a key, attention written out with its
# gradients is faster than torch's fused kernels, and can be differentiated twice, as MAML needs.
SMALL = 10_000


def softmax_weights(query: Tensor, key: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(Q Kᵀ / √d) over the real keys: [B, H, Tq, d], [B, H, Tk, d], mask [B, Tk] or None → [B, H, Tq, Tk].

    A masked key has weight 0 exactly. Some key of every example is real.
    """
    scores: Tensor = (query * query.shape[-1] ** -0.5) @ key.transpose(-2, -1)
    if mask is not None:
        hidden = torch.zeros_like(mask, dtype=scores.dtype).masked_fill(~mask, float("-inf"))
        scores += hidden[:, None, None, :]  # in place, and nothing to do for it in the backward pass
    return scores.softmax(-1)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None) -> Tensor:
    """softmax(Q Kᵀ / √d) V, shapes as above, value like key → [B, H, Tq, d]; a mask of None is faster."""
    pairs = query.shape[-2] * key.shape[-2]
    if pairs <= SMALL and query.device.type == "cpu" and torch.is_grad_enabled():
        return softmax_weights(query, key, mask) @ value
    real = None if mask is None else mask[:, None, None, :]
    return F.scaled_dot_product_attention(query, key, value, attn_mask=real)


class Attention(nn.Module):
    """Queries from one sequence, keys and values from another or the same: x [B, Tq, D], context [B, Tk, D] → like x.

    Keys and values are one projection; `attend` does the rest.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"heads: {heads} do not divide the width {width}")
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask`: which of the context is real, bool [B, Tk]; None = all."""
        query, key, value = self.projected(x, context)
        mixed = attend(query, key, value, mask)
        joined: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return joined

    def weights(self, x: Tensor, context: Tensor, mask: Tensor | None = None) -> Tensor:
        """How much each query looks at each key: [B, heads, Tq, Tk], rows sum to 1."""
        query, key, _ = self.projected(x, context)
        return softmax_weights(query, key, mask)

    def projected(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, H, Tq, d], keys and values [B, H, Tk, d]."""
        query = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        both = self.key_value(context).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        key, value = both.unbind(0)
        return query, key, value


def masked_mean(tokens: Tensor, mask: Tensor | None) -> Tensor:
    """The mean of the real tokens: [B, T, D], mask [B, T] or None → [B, D]. Some token of every example is real."""
    if mask is None:
        return tokens.mean(1)
    real = tokens.masked_fill(~mask.unsqueeze(-1), 0.0)
    return real.sum(1) / mask.sum(1, keepdim=True)


def joined(tokens: list[Tensor], masks: list[Tensor | None]) -> tuple[Tensor, Tensor | None]:
    """Sequences [B, T_i, D] one after the other, and their masks; None where none of them has one."""
    if all(mask is None for mask in masks):
        return torch.cat(tokens, 1), None
    whole = [
        torch.ones(values.shape[:2], dtype=torch.bool, device=values.device) if mask is None else mask
        for values, mask in zip(tokens, masks, strict=True)
    ]
    return torch.cat(tokens, 1), torch.cat(whole, 1)
