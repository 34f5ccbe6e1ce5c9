"""Losses by name, over the active outputs of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from advml.contracts import Batch, Classes, Target
from advml.errors import ConfigError

LossName = Literal["auto", "cross_entropy", "mse", "l1", "huber"]
Loss = Callable[[Tensor, Batch], Tensor]

REGRESSION: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"mse": F.mse_loss, "l1": F.l1_loss, "huber": F.huber_loss}


def at_least_float32(outputs: Tensor) -> Tensor:
    """Under autocast outputs are bfloat16, in which a loss would keep 3 digits."""
    return outputs.to(torch.promote_types(outputs.dtype, torch.float32))


def masked(logits: Tensor, mask: Tensor | None) -> Tensor:
    """Logits [B, C] with −∞ wherever `mask` (bool [C] or [B, C]) is false: such a class has probability zero."""
    return logits if mask is None else logits.masked_fill(~mask, float("-inf"))


def cross_entropy(logits: Tensor, batch: Batch, smoothing: float = 0.0) -> Tensor:
    """Mean cross-entropy over the active classes; `smoothing` spreads that share evenly over them (Szegedy 2016)."""
    logits = at_least_float32(logits)
    if not smoothing or batch.mask is None:
        return F.cross_entropy(masked(logits, batch.mask), batch.target, label_smoothing=smoothing)
    active = batch.mask.expand_as(logits)
    log_p = F.log_softmax(masked(logits, active), dim=1)
    even = log_p.masked_fill(~active, 0.0).sum(1) / active.sum(1)
    hit = log_p.gather(1, batch.target.unsqueeze(1)).squeeze(1)
    return -((1 - smoothing) * hit + smoothing * even).mean()


def make_loss(name: LossName, target: Target, smoothing: float = 0.0) -> Loss:
    """The loss of that name; `auto` is cross-entropy for classes and the squared error for real targets.

    Raises ConfigError where name and target do not go together.
    """
    classes = isinstance(target, Classes)
    if name == "auto":
        name = "cross_entropy" if classes else "mse"
    if classes != (name == "cross_entropy"):
        kind = "classes" if classes else "real numbers"
        raise ConfigError(f"method.loss: {name} does not fit a target of {kind}; use method.loss=auto")
    if smoothing and not classes:
        raise ConfigError("method.label_smoothing: needs a target of classes; use method.label_smoothing=0")
    if name == "cross_entropy":
        return lambda outputs, batch: cross_entropy(outputs, batch, smoothing)
    measure = REGRESSION[name]
    # A network gives [B, outputs]; a target is [B, *shape]. Broadcasting [B, 1] against [B] would compare all pairs.
    return lambda outputs, batch: measure(at_least_float32(outputs).reshape(batch.target.shape), batch.target)


def mean_of(values: list[Tensor], sizes: list[int]) -> Tensor:
    """The mean over examples of per-batch means, without leaving the device."""
    weights = torch.tensor(sizes, dtype=values[0].dtype, device=values[0].device)
    return (torch.stack(values) * weights).sum() / weights.sum()
