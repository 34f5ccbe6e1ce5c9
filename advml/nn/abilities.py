"""What parts of a network cannot be asked to do; engines of circuits (nn/quantum/engines.py) say it themselves."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


class Unsuited(ValueError):
    """The engine or closed form asked for does not serve this network."""


def unmapped(network: nn.Module) -> str | None:
    """What torch.func.vmap cannot go through: recurrent layers, most circuits that PennyLane runs; None if nothing."""
    for module in network.modules():
        if isinstance(module, nn.RNNBase):
            return "recurrent layers"
        if not getattr(module, "mapped", True):
            return "circuits with shots, noise, another device or another way to differentiate"
    return None


def twice_differentiable(network: nn.Module) -> bool:
    """Are second derivatives right? PennyLane gives wrong ones without a word where it does not backpropagate."""
    return all(getattr(module, "twice_differentiable", True) for module in network.modules())


def countable(network: nn.Module) -> bool:
    """Does a counter of torch's operations see all that it computes?

    Not what PennyLane does in numpy or C++, nor what a recurrent layer does in one call.
    """
    return all(getattr(m, "countable", True) and not isinstance(m, nn.RNNBase) for m in network.modules())


def draws(network: nn.Module) -> bool:
    """Does it draw random numbers in training: dropout, or shots?"""
    named = ("p", "dropout", "shots")
    return any(getattr(module, name, 0) for module in network.modules() for name in named)


def mixing(network: nn.Module) -> str | None:
    """Of a network whose batch norms mix examples, which key does it and what to use instead; None for others."""
    norm = next((module for module in network.modules() if isinstance(module, _BatchNorm)), None)
    if norm is None:
        return None
    said = "mixes examples, which privacy cannot bound"
    recipe = getattr(network, "recipe", None) or {}
    if "norm" not in recipe.get("settings", {}):
        return f"model={recipe.get('name')}: its batch norm {said}; use a network without (model=cnn, model=mlp)"
    return f"model.norm=batch: {said}; use model.norm={'layer' if isinstance(norm, nn.BatchNorm1d) else 'group'}"
