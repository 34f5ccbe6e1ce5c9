"""The recorder, checkpoints, the budget: what is written while a run goes on."""

import json
import math

import pytest
import torch

from advml.config import Limits
from advml.errors import AdvmlError
from advml.runner import checkpoint, files
from advml.runner.budget import COUNTERS, Budget, used_up
from advml.runner.folder import RunFolder
from advml.runner.recorder import NonFinite, Recorder, read


class TestRead:
    def test_numbers_tensors_and_undefined(self):
        metrics = {"a": torch.tensor(0.5), "b": 2, "c": None, "d": torch.tensor([[3]]), "e": torch.tensor(True)}
        assert read(metrics) == {"a": 0.5, "b": 2.0, "c": None, "d": 3.0, "e": 1.0}

    def test_order_is_kept_and_precision_too(self):
        metrics = {"z": torch.tensor(1 / 3, dtype=torch.float64), "a": torch.tensor(2**53 - 1), "m": 0.1}
        assert list(read(metrics).items()) == [("z", 1 / 3), ("a", 2**53 - 1), ("m", 0.1)]

    @pytest.mark.parametrize("name", ["step", "phase", "split", "state"])
    def test_names_that_say_where(self, name):
        with pytest.raises(ValueError, match=name):
            read({name: 1.0})


class TestRecorder:
    @pytest.fixture
    def file(self, tmp_path):
        return tmp_path / "metrics.jsonl"

    def test_one_line_a_record(self, file):
        recorder = Recorder(file)
        record = recorder.record(3, "task 1", "train", {"loss": torch.tensor(0.25), "extra": None})
        assert record == {"step": 3, "phase": "task 1", "split": "train", "loss": 0.25, "extra": None}
        recorder.record(4, "end", "test", {"accuracy/task1": 1.0}, state="best")
        lines = file.read_text().splitlines()
        assert [json.loads(line) for line in lines] == recorder.records
        assert list(json.loads(lines[1])) == ["step", "phase", "split", "state", "accuracy/task1"]
        assert recorder.sync() == file.stat().st_size
        recorder.close()

    @pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
    def test_undefined_in_evaluations_but_fatal_in_training(self, file, value):
        recorder = Recorder(file)
        assert recorder.record(1, "p", "valid", {"auc": value, "accuracy": 0.5})["auc"] is None
        before = file.read_bytes()
        for split, name in (("train", "loss"), ("train", "penalty"), ("valid", "loss"), ("test", "loss")):
            with pytest.raises(NonFinite, match=rf"step 7: {name} of split {split} became .*smaller learning rate"):
                recorder.record(7, "p", split, {name: torch.tensor(value)})
        with pytest.raises(NonFinite, match=r"step 0: .* nothing is trained yet: look at the data"):
            recorder.record(0, "start", "valid", {"loss": value})
        assert file.read_bytes() == before
        assert len(recorder.records) == 1
        recorder.close()

    def test_floats_survive_the_file(self, file):
        values = [0.1, 1 / 3, 1e-300, 123456789.123456789, -0.0, 5e-324]
        recorder = Recorder(file)
        for step, value in enumerate(values):
            recorder.record(step, "p", "train", {"value": value})
        recorder.close()
        again = Recorder(file, keep_bytes=file.stat().st_size)
        assert [record["value"] for record in again.records] == values
        again.close()

    def test_going_on_cuts_off_what_lies_behind(self, file):
        recorder = Recorder(file)
        recorder.record(1, "p", "train", {"loss": 1.0})
        kept = recorder.sync()
        recorder.record(2, "p", "train", {"loss": 2.0})
        recorder.close()
        with open(file, "ab") as open_file:
            open_file.write(b'{"step": 3, "pha')  # cut by a crash
        again = Recorder(file, keep_bytes=kept)
        assert [record["step"] for record in again.records] == [1]
        again.record(2, "p", "train", {"loss": 3.0})
        again.close()
        assert [json.loads(line)["loss"] for line in file.read_text().splitlines()] == [1.0, 3.0]

    def test_starting_again_from_nothing(self, file):
        file.write_text("remains of an attempt without a checkpoint\n")
        recorder = Recorder(file)
        recorder.close()
        assert file.read_bytes() == b""

    OTHERS = (b"", b'{"step": 1}\n', b'{"step": 1}\n{"step": 2}', b'{"step": 1}\nxxxxxxxxxxxx\n')

    @pytest.mark.parametrize("content", OTHERS)
    def test_refuses_a_file_that_is_not_the_one(self, file, content):
        file.write_bytes(content)
        with pytest.raises(AdvmlError, match="no longer holds what the checkpoint counts on"):
            Recorder(file, keep_bytes=24)
        assert file.read_bytes() == content


