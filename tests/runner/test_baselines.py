"""Baselines: what a run and the runs beside it have in common, and that they survive what runs survive."""

import json

import pytest
from runs import assert_same_run

import advml
from advml.compose import compose
from advml.errors import ConfigError
from advml.report.gather import gather
from advml.runner.baselines import plan
from advml.runner.folder import RunFolder
from advml.runner.identity import identity

TINY = ("dataset=iris", "view.tasks=2", "method.iterations=6", "method.block=3", "method.batch_size=16",
        "model.hidden=[4]", "device=cpu", "threads=1", "progress=off", "figures=false")  # fmt: skip


def planned(*words):
    return plan(compose(words)[0])


class TestPlan:
    def test_another_method_keeps_what_both_have(self):
        tree = compose(["method=ewc", *TINY, "method.strength=7", "seed=5", "limits.samples=99"])[0]
        found = plan(tree)
        assert list(found) == ["finetune", "joint"]
        for name, changed in found.items():
            assert changed["method"]["name"] == name
            assert changed["method"]["iterations"] == 6
            assert "strength" not in changed["method"]
            for key in set(tree) - {"method", "baselines"}:
                assert changed[key] == tree[key], key

    def test_it_is_the_run_that_one_would_ask_for(self):
        alone = compose(["method=joint", *TINY, "seed=5"])[0]
        assert identity(planned("method=ewc", *TINY, "seed=5")["joint"]) == identity(alone)

    def test_another_model_comes_with_its_own_settings(self):
        found = planned("method=supervised", "dataset=iris", "model.hidden=[7]", "method.lr=0.5")
        assert found["linear"]["model"] == compose(["model=linear"])[0]["model"]
        assert found["linear"]["method"]["lr"] == 0.5

    def test_what_privacy_costs_is_nothing_else(self):
        """A private round weighs clients alike, whatever `weighting` says."""
        tree = compose(["method=dp_fedavg"])[0]
        beside = plan(tree)["not_private"]["method"]
        assert beside["weighting"] == "uniform"
        assert beside["privacy"]["kind"] == "none"
        assert {key for key in beside if beside[key] != tree["method"][key]} == {"name", "weighting", "privacy"}

    def test_what_a_baseline_keeps_of_the_model(self):
        words = ("method=fusion", "model.width=64", "model.depth=3", "model.cross_depth=2", "model.unimodal_heads=true",
                 "method.unimodal_weight=1")  # fmt: skip
        found = planned(*words)
        assert list(found) == ["first_alone", "second_alone", "product_of_experts"]
        alone = compose(["model=late_fusion", "model.width=64", "model.depth=3", "model.image=patches"])[0]["model"]
        assert all(changed["model"] == alone for changed in found.values())
        assert planned("method=fusion", "model=early_fusion")["first_alone"]["model"]["image"] == "convolution"

    @pytest.mark.parametrize("word", ["keep=model:widht", "keep=method:lr", "keep=width", "keep=model:name"])
    def test_what_it_cannot_keep(self, word):
        with pytest.raises(ConfigError, match=r"^baselines\.a: keep=.*: names settings of the baseline's model"):
            planned("method=fusion", f'baselines={{a:["model=late_fusion","{word}"]}}')

    def test_the_run_itself_is_no_baseline(self):
        assert planned("method=supervised", "model=linear") == {}

    @pytest.mark.parametrize("method", ["maml", "anil", "maml_pp"])
    def test_only_those_that_learn_what_is_asked_for(self, method):
        assert list(planned(f"method={method}")) == ["pretrained"]  # sine waves have no classes
        found = planned(f"method={method}", "view=episodes", "dataset=digits", "model=conv4", "method.iterations=7")
        assert list(found) == ["pretrained", "pretrain_finetune", "nearest_neighbour"]
        assert found["pretrain_finetune"]["method"]["iterations"] == 7

    @pytest.mark.parametrize("word", ["baselines=off", "baselines=false"])
    def test_off(self, word):
        assert planned("method=ewc", word) == {}

    def test_values_and_names_of_the_users_own(self):
        found = planned("method=ewc", *TINY, 'baselines={weak:["method.strength=0.5","model=linear"]}')
        assert (found["weak"]["method"]["strength"], found["weak"]["model"]["name"]) == (0.5, "linear")
        assert found["weak"]["method"]["name"] == "ewc"

    def test_every_mistake_with_its_name_and_a_way_out(self):
        words = 'baselines={a:["method=ewk"],b:["method.strenght=1"],c:["model=conv4","dataset=iris"]}'
        with pytest.raises(ConfigError) as caught:
            planned("method=ewc", words)
        mistakes = caught.value.mistakes
        assert [line.partition(":")[0] for line in mistakes] == ["baselines.a", "baselines.b", "baselines.c"]
        assert all(line.endswith("or run with baselines=off") for line in mistakes)
        assert "did you mean" in mistakes[0]

    def test_a_baseline_changes_no_identity(self):
        assert identity(compose(["method=ewc"])[0]) == identity(compose(["method=ewc", "baselines=off"])[0])

    @pytest.mark.parametrize("word", ["baselines=on_", "baselines=3", "baselines={'../x':['method=joint']}",
                                      "baselines={a:joint}"])  # fmt: skip
    def test_wrong_values(self, word, run_cli, inside):
        said = run_cli("run", "method=ewc", *TINY, word)
        assert (said.code, said.err.count("\n")) == (2, 1)
        assert said.err.startswith("advml: baselines")
        assert list(inside.iterdir()) == []


