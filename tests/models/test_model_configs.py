"""Every shipped model file: it binds, names exactly the fields of its settings, and says what each key means."""

import dataclasses
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from advml import registry

CONFIGS = Path(__file__).parents[2] / "configs" / "model"
FILES = sorted(CONFIGS.glob("*.yaml"))


def values(file):
    """The name and the keys of a file, with those of the file that it builds upon: `- cnn@_here_`."""
    tree = OmegaConf.to_container(OmegaConf.load(file))
    based = [line.partition("@")[0] for line in tree.get("defaults", []) if line.endswith("@_here_")]
    inherited = {key: value for name in based for key, value in values(file.parent / f"{name}.yaml")[1].items()}
    return tree.get("name"), inherited | {key: value for key, value in tree.items() if key not in ("name", "defaults")}


def test_there_are_files():
    assert {"cnn", "conv4", "conv4_stride", "linear", "mlp", "mlp_2nn"} <= {file.stem for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
class TestFile:
    def test_names_the_fields_of_the_settings(self, file):
        name, given = values(file)
        fields = {field.name for field in dataclasses.fields(registry.resolve("model", name).settings)}
        assert set(given) == fields

    def test_binds(self, file, bound):
        name, given = values(file)
        _, settings = bound(name, given)
        plain = {key: list(value) if isinstance(value, tuple) else value for key, value in vars(settings).items()}
        assert plain == given

    def test_explains_itself(self, file):
        first, *rest = file.read_text().splitlines()
        assert first.startswith("# ")
        assert first.endswith(".")
        keys = [line for line in rest if line.strip() and not line.startswith(("#", "name:", "defaults:", "  - "))]
        assert [line for line in keys if " # " not in line] == []


def test_wrong_values_are_refused(bound):
    good = values(CONFIGS / "cnn.yaml")[1]
    wrong = [{"channels": [32]}, {"channels": [32, 0]}, {"kernel": 4}, {"norm": "instance"}, {"dropout": 1.0}, {"x": 1}]
    for change in wrong:
        with pytest.raises(ValueError, match=next(iter(change))):
            bound("cnn", good | change)
