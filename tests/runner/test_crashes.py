"""A run that dies at any write point, or is killed at any moment, is resumed and ends as if nothing had happened."""

import json
import random
import signal
import time

import pytest
from runs import assert_same_run, only_run

from advml.runner.folder import RunFolder


@pytest.fixture
def undisturbed(forks, tree, tmp_path):
    """(configuration, the folder of a run that nothing disturbed); pictures are stubs, as in the disturbed runs."""

    def run():
        config = tree("checkpoint_seconds=0", "figures=true")
        calm = tmp_path / "calm"
        calm.mkdir()
        ended = forks.run("start", config, cwd=calm, fault={"kind": "record", "log": str(tmp_path / "points")})
        assert ended.code == 0, ended.err
        return config, only_run(calm / "outputs"), (tmp_path / "points").read_text().splitlines()

    return run


def first_and_last(points, stage):
    """(point, how often it has been reached) for the first and the last time of every point of a stage."""
    chosen = []
    for point in dict.fromkeys(points):
        if point.endswith(f": {stage}"):
            chosen += [(point, nth) for nth in sorted({1, points.count(point)})]
    return chosen


def test_the_points_cover_every_file_of_a_run(undisturbed):
    _, calm, points = undisturbed()
    named = {point.split(":")[0] for point in points}
    unnamed = {"timing.jsonl", "log.txt", ".lock"}  # exempt from equality, or empty
    renamed = {"best.pt"}  # written as best.new.pt
    assert named == {path.name for path in calm.rglob("*") if path.is_file()} - unnamed | {"best.new.pt"} | renamed
    assert points.count("last.pt: renamed") == 4
    assert points.count("best.new.pt: renamed") >= 2


@pytest.mark.parametrize("stage", [pytest.param("before", marks=pytest.mark.slow), "written", "renamed"])
def test_dying_at_any_write_point_changes_nothing(stage, forks, undisturbed, tmp_path):
    config, calm, points = undisturbed()
    faults = first_and_last(points, stage)
    assert len(faults) > 15
    for number, (point, nth) in enumerate(faults):
        cwd = tmp_path / f"disturbed{number}"
        cwd.mkdir()
        died = forks.run("start", config, cwd=cwd, fault={"kind": "die", "point": point, "nth": nth})
        assert died.code == 9, point
        if not list((cwd / "outputs").glob("*/*/*/config.yaml")):
            # It was not yet a run: nothing had been computed.
            assert point.split(":")[0] in ("environment.json", "command.txt", "overrides.txt", "data.json",
                                           "status.json", "config.yaml"), point  # fmt: skip
            (unborn,) = (cwd / "outputs").glob("*/*/*")
            assert not (unborn / "metrics.jsonl").exists()
            continue
        folder = RunFolder.open(only_run(cwd / "outputs"))
        over = point == "status.json: renamed" and nth == points.count(point)
        assert folder.status()["state"] == ("completed" if over else "crashed"), point
        if not over:
            ended = forks.run("resume", str(folder.path), {}, cwd=cwd, fault={"kind": "none"})
            assert ended.code == 0, ended.err
        assert_same_run(calm, folder.path)


def kill_again_and_again(forks, cwd, config, wanted, expected_seconds, chance, attempts=200):
    """Start, kill at a random moment, resume, kill, …, `wanted` times. Runs that end before their kill start anew."""
    killed = finished = 0
    for _ in range(attempts):
        if killed >= wanted:
            return killed
        found = sorted((cwd / "outputs").glob("*/*/*/config.yaml"), key=lambda path: path.stat().st_mtime_ns)
        open_runs = [path.parent for path in found if not (path.parent / "result.json").exists()]
        if open_runs:
            process = forks.start("resume", str(open_runs[-1]), {}, cwd=cwd)
        else:
            process = forks.start("start", config, cwd=cwd)
        ended = process.kill_after(chance.uniform(0, expected_seconds))
        assert ended.code in (-signal.SIGKILL, 0), ended.err
        killed += ended.code == -signal.SIGKILL
        finished += ended.code == 0
    raise AssertionError(f"only {killed} kills in {attempts} attempts, {finished} runs finished first")


