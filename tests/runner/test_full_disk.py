"""No space left, at any write: one line, exit code 1, the last good checkpoint still there, and a run that goes on."""

import json
from pathlib import Path

import pytest
from runs import assert_same_run, load, only_run


def assert_one_line(ended, path=""):
    assert ended.code == 1
    assert "Traceback" not in ended.err
    assert "Logging error" not in ended.err
    (line,) = ended.err.splitlines()
    assert line.startswith("advml: ")
    assert str(path) in line


@pytest.fixture
def calm(forks, tree, tmp_path):
    """(configuration, an undisturbed run, its write points)."""
    config = tree("checkpoint_seconds=0", "figures=true", "method.epochs=3")
    cwd = tmp_path / "calm"
    cwd.mkdir()
    ended = forks.run("start", config, cwd=cwd, fault={"kind": "record", "log": str(tmp_path / "points")})
    assert ended.code == 0, ended.err
    return config, only_run(cwd / "outputs"), (tmp_path / "points").read_text().splitlines()


@pytest.mark.parametrize("stage", [pytest.param("before", marks=pytest.mark.slow), "written", "renamed"])
def test_a_full_disk_at_any_write(stage, forks, calm, tmp_path):
    config, undisturbed, points = calm
    names = [point for point in dict.fromkeys(points) if point.endswith(f": {stage}")]
    for number, point in enumerate(names):
        cwd = tmp_path / f"full{number}"
        cwd.mkdir()
        ended = forks.run("start", config, cwd=cwd, fault={"kind": "full", "point": point, "nth": 1 + number % 2})
        if points.count(point) < 1 + number % 2:
            assert ended.code == 0, point
            continue
        assert_one_line(ended)
        assert "No space left on device" in ended.err
        found = list((cwd / "outputs").glob("*/*/*/config.yaml"))
        if not found:
            assert "start the run again" in ended.err
            assert list((cwd / "outputs").glob("*/*/*")) == []
            continue
        folder = found[0].parent
        assert f"advml resume {folder}" in ended.err
        assert not list(folder.rglob("*.tmp"))
        if (folder / "checkpoints/last.pt").exists():
            assert load(folder / "checkpoints/last.pt")["total"] >= 1
        resumed = forks.run("resume", str(folder), {}, cwd=cwd, fault={"kind": "none"})
        assert resumed.code == 0, resumed.err
        assert_same_run(undisturbed, folder)


def test_the_operating_system_refuses_to_let_a_file_grow(forks, tree, tmp_path):
    """Real failures of the kernel, in whichever file first reaches the limit: checkpoints, records, timing, the log."""
    config = tree("checkpoint_seconds=0", "method.epochs=30", "model=mlp", base=("dataset=iris",))
    (tmp_path / "calm").mkdir()
    assert forks.run("start", config, cwd=tmp_path / "calm").code == 0
    undisturbed = only_run(tmp_path / "calm/outputs")
    largest = {path: path.stat().st_size for path in undisturbed.rglob("*") if path.is_file()}
    small = [size - 1 for path, size in largest.items() if size > 300 and path.name != "command.txt"]
    assert len(small) > 6
    resumed_runs = 0
    for number, size in enumerate(sorted(small)):
        cwd = tmp_path / f"small{number}"
        cwd.mkdir()
        ended = forks.run("start", config, cwd=cwd, fault={"kind": "small", "bytes": size})
        if size == max(small) or ended.code == 0:
            continue  # only timing.jsonl and log.txt hold numbers of varying length
        assert_one_line(ended)
        assert "File too large" in ended.err
        for config_file in (cwd / "outputs").glob("*/*/*/config.yaml"):
            resumed = forks.run("resume", str(config_file.parent), {}, cwd=cwd)
            assert resumed.code == 0, resumed.err
            assert_same_run(undisturbed, config_file.parent)
            resumed_runs += 1
    assert resumed_runs >= 4


def test_a_full_disk_while_resuming(forks, tree, inside):
    config = tree("checkpoint_seconds=0")
    died = forks.run("start", config, cwd=inside, fault={"kind": "die", "point": "last.pt: renamed", "nth": 2})
    assert died.code == 9
    folder = only_run(inside / "outputs")
    for point in ("config.yaml: before", "status.json: before", "metrics.jsonl: before", "last.pt: written"):
        ended = forks.run("resume", str(folder), {}, cwd=inside, fault={"kind": "full", "point": point, "nth": 1})
        assert_one_line(ended, folder)
        assert load(folder / "checkpoints/last.pt")["total"] == 2
    assert forks.run("resume", str(folder), {}, cwd=inside).code == 0
    assert json.loads((folder / "status.json").read_text())["state"] == "completed"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this machine")
class TestDevFull:
    """Single files on a device that is always full."""

    @pytest.fixture
    def interrupted(self, forks, tree, inside):
        config = tree("checkpoint_seconds=0")
        died = forks.run("start", config, cwd=inside, fault={"kind": "die", "point": "last.pt: renamed", "nth": 2})
        assert died.code == 9
        return only_run(inside / "outputs")

    def put_on_full_disk(self, file):
        file.unlink()
        file.symlink_to("/dev/full")

    def test_the_log_is_not_worth_a_run(self, interrupted, forks, inside):
        self.put_on_full_disk(interrupted / "log.txt")
        ended = forks.run("resume", str(interrupted), {}, cwd=inside)
        assert (ended.code, ended.err) == (0, "")

    def test_seconds_are(self, interrupted, forks, inside):
        self.put_on_full_disk(interrupted / "timing.jsonl")
        assert_one_line(forks.run("resume", str(interrupted), {}, cwd=inside), interrupted)
        (interrupted / "timing.jsonl").unlink()
        assert forks.run("resume", str(interrupted), {}, cwd=inside).code == 0
