import json
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf
from pydantic import TypeAdapter

from advml import registry

CONFIGS = Path(__file__).parents[2] / "configs" / "model"


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def bound():
    """bound("cnn", values): a model's class and its settings, validated as `advml.config.bind` does."""

    def bind(name, values):
        cls = registry.resolve("model", name)
        return cls, TypeAdapter(cls.settings).validate_json(json.dumps(values), strict=True)

    return bind


def read(path):
    """A file's keys, with those of the files that it builds upon: `- _base/towers@_here_`."""
    tree = OmegaConf.to_container(OmegaConf.load(path))
    inherited = {}
    for line in tree.pop("defaults", []):
        if line.endswith("@_here_"):
            inherited |= read(path.parent / f"{line.partition('@')[0]}.yaml")
    return inherited | tree


@pytest.fixture
def chosen(bound):
    """chosen("cnn", norm="group"): class and settings of configs/model/cnn.yaml, some keys changed."""

    def choose(file, **changes):
        tree = read(CONFIGS / f"{file}.yaml") | changes
        return bound(tree.pop("name"), tree)

    return choose


@pytest.fixture
def shipped(chosen):
    """shipped("cnn", spec, norm="group"): that network for `spec`, which it must be able to serve."""

    def build(file, spec, **changes):
        cls, settings = chosen(file, **changes)
        assert cls.check(spec, settings) is None
        return cls(spec, settings)

    return build
