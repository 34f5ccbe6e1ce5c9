"""What clients send, made smaller: only the largest numbers, or all of them with few bits; and its bytes, counted.

    topk      the k = ⌈share · d⌉ numbers of largest size out of all d of an update, with their places. What was not
              sent is remembered and added to the next update ("error feedback", Stich et al. 2018, Karimireddy et al.
              2019), so that nothing is lost, only late. Without it the sum is biased
    quantise  s = 2^(b−1) − 1 levels on either side of zero up to the largest size in a tensor, rounded up or down by
              chance so that the mean is right (QSGD, Alistarh et al. 2017, with the maximum for a norm)

`packed_sparse` and `packed_levels` are the messages whose lengths `sparse_bytes` and `level_bytes` count.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from advml.config import settings

PLACE = 4  # bytes of a number's place: enough for 2^32 of them


@settings
class CompressionSettings:
    """The keys of the block `compression` in configs/method/_base/federated.yaml."""

    kind: Literal["none", "topk", "quantise"]
    share: Annotated[float, Interval(gt=0, le=1)]
    error_feedback: bool
    bits: Annotated[int, Interval(ge=2, le=16)]


# --- the largest numbers -------------------------------------------------------------------------------------------


def largest(share: float, size: int) -> int:
    """k = ⌈share · d⌉ of d numbers."""
    return min(size, math.ceil(share * size - 1e-9))  # 0.1 · 30 is 3 and a rounding error


def top_k(updates: Tensor, count: int) -> Tensor:
    """Each row of `updates` [R, D] with only its `count` numbers of largest size, zeros elsewhere."""
    places = updates.abs().topk(count, dim=1, sorted=False).indices
    return torch.zeros_like(updates).scatter_(1, places, updates.gather(1, places))


def sparse_bytes(size: int, count: int, width: int) -> int:
    """`count` of `size` numbers of `width` bytes: each with its place, or all where a bit per place is shorter."""
    return width * count + min(PLACE * count, -(-size // 8))


def packed_sparse(update: Tensor) -> bytes:
    """The message for one sparse update [D] (float32 or float64)."""
    chosen = update != 0
    count, places = int(chosen.sum()), chosen.nonzero().flatten()
    where = places.to(torch.int32).numpy().tobytes()
    if PLACE * count > -(-len(update) // 8):
        where = _bits(chosen.unsqueeze(1))
    return where + bytes(update[places].numpy().tobytes())


class ErrorFeedback:
    """What each client still owes the server: e ← (Δ + e) − sent. One vector for each client that has ever sent."""

    def __init__(self) -> None:
        self.owed: dict[int, Tensor] = {}

    def sent(self, clients: Sequence[int], updates: Tensor, count: int, remember: bool = True) -> Tensor:
        """What arrives of the updates [R, D] of `clients`, `count` numbers of each."""
        if not remember:
            return top_k(updates, count)
        due = updates.clone()
        for row, client in enumerate(clients):
            if client in self.owed:
                due[row] += self.owed[client]
        sent = top_k(due, count)
        for client, left in zip(clients, due - sent, strict=True):
            self.owed[client] = left.clone()
        return sent

    def state_dict(self) -> dict[str, Any]:
        """All debts."""
        clients = sorted(self.owed)
        return {"clients": clients, "owed": [self.owed[client] for client in clients]}

    def load_state_dict(self, state: Mapping[str, Any], device: torch.device | None = None) -> None:
        """Restore them."""
        debts = zip(state["clients"], state["owed"], strict=True)
        self.owed = {int(client): owed.clone().to(device) for client, owed in debts}


# --- few bits ------------------------------------------------------------------------------------------------------


def levels(values: Tensor, bits: int, draws: Tensor) -> tuple[Tensor, Tensor]:
    """(whole numbers from −s to s, the largest size m): values ≈ m/s · whole, with s = 2^(b−1) − 1.

    |v| s/m lies between two whole numbers; `draws`, uniform on [0, 1) in the shape of `values`, choose the upper one
    with the probability of how near it is, so that the mean over draws is v. A tensor of zeros has m = 0.
    """
    steps, size = 2 ** (bits - 1) - 1, values.abs().max() if values.numel() else values.new_zeros(())
    scaled = torch.where(size > 0, values.abs() / size * steps, 0.0)
    return (values.sign() * (scaled + draws).floor().clamp_max(steps)).to(torch.int32), size


def from_levels(whole: Tensor, size: Tensor, bits: int) -> Tensor:
    """m/s · whole, in the type of m."""
    return whole.to(size.dtype).mul(size / (2 ** (bits - 1) - 1))


def quantised(values: Tensor, bits: int, generator: torch.Generator) -> Tensor:
    """What arrives of a tensor that is sent with `bits` per number. Drawn on the CPU, then moved."""
    draws = torch.rand(values.shape, generator=generator, dtype=values.dtype)
    return from_levels(*levels(values, bits, draws.to(values.device)), bits)


def level_bytes(size: int, bits: int, width: int) -> int:
    """`size` numbers of `bits` each, and the scale, a number of `width` bytes."""
    return -(-size * bits // 8) + width


def packed_levels(whole: Tensor, size: Tensor, bits: int) -> bytes:
    """The message for one tensor: the scale, then whole + s with `bits` each, end to end."""
    shifted = whole.flatten().to(torch.int64) + 2 ** (bits - 1) - 1
    each = (shifted.unsqueeze(1) >> torch.arange(bits)) & 1
    return bytes(size.numpy().tobytes()) + _bits(each)


def _bits(each: Tensor) -> bytes:
    """Zeros and ones [N, b], end to end, eight to a byte."""
    flat = torch.nn.functional.pad(each.flatten().to(torch.uint8), (0, -each.numel() % 8))
    weights = 2 ** torch.arange(8, dtype=torch.uint8)
    return bytes((flat.view(-1, 8) * weights).sum(1).to(torch.uint8).numpy().tobytes())
