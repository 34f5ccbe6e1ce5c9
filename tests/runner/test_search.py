"""Spaces, samplers against Optuna itself, the exact number of trials, and the pruner as an observer."""

import pickle
import random
from pathlib import Path

import optuna
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from advml.contracts import Objective, Phase
from advml.errors import ConfigError
from advml.overrides import forced, separate
from advml.runner.jobs import Ended
from advml.runner.observers import Pruner, was_pruned
from advml.runner.search import Search
from advml.runner.searches import plan_search
from advml.runner.spaces import Dimension, dimension, grid, read_space
from advml.runner.trials import TrialState, Watch, distribution, open_study, sampler_for, score, suggested

BASE = ("dataset=iris", "model=linear", "device=cpu")
SPACE = ("method.lr=tag(log,interval(1e-4,1e-1))", "method.optimiser=sgd,adam", "method.batch_size=range(16,65,16)",
         "method.warmup=int(interval(0,9))")  # fmt: skip


def of(word):
    return dimension(OverridesParser.create().parse_override(word))


def planned(*words, note=print):
    options, overrides = separate([*BASE, *words])
    return plan_search(options, overrides, forced(overrides, several=True), "advml sweep", note)


class TestSpaces:
    @pytest.mark.parametrize(("word", "expected"), [
        ("a=x,y", Dimension("a", "choice", ("x", "y"))),
        ("a=1,2.5,null,true,1", Dimension("a", "choice", ("1", "2.5", "null", "True"))),
        ("a=choice(b,[1,2],{b:1})", Dimension("a", "choice", ("b", "[1,2]", "{b:1}"))),
        ("a=shuffle(x,y)", Dimension("a", "choice", ("x", "y"))),
        ("a=range(16,65,16)", Dimension("a", "int", (), 16, 64, 16)),
        ("a=range(10,0,-3)", Dimension("a", "int", (), 1, 10, 3)),
        ("a=range(0.1,0.35,0.1)", Dimension("a", "float", (), 0.1, 0.3, 0.1)),
        ("a=range(3,4)", Dimension("a", "choice", ("3",))),
        ("a=interval(0,1)", Dimension("a", "float", (), 0.0, 1.0)),
        ("a=int(interval(1,20))", Dimension("a", "int", (), 1, 20)),
        ("a=tag(log,int(interval(1,20)))", Dimension("a", "int", (), 1, 20, None, True)),
        ("++a.b=tag(log,interval(1e-4,1e-1))", Dimension("a.b", "float", (), 1e-4, 0.1, None, True)),
    ])  # fmt: skip
    def test_every_form(self, word, expected):
        found = of(word)
        assert found == expected
        assert [type(end) for end in (found.low, found.high)] == [type(end) for end in (expected.low, expected.high)]

    @pytest.mark.parametrize(("word", "said"), [
        ("a=tag(exp,interval(1,2))", "tag(exp,...)"), ("a=interval(2,2)", "second number"), ("a=range(3,3)", "numbers"),
        ("a=tag(log,interval(0,1))", "above 0"), ("a=tag(log,choice(1,2))", "interval only"),
    ])  # fmt: skip
    def test_what_means_none(self, word, said):
        with pytest.raises(ValueError, match=said.replace("(", r"\(").replace(")", r"\)")):
            of(word)

    def test_points(self):
        assert of("a=range(10,0,-3)").points() == ["1", "4", "7", "10"]
        assert of("a=range(0.1,0.35,0.1)").points() == ["0.1", "0.2", "0.3"]
        assert of("a=interval(0,1)").points() is None
        assert grid([of("a=1,2"), of("b=x,y")]) == [("1", "x"), ("1", "y"), ("2", "x"), ("2", "y")]
        with pytest.raises(ConfigError, match="b: an interval has no grid"):
            grid([of("a=1,2"), of("b=interval(0,1)")])

    @given(st.floats(1e-8, 1e8), st.floats(1e-6, 1e6), st.floats(0, 1))
    def test_a_text_stays_inside_and_near(self, low, width, place):
        one = Dimension("a", "float", (), low, low + width)
        value = min(low + place * width, one.high)
        if one.low < one.high:
            assert one.low <= float(one.text(value)) <= one.high
            assert float(one.text(value)) == pytest.approx(value, rel=1e-5)

    def test_a_file(self, inside):
        (inside / "search").mkdir()
        (inside / "search/mine.yaml").write_text(
            "# Mine.\nmethod: ewc\nseed: 3\nmethod.lr: interval(0,1)\nmethod.x: null\nmethod.y: true\n"
        )
        assert list(read_space("mine", [inside]).values()) == [
            "method=ewc", "seed=3", "method.lr=interval(0,1)", "method.x=null", "method.y=true"
        ]  # fmt: skip


