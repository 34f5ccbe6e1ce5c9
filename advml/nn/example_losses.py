"""The losses of advml/nn/losses.py example by example, for copies of a network side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from advml.contracts import Classes, Target
from advml.nn.losses import REGRESSION, LossName, at_least_float32

ExampleLosses = Callable[[Tensor, Tensor], Tensor]
"""Outputs [R, B, C] and targets [R, B, ...] → the loss of each example, [R, B]."""


@dataclass(frozen=True)
class CrossEntropies:
    """Cross-entropy of outputs [R, B, C] and classes [R, B]; `smoothing` spreads that share evenly over the classes."""

    smoothing: float = 0.0

    def __call__(self, outputs: Tensor, target: Tensor) -> Tensor:
        """The losses, [R, B]."""
        logits = at_least_float32(outputs.flatten(0, 1))
        found = F.cross_entropy(logits, target.flatten(), reduction="none", label_smoothing=self.smoothing)
        return found.view(target.shape)

    @torch.no_grad()
    def slopes(self, outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """The losses, and their derivatives by the outputs, [R, B, C]: softmax minus what is aimed at."""
        log_p, place = F.log_softmax(at_least_float32(outputs), 2), target.unsqueeze(2)
        each = log_p.gather(2, place).squeeze(2) * (self.smoothing - 1)
        p = log_p.exp()
        p.scatter_(2, place, p.gather(2, place) - (1 - self.smoothing))
        if self.smoothing:
            each = each - self.smoothing * log_p.mean(2)
            p.sub_(self.smoothing / outputs.shape[2])
        return each, p.to(outputs.dtype)


def example_losses(name: LossName, target: Target, smoothing: float = 0.0) -> ExampleLosses:
    """The loss of that name; `auto` is cross-entropy for classes and the squared error for real targets."""
    if name == "cross_entropy" or (name == "auto" and isinstance(target, Classes)):
        return CrossEntropies(smoothing)
    measure: Callable[..., Tensor] = REGRESSION["mse" if name == "auto" else name]

    def distance(outputs: Tensor, wanted: Tensor) -> Tensor:
        each = measure(at_least_float32(outputs).reshape(wanted.shape), wanted, reduction="none")
        return each.flatten(2).mean(2) if each.dim() > 2 else each

    return distance


def losses_and_slopes(losses: ExampleLosses, outputs: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of each example, [R, B], and its derivative by the outputs, [R, B, C]."""
    if isinstance(losses, CrossEntropies):
        return losses.slopes(outputs, target)
    with torch.enable_grad():
        outputs = outputs.detach().requires_grad_()
        each = losses(outputs, target)
        (slopes,) = torch.autograd.grad(each.sum(), outputs)
    return each.detach(), slopes
