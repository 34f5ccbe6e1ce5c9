"""Signals, limits, numbers that are no longer finite, locks: how a run ends before its end, and goes on."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import torch
from runs import assert_same_run, load, only_run

from advml.compose import compose
from advml.config import bind
from advml.errors import AdvmlError
from advml.runner.folder import RunFolder, find
from advml.runner.run import Asked, resume, start

SLOWLY = {"kind": "slow", "seconds": 0.02}  # about ten seconds for a LONG run, if nothing stops it
LONG = ("dataset=iris", "model=mlp", "method.epochs=150", "device=cpu", "threads=1", "progress=off", "figures=false")


def wait_for_step(cwd, step, seconds=60.0):
    """Until the run in `cwd` has written the record of a step; its folder."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for file in (cwd / "outputs").rglob("metrics.jsonl"):
            if file.read_bytes().count(b'"split": "train"') >= step:
                return file.parent
        time.sleep(0.002)
    raise AssertionError(f"no step {step} in {seconds} seconds")


@pytest.fixture
def long_run(forks, inside, tmp_path):
    """(configuration, an undisturbed run of some seconds)."""
    config = compose(LONG)[0]
    calm = tmp_path / "calm"
    calm.mkdir()
    assert forks.run("start", config, cwd=calm).code == 0
    return config, only_run(calm / "outputs")


