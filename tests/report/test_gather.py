"""Which runs are found, how they are grouped, and what is said of those without a result."""

import fcntl
import json
import os

import pytest
from fake_runs import make_run

from advml.errors import AdvmlError, ConfigError
from advml.report.gather import gather, numbers, overlap, split_of
from advml.runner.folder import find


def names(folder):
    return sorted(run.path.relative_to(folder).as_posix() for run in find(folder))


def group_of(gathered, **settings):
    (found,) = [group for group in gathered.groups
                if all(group.settings[key.replace("__", ".")] == value for key, value in settings.items())]  # fmt: skip
    return found


class TestWhichRuns:
    def test_at_any_depth(self, sweep):
        for name in ("a", "deep/er/still/b", "method=ewc,seed=1-3f/job"):
            sweep(name)
        assert names(sweep.path) == ["a", "deep/er/still/b", "method=ewc,seed=1-3f/job"]

    def test_a_run_and_its_baselines_but_nothing_else_in_it(self, sweep):
        sweep("run")
        for inside in ("baselines/finetune", "baselines/joint", "artifacts/copy", "checkpoints/old"):
            sweep(f"run/{inside}")
        assert names(sweep.path) == ["run", "run/baselines/finetune", "run/baselines/joint"]
        assert names(sweep.path / "run") == [".", "baselines/finetune", "baselines/joint"]

    def test_configurations_alone_are_no_runs(self, sweep):
        sweep("run")
        for name in ("configs", ".hidden"):
            (sweep.path / name).mkdir()
            (sweep.path / name / "config.yaml").write_text("seed: 0\n")
        make_run(sweep.path / ".hidden/run")
        assert names(sweep.path) == ["run"]

    def test_one_that_lost_its_status_is_still_one(self, sweep):
        (sweep("run") / "status.json").unlink()
        assert names(sweep.path) == ["run"]

    def test_links_are_not_followed(self, sweep):
        sweep("run")
        os.symlink(sweep.path, sweep.path / "again", target_is_directory=True)
        assert names(sweep.path) == ["run"]


class TestGather:
    def test_one_group_a_configuration_whatever_seed_and_place(self, sweep):
        for seed in (2, 0, 1):
            sweep(f"a{seed}", seed=seed, method__lr=0.1, outputs=f"elsewhere{seed}", threads=seed + 1)
        sweep("b", seed=0, method__lr=0.2)
        gathered = gather([sweep.path])
        assert len(gathered.groups) == 2
        assert list(group_of(gathered, method__lr=0.1).runs) == [0, 1, 2]
        assert list(group_of(gathered, method__lr=0.2).runs) == [0]

    def test_whole_numbers_are_equal_however_written(self, sweep):
        sweep("a", seed=0, method__lr=1)
        sweep("b", seed=1, method__lr=1.0)
        sweep("c", seed=2, method__lr="1")
        assert sorted(len(group.runs) for group in gather([sweep.path]).groups) == [1, 2]

    def test_a_run_named_twice_counts_once(self, sweep):
        run = sweep("a")
        gathered = gather([sweep.path, run, sweep.path / ".." / "sweep"])
        assert [len(group.runs) for group in gathered.groups] == [1]
        assert gathered.repeated == ()

    def test_of_a_repeated_seed_the_newest_counts(self, sweep):
        sweep("z-old", accuracy=0.5, time="2026-01-01T10:00:00+00:00")
        sweep("a-new", accuracy=0.7, time="2026-01-02T10:00:00+00:00")
        gathered = gather([sweep.path])
        assert gathered.groups[0].runs[0].numbers["valid/accuracy"] == 0.7
        assert [folder.path.name for folder in gathered.repeated] == ["z-old"]

    def test_missing_runs_belong_to_their_configuration(self, sweep):
        sweep("a0", seed=0)
        sweep("a1", seed=1, state="failed")
        sweep("b0", seed=0, state="interrupted", method__lr=9)
        gathered = gather([sweep.path])
        assert [one.state for one in group_of(gathered, method__lr=0.1).missing] == ["failed"]
        assert [one.state for one in group_of(gathered, method__lr=9).missing] == ["interrupted"]

    def test_a_failure_that_was_repeated_with_success_is_forgotten(self, sweep):
        sweep("first", seed=0, state="failed")
        sweep("second", seed=0)
        assert gather([sweep.path]).missing == ()

    def test_running_is_told_from_crashed_by_the_lock(self, sweep):
        sweep("done")
        for name in ("held", "free"):
            (sweep(name, seed=len(name), state="running", method__lr=len(name) + ord(name[0])) / ".lock").touch()
        with open(sweep.path / "held/.lock") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = {one.folder.path.name: one.state for one in gather([sweep.path]).missing}
        assert found == {"held": "running", "free": "crashed"}

    def test_the_reason_of_a_failure(self, sweep):
        sweep("a")
        failed = sweep("b", seed=1, state="failed")
        status = json.loads((failed / "status.json").read_text()) | {"error": "NonFinite: loss became nan\nmore"}
        (failed / "status.json").write_text(json.dumps(status))
        (one,) = gather([sweep.path]).missing
        assert (one.state, one.reason) == ("failed", "NonFinite: loss became nan")


