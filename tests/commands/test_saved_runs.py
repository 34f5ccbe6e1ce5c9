"""resume, reproduce, list runs, config --diff: what can be done with a run once it is there."""

import json
import math

import pytest
import yaml
from runs import assert_same_run

from advml.commands.reproduce import differing_records
from advml.config import bind
from advml.runner.folder import RunFolder, find
from advml.runner.run import Asked, start


class TestResume:
    def test_goes_on_and_shows_the_result(self, tiny, run_cli):
        whole, part = tiny(), tiny("limits.steps=2")
        said = run_cli("resume", str(part.path), "limits.steps=null")
        assert (said.code, said.err) == (0, "")
        assert said.last == str(part.path)
        assert "supervised on iris, seed 0" in said.out
        assert_same_run(whole.path, part.path)
        assert part.status()["attempt"] == 2

    def test_a_folder_of_any_name(self, tiny, run_cli, inside):
        outputs = inside / "lr=0.1, it's é"
        outputs.mkdir()
        made = tiny("limits.steps=2")
        folder = outputs / made.path.name
        made.path.rename(folder)
        assert run_cli("resume", str(folder), "limits.steps=null").code == 0
        said = run_cli("reproduce", str(folder))
        assert said.code == 0, said.err
        assert "identical" in said.out

    def test_a_completed_run_is_left_as_it_is(self, tiny, run_cli):
        folder = tiny()
        files = [path for path in folder.path.rglob("*") if path.is_file()]
        before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in files}
        for words in ([], ["limits.steps=9"]):
            said = run_cli("resume", str(folder.path), *words)
            assert said.out == f"already completed at step 4\n{folder.path}\n"
            assert (said.code, said.err) == (0, "")
        for path, (content, changed) in before.items():
            assert path.read_bytes() == content
            assert path.stat().st_mtime_ns == changed

    def test_several_limits_one_after_another(self, tiny, run_cli):
        whole, part = tiny(), tiny("limits.steps=1")
        for limit in ("limits.steps=2", "limits.updates=11", "limits.steps=null limits.updates=null"):
            assert run_cli("resume", str(part.path), *limit.split()).code == 0
        assert_same_run(whole.path, part.path)
        assert part.status()["attempt"] == 4

    def test_the_threads_of_the_run_are_used(self, tiny, run_cli, inside):
        """Bits depend on their number; an auto number is what it was when the run began."""
        folder = tiny("threads=auto", "limits.steps=2")
        environment = folder.environment()
        (folder / "environment.json").write_text(json.dumps({**environment, "threads": 3}))
        seen = []
        import torch

        original = torch.set_num_threads
        torch.set_num_threads = lambda number: (seen.append(number), original(number))
        try:
            assert run_cli("resume", str(folder.path), "limits.steps=3").code == 0
        finally:
            torch.set_num_threads = original
        assert seen[0] == 3

    def test_with_other_examples_is_refused(self, tiny, run_cli):
        """As after a change of the data set, or of how examples are divided: old test examples would be trained on."""
        folder = tiny("limits.steps=2")
        data, before = folder.data(), (folder / "metrics.jsonl").read_bytes()
        other = {**data, "test": {**data["test"], "index_sha256": "0" * 64}}
        (folder / "data.json").write_text(json.dumps(other))
        said = run_cli("resume", str(folder.path), "limits.steps=3")
        assert said.code == 2
        differ = "(test.index_sha256 in data.json)"
        (line,) = said.err.splitlines()
        assert line.startswith(f"advml: {folder.path}: began with other examples than there are now {differ}; ")
        assert (folder / "metrics.jsonl").read_bytes() == before
        assert folder.status()["state"] == "completed"

    def test_other_files_with_equal_examples_are_told(self, tiny, run_cli):
        folder = tiny("limits.steps=2")
        (folder / "data.json").write_text(json.dumps({**folder.data(), "files": {"x.gz": "12"}}))
        said = run_cli("resume", str(folder.path), "limits.steps=3")
        assert said.code == 0
        assert "advml: since the run began, data file x.gz: 12 → None; bits may differ" in said.err
        said = run_cli("reproduce", str(folder.path))
        assert "data         files.x.gz: 12 → None" in said.out
        assert said.code == 0  # the records are equal all the same

    def test_on_another_kind_of_device_is_refused(self, tiny, run_cli):
        folder = tiny("device=auto", "limits.steps=2")
        (folder / "environment.json").write_text(json.dumps({**folder.environment(), "device": "cuda:0"}))
        import torch

        if torch.cuda.is_available():
            pytest.skip("device=auto is CUDA here")
        said = run_cli("resume", str(folder.path), "limits.steps=3")
        assert said.code == 2
        assert said.err == (
            f"advml: {folder.path}: was started on cuda:0, but here device=auto is cpu; resume it on such a device or "
            f"start a new run\n"
        )

    def test_on_changed_software_says_so(self, tiny, run_cli):
        folder = tiny("limits.steps=2")
        environment = folder.environment()
        environment["packages"]["torch"], environment["source"] = "0.4.1", "another commit"
        (folder / "environment.json").write_text(json.dumps(environment))
        said = run_cli("resume", str(folder.path), "limits.steps=3")
        assert said.code == 0
        source, torch = said.err.splitlines()
        assert source.startswith("advml: since the run began, source: another commit → ")
        assert torch.startswith("advml: since the run began, packages.torch: 0.4.1 → ")

    def test_from_another_folder_and_by_a_relative_path(self, tiny, run_cli, inside, monkeypatch):
        folder = tiny("limits.steps=2")
        (inside / "elsewhere").mkdir()
        monkeypatch.chdir(inside / "elsewhere")
        said = run_cli("resume", f"../{folder.path.relative_to(inside)}/", "limits.steps=3")
        assert said.code == 0
        assert list((inside / "elsewhere").iterdir()) == []

    def test_a_failed_run_goes_on_from_its_last_checkpoint(self, tiny, run_cli, forks, tree, inside):
        config = tree("checkpoint_seconds=0")
        full = {"kind": "full", "point": "last.pt: before", "nth": 3}
        assert forks.run("start", config, cwd=inside, fault=full).code == 1
        (path,) = inside.glob("outputs/*/*/*")
        assert run_cli("resume", str(path)).code == 0
        assert_same_run(tiny("checkpoint_seconds=0").path, path)

    def test_its_data_are_found_from_another_folder(self, tiny, inside):
        assert tiny("data_dir=some/where").tree()["data_dir"] == str(inside / "some/where")

    def test_a_baseline_that_is_no_more(self, tiny, run_cli):
        """Its YAML may have been in a folder of --config-dir, which the saved run does not need."""
        folder = tiny("limits.steps=1")
        tree = yaml.safe_load((folder / "config.yaml").read_text())
        gone = {**tree, "baselines": {"weak": ["method=gone"]}}
        (folder / "config.yaml").write_text(yaml.safe_dump(gone))
        said = run_cli("resume", str(folder.path), "limits.steps=2")
        assert said.code == 0
        (line,) = said.err.splitlines()
        assert line.startswith("advml: baselines.weak: method=gone: unknown method")
        assert line.endswith("; the run goes on without it")
        said = run_cli("resume", str(folder.path), "limits.steps=3", "baselines=off")
        assert (said.code, said.err) == (0, "")
        assert folder.tree()["baselines"] == {}


