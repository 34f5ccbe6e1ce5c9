"""Configurations composed from files that were composed before are those that Hydra composes anew."""

import os
import shutil
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

from advml import compose as module
from advml.compose import composed
from advml.errors import ConfigError
from advml.overrides import forced
from advml.roots import config_root, members

METHODS = sorted(members("method", [config_root()]))


def plain(config):
    """All of it, Hydra's block too, unresolved and in its order."""
    return yaml.safe_dump(OmegaConf.to_container(config, resolve=False, enum_to_str=True), sort_keys=False)


def anew(words):
    with module.one_line_errors():
        return module._by_hydra(words)


@pytest.fixture
def hydras(monkeypatch):
    """What Hydra itself was asked for."""
    asked, true = [], module._by_hydra

    def counted(words):
        asked.append(tuple(words))
        return true(words)

    module._of_choices.cache_clear()
    monkeypatch.setattr(module, "_by_hydra", counted)
    yield asked
    module._of_choices.cache_clear()


@pytest.mark.parametrize("method", METHODS)
def test_every_method(method):
    words = forced([f"method={method}", "method.name=x", "seed=3", "limits={steps: 3}", "new.key=[1,{a: 2}]"])
    assert plain(composed(words, [])) == plain(anew(words))


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["seed=1"],
        ["seed=1", "seed=2"],
        ["method.lr=0.1", "method=ewc", "method.strength=1e3"],
        ["limits.steps=1", "limits={steps: 5}", "limits.seconds=2"],
        ["experiment=ewc_split_mnist", "method.epochs=1"],
        ["experiment=null", "baselines=off"],
        ["outputs='a b/${seed}'", "sweep.name=${outputs}"],
        ["~method.lr", "method.lr=4"],
        ["method.lr=4", "~method.lr"],
        ["+method.other=4", "method.other=5"],
        ["~model", "method.lr=2"],
        ["hydra.sweep.subdir=x", "seed=4"],
        ["seed=5", "hydra.job.config.override_dirname.exclude_keys=[seed]", "method.lr=1"],
        ["seed=null", "method.lr='0.1'", "model.hidden=[]"],
    ],
    ids=" ".join,
)
def test_odd_words(words):
    prepared = forced(words)
    expected = plain(anew(prepared))
    assert plain(composed(prepared, [])) == expected
    assert plain(composed(prepared, [])) == expected


@pytest.mark.parametrize(
    "words",
    [["+seed=1"], ["~seed.x"], ["seed=1", "++method.lr=[a,1"], ["++seed=1,2"], ["++method.lr@x=1"], ["++limits.x=3,4"]],
)
def test_the_same_mistakes(words):
    said = []
    for way in (lambda: composed(words, []), lambda: anew(words)):
        with pytest.raises(ConfigError) as caught:
            way()
        said.append(str(caught.value))
    assert said[0] == said[1]


def test_hydra_composes_each_choice_of_files_once(hydras):
    for seed in range(3):
        composed(forced(["method=ewc", f"seed={seed}"]), [])
        composed(forced([f"seed={seed}", "method=si", "method.lr=1"]), [])
    assert hydras == [("method=ewc",), ("method=si",)]


def test_what_is_done_to_one_is_not_done_to_the_next(hydras):
    first = composed(forced(["seed=1"]), [])
    first.limits.steps = 9
    first.hydra.overrides.task.append("x")
    second = composed(forced(["seed=2"]), [])
    assert (second.limits.steps, list(second.hydra.overrides.task)) == (None, ["++seed=2"])
    assert len(hydras) == 1


def test_a_changed_file_is_read_again(hydras, monkeypatch, tmp_path):
    copied = tmp_path / "configs"
    shutil.copytree(config_root(), copied)
    monkeypatch.setattr(module, "config_root", lambda: copied)
    assert composed(["++seed=1"], []).method.lr == 0.001
    file = copied / "method" / "_base" / "optimiser.yaml"
    (copied / "method" / ".#ewc.yaml").symlink_to("nowhere")  # as an editor leaves it
    before = file.stat().st_mtime_ns
    file.write_text(file.read_text().replace("lr: 0.001", "lr: 0.5"))
    os.utime(file, ns=(before + 1, before + 1))
    assert composed(["++seed=1"], []).method.lr == 0.5
    assert len(hydras) == 2


def test_folders_of_ones_own_are_read_each_time(hydras, monkeypatch, tmp_path):
    (tmp_path / "method").mkdir()
    mine = tmp_path / "method" / "mine.yaml"
    for at, lr in enumerate((1, 2), 1):
        mine.write_text(f"name: supervised\nlr: {lr}\n")
        assert composed(["method=mine", "++seed=1"], [tmp_path]).method.lr == lr
        assert len(hydras) == at
    monkeypatch.setenv("ADVML_CONFIG_PATH", str(tmp_path))
    mine.write_text("name: supervised\nlr: 3\n")
    assert composed(["method=mine", "++seed=1"], []).method.lr == 3


def test_from_another_folder(hydras, monkeypatch, tmp_path):
    composed(["++seed=1"], [])
    monkeypatch.chdir(tmp_path)
    assert Path(composed(["++seed=1"], []).hydra.runtime.cwd) == Path.cwd()
