"""What a network learns from inputs that a generator made up and an earlier network labelled.

Such an input belongs to no task, so in the task scenario it is shown to the head of every earlier task (van de Ven and
Tolias 2019): S masks for S readings of each input. In the other scenarios there is one reading.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from advml.nn.losses import at_least_float32, masked


def readings(outputs: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs [B, C] once behind each of the masks, bool [S, C]: outputs and masks, both [S·B, C].

    A mean over the rows is the mean over examples, averaged over readings.
    """
    examples, count = len(outputs), len(masks)
    return outputs.repeat(count, 1), masks.repeat_interleave(examples, 0)


def hard_targets(outputs: Tensor, masks: Tensor) -> Tensor:
    """The most likely active class, int64 [S·B], by the outputs [B, C] of the earlier network."""
    return masked(*readings(outputs, masks)).argmax(1)


def soft_targets(outputs: Tensor, masks: Tensor, temperature: float) -> Tensor:
    """Softmax of outputs [B, C] / T over the active classes, [S·B, C]: zero for the others."""
    return (masked(*readings(at_least_float32(outputs), masks)) / temperature).softmax(1)


def soft_cross_entropy(outputs: Tensor, masks: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """−T² · mean over rows of Σ_c p_c log softmax(outputs / T)_c (Hinton et al. 2015), a 0-d tensor.

    The targets p, [S·B, C], may be zero where a class is active: it was not yet known then.
    """
    logits, active = readings(at_least_float32(outputs), masks)
    log_q = F.log_softmax(masked(logits, active) / temperature, dim=1).masked_fill(~active, 0.0)
    return -(temperature**2) * (targets * log_q).sum(1).mean()


def split_rows(rows: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Rows [B, D] → named inputs [B, *shape], in order: the inverse of flattening and joining them."""
    sizes = [torch.Size(shape).numel() for shape in shapes.values()]
    parts = rows.split(sizes, dim=1)
    return {name: part.reshape(-1, *shape) for (name, shape), part in zip(shapes.items(), parts, strict=True)}
