"""Measuring a network without changing it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from advml.contracts import Metrics, Network, Split
from advml.nn.losses import masked
from advml.nn.metrics import classification_metrics, regression_metrics

BATCH = 1024  # large enough to keep two cores busy, small enough for a convolution's intermediate images

Module = TypeVar("Module", bound=nn.Module)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards every module is in the mode that it was in."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, mode in modes:
            module.training = mode


def frozen(network: Module) -> Module:
    """A copy in evaluation mode that nothing trains: it draws no random numbers and keeps its statistics."""
    return copy.deepcopy(network).eval().requires_grad_(False)


def predict(
    network: Network,
    split: Split,
    mask: Tensor | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Tensor:
    """Outputs [N, spec.outputs] for all examples; −∞ where `mask` (bool [C]) says that a class is not active."""
    chunks = []
    with evaluating(network):
        for at in range(0, len(split), BATCH):
            inputs = split.batch(slice(at, at + BATCH)).inputs  # prepared in full precision, as in training
            with autocast():
                chunks.append(network(inputs))
    return masked(torch.cat(chunks).to(torch.promote_types(chunks[0].dtype, torch.float32)), mask)


def measure(
    network: Network,
    split: Split,
    mask: Tensor | None = None,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Metrics:
    """Classification metrics for int64 targets, regression metrics for floating ones; empty for an empty split."""
    if not len(split):
        return {}
    return measured(predict(network, split, mask, autocast), split)


def measured(outputs: Tensor, split: Split) -> Metrics:
    """The same of the outputs [N, spec.outputs] for all examples of a split."""
    if split.target.is_floating_point():
        return regression_metrics(outputs, split.target)
    return classification_metrics(outputs, split.target)