DAMAGES = {
    "no result": ("result.json", None),
    "an empty result": ("result.json", ""),
    "half a result": ("result.json", '{"objective": {"metric": "acc'),
    "a result of another kind": ("result.json", "[1, 2]"),
    "no objective in it": ("result.json", '{"objective": {}, "metrics": {}, "budget": {}}'),
    "a wrong mode": ("result.json",
                     '{"objective": {"metric": "a", "split": "b", "mode": "up"}, "metrics": {}, "budget": {}}'),
    "no status": ("status.json", None),
    "half a status": ("status.json", '{"state": "comp'),
    "bytes for a status": ("status.json", b"\xff\xfe"),
    "no YAML": ("config.yaml", "{a: ["),
    "bytes for a configuration": ("config.yaml", b"\xff\xfe\x00"),
    "an empty configuration": ("config.yaml", ""),
    "a configuration without a seed": ("config.yaml", "method: {name: ewc}\n"),
    "a seed that is none": ("config.yaml", "seed: yes\n"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folders_are_reported_and_hurt_nobody(sweep, damage):
    sweep("whole", seed=0)
    folder = sweep("broken", seed=1)
    name, content = DAMAGES[damage]
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    gathered = gather([sweep.path])
    (one,) = gathered.missing
    assert (one.folder.path.name, one.state) == ("broken", "damaged")
    assert name in one.reason
    assert "\n" not in one.reason
    assert [list(group.runs) for group in gathered.groups if group.runs] == [[0]]


def test_damaged_records_hurt_who_draws_curves(sweep):
    sweep("whole", seed=0)
    (sweep("broken", seed=1) / "metrics.jsonl").write_text('{"step": 0, "phase": "a", "split": "valid"}\nno JSON\n')
    assert gather([sweep.path]).missing == ()
    (one,) = gather([sweep.path], curves=True).missing
    assert (one.folder.path.name, one.state) == ("broken", "damaged")
    assert one.reason.startswith("metrics.jsonl: damaged")


class TestWrongPaths:
    def test_every_mistake_at_once(self, sweep, tmp_path):
        sweep("a")
        empty = tmp_path / "empty"
        empty.mkdir()
        with pytest.raises(ConfigError) as raised:
            gather([sweep.path, tmp_path / "nowhere", empty])
        first, second = raised.value.mistakes
        assert first == f"{tmp_path}/nowhere: no such folder (see: advml list runs)"
        assert second.startswith(f"{empty}: no run in it or below it")

    def test_nothing_is_completed(self, sweep):
        for seed, state in enumerate(("failed", "failed", "interrupted")):
            sweep(state + str(seed), seed=seed, state=state)
        with pytest.raises(AdvmlError, match=r"no run is completed \(2 failed, 1 interrupted\)"):
            gather([sweep.path])


class TestNumbers:
    def test_names(self, sweep):
        sweep("a", accuracy=0.75, result={"summary": {"test_forgetting": 0.5, "test_transfer": None}})
        found = gather([sweep.path]).groups[0].runs[0].numbers
        assert found["valid/accuracy"] == 0.75
        assert found["best/test/accuracy"] == 0.73
        assert found["best/step"] == 3
        assert found["test_forgetting"] == 0.5
        assert "test_transfer" not in found
        assert (found["samples"], found["seconds"], found["parameters"]) == (400, 1.5, 650)
        assert found["peak_memory_mb/host"] == 300

    def test_only_numbers_are_numbers(self):
        block = {"a": True, "b": "3", "c": None, "d": float("inf"), "e": [1], "f": 2, "g/h": 0.5}
        assert numbers({"metrics": {"test": block}, "best": None, "summary": [1]}) == {"test/f": 2, "test/g/h": 0.5}

    @pytest.mark.parametrize(("name", "split"), [
        ("test/accuracy", "test"), ("valid/loss", "valid"), ("train/loss", "train"), ("best/test/accuracy", "test"),
        ("best/accuracy", "valid"), ("best/step", None), ("test_forgetting", "test"), ("seconds", None),
        ("samples", None), ("testing", None),
    ])  # fmt: skip
    def test_where_each_was_measured(self, name, split):
        assert split_of(name) == split


class TestOverlap:
    def test_only_where_seeds_drew_their_own_split(self, sweep):
        for seed in range(2):
            sweep(f"own{seed}", seed=seed, split=(80, 20, seed), method__name="own")
            sweep(f"same{seed}", seed=seed, split=(80, 20, "same"), method__name="same")
            sweep(f"none{seed}", seed=seed, method__name="none")
        gathered = gather([sweep.path])
        own, same, none = (group_of(gathered, method__name=name) for name in ("own", "same", "none"))
        assert overlap([own], "test") == overlap([own], "valid") == overlap([same, own], "test") == 0.25
        assert overlap([same], "test") == overlap([none], "test") == 0.0
        assert overlap([own], "train") == overlap([own], None) == 0.0

    @pytest.mark.parametrize(("settings", "ratio"), [
        ({"name": "digits"}, 0.25),
        ({"name": "moons", "noise": 0.1}, 0.0),
        ({"name": "moons", "noise": 0.0}, 0.25),  # the same points for every seed: a table
        ({"name": "circles", "noise": 0.3}, 0.0),
        ({"name": "shapes_captions"}, 0.0),
        ({"name": "series", "parts": ["moons", "circles"], "noise": 0.1}, 0.0),
        ({"name": "series", "parts": ["moons", "digits"], "noise": 0.1}, 0.25),
        ("moons", 0.25),  # no configuration that anybody knows
    ])  # fmt: skip
    def test_examples_drawn_anew_are_not_shared(self, sweep, settings, ratio):
        """However different the places are that each seed chose in what it drew."""
        for seed in range(3):
            sweep(str(seed), seed=seed, split=(80, 20, seed), dataset=settings)
        gathered = gather([sweep.path])
        assert overlap(gathered.groups, "test") == overlap(gathered.groups, "valid") == ratio

    def test_a_data_set_of_others_says_that_it_draws(self, sweep):
        for seed in range(3):
            path = sweep(str(seed), seed=seed, split=(80, 20, seed)) / "data.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"drawn": True}))
        assert overlap(gather([sweep.path]).groups, "test") == 0.0

    def test_a_damaged_record_of_the_data_says_nothing(self, sweep):
        for seed, content in enumerate(("", "[]", '{"test": 3, "train": {"examples": "many"}}', "\x00")):
            (sweep(f"a{seed}", seed=seed) / "data.json").write_text(content)
        gathered = gather([sweep.path])
        assert gathered.missing == ()
        assert overlap(gathered.groups, "test") == 0.0