class TestFiles:
    def test_whole_or_not_at_all(self, tmp_path, monkeypatch):
        path = tmp_path / "file"
        files.write_text(path, "old")

        def full(point):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(files, "reached", full)
        with pytest.raises(OSError, match="No space"):
            files.write_text(path, "new")
        monkeypatch.setattr(files, "reached", lambda point: full(point) if "written" in point else None)
        with pytest.raises(OSError, match="No space"):
            files.write_text(path, "new")
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]

    def test_interrupted_writing_leaves_nothing(self, tmp_path, monkeypatch):
        def interrupt(point):
            if "written" in point:
                raise KeyboardInterrupt

        monkeypatch.setattr(files, "reached", interrupt)
        with pytest.raises(KeyboardInterrupt):
            files.write_text(tmp_path / "file", "new")
        assert list(tmp_path.iterdir()) == []

    def test_points_have_names(self, tmp_path, monkeypatch):
        points = []
        monkeypatch.setattr(files, "reached", points.append)
        files.write_json(tmp_path / "status.json", {"a": 1})
        assert points == ["status.json: before", "status.json: written", "status.json: renamed"]
        assert (tmp_path / "status.json").read_text() == '{\n  "a": 1\n}\n'

    def test_json_has_no_nan(self, tmp_path):
        with pytest.raises(ValueError, match="JSON"):
            files.write_json(tmp_path / "file.json", {"a": math.nan})