class TestPlan:
    def test_words_win_over_the_file(self, inside):
        words = ("method.lr=0.1", "method.batch_size=8,9", "method.warmup=1,2")
        plan = planned("sweep.sampler=tpe", "sweep.space=training", *words)[1].plan
        assert {one.key: one.points() for one in plan.dimensions if one.step is None and one.kind == "choice"} == {
            "method.batch_size": ["8", "9"], "method.optimiser": ["sgd", "adam", "adamw", "rmsprop"],
            "method.schedule": ["constant", "cosine"], "method.warmup": ["1", "2"],
        }  # fmt: skip
        assert "method.lr" not in {one.key for one in plan.dimensions}
        assert "++method.lr=0.1" in plan.fixed
        assert (plan.trials, plan.pruner) == (20, "none")

    @pytest.mark.parametrize("space", ["training", "ewc"])
    def test_shipped_spaces_fit(self, inside, space):
        _, search = planned("sweep.sampler=tpe", f"sweep.space={space}", "dataset=digits", "model=mlp")
        assert len(search.plan.dimensions) >= 3

    def test_the_folder(self, inside):
        space = SPACE[:2]
        first = planned("sweep.sampler=tpe", *space)[0].folder
        same = ["sweep.trials=99", "sweep.jobs=3", "progress=off", "sweep.fail_fast=true"]
        assert first == planned(*reversed(space), "sweep.sampler=tpe", *same)[0].folder
        for change in (["sweep.sampler_seed=1"], ["sweep.pruner=asha"], ["sweep.sampler=random"], ["method.lr=0.1"]):
            assert first != planned("sweep.sampler=tpe", *space, *change)[0].folder

    def test_a_grid_has_as_many_trials_as_points(self, inside):
        words = ("sweep.sampler=grid", "method.lr=0.1,0.2,0.3", "method.batch_size=range(8,33,8)")
        assert planned(*words)[1].plan.trials == 12
        assert planned(*words, "sweep.trials=5")[1].plan.trials == 5

    def test_nothing_is_pruned_by_the_tasks_it_began_with(self, inside):
        words = ("sweep.sampler=tpe", "sweep.space=ewc", "dataset=digits", "model=mlp")
        with pytest.raises(ConfigError, match=r"pruner=asha: not with method=ewc, whose first values say nothing"):
            planned(*words, "sweep.pruner=asha")

    def test_every_value_is_checked(self, inside):
        with pytest.raises(ConfigError) as caught:
            planned("sweep.sampler=tpe", "method.optimiser=sgd,adm", "method.lr=interval(-1,1)", "dataset=iris,none")
        assert {line.split(":")[0] for line in caught.value.mistakes} >= {"method.optimiser", "method.lr"}


def begun(*words):
    _, search = planned(*words)
    search.sweep.begin()
    search.begin()
    return search


def done(search, trial, value):
    """Tell a trial as if its run had ended with this objective."""
    search._tell(trial.number, TrialState.COMPLETE, {"value": value, "mode": "max"})


class TestAgainstOptuna:
    @pytest.mark.parametrize("kind", [pytest.param("random", marks=pytest.mark.slow), "tpe"])
    def test_the_same_trials(self, inside, kind):
        """The trials are those of a plain study in memory whose sampler is seeded anew for each."""
        search = begun(f"sweep.sampler={kind}", "sweep.trials=16", "sweep.sampler_seed=4", *SPACE)
        plain = optuna.create_study(direction="maximize")
        space = {one.key: distribution(one) for one in search.plan.dimensions}
        for number in range(16):
            (trial,) = search.ask(1)
            plain.sampler = sampler_for(kind, 4, number)
            expected = plain.ask(space)
            assert search.study.get_trials()[-1].params == expected.params
            value = expected.params["method.lr"] - (expected.params["method.optimiser"] == "sgd")
            done(search, trial, value)
            plain.tell(expected, value)
            words = dict(word.lstrip("+").split("=") for word in trial.words)
            assert float(words["method.lr"]) == pytest.approx(expected.params["method.lr"], rel=1e-5)
            assert words["method.batch_size"] == str(expected.params["method.batch_size"])
        assert search.ask(1) == []
        assert search.best().value == plain.best_value
        search.close()

    @pytest.mark.slow
    def test_tpe_learns(self, inside):
        search = begun("sweep.sampler=tpe", "sweep.trials=30", "method.lr=tag(log,interval(1e-4,1e-1))")
        while trials := search.ask(1):
            lr = float(trials[0].words[0].partition("=")[2])
            done(search, trials[0], -abs(lr - 0.05))
        lrs = [trial.params["method.lr"] for trial in search.study.get_trials()]
        assert sum(0.02 < lr < 0.1 for lr in lrs[15:]) > sum(0.02 < lr < 0.1 for lr in lrs[:15])
        search.close()


