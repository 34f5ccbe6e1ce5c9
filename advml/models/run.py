"""A finished run as a model: how any method gets a teacher, a pre-trained start, a network to go on with."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import torch
from torch import nn

from advml.config import settings
from advml.contracts import Network, Spec
from advml.errors import ConfigError
from advml.models.build import from_recipe, load_bundle, rebuild


@settings
class FromRunSettings:
    """Which run, which of its states, what becomes of its head."""

    path: str
    state: Literal["last", "best"]
    head: Literal["auto", "keep", "new"]


class FromRun(Network):
    """Not a network of its own: `make` gives the network of another run, with its weights.

    `head`: `keep` it, put a `new` one in its place, or `auto`, a new one only where the number of outputs differs; then
    other heads that give the outputs (auxiliary ones, one a modality) are new too. What is saved is that network's own
    recipe, so that a run started from another does not depend on it afterwards.
    """

    settings: ClassVar[type] = FromRunSettings
    reads_tokens: ClassVar[bool] = True

    @classmethod
    def check(cls, spec: Spec, settings: FromRunSettings) -> str | None:
        """The inputs must have the shapes that the other run was trained on, and a kept head as many outputs."""
        trained = Spec.from_dict(load_bundle(settings.path)["recipe"]["spec"])
        if (trained.inputs, trained.tokens) != (spec.inputs, spec.tokens):
            shapes = ", ".join(f"{name} {list(shape)}" for name, shape in trained.inputs.items())
            return f"the inputs of the run at model.path, {shapes}"
        if settings.head == "keep" and trained.outputs != spec.outputs:
            return f"{trained.outputs} outputs to keep the head of the run at model.path (or use model.head=new)"
        return None

    @classmethod
    def make(cls, spec: Spec, settings: FromRunSettings) -> Network:
        """The other run's network, ready to be trained further."""
        bundle = load_bundle(settings.path)
        if settings.state not in bundle["states"]:
            raise ConfigError(f"model.state={settings.state}: the run keeps only {', '.join(bundle['states'])}")
        network = rebuild(bundle["recipe"], bundle["states"][settings.state])
        recipe: dict[str, Any] = dict(network.recipe)
        trained = Spec.from_dict(recipe["spec"])
        recipe["spec"] = spec.to_dict()
        if settings.head == "new" or (settings.head == "auto" and trained.outputs != spec.outputs):
            if not isinstance(network.head, nn.Linear):
                raise ConfigError("model.head: only a linear head can be replaced; use model.head=keep")
            return _with_new_heads(network, recipe, trained.outputs).train()
        network.recipe = recipe
        return network.train()


def _with_new_heads(network: Network, recipe: Mapping[str, Any], before: int) -> Network:
    """The network that `recipe` describes, drawn anew where it gives outputs, of which there were `before`; all else is
    that of `network`. Raises ConfigError where more than its last layers depends on their number.
    """
    fresh = from_recipe(recipe, seed=int(torch.randint(2**31, ()))).to(next(network.parameters()).dtype)
    after = Spec.from_dict(recipe["spec"]).outputs
    old, new = network.state_dict(), fresh.state_dict()
    for name, drawn in new.items():
        trained = old.pop(name, None)
        if trained is not None and trained.shape == drawn.shape:
            new[name] = drawn if name.startswith("head.") else trained
        elif trained is None or (*trained.shape[1:], len(trained), len(drawn)) != (*drawn.shape[1:], before, after):
            old[name] = drawn
    if old:
        said = f"{min(old)} is not the same for {before} outputs as for {after}"
        raise ConfigError(f"model.path: {recipe['name']} cannot be given another head: {said}; use as many outputs")
    fresh.load_state_dict(new)
    return fresh
