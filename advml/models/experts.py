"""Networks of one modality each that together are one classifier: a product of experts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from advml.config import settings
from advml.contracts import Network, Spec
from advml.models.build import from_recipe
from advml.nn.multimodal.experts import product_of_experts


@settings
class ExpertsSettings:
    """The recipe of each modality's network."""

    experts: Mapping[str, Any]


def parts(spec: Spec) -> dict[str, Spec]:
    """Modality → the problem with it only: its input, its mask if it has one, no presence.

    A problem that names no modalities is one part, under the name of its first input.
    """
    if not spec.streams:
        return {next(iter(spec.inputs)): spec}
    found = {}
    for name, stream in spec.streams.items():
        inputs = {one: spec.inputs[one] for one in (name, stream.mask) if one is not None}
        tokens = {one: size for one, size in spec.tokens.items() if one in inputs}
        found[name] = replace(spec, inputs=inputs, tokens=tokens, streams={name: replace(stream, present=None)})
    return found


class Experts(Network):
    """Σ_m log p(y | x_m) − (M − 1) log p(y), renormalised, over the modalities that an example has.

    Each expert reads its own modality alone. The prior is a buffer of logarithms, set by whoever trains the experts.
    """

    settings: ClassVar[type] = ExpertsSettings
    reads_tokens: ClassVar[bool] = True

    def __init__(self, spec: Spec, experts: Mapping[str, Network]) -> None:
        super().__init__()
        self.experts = nn.ModuleDict(dict(experts))
        self.parts = parts(spec)
        self.present = {name: spec.streams[name].present if name in spec.streams else None for name in self.parts}
        self.register_buffer("prior", torch.full((spec.outputs,), 1 / spec.outputs).log())
        self.head = nn.Identity()
        own = {"experts": {name: dict(expert.recipe) for name, expert in experts.items()}}
        self.recipe = {"name": "advml.models.experts:Experts", "settings": own, "spec": spec.to_dict()}

    @classmethod
    def make(cls, spec: Spec, settings: ExpertsSettings) -> Network:
        """With arbitrary weights."""
        return cls(spec, {name: from_recipe(recipe) for name, recipe in settings.experts.items()})

    def expert(self, name: str) -> Network:
        """The network of a modality."""
        expert = self.experts[name]
        assert isinstance(expert, Network)
        return expert

    def features(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Logarithms of probabilities [B, C]."""
        logits = [self.expert(name)({one: inputs[one] for one in part.inputs}) for name, part in self.parts.items()]
        present = [None if key is None else inputs[key] for key in self.present.values()]
        prior: Tensor = self.get_buffer("prior")
        return product_of_experts(logits, prior, present)