class TestSignals:
    @pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
    def test_finish_the_step_save_and_say_how_to_go_on(self, name, long_run, forks, inside):
        config, calm = long_run
        process = forks.start("start", config, cwd=inside, fault=SLOWLY)
        folder = wait_for_step(inside, 5)
        process.send(signal.Signals[name])
        ended = process.wait()
        assert ended.code == 130
        (line,) = ended.err.splitlines()
        status = json.loads((folder / "status.json").read_text())
        assert status["state"] == "interrupted"
        assert 5 <= status["step"] < 150
        assert line == f"advml: stopped by {name} after step {status['step']}; to go on: advml resume {folder}"
        assert load(folder / "checkpoints/last.pt")["total"] == status["step"]
        assert ended.out.splitlines()[-1] == str(folder)
        assert not (folder / "result.json").exists()
        assert forks.run("resume", str(folder), {}, cwd=inside).code == 0
        assert_same_run(calm, folder)

    def test_a_real_command_line(self, inside):
        """The same through `python -m advml`, as a shell would run it."""
        words = [sys.executable, "-m", "advml", "run", *LONG, "method.epochs=100000"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        with subprocess.Popen(words, cwd=inside, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              text=True) as process:  # fmt: skip
            folder = wait_for_step(inside, 3)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "Traceback" not in err
        assert err.splitlines()[-1].endswith(f"to go on: advml resume {folder}")
        assert out.splitlines()[-1] == str(folder)

    def test_before_the_first_step(self, inside, tree):
        """Nothing but the evaluation at step 0 is there, and it is not made twice."""

        class AtOnce:
            def start(self, phases, done):
                self.done = done

            def note(self, text): ...
            def finish(self): ...

            def record(self, record):
                os.kill(os.getpid(), signal.SIGTERM)

        whole = start(bind(tree()), Asked("test"))
        outcome = start(bind(tree()), Asked("test"), [AtOnce()])
        assert (outcome.state, outcome.folder.status()["step"]) == ("interrupted", 0)
        assert resume(outcome.folder, bind(tree())).state == "completed"
        assert_same_run(whole.folder.path, outcome.folder.path)

    def test_the_second_stops_at_once(self, inside):
        """Asked twice within one step: no waiting for its end."""

        class Twice:
            """An observer that interrupts in the middle of things."""

            def start(self, phases, done): ...
            def note(self, text): ...
            def finish(self): ...

            def record(self, record):
                if record["step"] == 3 and record["split"] == "train":
                    os.kill(os.getpid(), signal.SIGINT)
                    os.kill(os.getpid(), signal.SIGINT)
                return

        before = signal.getsignal(signal.SIGINT)  # ignored, where a shell put us into the background
        outcome = start(bind(compose(LONG)[0]), Asked("test"), [Twice()])
        assert (outcome.state, outcome.exit_code) == ("interrupted", 130)
        assert "at once" in outcome.message
        assert outcome.folder.status()["state"] == "interrupted"
        assert signal.getsignal(signal.SIGINT) is before

    def test_none_are_heard_outside_the_main_thread(self, inside):
        outcomes = []
        config = bind({**compose(LONG)[0], "limits": compose(["limits.steps=2"])[0]["limits"]})
        thread = threading.Thread(target=lambda: outcomes.append(start(config, Asked("test"))))
        thread.start()
        thread.join()
        assert outcomes[0].state == "completed"

    def test_one_sweep_job_interrupted_ends_the_sweep(self, forks, inside):
        process = forks.start("cli", "run", "-m", "seed=0,1,2", *LONG, cwd=inside, fault=SLOWLY)
        wait_for_step(inside, 3)
        process.send(signal.SIGINT)
        assert process.wait().code == 130
        assert len(find(inside / "outputs")) == 1


class TestLimits:
    @pytest.mark.parametrize("steps", [1, 2, 3])
    def test_steps_stop_and_the_rest_follows_as_if_never_stopped(self, steps, tiny):
        whole, folder = tiny(), tiny(f"limits.steps={steps}")
        result = folder.result()
        assert result["stopped_by"] == f"limits.steps={steps} reached ({steps})"
        assert result["budget"]["steps"] == steps
        tree = folder.tree()
        unlimited = {**tree, "limits": {**tree["limits"], "steps": None}}
        assert resume(folder, bind(unlimited)).state == "completed"
        assert folder.result()["stopped_by"] is None
        assert_same_run(whole.path, folder.path)

    def test_the_last_state_is_measured_even_between_two_evaluations(self, tiny):
        folder = tiny("evaluate_every=3", "limits.steps=2")
        newest = [record for record in folder.records() if record["split"] == "valid"][-1]
        assert (newest["step"], newest["state"]) == (2, "last")
        assert folder.result()["objective"]["value"] == newest["accuracy"]
        assert folder.result()["best"]["step"] == 2  # it ranks as the states do that were measured on the way

    def test_a_limit_that_the_plan_reaches_anyway_stops_nothing(self, tiny):
        assert tiny("limits.steps=4").result()["stopped_by"] is None

    COUNTED = (("samples", 150, 204), ("updates", 8, 8), ("gradients", 1, 102))

    @pytest.mark.parametrize(("key", "limit", "counted"), COUNTED)
    def test_counters(self, key, limit, counted, tiny):
        result = tiny(f"limits.{key}={limit}").result()
        assert result["stopped_by"] == f"limits.{key}={limit} reached ({counted})"
        assert result["budget"][key] == counted

    def test_seconds(self, tiny):
        result = tiny("limits.seconds=1e-9").result()
        assert result["budget"]["steps"] == 1
        assert result["stopped_by"].startswith("limits.seconds=1e-09 reached (")

    def test_seconds_add_up_over_attempts(self, tiny):
        folder = tiny("limits.steps=2")
        before = load(folder / "checkpoints/last.pt")["seconds"]
        tree = folder.tree()
        resume(folder, bind({**tree, "limits": {**tree["limits"], "steps": None, "seconds": before + 1e-9}}))
        assert folder.result()["budget"]["steps"] == 3

    def test_a_reason_given_by_an_observer(self, inside, tree):
        class Prune:
            def start(self, phases, done): ...
            def note(self, text): ...
            def finish(self): ...

            def record(self, record):
                return "pruned: hopeless" if record["split"] == "valid" and record["step"] == self.at else None

        for at in (0, 2):
            observer = Prune()
            observer.at = at
            outcome = start(bind(tree("evaluate_every=1")), Asked("test"), [observer])
            assert outcome.folder.result()["stopped_by"] == "pruned: hopeless"
            assert outcome.folder.result()["budget"]["steps"] == at


class TestNoLongerFinite:
    DIVERGING = ("method.optimiser=sgd", "method.lr=1e30", "model=mlp", "checkpoint_seconds=0")

    def test_stop_name_step_and_metric_keep_the_last_good_checkpoint(self, run_cli, inside):
        words = ("dataset=iris", "device=cpu", "threads=1", "progress=off", "figures=false")
        said = run_cli("run", *words, *self.DIVERGING)
        assert said.code == 1
        (line,) = said.err.splitlines()
        assert line.startswith("advml: step ")
        assert "loss" in line
        folder = RunFolder.open(said.last)
        assert folder.status()["state"] == "failed"
        assert folder.status()["error"] in line
        assert not (folder / "error.txt").exists()
        for file in (folder / "checkpoints").glob("*.pt"):
            for _, tensor in tensors_of(load(file)):
                assert torch.isfinite(tensor).all()

    def test_after_good_steps(self, inside, tree):
        """The state turns bad at step 3 of 4, by hand: what step 2 saved stays."""
        from advml.methods.supervised import Supervised

        class Poisoned(Supervised):
            def step(self, at):
                step = super().step(at)
                if at.total == 2:
                    with torch.no_grad():
                        next(self.network.parameters()).fill_(float("nan"))
                return step

        bound = bind(tree("checkpoint_seconds=0", "evaluate_every=never"))
        object.__setattr__(bound.method, "cls", Poisoned)
        outcome = start(bound, Asked("test"))
        assert outcome.exit_code == 1
        assert "step 3: method.network.head.weight is no longer finite" in outcome.message
        last = load(outcome.folder / "checkpoints/last.pt")
        assert last["total"] == 2
        assert all(torch.isfinite(tensor).all() for _, tensor in tensors_of(last))


def tensors_of(state):
    from advml.runner.checkpoint import tensors

    return [(name, tensor) for name, tensor in tensors(state, "") if tensor.is_floating_point()]


class TestLock:
    def test_two_resumes_of_one_run_cannot_meet(self, forks, inside):
        config = compose(LONG)[0]
        first = forks.start("start", config, cwd=inside, fault=SLOWLY)
        folder = wait_for_step(inside, 2)
        first.send(signal.SIGSTOP)  # it holds the run, and takes its time
        assert RunFolder.open(folder).status()["state"] == "running"
        second = forks.run("cli", "resume", str(folder), cwd=inside)
        assert second.code == 1
        assert second.err == f"advml: {folder}: another process (pid {first.pid}) is working on this run\n"
        first.send(signal.SIGKILL)
        assert first.wait().code == -signal.SIGKILL
        assert RunFolder.open(folder).status()["state"] == "crashed"

    def test_a_held_run_is_refused_and_a_freed_one_given(self, tiny):
        folder = tiny()
        folder.lock()
        other = RunFolder.open(folder.path)
        assert other.locked_elsewhere()
        with pytest.raises(AdvmlError, match="another process"):
            other.lock()
        folder.unlock()
        assert not other.locked_elsewhere()
        other.lock()
        other.unlock()

    def test_no_process_is_named_that_is_gone(self, tiny):
        """Whoever holds a run that it has not begun with yet: status.json names the one before."""
        folder = tiny()
        gone = subprocess.Popen(["true"])
        gone.wait()
        (folder / "status.json").write_text(json.dumps({**folder.status(), "pid": gone.pid}))
        folder.lock()
        with pytest.raises(AdvmlError, match=r": another process is working on this run$"):
            RunFolder.open(folder.path).lock()
        folder.unlock()

    def test_thirty_two_starts_make_thirty_two_folders(self, forks, inside):
        go = inside / "go"
        starts = [forks.start("create", str(inside / "outputs"), 1, str(go), cwd=inside) for _ in range(32)]
        go.touch()
        made = [started.wait().out.strip() for started in starts]
        assert len(set(made)) == 32
        assert len(list((inside / "outputs").glob("*/*/*/checkpoints"))) == 32

    def test_a_name_that_is_taken_is_never_shared(self, inside, monkeypatch):
        """All 32 draw the same few names within one second."""
        draws = iter([bytes([0, number // 4]) for number in range(200)])
        monkeypatch.setattr(os, "urandom", lambda count: next(draws))
        made = [RunFolder.create(inside, "method", "dataset").path for _ in range(32)]
        assert len(set(made)) == 32
