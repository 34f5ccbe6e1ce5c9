"""A completed run, and copies of it with other values."""

import itertools
import json
import shutil

import pytest
import yaml
from runs import QUIET, TINY

from advml.compose import with_overrides
from advml.runner.folder import RunFolder


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """One real run, which the others are copies of."""
    import advml

    words = (*TINY, *QUIET, f"outputs={tmp_path_factory.mktemp('original')}")
    return advml.run(*words).folder


@pytest.fixture
def made(original, inside):
    """made("seed=1", model="mlp_400"): the folder of a completed run with such values and such a chosen file."""
    count = itertools.count()

    def make(*overrides, **choices):
        path = inside / f"outputs/supervised/iris/20260101-0000{next(count):02}-aaaa"
        folder = RunFolder(shutil.copytree(original, path))
        tree = with_overrides(folder.tree(), [*overrides, "outputs=outputs"])
        (folder / "config.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
        environment = folder.environment()
        environment["choices"] |= choices
        (folder / "environment.json").write_text(json.dumps(environment))
        return folder

    return make
