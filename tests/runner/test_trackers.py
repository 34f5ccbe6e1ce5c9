"""Trackers: they show what metrics.jsonl holds, once each, whatever happens, and never touch the run."""

import errno
import itertools
import os
import struct
import sys
from collections import Counter
from types import SimpleNamespace

import pytest
from tracked import At, assert_same_records, mlflow_is_here, wanted

from advml.config import bind
from advml.runner import trackers
from advml.runner.folder import RunFolder
from advml.runner.identity import identity
from advml.runner.run import Asked, start
from advml.runner.trackers import Point, Tracker, parameters, points_of, points_of_result, text_of


def single(value):
    """A number as TensorBoard stores it."""
    return struct.unpack("f", struct.pack("f", value))[0]


def events(folder):
    """[(step, value)] of all event files, as they stand there: nothing is purged, nothing sampled."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    paths = sorted((folder / "tensorboard").iterdir())
    loaded = (event for path in paths for event in LegacyEventFileLoader(str(path)).Load())
    return [(event.step, value) for event in loaded for value in event.summary.value]


def scalars(folder):
    """[(tag, step, value)] of the numbers among them."""
    return [(value.tag, step, value.simple_value) for step, value in events(folder) if value.HasField("simple_value")]


def assert_in_tensorboard(folder, also=()):
    """Every number once, none else, but for those `also` there: (tag, step) pairs."""
    held = scalars(folder)
    assert max(Counter((tag, step) for tag, step, _ in held).values()) == 1
    held = {(tag, step): value for tag, step, value in held}
    expected = {(name, step): single(value) for name, steps in wanted(folder).items() for step, value in steps.items()}
    assert expected.items() <= held.items()
    assert set(held) - set(expected) == set(also)


# --- the observer -------------------------------------------------------------------------------------------------


class Memory:
    """A backend that keeps what it gets, and fails when told to; half of what it was sent may arrive first."""

    def __init__(self):
        self.points, self.opened, self.state, self.failing = [], 0, None, False

    def open(self, folder, tree):
        self.opened += 1
        self._perhaps_fail()
        newest = {}
        for name, _, step in self.points:
            newest[name] = max(step, newest.get(name, -1))
        return newest

    def send(self, points):
        if self.failing:
            self.points += points[: len(points) // 2]
        self._perhaps_fail()
        self.points += points

    def close(self, state):
        self._perhaps_fail()
        self.state = state

    def _perhaps_fail(self):
        if self.failing:
            raise OSError(errno.ECONNREFUSED, "Connection\nrefused")


@pytest.fixture
def memory(monkeypatch):
    """The backend of every run with tracker=tensorboard in this test; deliveries at once, no pauses."""
    memory = Memory()
    monkeypatch.setattr(trackers, "TensorBoard", lambda: memory)
    monkeypatch.setattr(trackers, "SECONDS", 0.0)
    monkeypatch.setattr(trackers, "PAUSE", 0.0)
    monkeypatch.setattr(trackers, "SHARE", 0.0)
    return memory


class TestTracker:
    def assert_holds_everything(self, memory, folder):
        assert max(Counter((name, step) for name, _, step in memory.points).values()) == 1
        expected = {(name, step): value for name, steps in wanted(folder).items() for step, value in steps.items()}
        assert {(name, step): value for name, value, step in memory.points} == expected

    def test_everything_arrives_once(self, memory, tiny):
        folder = tiny("tracker=tensorboard")
        self.assert_holds_everything(memory, folder)
        assert (memory.opened, memory.state) == (1, "completed")

    @pytest.mark.parametrize("acts", [{2: True}, {2: True, 4: False}, {1: True, 2: False, 3: True, 4: False}])
    def test_failures_cost_one_line_and_leave_no_gap(self, acts, memory, tree, capsys, inside, tiny):
        plain = tiny()
        flips = {step: lambda value=value: setattr(memory, "failing", value) for step, value in acts.items()}
        outcome = start(bind(tree("tracker=tensorboard")), Asked("advml run"), [At(flips)])
        said = "tracker=tensorboard: fails ([Errno 111] Connection refused); the run goes on without it"
        assert capsys.readouterr().err == f"advml: {said}\n"
        assert (outcome.folder / "log.txt").read_text().count(said) == 1
        assert outcome.state == "completed"
        assert_same_records(plain, outcome.folder)
        if memory.failing:
            assert memory.state is None
            Tracker("x", memory, outcome.folder, {}, print).finish()
            assert capsys.readouterr().out.count("fails") == 1
            memory.failing = False
            Tracker("x", memory, outcome.folder, {}, print).finish()
        self.assert_holds_everything(memory, outcome.folder)
        assert memory.state == "completed"

    def test_a_resumed_run_goes_on(self, memory, tiny, run_cli):
        folder = tiny("tracker=tensorboard", "limits.steps=2")
        earlier = {name for name, _, _ in memory.points}
        assert run_cli("resume", str(folder.path), "limits.steps=null").code == 0
        assert max(Counter((name, step) for name, _, step in memory.points).values()) == 1
        expected = {(name, step) for name, steps in wanted(folder).items() for step in steps}
        held = {(name, step) for name, _, step in memory.points}
        assert expected <= held
        ends = {name for name in earlier if name.startswith(("test_", "budget/", "summary/")) or "/" not in name}
        assert held - expected == {(name, 2) for name in ends}  # what the first end said, at its own step

    def test_one_that_fails_from_the_start(self, memory, run_cli, tiny):
        memory.failing = True
        words = ("dataset=iris", "method.epochs=1", "progress=off", "figures=false", "baselines=off")
        said = run_cli("run", *words, "tracker=tensorboard")
        assert (said.code, said.err.count("\n")) == (0, 1)
        assert memory.points == []

    def test_a_slow_one_is_asked_rarely(self, monkeypatch, tmp_path):
        """It gets a twentieth of the time at most."""
        clock = SimpleNamespace(now=0.0)
        monkeypatch.setattr(trackers.time, "monotonic", lambda: clock.now)
        folder = RunFolder.create(tmp_path, "m", "d")
        sent = []

        class Slow(Memory):
            def send(self, points):
                clock.now += 3.0
                sent.append(clock.now)

        tracker = Tracker("slow", Slow(), folder, {}, print)
        tracker.start([], 0)
        for step in range(300):
            clock.now += 1.0
            tracker.record({"step": step, "phase": "p", "split": "train", "loss": 1.0})
        assert len(sent) == 5
        assert all(later - earlier >= 60 for earlier, later in itertools.pairwise(sent))

    def test_how_a_run_ends(self, memory, run_cli, tiny):
        run_cli("run", "dataset=iris", "method.optimiser=sgd", "method.lr=1e30", "method.epochs=3", "progress=off",
                "tracker=tensorboard")  # fmt: skip
        assert memory.state == "failed"
        assert memory.points[0].step == 0

    def test_the_run_is_stopped_by_none(self, memory, tiny):
        folder = tiny("tracker=tensorboard")
        tracker = Tracker("x", memory, folder, {}, print)
        tracker.start([], 0)
        assert tracker.record({"step": 9, "phase": "p", "split": "train", "loss": 1.0}) is None


class TestPoints:
    def test_of_a_record(self):
        record = {"step": 3, "phase": "task 1", "split": "valid", "loss": 0.5, "auc": None, "accuracy/10°": 1.0}
        assert list(points_of(record)) == [Point("valid/loss", 0.5, 3), Point("valid/accuracy/10_", 1.0, 3)]
        assert next(name for name, _, _ in points_of({**record, "state": "best"})) == "valid_best/loss"

    def test_of_a_result(self):
        result = {"objective": {"value": None}, "summary": {"forgetting": 0.25}, "budget": {"steps": 4, "x": None},
                  "seconds": 1.5, "parameters": None}  # fmt: skip
        assert list(points_of_result(result)) == [
            Point("summary/forgetting", 0.25, 4), Point("budget/steps", 4, 4), Point("budget/seconds", 1.5, 4)
        ]  # fmt: skip

    def test_parameters_are_what_no_resumption_changes(self, tree):
        config = tree("limits.steps=3", "tracker=mlflow", "method.betas=[0.9,0.99]")
        found = parameters(config)
        assert found["method.betas"] == [0.9, 0.99]
        assert found["method.name"] == "supervised"
        assert found["seed"] == 0
        assert not [key for key in found if key.partition(".")[0] in ("limits", "tracker", "outputs", "data_dir")]

    @pytest.mark.parametrize(("value", "text"), [("a b", "a b"), (None, "null"), (True, "true"), (0.1, "0.1"),
                                                 ([1, 2.5], "[1, 2.5]")])  # fmt: skip
    def test_texts(self, value, text):
        assert text_of(value) == text


def test_a_tracker_is_no_part_of_what_is_computed(tree):
    assert identity(tree()) == identity(tree("tracker=mlflow", "tracker_uri=somewhere"))


# --- refused before any work --------------------------------------------------------------------------------------


class TestRefused:
    @pytest.fixture
    def refused(self, run_cli, inside, monkeypatch):
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

        def run(*words, code=2):
            said = run_cli("run", "dataset=iris", *words)
            assert (said.code, said.out) == (code, "")
            assert said.err.count("\n") == 1
            assert not (inside / "outputs").exists()
            return said.err

        return run

    @pytest.mark.parametrize(("tracker", "module"), [("tensorboard", "torch.utils.tensorboard"), ("mlflow", "mlflow")])
    def test_a_package_that_is_not_there(self, tracker, module, refused, monkeypatch):
        monkeypatch.setitem(sys.modules, module, None)
        said = refused(f"tracker={tracker}", "tracker_uri=http://127.0.0.1:9")
        assert said.endswith(f'pip install "advml[{tracker}]"\n')

    def test_no_place(self, refused):
        assert "tracker_uri=http://HOST:PORT" in refused("tracker=mlflow")

    @mlflow_is_here
    @pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "nonsense://x"])
    def test_a_place_that_does_not_answer(self, uri, refused):
        said = refused("tracker=mlflow", f"tracker_uri={uri}", code=1)
        assert said.startswith(f"advml: tracker_uri={uri}: MLflow cannot be used there: ")

    def test_another_tracker(self, refused):
        assert refused("tracker=wandb") == (
            "advml: tracker: must be 'none', 'tensorboard' or 'mlflow', not \"wandb\"\n"
        )

    def test_a_run_that_cannot_be_tracked_is_resumed_without(self, tiny, run_cli, monkeypatch):
        folder = tiny("tracker=tensorboard", "limits.steps=2")
        monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
        said = run_cli("resume", str(folder.path), "limits.steps=null")
        assert (said.code, folder.status()["step"]) == (2, 2)
        assert run_cli("resume", str(folder.path), "limits.steps=null", "tracker=none").code == 0
        assert folder.status()["step"] == 4


# --- TensorBoard --------------------------------------------------------------------------------------------------


class TestTensorBoard:
    def test_holds_what_the_run_holds(self, tiny):
        plain, folder = tiny(), tiny("tracker=tensorboard")
        assert_same_records(plain, folder)
        assert_in_tensorboard(folder)
        names = {str(path.relative_to(folder.path)) for path in folder.path.rglob("*")}
        others = {name for name in names if not name.startswith("tensorboard")}
        assert others == {str(path.relative_to(plain.path)) for path in plain.path.rglob("*")}

    def test_the_configuration_is_there_once(self, tiny, run_cli):
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from tensorboard.plugins.hparams import plugin_data_pb2

        folder = tiny("tracker=tensorboard", "limits.steps=2", "method.betas=[0.9,0.99]")
        assert run_cli("resume", str(folder.path), "limits.steps=null").code == 0
        read = EventAccumulator(str(folder / "tensorboard")).Reload()
        kept = read.PluginTagToContent("hparams")
        assert set(kept) == {"_hparams_/experiment", "_hparams_/session_start_info", "_hparams_/session_end_info"}
        tags = Counter(value.tag for _, value in events(folder) if not value.HasField("simple_value"))
        assert tags["_hparams_/experiment"] == tags["_hparams_/session_start_info"] == 1
        data = plugin_data_pb2.HParamsPluginData.FromString(kept["_hparams_/session_start_info"])
        told = {key: getattr(value, value.WhichOneof("kind")) for key, value in data.session_start_info.hparams.items()}
        assert told["method.lr"] == 0.05
        assert told["method.betas"] == "[0.9, 0.99]"
        assert told["model.name"] == "linear"
        experiment = plugin_data_pb2.HParamsPluginData.FromString(kept["_hparams_/experiment"]).experiment
        assert [info.name.tag for info in experiment.metric_infos] == ["objective"]

    def test_a_resumed_run(self, tiny, run_cli):
        plain, folder = tiny(), tiny("tracker=tensorboard", "limits.steps=2")
        ends = {(tag, step) for tag, step, _ in scalars(folder) if not tag.startswith(("train/", "valid/"))}
        assert {step for _, step in ends} == {2}
        assert run_cli("resume", str(folder.path), "limits.steps=null").code == 0
        assert_same_records(plain, folder)
        assert_in_tensorboard(folder, also=ends)

    @pytest.mark.parametrize("cut", [0, 30])
    def test_killed_and_resumed(self, cut, tiny, forks, tree, inside):
        """Whatever of the event file reached the disk."""
        config = tree("checkpoint_seconds=0", "tracker=tensorboard")
        die = {"kind": "die", "point": "last.pt: renamed", "nth": 3}
        assert forks.run("start", config, cwd=inside, fault=die).code == 9
        (path,) = inside.glob("outputs/*/*/*")
        (events,) = (path / "tensorboard").iterdir()
        os.truncate(events, max(events.stat().st_size - cut, 0))
        assert forks.run("resume", str(path), {}, cwd=inside).code == 0
        folder = RunFolder.open(path)
        assert_same_records(tiny("checkpoint_seconds=0"), folder)
        assert_in_tensorboard(folder)

    def test_begun_without_and_resumed_with(self, tiny, run_cli):
        folder = tiny("limits.steps=2")
        assert run_cli("resume", str(folder.path), "limits.steps=null", "tracker=tensorboard").code == 0
        assert_in_tensorboard(folder)

    def test_a_full_disk(self, tiny, tree, monkeypatch, capsys, inside):
        from torch.utils.tensorboard import SummaryWriter

        plain = tiny()
        for name in ("SECONDS", "PAUSE", "SHARE"):
            monkeypatch.setattr(trackers, name, 0.0)
        flush, calls = SummaryWriter.flush, []

        def full(writer):
            calls.append(writer)
            if len(calls) in (2, 3):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            flush(writer)

        monkeypatch.setattr(SummaryWriter, "flush", full)
        outcome = start(bind(tree("tracker=tensorboard")), Asked("advml run"))
        assert capsys.readouterr().err == (
            "advml: tracker=tensorboard: fails ([Errno 28] No space left on device); the run goes on without it\n"
        )
        assert_same_records(plain, outcome.folder)
        assert_in_tensorboard(outcome.folder)