def survive_kills(forks, cwd, config, calm, wanted, seconds):
    kill_again_and_again(forks, cwd, config, wanted, seconds, random.Random(0))
    runs = [path.parent for path in (cwd / "outputs").glob("*/*/*/config.yaml")]
    assert runs
    for path in runs:
        if not (path / "result.json").exists() or RunFolder.open(path).status()["state"] != "completed":
            ended = forks.run("resume", str(path), {}, cwd=cwd)
            assert ended.code == 0, ended.err
        assert_same_run(calm, path)


SUPERVISED = ("dataset=iris", "model=linear", "method.epochs=40", "method.lr=0.05")
EWC = ("method=ewc", "dataset=iris", "view.tasks=4", "method.iterations=30", "method.block=2", "method.batch_size=16",
       "model.hidden=[8]", "model.norm=batch", "model.dropout=0.2")  # fmt: skip


@pytest.mark.parametrize(("base", "kills"), [
    pytest.param(SUPERVISED, 8, id="supervised"),
    pytest.param(SUPERVISED, 20, id="supervised, twenty", marks=pytest.mark.slow),
    pytest.param(EWC, 3, id="ewc"),
    pytest.param(EWC, 5, id="ewc, five", marks=pytest.mark.slow),
])  # fmt: skip
def test_kills_change_nothing(base, kills, forks, tree, tmp_path):
    config = tree("checkpoint_seconds=0", base=base)
    calm, cwd = tmp_path / "calm", tmp_path / "killed"
    calm.mkdir(), cwd.mkdir()
    assert forks.run("start", config, cwd=calm).code == 0
    began = time.monotonic()
    assert forks.run("start", config, cwd=cwd).code == 0
    survive_kills(forks, cwd, config, only_run(calm / "outputs"), kills, time.monotonic() - began)


def test_what_a_crash_left_half_written_is_swept_away(forks, tree, inside):
    config = tree("checkpoint_seconds=0")
    died = forks.run("start", config, cwd=inside, fault={"kind": "die", "point": "last.pt: written", "nth": 2})
    assert died.code == 9
    folder = only_run(inside / "outputs")
    assert (folder / "checkpoints/last.pt.tmp").exists()
    at_work = folder / "baselines/other/checkpoints/last.pt.tmp"  # of a run of its own, perhaps about to be renamed
    at_work.parent.mkdir(parents=True)
    at_work.touch()
    assert forks.run("resume", str(folder), {}, cwd=inside).code == 0
    assert list(folder.rglob("*.tmp")) == [at_work]


def test_a_crashed_run_says_so(forks, tree, inside, run_cli):
    config = tree("checkpoint_seconds=0")
    assert forks.run("start", config, cwd=inside, fault={"kind": "die", "point": "last.pt: before", "nth": 3}).code == 9
    folder = only_run(inside / "outputs")
    status = json.loads((folder / "status.json").read_text())
    assert (status["state"], status["step"]) == ("running", 2)
    assert "crashed" in run_cli("list", "runs").out


def test_a_folder_that_died_unborn_is_no_run(forks, tree, inside, run_cli):
    died = forks.run("start", tree(), cwd=inside, fault={"kind": "die", "point": "config.yaml: written", "nth": 1})
    assert died.code == 9
    (unborn,) = (inside / "outputs").glob("*/*/*")
    said = run_cli("resume", str(unborn))
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "not a run folder" in said.err
    assert run_cli("list", "runs").out.startswith("no runs")


def test_a_second_crash_before_the_first_step_forgets_nothing(forks, tree, inside):
    config = tree("checkpoint_seconds=0")
    assert forks.run("start", config, cwd=inside, fault={"kind": "die", "point": "last.pt: before", "nth": 3}).code == 9
    path = only_run(inside / "outputs")
    again = forks.run("resume", str(path), {}, cwd=inside, fault={"kind": "die", "point": "last.pt: before", "nth": 1})
    assert again.code == 9
    status = RunFolder.open(path).status()
    assert (status["state"], status["step"], status["attempt"]) == ("crashed", 2, 2)
