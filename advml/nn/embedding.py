"""What a network makes of tasks side by side, before its head."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from advml.contracts import Network
from advml.nn.evaluation import BATCH, evaluating


@contextmanager
def own_statistics(network: nn.Module) -> Iterator[None]:
    """Batch norms normalise by the examples at hand, and their running averages stay as they are."""
    norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
    before = [(norm.training, norm.track_running_stats) for norm in norms]
    for norm in norms:
        norm.training, norm.track_running_stats = True, False
    try:
        yield
    finally:
        for norm, (training, tracking) in zip(norms, before, strict=True):
            norm.training, norm.track_running_stats = training, tracking


def averaged(network: Network, batches: Iterable[Mapping[str, Tensor]]) -> Network:
    """A copy whose batch norms have as running averages the mean of what they meet in `batches`, name → [B, ...].

    Each batch is normalised by itself meanwhile, without dropout.
    """
    found = copy.deepcopy(network)
    norms = [module for module in found.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    with evaluating(found):
        for norm in norms:
            norm.reset_running_stats()
            norm.training, norm.momentum = True, None  # None: the mean of all alike
        for inputs in batches:
            found(inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return found


def embed(network: Network, inputs: Mapping[str, Tensor], apart: bool) -> Tensor:
    """Features [T, B, F] of the examples of T tasks, name → [T, B, ...], in whatever mode the network is.

    `apart`: each task by itself, as batch norms that use the examples at hand need it; otherwise all examples of all
    tasks in a row, a thousand at a time.
    """
    tasks, examples = next(iter(inputs.values())).shape[:2]
    if apart:
        each = [{name: values[task] for name, values in inputs.items()} for task in range(tasks)]
        return torch.stack([network.features(one) for one in each])
    flat = {name: values.flatten(0, 1) for name, values in inputs.items()}
    chunks = [
        network.features({name: values[start : start + BATCH] for name, values in flat.items()})
        for start in range(0, tasks * examples, BATCH)
    ]
    return torch.cat(chunks).reshape(tasks, examples, -1)