class TestReproduce:
    def test_identical(self, tiny, run_cli):
        folder = tiny()
        said = run_cli("reproduce", str(folder.path))
        assert (said.code, said.err) == (0, "")
        identical, path = said.out.splitlines()
        assert identical == f"identical: all {len(folder.records())} records, byte by byte"
        assert path != str(folder.path)
        assert_same_run(folder.path, path)
        assert RunFolder.open(path).environment()["choices"] == folder.environment()["choices"]

    def test_another_seed(self, tiny, run_cli):
        folder = tiny()
        said = run_cli("reproduce", str(folder.path), "seed=1")
        assert said.code == 1
        lines = said.out.splitlines()
        assert "config       seed: 0 → 1" in lines
        assert "records      first difference at step 0, phase start, split valid" in lines
        losses = [line for line in lines if line.startswith("records      train loss: differs by up to ")]
        assert len(losses) == 1

    def test_into_a_folder_below_home(self, tiny, run_cli, inside, monkeypatch):
        monkeypatch.setenv("HOME", str(inside / "home"))
        said = run_cli("reproduce", str(tiny().path), 'outputs="~/again"')
        assert said.code == 0, said.err
        assert said.last.startswith(f"{inside}/home/again/")
        assert not (inside / "~").exists()

    def test_fewer_steps(self, tiny, run_cli):
        folder = tiny()
        said = run_cli("reproduce", str(folder.path), "limits.steps=2")
        assert said.code == 1
        assert "records      11 against 7 records" in said.out.splitlines()

    def test_a_run_that_was_resumed(self, tiny, run_cli):
        folder = tiny("limits.steps=2")
        assert run_cli("resume", str(folder.path), "limits.steps=null").code == 0
        assert run_cli("reproduce", str(folder.path)).code == 0

    def test_a_run_that_the_clock_stopped(self, tiny, run_cli):
        """A clock cannot be replayed; the number of steps that it allowed can."""
        folder = tiny("limits.seconds=1e-9")
        said = run_cli("reproduce", str(folder.path))
        assert said.code == 0
        assert "identical" in said.out
        patient = tiny("limits.seconds=1000")
        said = run_cli("reproduce", str(patient.path))
        assert said.code == 0
        assert "limits.steps" not in said.out

    def test_a_run_that_was_pruned(self, inside, run_cli, tree):
        """It made no last tests, and other runs will not stop it again."""

        class Prunes:
            def start(self, phases, done): ...
            def note(self, text): ...
            def finish(self): ...

            def record(self, record):
                return "pruned: hopeless" if record["split"] == "valid" and record["step"] == 2 else None

        outcome = start(bind(tree("evaluate_every=1")), Asked("test"), [Prunes()])
        said = run_cli("reproduce", str(outcome.folder.path))
        assert said.code == 0, said.out
        assert f"identical: all {len(outcome.folder.records())} records" in said.out

    @pytest.mark.parametrize("line", ["5", '{"loss": 1.0}', '{"step": 1, "phase": "p", "split": "train", "loss": NaN}',
                                      "garbage", None])  # fmt: skip
    def test_damaged_records_are_told_before_the_run(self, line, tiny, run_cli, inside):
        folder = tiny("limits.steps=1")
        if line is None:
            (folder / "metrics.jsonl").unlink()
        else:
            with open(folder / "metrics.jsonl", "a") as records:
                records.write(f"{line}\n")
        said = run_cli("reproduce", str(folder.path))
        assert (said.code, said.err.count("\n")) == (2, 1)
        wrong = "missing or empty" if line is None else "damaged, line "
        assert said.err.startswith(f"advml: {folder / 'metrics.jsonl'}: {wrong}")
        assert len(find(inside / "outputs")) == 1

    def test_what_differs_in_the_environment(self, tiny, run_cli):
        folder = tiny()
        before = folder.environment()
        before["packages"]["torch"] = "0.4.1"
        (folder / "environment.json").write_text(json.dumps(before))
        said = run_cli("reproduce", str(folder.path))
        assert said.code == 0
        assert said.out.startswith("environment  packages.torch: 0.4.1 → ")

    def test_a_run_that_fails(self, tiny, run_cli):
        said = run_cli("reproduce", str(tiny("model=mlp").path), "method.optimiser=sgd", "method.lr=1e30")
        assert said.code == 1
        assert said.err.startswith("advml: step ")


