"""The three matrix products of a linear layer, by whatever computes them fastest."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn


def suits_onednn(weight: Tensor) -> bool:
    """Is oneDNN the fast way for the products of a layer with this weight [out, in]?

    For float32 where MKL lags behind, and unless it is small.
    """
    onednn = torch.backends.mkldnn
    there = onednn.is_available() and onednn.enabled and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    suits = weight.dtype == torch.float32 and weight.device.type == "cpu" and min(weight.shape) >= 128
    return bool(there and suits and mkl_lags())


@cache
def mkl_lags() -> bool:
    """Does the MKL inside torch keep to AVX2, at half the speed, on a processor that has AVX-512?

    On AMD's it does (MKL 2024.2 on Zen 5). On Intel's it does not, and is the faster one.
    """
    known: Mapping[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()  # not in every torch that serves
    intel = str(known.get("cpu_name")).startswith("Intel")
    return torch.backends.cpu.get_cpu_capability() == "AVX512" and not intel


def product(a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """a Wᵀ + bias [B, out] for a [B, in], W [out, in]."""
    return onednn(a, weight, bias) if suits_onednn(weight) else nn.functional.linear(a, weight, bias)


def product_back(delta: Tensor, weight: Tensor) -> Tensor:
    """Δ W [B, in] for Δ [B, out], W [out, in]: a linear layer's gradient with respect to its input."""
    return onednn(delta, weight.T, None) if suits_onednn(weight) else delta @ weight


def add_outer(total: Tensor, delta: Tensor, a: Tensor) -> None:
    """Add Δᵀ a to `total` [out, in], for Δ [B, out], a [B, in]: a linear layer's gradient with respect to W."""
    if suits_onednn(total):
        total += onednn(delta.T, a.T, None)
    else:
        total.addmm_(delta.T, a)


def onednn(a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """a Wᵀ + bias by oneDNN, which copies neither side (torch's own call of it copies both) but wants rows for a."""
    found: Tensor = torch.ops.mkldnn._linear_pointwise(a.contiguous(), weight, bias, "none", [], "")
    return found


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for what comes next; handed back and mapped anew for each batch, it costs a fifth.

    It keeps up to twice the size of the largest block so far that was mapped and freed. This is one of 16 MiB; nothing
    is written to it, and other systems take no notice.
    """
    torch.UntypedStorage(1 << 24)
