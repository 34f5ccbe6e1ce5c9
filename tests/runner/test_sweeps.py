"""What a sweep is before it runs: names that a repeated command finds again, jobs that are all checked."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advml.compose import as_tree, compose, each_job
from advml.config import SweepSettings
from advml.errors import ConfigError
from advml.overrides import forced, separate
from advml.runner.identity import identity
from advml.runner.sweeps import command_hash, job_folder, launcher, plan, readable

BASE = ("dataset=iris", "model=linear", "device=cpu")


def planned(*words):
    options, overrides = separate([*BASE, *words])
    return plan(options, overrides, forced(overrides, several=True), "advml sweep")


def settings(**changes):
    default = {
        "name": None, "jobs": 1, "fail_fast": False, "seconds": None, "memory_mb": None,
        "sampler": None, "space": None, "trials": None, "sampler_seed": 0, "pruner": "none",
    }  # fmt: skip
    return SweepSettings(**default | changes)


class TestCommandHash:
    def test_order_and_ways_of_carrying_out_do_not_matter(self):
        one = command_hash([], ["seed=0,1", "method.lr=0.1,0.2", "model=mlp"])
        assert one == command_hash([], ["model=mlp", "method.lr=0.1,0.2", "++seed=0,1"])
        carried = ["sweep.jobs=4", "sweep.seconds=60", "progress=off", "outputs=/elsewhere", "threads=2",
                   "figures=false", "hydra/launcher=process", "hydra.launcher.n_jobs=2", "data_dir=/data"]  # fmt: skip
        assert one == command_hash([], ["seed=0,1", "method.lr=0.1,0.2", "model=mlp", *carried])

    @pytest.mark.parametrize("words", [["seed=0,1,2"], ["seed=0"], ["seed=0,1", "model=mlp"], ["seed=0,1", "~x"], []])
    def test_another_experiment_is_another_sweep(self, words):
        assert command_hash([], words) != command_hash([], ["seed=0,1"])

    def test_configuration_folders_matter(self):
        assert command_hash(["-cd", "mine"], ["seed=0,1"]) != command_hash([], ["seed=0,1"])


class TestFolders:
    def test_readable(self):
        assert readable(["seed=0", "method.lr=0.1"]) == "seed-0+method.lr-0.1"
        assert readable(["method.name='a b/c'", "x=[1,2]"]) == "method.name-a-b-c+x-1-2"
        assert readable(["lr=1e+30"]) != readable(["lr=1e-30"]) == "lr-1e-30"
        assert readable([]) == readable(["="]) == "defaults"

    @given(st.lists(st.text(max_size=80), max_size=6))
    def test_of_safe_characters_and_not_too_long(self, words):
        name = readable(words)
        assert 0 < len(name) <= 100
        assert set(name) <= set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_.+-")
        assert not name.startswith(("-", "+"))

    def test_a_folder_works_as_a_value_of_hydra_without_quotes(self, inside):
        folder = job_folder(Path("outputs/sweeps/x"), ["method=ewc", "method.lr=-1e-3"], compose(BASE)[0])
        tree, _ = compose(["model=run", f"model.path={folder}"])
        assert tree["model"]["path"] == str(inside / folder)

    def test_found_again_under_another_name(self, inside):
        tree = compose(BASE)[0]
        first = job_folder(inside, ["seed=0"], tree)
        assert first == job_folder(inside, ["seed=0"], {**tree, "threads": 3, "progress": "off"})
        first.mkdir()
        assert job_folder(inside, ["seed=0", "dataset=iris"], tree) == first
        assert job_folder(inside, ["seed=1"], {**tree, "seed": 1}) != first

    def test_no_identity_depends_on_how_a_sweep_is_carried_out(self, inside):
        tree = compose(BASE)[0]
        assert identity(tree) == identity({**tree, "sweep": {**tree["sweep"], "jobs": 9}})
        assert identity(tree) != identity({**tree, "seed": 9})


class TestPlan:
    def test_every_combination_in_hydras_order(self, inside):
        sweep = planned("seed=0,1", "method.lr=0.1,0.2", "sweep.name=n")
        assert sweep.folder == inside / "outputs/sweeps/n"
        assert [job.name for job in sweep.jobs] == [
            "seed=0 method.lr=0.1", "seed=0 method.lr=0.2", "seed=1 method.lr=0.1", "seed=1 method.lr=0.2"
        ]  # fmt: skip
        assert [(job.tree["seed"], job.tree["method"]["lr"]) for job in sweep.jobs] == [
            (0, 0.1), (0, 0.2), (1, 0.1), (1, 0.2)
        ]  # fmt: skip
        for job in sweep.jobs:
            assert job.folder == sweep.folder / f"{readable(job.name.split())}-{identity(job.tree)[:10]}"
            assert job.asked.overrides == ["dataset=iris", "model=linear", "device=cpu", *job.name.split()]
            assert job.asked.choices["model"] == "linear"
        assert len({job.folder for job in sweep.jobs}) == 4

    def test_ranges_choices_globs(self, inside):
        sweep = planned("seed=range(0,3)", "dataset=choice(iris,wine)", "model=glob(ml*,exclude=mlp_*)")
        found = {(job.tree["seed"], job.tree["dataset"]["name"], job.tree["model"]["name"]) for job in sweep.jobs}
        assert found == {(seed, dataset, "mlp") for seed in (0, 1, 2) for dataset in ("iris", "wine")}
        assert len(sweep.jobs) == 6

    def test_a_glob_sees_ones_own_files(self, inside, monkeypatch):
        (inside / "mine/model").mkdir(parents=True)
        (inside / "mine/model/linear_too.yaml").write_text("# Another.\ndefaults: [mlp, _self_]\n")
        monkeypatch.setenv("ADVML_CONFIG_PATH", str(inside / "mine"))
        assert [job.name for job in planned("model=glob(lin*)").jobs] == ["model=linear", "model=linear_too"]

    def test_a_glob_that_matches_nothing(self, inside):
        with pytest.raises(ConfigError, match=r"^model=glob\(x\*\): matches no model"):
            planned("model=glob(x*)")
        with pytest.raises(ConfigError, match=r"^seed=glob\(\*\): matches no seed"):
            planned("seed=glob(*)")

    def test_one_job_without_any_choice(self, inside):
        (job,) = planned().jobs
        assert job.name == "dataset=iris model=linear device=cpu"

    def test_all_mistakes_of_all_jobs(self, inside):
        with pytest.raises(ConfigError) as caught:
            planned("method.lr=0.1,-1", "method.epochs=0,1", "seed=-1")
        assert caught.value.mistakes == (
            "seed: must be greater than or equal to 0, not -1",
            "method.epochs: must be greater than 0, not 0",
            "method.lr: must be greater than 0, not -1",
        )

    def test_the_sweep_itself_takes_one_value(self, inside):
        with pytest.raises(ConfigError) as caught:
            planned("sweep.jobs=1,2", "outputs=a,b")
        assert caught.value.mistakes == (
            "sweep.jobs: belongs to the sweep as a whole and takes one value",
            "outputs: belongs to the sweep as a whole and takes one value",
        )

    def test_what_makes_no_other_job_takes_one_value(self, inside):
        with pytest.raises(ConfigError, match=r"^threads: would make the same run several times"):
            planned("threads=1,2")

    def test_jobs_of_equal_content_are_one(self, inside, monkeypatch):
        (inside / "mine/model").mkdir(parents=True)
        (inside / "mine/model/linear_too.yaml").write_text("# Another.\ndefaults: [linear, _self_]\n")
        monkeypatch.setenv("ADVML_CONFIG_PATH", str(inside / "mine"))
        sweep = planned("model=linear,linear_too", "seed=0,1")
        assert [job.name for job in sweep.jobs] == ["model=linear seed=0", "model=linear seed=1"]
        (too,) = each_job(forced([*BASE, "model=linear_too"], several=True), [])
        assert sweep.job(as_tree(too), too.hydra).folder == sweep.jobs[0].folder  # as a launcher will ask

    def test_a_range_without_numbers(self, inside):
        with pytest.raises(ConfigError, match=r"^seed: a range without numbers"):
            planned("seed=range(5,5)")

    @pytest.mark.parametrize("word", ["seed=range(0,10,0)", "method.lr=range(0.1,0.5,0)"])
    def test_a_range_that_never_ends(self, word, inside):
        with pytest.raises(ConfigError, match=r"a range with a step of 0 never ends"):
            planned(word)

    @pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden"])
    def test_a_name_is_a_folder_name(self, name, inside):
        with pytest.raises(ConfigError, match=r"sweep\.name"):
            planned(f"sweep.name='{name}'")


class TestLauncher:
    def test_processes_where_they_are_needed(self):
        assert launcher(settings(), []) == []
        assert launcher(settings(fail_fast=True), []) == []
        for needed in ({"jobs": 2}, {"seconds": 60.0}, {"memory_mb": 100.0}):
            assert launcher(settings(**needed), []) == ["hydra/launcher=process"]
            assert launcher(settings(**needed), ["hydra/launcher=process"]) == []

    def test_what_a_launcher_cannot_do(self):
        with pytest.raises(ConfigError, match=r"^sweep.jobs=2, sweep.seconds=60: not with hydra/launcher=joblib"):
            launcher(settings(jobs=2, seconds=60.0), ["hydra/launcher=joblib"])
        with pytest.raises(ConfigError, match=r"^sweep.fail_fast=true: not with hydra/launcher=submitit_local"):
            launcher(settings(fail_fast=True), ["hydra/launcher=submitit_local"])
        assert launcher(settings(fail_fast=True), ["hydra/launcher=basic"]) == []