class TestSharing:
    def test_a_dead_process_trials_are_taken_over_and_told_once(self, inside):
        words = ("sweep.sampler=random", "sweep.trials=3", *SPACE)
        first, second = begun(*words), begun(*words)
        (one,), (two,) = first.ask(1), second.ask(1)
        assert (one.number, two.number) == (0, 1)
        first.close()  # dead, its trial open
        third, fourth = second.ask(2)
        assert (third.number, third.words, third.job.folder) == (0, one.words, one.job.folder)
        assert fourth.number == 2
        for trial in (third, two, fourth):
            done(second, trial, 0.5)
        done(second, third, 0.9)  # told already: the first word counts
        assert [trial.value for trial in second.study.get_trials()] == [0.5] * 3
        assert second.ask(1) == []
        second.close()

    def test_what_was_killed_stays_open_and_what_failed_does_not(self, inside):
        search = begun("sweep.sampler=random", "sweep.trials=4", *SPACE)
        trials = search.ask(4)
        for trial, state in zip(trials, ("killed", "interrupted", "failed", "not started"), strict=True):
            search.tell(trial, Ended(trial.job, state))
        states = [trial.state for trial in search.study.get_trials()]
        assert states == [TrialState.RUNNING, TrialState.RUNNING, TrialState.FAIL, TrialState.FAIL]
        assert search.ask(1) == []  # once in a process is enough
        search.close()
        again = begun("sweep.sampler=random", "sweep.trials=4", *SPACE)
        assert [trial.number for trial in again.ask(9)] == [0, 1]
        again.close()

    def test_pickled_it_still_knows_what_to_watch(self, inside):
        search = begun("sweep.sampler=random", "sweep.pruner=asha", *SPACE)
        (trial,) = search.ask(1)
        copy = pickle.loads(pickle.dumps(search))
        assert isinstance(copy, Search)
        assert copy.watching(trial.job).watch == Watch(search.folder, 0)
        search.close()


class TestAsha:
    PHASES = (Phase("train", "epoch", 12), Phase("more", "epoch", 4))

    def observed(self, folder, number, values, mode="max", steps=(0, 1, 2, 4, 8, 16)):
        """The reasons that a run with these values at these steps is given."""
        observer = Watch(folder, number)()
        assert isinstance(observer, Pruner)
        observer.judge_by(Objective("score", "valid", mode))
        observer.start(self.PHASES, 0)
        observer.record({"split": "train", "step": 1, "score": -1e9})
        said = [observer.record({"split": "valid", "step": step, "score": value})
                for step, value in zip(steps, values, strict=True)]  # fmt: skip
        observer.finish()
        return said

    @pytest.mark.parametrize("mode", ["max", "min"])
    def test_as_optuna_decides(self, inside, mode):
        study = open_study(Path())
        plain = optuna.create_study(
            direction="maximize" if mode == "max" else "minimize",
            pruner=optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=4),
        )
        rng = random.Random(0)
        pruned = 0
        for number in range(12):
            study.ask()
            other = plain.ask()
            values = [rng.random() for _ in range(6)]
            said = self.observed(Path(), number, values, mode)
            for step, value, reason in zip((0, 1, 2, 4, 8, 16), values, said, strict=True):
                other.report(value, step)
                assert (reason is not None) == other.should_prune()
                if reason is not None:
                    assert reason == f"pruned by ASHA: score {value:.4g} at step {step}"
                    assert was_pruned(reason)
                    pruned += 1
                    break
            study.tell(number, score(values[-1], mode))
            plain.tell(other, values[-1])
        assert 3 < pruned < 12

    def test_undefined_values_and_told_trials_prune_nothing(self, inside):
        study = open_study(Path())
        study.ask()
        assert self.observed(Path(), 0, [1.0] * 6) == [None] * 6
        study.ask()
        assert self.observed(Path(), 1, [None] * 6) == [None] * 6
        study.ask()
        study.tell(2, 0.0)
        assert self.observed(Path(), 2, [-5.0] * 6) == [None] * 6

    def test_a_verdict_outlives_the_process(self, inside):
        study = open_study(Path())
        for _ in range(2):
            study.ask()
        self.observed(Path(), 0, [1.0] * 6)
        first = self.observed(Path(), 1, [0.0] * 2, steps=(0, 1))[-1]
        assert first is not None
        assert self.observed(Path(), 1, [0.0] * 2, steps=(0, 1)) == [first, first]


def test_suggested_twice_is_the_same(inside):
    study = open_study(Path())
    dimensions = [of(word) for word in SPACE]
    trial = study.ask()
    assert suggested(trial, dimensions) == suggested(trial, dimensions)
