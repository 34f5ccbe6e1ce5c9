"""How far outputs are from outputs that were stored earlier."""

from __future__ import annotations

import torch
from torch import Tensor


def output_distance(outputs: Tensor, stored: Tensor, active: Tensor) -> Tensor:
    """The mean squared difference of outputs [B, C] to `stored` [B, C] where `active` (bool [B, C]) is true; 0-d.

    A mean over an example's active outputs, then over the examples: where all are active, the mean squared error over
    all B · C numbers, as in the code of Buzzega et al. 2020; the squared norm of their equation 5 is C times as large.
    """
    outputs = outputs.to(torch.promote_types(outputs.dtype, stored.dtype))  # bfloat16 under autocast
    squares = torch.where(active, outputs - stored, 0).square()
    return (squares.sum(1) / active.sum(1)).mean()
