"""What people do by mistake: one line that says so, an exit code, and nothing lost."""

import numpy as np
import pytest
import yaml

import advml
from advml.errors import ConfigError
from advml.report.panels import _splitting
from advml.runner import run as running
from advml.runner.folder import RunFolder

SMALL = ("method=supervised", "dataset=iris", "model=linear", "method.epochs=3", "baselines=off", "progress=off",
         "figures=false", "device=cpu", "threads=1")  # fmt: skip


@pytest.fixture
def finished(run_cli):
    """A completed run that a limit has ended."""
    said = run_cli("run", *SMALL, "limits.steps=2")
    assert said.code == 0, said.err
    return RunFolder(said.last)


def contents(folder):
    files = [path for path in sorted(folder.path.rglob("*")) if path.is_file() and path.name != "lock"]
    return {str(path): path.read_bytes() for path in files}


def test_what_goes_wrong_in_somebody_s_data_set_ends_its_job_only(run_cli, monkeypatch):
    load = running.load_view

    def broken(bound, note):
        if bound.run.seed == 0:
            raise ValueError("row 7: no number")
        return load(bound, note)

    monkeypatch.setattr(running, "load_view", broken)
    said = run_cli("sweep", *SMALL, "seed=0,1", "outputs=swept")
    assert said.code == 1
    assert "ValueError: row 7: no number (" in said.err
    assert "[2/2] seed=1: completed" in said.err
    said = run_cli("run", *SMALL, "seed=0")
    assert said.code == 1
    assert said.err.startswith("advml: ValueError: row 7: no number (")
    assert "Traceback" not in said.err


def test_a_seed_may_be_written_as_a_float(run_cli):
    assert run_cli("sweep", *SMALL, "seed=1e3,2e3", "outputs=swept").code == 0
    said = run_cli("compare", "swept")
    assert said.code == 0, said.err
    assert "2" in said.out


@pytest.mark.parametrize("damage", ["missing", "empty"])
def test_a_completed_run_without_its_checkpoint_is_left_as_it_is(run_cli, finished, damage):
    last = finished / "checkpoints/last.pt"
    last.unlink() if damage == "missing" else last.write_bytes(b"")
    before = contents(finished)
    said = run_cli("resume", str(finished.path), "limits.steps=null")
    assert said.code in (1, 2)
    assert "last.pt" in said.err
    assert contents(finished) == before


def test_a_home_folder_is_found(run_cli, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    said = run_cli("run", *SMALL, "outputs='~/runs'")
    assert said.code == 0, said.err
    assert list((tmp_path / "home/runs").glob("*/*/*/config.yaml"))


def test_a_folder_of_configurations_that_is_not_there(run_cli):
    for words in (("check",), ("run",), ("config",)):
        said = run_cli(*words, "--config-dir", "nowhere", *SMALL)
        assert said.code == 2
        assert said.err.strip().endswith("nowhere: no such folder")


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (b"seed: 3\n", 'experiment: its file must begin with the line "# @package _global_"'),
        ("# @package _global_\n# für\nseed: 3\n".encode("latin-1"), "is not UTF-8"),
        (b"# @package _global_\ndefaults:\n  override /model: mlp\n", "defaults"),
    ],
)
def test_files_of_one_s_own_that_are_none(run_cli, tmp_path, monkeypatch, content, told):
    (tmp_path / "conf/experiment").mkdir(parents=True)
    (tmp_path / "conf/experiment/mine.yaml").write_bytes(content)
    monkeypatch.setenv("ADVML_CONFIG_PATH", str(tmp_path / "conf"))
    said = run_cli("check", *SMALL, "experiment=mine")
    assert said.code == 2
    assert told in said.err
    assert len(said.err.strip().splitlines()) == 1
    assert run_cli("list", "experiments").code == 0


def test_a_run_goes_on_although_its_file_was_broken_since(run_cli, tmp_path, monkeypatch):
    (tmp_path / "conf/experiment").mkdir(parents=True)
    mine = tmp_path / "conf/experiment/mine.yaml"
    mine.write_text("# @package _global_\nseed: 3\n")
    monkeypatch.setenv("ADVML_CONFIG_PATH", str(tmp_path / "conf"))
    folder = run_cli("run", *SMALL, "experiment=mine", "limits.steps=2").last
    mine.write_text("# @package _global_\nseed: [\n")
    said = run_cli("resume", str(folder), "limits.steps=null")
    assert said.code == 0, said.err
    assert "advml: not read: " in said.err
    assert yaml.safe_load((RunFolder(folder) / "config.yaml").read_text())["seed"] == 3


@pytest.mark.parametrize(
    "given", [[[5.1], [6.0]], [[1, 2, 3]], [5.1, 3.5, 1.4, 0.2], 5.1, [["a", "b", "c", "d"]], [[1], [1, 2]]]
)
def test_inputs_of_another_shape_are_no_inputs(finished, given):
    """Broadcast against the preparation they would give an answer."""
    with pytest.raises(ConfigError, match=r"features: (expected \[N, 4\], not|is no array of numbers)"):
        advml.load(finished.path).predict(given)
    rows = np.array([[5.1, 3.5, 1.4, 0.2], [6.0, 3.0, 4.8, 1.8]])
    answers = advml.load(finished.path).predict(rows)
    assert advml.load(finished.path).predict(rows[::-1]).flip(0).allclose(answers)


def test_many_keys_make_few_panels():
    """Of forty keys not every subset is tried: that would take for ever."""
    keys = [f"key{number}" for number in range(40)]
    rows = [(None, {key: row == place for place, key in enumerate(keys)}) for row in range(40)]
    assert _splitting(rows, [], keys, 3) == []


def test_a_check_finds_what_a_run_would_be_refused_for(run_cli):
    said = run_cli("check", "method=ewc", "method.epochs=3")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert said.err.startswith("advml: method.iterations, method.epochs: give one of the two")
    said = run_cli("check", *SMALL[:4], "baselines={mine:['method.epochs=many']}")
    assert said.code == 2
    assert said.err.startswith("advml: baselines.mine: method.epochs: ")
    assert run_cli("check", "method=ewc").code == 0
