"""A job's fixed folder: whatever it holds, `ensure` brings it to its end, once."""

import json
import os
import signal
import threading
import time

import pytest
from runs import assert_same_run

from advml.config import bind
from advml.errors import AdvmlError, ConfigError
from advml.runner.folder import RunFolder
from advml.runner.jobs import Job, ended, ensure, failed, finished, look
from advml.runner.run import Asked, start

ASKED = Asked("advml sweep seed=0", ["seed=0"])


class Interrupts:
    """An observer that asks for the end at a step."""

    def __init__(self, step):
        self.step = step

    def start(self, phases, done): ...
    def note(self, text): ...
    def finish(self): ...

    def record(self, record):
        if record["step"] == self.step and record["split"] == "train":
            os.kill(os.getpid(), signal.SIGTERM)


class Fails(Interrupts):
    def record(self, record):
        if record["step"] == self.step and record["split"] == "train":
            raise ValueError("by hand")


@pytest.fixture
def place(inside):
    return inside / "outputs/sweeps/here/job"


@pytest.fixture
def calm(tree):
    """A run of the same configuration that nothing disturbed, made by `start`."""
    return start(bind(tree()), ASKED).folder.path


def attempts(path):
    return RunFolder.open(path).status()["attempt"]


class TestEnsure:
    def test_missing_is_started_there(self, place, tree, calm):
        outcome = ensure(place, bind(tree()), ASKED)
        assert (outcome.state, outcome.folder.path) == ("completed", place)
        assert_same_run(calm, place)
        assert (place / "command.txt").read_text() == "advml sweep seed=0\n"
        assert not RunFolder(place).locked_elsewhere()

    def test_completed_is_left_as_it_is(self, place, tree):
        ensure(place, bind(tree()), ASKED)
        before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
        assert ensure(place, bind(tree("progress=plain")), ASKED).state == "completed"
        assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before

    @pytest.mark.parametrize(("observer", "state"), [(Interrupts(2), "interrupted"), (Fails(2), "failed")])
    def test_cut_short_is_resumed(self, observer, state, place, tree, calm):
        first = ensure(place, bind(tree("checkpoint_seconds=0")), ASKED, [observer])
        assert first.state == state
        assert ended(Job("", place, {}, ASKED), first).objective is None
        assert ensure(place, bind(tree("checkpoint_seconds=0")), ASKED).state == "completed"
        assert (place / "metrics.jsonl").read_bytes() == (calm / "metrics.jsonl").read_bytes()
        assert attempts(place) == 2

    def test_crashed_is_resumed(self, place, tree, calm, forks, inside):
        config = tree("checkpoint_seconds=0")
        fault = {"kind": "die", "point": "last.pt: renamed", "nth": 2}
        assert forks.run("ensure", str(place), config, cwd=inside, fault=fault).code == 9
        assert look(Job("", place, config, ASKED)).state == "crashed"
        assert ensure(place, bind(config), ASKED).state == "completed"
        assert (place / "metrics.jsonl").read_bytes() == (calm / "metrics.jsonl").read_bytes()

    def test_what_a_crash_left_before_the_run_began_is_cleaned(self, place, tree, calm, forks, inside):
        fault = {"kind": "die", "point": "config.yaml: before", "nth": 1}
        assert forks.run("ensure", str(place), tree(), cwd=inside, fault=fault).code == 9
        assert (place / "environment.json").exists()
        (place / "artifacts").mkdir()
        (place / "artifacts/stale.csv").touch()
        (place / "output.txt").write_text("said before\n")
        assert look(Job("", place, tree(), ASKED)).state == "not started"
        assert ensure(place, bind(tree()), ASKED).state == "completed"
        assert (place / "output.txt").read_text() == "said before\n"
        (place / "output.txt").unlink()
        assert_same_run(calm, place)

    def test_a_limit_raised_leads_on_and_the_same_does_not(self, place, tree, calm):
        assert ensure(place, bind(tree("limits.steps=2")), ASKED).state == "completed"
        assert finished(RunFolder(place), tree("limits.steps=2"))
        ensure(place, bind(tree("limits.steps=2")), ASKED)
        assert (attempts(place), RunFolder(place).result()["budget"]["steps"]) == (1, 2)
        ensure(place, bind(tree("limits.steps=3")), ASKED)
        assert (attempts(place), RunFolder(place).result()["budget"]["steps"]) == (2, 3)
        ensure(place, bind(tree()), ASKED)
        assert attempts(place) == 3
        assert_same_run(calm, place)

    def test_another_experiment_is_refused(self, place, tree):
        ensure(place, bind(tree()), ASKED)
        with pytest.raises(ConfigError, match=r"holds another run \(method.lr: 0.05, not 0.1\); choose another"):
            ensure(place, bind(tree("method.lr=0.1")), ASKED)
        with pytest.raises(ConfigError, match="seed: 0, not 1"):
            ensure(place, bind(tree("seed=1")), ASKED)

    def test_a_key_born_since_is_no_other_experiment(self, place, tree):
        ensure(place, bind(tree()), ASKED)
        saved = (place / "config.yaml").read_text()
        assert "precision: float32\n" in saved
        (place / "config.yaml").write_text(saved.replace("precision: float32\n", ""))
        assert ensure(place, bind(tree()), ASKED).state == "completed"

    def test_held_by_another_process_is_waited_for(self, place, tree, capsys):
        ensure(place, bind(tree()), ASKED)
        holder = RunFolder(place)
        holder.lock()
        status = json.loads((place / "status.json").read_text())
        (place / "status.json").write_text(json.dumps({**status, "state": "running"}))
        outcomes, bound = [], bind(tree())
        waiting = threading.Thread(target=lambda: outcomes.append(ensure(place, bound, ASKED)), daemon=True)
        waiting.start()
        said, end = "", time.monotonic() + 30
        while "waiting for it" not in said and time.monotonic() < end:
            said += capsys.readouterr().err
            time.sleep(0.01)
        assert said == f"{place}: another process is working on this run; waiting for it\n"
        (place / "status.json").write_text(json.dumps(status))  # the other process completes it
        assert outcomes == []
        holder.unlock()
        waiting.join(timeout=30)
        assert outcomes[0].state == "completed"
        assert attempts(place) == 1

    def test_two_at_once_run_it_once(self, place, tree, forks, inside):
        config = tree("method.epochs=40")
        processes = [forks.start("ensure", str(place), config, cwd=inside) for _ in range(3)]
        assert [process.wait().code for process in processes] == [0, 0, 0]
        assert attempts(place) == 1
        assert (place / "log.txt").read_text().count("completed at step") == 1

    def test_a_folder_that_cannot_be_made(self, tree, inside):
        (inside / "file").touch()
        with pytest.raises(AdvmlError, match=r"file/job: cannot be made: .*; choose another"):
            ensure(inside / "file/job", bind(tree()), ASKED)

    def test_a_run_that_cannot_begin_leaves_a_folder_that_can_be_used(self, place, tree, calm, inside):
        with pytest.raises(AdvmlError, match="mnist"):
            ensure(place, bind(tree("dataset=mnist", f"data_dir={inside}/nothing")), ASKED)
        assert sorted(path.name for path in place.iterdir()) == [".lock", "checkpoints"]
        assert ensure(place, bind(tree()), ASKED).state == "completed"
        assert_same_run(calm, place)


class TestLook:
    def test_every_state(self, place, tree):
        job = Job("seed=0", place, tree(), ASKED)
        assert look(job).state == "not started"
        outcome = ensure(place, bind(tree()), ASKED)
        end = look(job)
        result = outcome.folder.result()
        assert (end.state, end.objective, end.seconds) == (
            "completed", result["objective"]["value"], result["seconds"]
        )  # fmt: skip
        assert ended(job, outcome) == end
        (place / "result.json").write_text("{")
        assert look(job).state == "damaged"
        assert "result.json" in look(job).message

    def test_a_limit_is_told(self, place, tree):
        ensure(place, bind(tree("limits.steps=1")), ASKED)
        assert look(Job("", place, tree(), ASKED)).message == "limits.steps=1 reached (1)"

    def test_one_that_could_not_begin(self, place, tree):
        job = Job("", place, tree(), ASKED)
        assert failed(job, ConfigError(["a: wrong", "b: wrong"])).message == "a: wrong; b: wrong"