class TestRuns:
    def test_one_table_and_equal_to_runs_of_their_own(self, run_cli, inside):
        said = run_cli("run", "method=ewc", *TINY)
        assert said.code == 0, said.err
        assert "baseline" in said.out
        assert "finetune" in said.out
        below = RunFolder.open(said.last).path / "baselines"
        assert sorted(path.name for path in below.iterdir()) == ["finetune", "joint"]
        alone = run_cli("run", "method=joint", *TINY)
        alone = RunFolder.open(alone.last)
        result = json.loads((below / "joint/result.json").read_text())
        assert result["metrics"] == alone.result()["metrics"]
        assert (below / "joint/metrics.jsonl").read_bytes() == (alone / "metrics.jsonl").read_bytes()
        assert len(gather([below.parent]).groups) == 3

    def test_resume_runs_what_is_missing_and_nothing_twice(self, run_cli):
        first = run_cli("run", "method=ewc", *TINY, "baselines=off")
        folder = RunFolder.open(first.last)
        assert not (folder / "baselines").exists()
        said = run_cli("resume", first.last)  # asked to have none, it has none for good
        assert (said.code, said.err) == (0, "")
        assert said.out == f"already completed at step {folder.status()['step']}\n{folder.path}\n"
        assert not (folder / "baselines").exists()
        before = (folder / "result.json").stat().st_mtime_ns
        said = run_cli("resume", first.last, 'baselines={finetune:["method=finetune"]}')
        assert said.code == 0, said.err
        assert (folder / "baselines/finetune/result.json").exists()
        assert (folder / "result.json").stat().st_mtime_ns == before

    @pytest.mark.slow
    def test_a_run_that_dies_in_a_baseline_goes_on_with_it(self, forks, inside, run_cli, tmp_path):
        calm = run_cli("run", "method=ewc", *TINY, "checkpoint_seconds=0")
        words = ("run", "method=ewc", *TINY, "checkpoint_seconds=0", f"outputs={tmp_path}/disturbed")
        points = forks.run("cli", *words, cwd=inside, fault={"kind": "die", "point": "last.pt: renamed", "nth": 7})
        assert points.code == 9  # 4 checkpoints of the run itself, the third of its first baseline
        (path,) = (tmp_path / "disturbed").glob("*/*/*/config.yaml")
        folder = RunFolder.open(path.parent)
        assert folder.status()["state"] == "completed"
        assert RunFolder(folder / "baselines/finetune").status()["state"] == "crashed"
        said = run_cli("resume", str(folder.path))
        assert said.code == 0, said.err
        for name in ("finetune", "joint"):
            left, right = RunFolder.open(calm.last) / f"baselines/{name}", folder / f"baselines/{name}"
            assert (left / "metrics.jsonl").read_bytes() == (right / "metrics.jsonl").read_bytes()
        assert run_cli("resume", str(folder.path)).out.startswith("already completed")

    def test_a_baseline_that_fails_leaves_the_result(self, run_cli):
        wild = 'baselines={wild:["method.lr=1e30","method.optimiser=sgd"]}'
        said = run_cli("run", "method=ewc", *TINY, "progress=plain", wild)
        assert said.code == 1
        assert "baseline wild: failed, " in said.err
        assert RunFolder.open(said.last).status()["state"] == "completed"

    def test_from_python(self, inside):
        run = advml.run("method=ewc", *TINY)
        assert list(run.baselines) == ["finetune", "joint"]
        assert run.baselines["joint"].result["method"] == "joint"
        assert advml.run("method=ewc", *TINY, "baselines=off").baselines == {}

    def test_a_sweep_has_none(self, run_cli):
        said = run_cli("sweep", "method=ewc", "seed=0", "baselines=auto", *TINY)
        assert (said.code, said.err) == (
            2, "advml: baselines: a sweep has none; make them jobs of it: method=ewc,finetune,joint\n"
        )  # fmt: skip
        said = run_cli("sweep", "method=ewc", "seed=0", *TINY)
        assert said.code == 0
        assert list(RunFolder(said.last).path.rglob("baselines")) == []

    def test_reproduce_compares_the_run_alone(self, run_cli):
        first = run_cli("run", "method=ewc", *TINY)
        said = run_cli("reproduce", first.last)
        assert (said.code, said.out.splitlines()[0][:9]) == (0, "identical")
        assert_same_run_without_baselines(first.last, said.last)


def assert_same_run_without_baselines(left, right):
    import shutil

    shutil.rmtree(RunFolder(left) / "baselines")
    assert_same_run(left, right)
