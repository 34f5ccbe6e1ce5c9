"""Counting the floating-point operations of whatever is computed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry


def _of_onednn(a: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    return 2 * a.numel() * len(weight)


aten = torch.ops.aten
FORMULAS: dict[Any, Any] = {
    **flop_registry,
    # That of the other fused kernels of attention; torch has none for the CPU's.
    aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[aten._scaled_dot_product_flash_attention],
}


class FlopCounter(TorchDispatchMode):
    """Adds up the FLOPs of all operations inside, by torch's own formulas. It has none for recurrent layers.

    `torch.utils.flop_counter.FlopCounterMode` gives the same numbers, but imports the compiler for it (3 s).
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.total = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing here is compiled: without this, torch imports its compiler to tell it to stay away

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        missing = _of_onednn if str(func) == "mkldnn._linear_pointwise.default" else None
        formula = FORMULAS.get(func._overloadpacket, missing)
        if formula is not None:
            self.total += int(formula(*args, **(kwargs or {}), out_val=output))
        return output
