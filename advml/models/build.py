"""Building a network by name, and rebuilding one from its recipe."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from advml import registry
from advml.contracts import Network, Spec
from advml.errors import ConfigError


def build(name: str, settings: Any, spec: Spec, seed: int) -> Network:
    """The network `name` for `spec`, initialised on the CPU in float32: a pure function of its arguments.

    Filters lie in memory with channels last, and so then do the maps that they give: on a CPU that is up to three times
    as fast (docs/benchmarks.md).
    """
    cls = registry.resolve("model", name)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # not CUDA's: nothing is drawn there
        network: Network = cls.make(spec, settings).to(memory_format=torch.channels_last)
    if not hasattr(network, "recipe"):
        network.recipe = {"name": name, "settings": asdict(settings), "spec": spec.to_dict()}
    return network


def placed(network: Network, device: torch.device, dtype: torch.dtype) -> Network:
    """A network that `build` gave, moved to where it is trained: the same object.

    On a CPU filters lie as built, on another device as torch has them.
    """
    network = network.to(device, dtype)
    if device.type == "cpu":
        return network
    as_torch: Network = network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return as_torch


def from_recipe(recipe: Mapping[str, Any], seed: int = 0) -> Network:
    """The network that a recipe describes, with weights drawn by `seed`."""
    cls = registry.resolve("model", recipe["name"])
    try:
        settings = TypeAdapter(cls.settings).validate_python(dict(recipe["settings"]))
    except ValidationError:
        raise ConfigError(f"model {recipe['name']}: saved with other settings than today's version has") from None
    return build(recipe["name"], settings, Spec.from_dict(recipe["spec"]), seed)


def rebuild(recipe: Mapping[str, Any], state: Mapping[str, torch.Tensor]) -> Network:
    """The network that a recipe describes, with these weights, in evaluation mode."""
    network = from_recipe(recipe)
    dtype = next((value.dtype for value in state.values() if value.is_floating_point()), torch.float32)
    network.to(dtype)
    network.load_state_dict(state)
    return network.eval()


def load_bundle(run: Path | str) -> dict[str, Any]:
    """checkpoints/model.pt of a run folder: recipe, states, prepare. Raises ConfigError where it is missing."""
    path = Path(run) / "checkpoints" / "model.pt"
    if not path.is_file():
        raise ConfigError(f"{run}: holds no trained network (checkpoints/model.pt); is the run completed?")
    try:
        bundle: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as error:
        raise ConfigError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or 'it is damaged'}") from None
    if not isinstance(bundle, dict) or not {"recipe", "states", "prepare"} <= bundle.keys():
        raise ConfigError(f"{path}: cannot be read: it holds no network of a run")
    return bundle