class TestCheckpoint:
    @pytest.fixture
    def folder(self, tmp_path):
        return RunFolder.create(tmp_path, "method", "dataset")

    @staticmethod
    def last(total, best_total=None, weight=1.0):
        method = {"w": torch.full((2,), weight), "n": 3, "t": (1, None)}
        return {"total": total, "best_total": best_total, "metrics_bytes": 0, "method": method}

    def test_comes_back_as_it_was(self, folder):
        checkpoint.save(folder, self.last(5), None)
        loaded = checkpoint.load_last(folder)
        assert loaded["total"] == 5
        assert torch.equal(loaded["method"]["w"], torch.ones(2))
        assert loaded["method"]["t"] == (1, None)

    def test_none_yet(self, folder):
        assert checkpoint.load_last(folder) is None

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_never_replaces_a_good_one_by_a_bad_one(self, folder, bad):
        checkpoint.save(folder, self.last(5), {"total": 5, "method": {}})
        broken = self.last(6)
        broken["method"]["deep"] = [{"x": torch.tensor([0.0, bad])}]
        with pytest.raises(NonFinite, match=r"step 6: method\.deep\.0\.x is no longer finite"):
            checkpoint.save(folder, broken, {"total": 6, "method": {}})
        assert checkpoint.load_last(folder)["total"] == 5
        assert checkpoint.load_best(folder)["total"] == 5

    @pytest.mark.parametrize("point", ["best.new.pt: before", "best.new.pt: written", "best.new.pt: renamed",
                                       "last.pt: before", "last.pt: written", "last.pt: renamed",
                                       "best.pt: renamed"])  # fmt: skip
    def test_last_and_best_belong_together_after_a_crash_anywhere(self, folder, point, monkeypatch):
        class Crash(BaseException): ...

        def crash(here):
            if here == point:
                raise Crash

        checkpoint.save(folder, self.last(1, best_total=1), {"total": 1, "method": {}})
        monkeypatch.setattr(files, "reached", crash)
        with pytest.raises(Crash):
            checkpoint.save(folder, self.last(2, best_total=2), {"total": 2, "method": {}})
        monkeypatch.undo()
        last = checkpoint.load_last(folder)
        assert last["total"] == last["best_total"] == checkpoint.load_best(folder)["total"]
        assert last["total"] == (2 if point in ("last.pt: renamed", "best.pt: renamed") else 1)
        assert not (folder / "checkpoints/best.new.pt").exists()

    @pytest.mark.parametrize("content", [b"", b"text", b"PK\x03\x04"])
    def test_a_damaged_one_is_named(self, folder, content):
        (folder / "checkpoints/last.pt").write_bytes(content)
        with pytest.raises(AdvmlError, match=r"last\.pt: this checkpoint cannot be read"):
            checkpoint.load_last(folder)

    def test_no_code_comes_out_of_a_checkpoint(self, folder):
        state = self.last(1) | {"method": {"f": torch.nn.Linear(1, 1)}}
        torch.save(state, folder / "checkpoints/last.pt")
        with pytest.raises(AdvmlError, match="cannot be read"):
            checkpoint.load_last(folder)

    def test_copies_share_nothing(self):
        state = {"a": torch.ones(2), "b": [torch.zeros(1), (torch.ones(1), "text")]}
        copy = checkpoint.copied(state)
        state["a"].add_(1), state["b"][0].add_(1), state["b"][1][0].add_(1)
        assert copy["a"].tolist() == [1, 1]
        assert copy["b"][0].tolist() == [0]
        assert copy["b"][1][0].tolist() == [1]
        assert type(copy["b"][1]) is tuple

    def test_names_of_tensors(self):
        state = {"a": {"w": torch.ones(1)}, "b": [torch.ones(1), {"c": (torch.ones(1),)}], "n": 3}
        assert [name for name, _ in checkpoint.tensors(state, "m")] == ["m.a.w", "m.b.0", "m.b.1.c.0"]


class TestBudget:
    def test_adds_up(self):
        budget = Budget()
        budget.add(samples=32, updates=1)
        budget.add(samples=16)
        assert budget.counts == {"samples": 48, "updates": 1}

    def test_unknown_counters(self):
        with pytest.raises(KeyError, match="no such counter: smaples"):
            Budget().add(smaples=1)

    @pytest.fixture
    def unlimited(self):
        return dict.fromkeys(("steps", "seconds", *COUNTERS))

    @pytest.mark.parametrize(("name", "limit", "done", "shown"), [
        ("steps", 10, 10, "limits.steps=10 reached (10)"),
        ("steps", 10, 9, None),
        ("seconds", 1.5, 1.75, "limits.seconds=1.5 reached (1.8)"),
        ("seconds", 1.5, 1.25, None),
        ("samples", 1000, 1024, "limits.samples=1000 reached (1024)"),
        ("circuits", 5, 5, "limits.circuits=5 reached (5)"),
    ])  # fmt: skip
    def test_limits(self, unlimited, name, limit, done, shown):
        limits = Limits(**(unlimited | {name: limit}))
        steps, seconds = (done if name == key else 0 for key in ("steps", "seconds"))
        counts = {name: done} if name in COUNTERS else {}
        assert used_up(limits, steps, seconds, counts) == shown

    def test_no_limit(self, unlimited):
        assert used_up(Limits(**unlimited), 10**9, 1e9, dict.fromkeys(COUNTERS, 10**12)) is None

    def test_what_was_never_counted_is_never_used_up(self, unlimited):
        assert used_up(Limits(**(unlimited | {"circuits": 1})), 10, 1.0, {}) is None
