"""Shipped configuration files: they name exactly the fields of their settings, explain every key, and leak nothing."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from advml import registry
from advml.compose import compose
from advml.config import GROUPS, Limits, RunSettings, bind
from advml.roots import config_root, description, members
from advml.runner.budget import COUNTERS
from advml.runner.fit import check_fit

ROOT = config_root()
FILES = sorted(ROOT.rglob("*.yaml"))
SHIPPED = [(group, name) for group in GROUPS for name in members(group, [ROOT])]
EXPERIMENTS = sorted(members("experiment", [ROOT]))


def relative(path):
    return str(path.relative_to(ROOT))


def keys(tree, prefix=""):
    """All dotted keys of a nested mapping that is a block of keys."""
    for key, value in tree.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from keys(value, f"{prefix}{key}.")


def fields_of(settings, prefix=""):
    """All dotted fields of a settings class, nested settings included."""
    for field in dataclasses.fields(settings):
        yield f"{prefix}{field.name}"
        if dataclasses.is_dataclass(field.type):
            yield from fields_of(field.type, f"{prefix}{field.name}.")


@pytest.mark.parametrize(("group", "name"), SHIPPED, ids=["-".join(pair) for pair in SHIPPED])
def test_a_file_fits_its_settings(group, name):
    """It names exactly their fields, and a method fits the companions that it chooses."""
    tree = compose([f"{group}={name}"])[0]
    branch = dict(tree[group])
    settings = registry.resolve(group, branch.pop("name")).settings
    assert {field.name for field in dataclasses.fields(settings)} == set(branch)
    if "???" not in branch.values():
        bound = bind(tree)
        if group == "method":
            check_fit(bound)


def test_the_root_names_exactly_the_fields_of_the_run():
    tree = {key: value for key, value in compose([])[0].items() if key not in GROUPS}
    assert {field.name for field in dataclasses.fields(RunSettings)} == set(tree)
    assert {field.name for field in dataclasses.fields(Limits)} == set(tree["limits"])


def test_every_counter_can_be_a_limit():
    assert {field.name for field in dataclasses.fields(Limits)} == {"steps", "seconds", *COUNTERS}


@pytest.mark.parametrize("kind", GROUPS)
def test_every_registered_name_has_a_file(kind):
    named = {yaml.safe_load(path.read_text()).get("name") for path in members(kind, [ROOT]).values()}
    assert named - {None} == set(registry.BUILT_IN[kind])


def documented(path):
    """The keys of a file with a comment, and those without."""
    explained, unexplained, block = set(), set(), ""
    lines = path.read_text().splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        found = re.match(r"( *)([a-z_0-9]+):", line)
        if found is None:
            continue
        block = block if found[1] else found[2]
        if block in ("defaults", "hydra", "name"):
            continue
        commented = " # " in line or (before.lstrip().startswith("#") and before is not lines[0])
        (explained if commented else unexplained).add(found[2])
    return explained, unexplained


@pytest.mark.parametrize("path", FILES, ids=relative)
class TestComments:
    def test_the_first_line_describes_the_file(self, path):
        assert 15 < len(description(path)) <= 130
        assert description(path)[0].isupper() or not description(path)[0].isalpha()

    def test_every_key_says_what_it_means(self, path):
        if relative(path).startswith(("experiment/", "study/")):
            return  # values only, of keys that are explained where they belong (those of a study: docs/comparing.md)
        explained, unexplained = documented(path)
        for parent in yaml.safe_load(path.read_text()).get("defaults", []):
            beside = path.parent / f"{str(parent).partition('@')[0]}.yaml"
            if beside.is_file():  # a preset need not repeat what the member it starts from says
                explained |= documented(beside)[0]
        assert unexplained - explained == set()

    def test_no_line_is_too_long(self, path):
        assert max(map(len, path.read_text().splitlines())) <= 130


@pytest.mark.parametrize("path", [path for path in FILES if "_base" not in path.parts], ids=relative)
def test_a_file_sets_no_key_of_another_group(path):
    """A value set inside another group would stay when the user chooses another member of that group."""
    group = relative(path).split("/")[0]
    if group in (*GROUPS,):
        written = yaml.safe_load(path.read_text())
        assert not set(written) & set(GROUPS), relative(path)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_fits(name):
    check_fit(bind(compose([f"experiment={name}"])[0]))


OTHERS = ("dataset=wine", "model=linear", "view=plain")


@pytest.fixture(scope="module")
def others_alone():
    return compose(OTHERS)[0]


@pytest.mark.parametrize("method", sorted(members("method", [ROOT])))
def test_choosing_again_leaves_nothing_behind(method, others_alone):
    """A method chooses companions; whatever the user chooses instead is as if it had been chosen from the start."""
    chosen = compose([f"method={method}", *OTHERS])[0]
    for group in ("dataset", "model", "view"):
        assert chosen[group] == others_alone[group]


def test_no_key_interpolates_hydra():
    for path in FILES:
        text = path.read_text()
        assert "_target_" not in text
        ours = yaml.safe_load(text)
        ours.pop("hydra", None)
        assert "${hydra" not in str(ours), relative(path)


def test_in_the_wheel_the_same_files_are_found(tmp_path, monkeypatch):
    """An installed package carries its configs inside."""
    from advml import roots

    package = tmp_path / "advml"
    (package / "configs").mkdir(parents=True)
    monkeypatch.setattr(roots, "__file__", str(package / "roots.py"))
    assert roots.config_root() == package / "configs"
    (package / "configs").rmdir()
    assert roots.config_root() == tmp_path / "configs"


def test_the_wheel_is_told_to_take_them():
    assert '"configs" = "advml/configs"' in (Path(ROOT).parent / "pyproject.toml").read_text()