class TestDifferences:
    A = ({"step": 1, "phase": "p", "split": "train", "loss": 1.0, "x": None, "n": 2.0},
         {"step": 2, "phase": "p", "split": "train", "loss": 0.5, "x": 1.0, "n": 2.0})  # fmt: skip

    def test_none(self):
        assert list(differing_records(self.A, self.A)) == []

    def test_how_much_and_where_first(self):
        other = (self.A[0], {**self.A[1], "loss": 0.75, "x": 1.5})
        assert list(differing_records(self.A, other)) == [
            "first difference at step 2, phase p, split train",
            "train loss: differs by up to 0.25; last 0.5 against 0.75",
            "train x: differs by up to 0.5; last 1 against 1.5",
        ]

    def test_undefined_against_a_number(self):
        other = ({**self.A[0], "x": 1.0}, self.A[1])
        assert list(differing_records(self.A, other)) == ["first difference at step 1, phase p, split train"]

    def test_unequal_length(self):
        assert list(differing_records(self.A, self.A[:1])) == ["2 against 1 records"]


class TestListRuns:
    def test_states(self, tiny, run_cli, forks, tree, inside):
        done = tiny()
        part = tiny("limits.steps=2")
        config = tree("checkpoint_seconds=0")
        died = forks.run("start", config, cwd=inside, fault={"kind": "die", "point": "last.pt: renamed", "nth": 3})
        assert died.code == 9
        said = run_cli("list", "runs")
        assert (said.code, said.err) == (0, "")
        lines = said.out.splitlines()
        assert len(lines) == 3
        value = done.result()["objective"]["value"]
        (line,) = [line for line in lines if done.path.name in line]
        assert line == f"supervised/iris/{done.path.name}  completed   step 4      valid accuracy {value:.4g}"
        assert any(part.path.name in line and "completed   step 2" in line for line in lines)
        assert any("crashed     step 2" in line for line in lines)
        assert [line.split()[0].rpartition("/")[2] for line in lines] == sorted(
            line.split()[0].rpartition("/")[2] for line in lines
        )

    def test_elsewhere(self, tiny, run_cli, inside):
        folder = tiny("outputs=some/where")
        assert folder.path.parts[-5:-3] == ("some", "where")
        assert folder.path.name in run_cli("list", "runs", "outputs=some/where").out
        assert run_cli("list", "runs").out == "no runs below outputs\n"

    def test_running(self, tiny, run_cli):
        folder = tiny()
        status = json.loads((folder / "status.json").read_text())
        (folder / "status.json").write_text(json.dumps({**status, "state": "running"}))
        assert "crashed" in run_cli("list", "runs").out
        folder.lock()
        assert "running" in run_cli("list", "runs").out
        folder.unlock()

    def test_an_undefined_objective(self, tiny, run_cli):
        folder = tiny("dataset.valid=0.0")
        assert folder.result()["objective"]["value"] is None
        assert "valid accuracy –" in run_cli("list", "runs").out


