"""The three matrix products of a linear layer, by whatever computes them fastest."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def suits_onednn(weight: Tensor) -> bool:
    """Is oneDNN the fast way for the products of a layer with this weight [out, in]?

    For float32 on processors with AVX-512 and unless it is small: on AMD's the MKL inside torch keeps to AVX2 and half
    the speed (seen with MKL 2024.2 on Zen 5), more than the way to oneDNN and back costs.
    """
    onednn = torch.backends.mkldnn
    suits = weight.dtype == torch.float32 and weight.device.type == "cpu" and min(weight.shape) >= 128
    return bool(
        suits and onednn.is_available() and onednn.enabled and torch.backends.cpu.get_cpu_capability() == "AVX512"
    )


def product(a: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """a Wᵀ + bias [B, out] for a [B, in], W [out, in]."""
    if suits_onednn(weight):
        return nn.functional.linear(a.to_mkldnn(), weight, bias).to_dense()
    return nn.functional.linear(a, weight, bias)


def product_back(delta: Tensor, weight: Tensor) -> Tensor:
    """Δ W [B, in] for Δ [B, out], W [out, in]: a linear layer's gradient with respect to its input."""
    if suits_onednn(weight):
        size = [len(delta), weight.shape[1]]
        back: Tensor = torch.ops.aten.mkldnn_linear_backward_input(size, delta.to_mkldnn(), weight.contiguous())
        return back.to_dense()
    return delta @ weight


def add_outer(total: Tensor, delta: Tensor, a: Tensor) -> None:
    """Add Δᵀ a to `total` [out, in], for Δ [B, out], a [B, in]: a linear layer's gradient with respect to W."""
    if suits_onednn(total):
        total += torch.ops.aten.mkldnn_linear_backward_weights(delta.to_mkldnn(), a.to_mkldnn(), total, False)[0]
    else:
        total.addmm_(delta.T, a)


def keep_freed_memory() -> None:
    """Have glibc keep freed memory for what comes next; handed back and mapped anew for each batch, it costs a fifth.

    It keeps up to twice the size of the largest block so far that was mapped and freed. This is one of 16 MiB; nothing
    is written to it, and other systems take no notice.
    """
    torch.UntypedStorage(1 << 24)