class TestDiff:
    def test_what_a_run_changed(self, tiny, run_cli):
        said = run_cli("config", "--diff", str(tiny("seed=5").path))
        assert (said.code, said.err) == (0, "")
        assert set(said.out.splitlines()) == {
            "seed: 0 → 5", "device: auto → cpu", "threads: auto → 1", "progress: auto → off", "figures: True → False",
            "method.lr: 0.001 → 0.05", "method.epochs: 30 → 4",
        }  # fmt: skip

    def test_two_runs(self, tiny, run_cli):
        left, right = tiny(), tiny("seed=2", "model=mlp")
        said = run_cli("config", "--diff", str(left.path), str(right.path))
        lines = said.out.splitlines()
        assert {"seed: 0 → 2", "model.name: linear → mlp"} <= set(lines)
        assert not any(line.startswith(("method", "dataset")) for line in lines)
        assert run_cli("config", "--diff", str(left.path), str(left.path)).out == "no difference\n"


class TestFolder:
    def test_everything_is_there(self, tiny, inside):
        folder = tiny("figures=true")
        names = {str(path.relative_to(folder.path)) for path in folder.path.rglob("*") if path.is_file()}
        assert names == {
            ".lock", "config.yaml", "command.txt", "overrides.txt", "environment.json", "data.json", "status.json",
            "metrics.jsonl", "timing.jsonl", "log.txt", "result.json", "checkpoints/last.pt", "checkpoints/best.pt",
            "checkpoints/model.pt", "artifacts/confusion_matrix.csv", "artifacts/curve_loss.csv",
            "artifacts/curve_accuracy.csv",
            *(f"figures/{name}.{suffix}" for name in ("confusion_matrix", "curve_loss", "curve_accuracy")
              for suffix in ("png", "svg")),
        }  # fmt: skip

    def test_what_was_typed(self, tiny):
        folder = tiny("seed=4", "model.name=linear")
        command = (folder / "command.txt").read_text()
        assert command.startswith("advml run dataset=iris model=linear")
        assert command.endswith("seed=4 model.name=linear\n")
        assert (folder / "overrides.txt").read_text().splitlines()[-2:] == ["seed=4", "model.name=linear"]
        choices = folder.environment()["choices"]
        assert {choices[group] for group in ("method", "dataset", "model", "view")} == {
            "supervised", "iris", "linear", "plain"
        }  # fmt: skip

    def test_a_word_that_a_shell_would_split(self, run_cli, inside):
        said = run_cli("run", "dataset=iris", "method.epochs=1", "progress=off", "figures=false", "outputs=my runs")
        assert "'outputs=my runs'" in (RunFolder.open(said.last) / "command.txt").read_text()

    def test_the_name_is_a_time_and_four_digits(self, tiny):
        import re

        assert re.fullmatch(r"20\d{6}-\d{6}-[0-9a-f]{4}", tiny().path.name)

    def test_no_clock_in_the_records(self, tiny):
        for record in tiny().records():
            assert set(record) <= {"step", "phase", "split", "state", "loss", "accuracy", "macro_f1", "ece", "roc_auc"}
            assert all(math.isfinite(value) for value in record.values() if isinstance(value, float))

    def test_the_saved_configuration_is_complete_and_needs_nothing_else(self, tiny):
        folder = tiny()
        tree = folder.tree()
        assert "defaults" not in tree
        assert "hydra" not in tree
        assert "$" not in (folder / "config.yaml").read_text()
