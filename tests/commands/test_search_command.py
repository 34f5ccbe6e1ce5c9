"""advml sweep sweep.sampler=...: whole searches, in this process, in several, killed, repeated and pruned."""

import re
import shlex
import signal
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from test_run_command import QUIET

from advml.runner.folder import RunFolder
from advml.runner.trials import TrialState, open_study

VALLEY = '''
import os, time
from pathlib import Path
import torch
from advml.config import CountFloat, CountInt, settings
from advml.contracts import Method, Needs, Nothing, Objective, Phase, Step


@settings
class Settings:
    x: float
    kind: str
    steps: CountInt
    pause: CountFloat
    raises_above: float
    undefined_above: float


class Valley(Method):
    """(x - 0.3)², and a little more in the first steps; it notes every step in steps.txt."""

    settings = Settings
    needs = Needs(view="none", targets=(Nothing,), model=False)
    objective = Objective("loss", "valid", "min")

    def setup(self, context):
        self.config, self.done = context.settings, torch.zeros(())

    def phases(self):
        return [Phase("walk", "step", self.config.steps)]

    def step(self, at):
        time.sleep(self.config.pause)
        with open("steps.txt", "a") as log:
            log.write(f"{self.config.x!r} {at.total}\\n")
        if self.config.x > self.config.raises_above:
            raise ValueError("too far")
        self.done = self.done + 1
        return Step({})

    def evaluate(self, split):
        if self.config.x > self.config.undefined_above:
            return {}
        value = (self.config.x - 0.3) ** 2 + (self.config.kind == "b") + 0.1 / (1 + self.done)
        return {"loss": value}

    def state_dict(self):
        return {"done": self.done}

    def load_state_dict(self, state):
        self.done = state["done"]
'''

YAML = """\
# A valley.
defaults:
  - override /dataset@_global_.dataset: none
  - override /model@_global_.model: none
  - _self_
name: valley:Valley
x: 0.5
kind: a
steps: 4
pause: 0.0
raises_above: 100.0
undefined_above: 100.0
"""

SPACE = """\
# The whole valley.
method: valley
method.x: interval(0,1)
method.kind: choice(a,b)
"""


@pytest.fixture
def valley(inside):
    """A method of one's own with a space to search, and the words that search it."""
    (inside / "valley.py").write_text(VALLEY)
    for name, text in (("method", YAML), ("search", SPACE)):
        (inside / f"mine/{name}").mkdir(parents=True)
        (inside / f"mine/{name}/valley.yaml").write_text(text)
    return ("--config-dir", "mine", "sweep.space=valley", "checkpoint_seconds=0", "evaluate_every=1", *QUIET)


@pytest.fixture(autouse=True)
def _forget_the_method():
    yield
    sys.modules.pop("valley", None)


def trials_of(folder):
    """The trials of the only sweep below a folder."""
    (search,) = (Path(folder) / "outputs/sweeps").glob("*/search")
    return open_study(search).get_trials()


def steps_of(folder):
    """How often each (x, step) was made."""
    lines = (Path(folder) / "steps.txt").read_text().splitlines()
    return Counter((float(x), int(step)) for x, step in map(str.split, lines))


def runs_of(folder):
    return [RunFolder.open(path.parent) for path in Path(folder).glob("outputs/sweeps/*/*/config.yaml")]


def wait_for(condition):
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


class TestInThisProcess:
    @pytest.mark.slow
    def test_continued_with_more_trials_and_the_best_run_again(self, run_cli, valley, inside):
        words = ("sweep", *valley, "sweep.sampler=tpe")
        first = run_cli(*words, "sweep.trials=3")
        assert first.code == 0, first.err
        assert first.err.splitlines()[-1].startswith("[3/3] method.kind=")
        before = steps_of(inside)
        assert len(before) == 12
        again = run_cli(*words[:-1], "sweep.trials=5", words[-1], "sweep.name=null")
        assert (again.code, again.last) == (0, first.last)
        assert [line[:5] for line in again.err.splitlines()] == ["[4/5]", "[5/5]"]
        assert set(steps_of(inside).values()) == {1}
        assert len(steps_of(inside)) == 20
        trials = trials_of(inside)
        assert [trial.number for trial in trials] == [0, 1, 2, 3, 4]
        losses = [trial.user_attrs["objective"]["value"] for trial in trials]
        assert [trial.value for trial in trials] == [-loss for loss in losses]

        (line,) = (line for line in again.out.splitlines() if line.startswith("best: "))
        best, command = re.fullmatch(r"best: valid loss \S+ \(trial (\d)\): advml (.*)", line).groups()
        assert losses[int(best)] == min(losses)
        assert "sweep." not in command
        rerun = run_cli(*shlex.split(command))
        assert rerun.code == 0, rerun.err
        assert RunFolder.open(rerun.last).result()["objective"]["value"] == min(losses)

    def test_failed_and_undefined_trials_fail(self, run_cli, valley, inside):
        wrong = ("method.raises_above=0.7", "method.undefined_above=0.4")
        said = run_cli("sweep", *valley, *wrong, "sweep.sampler=random", "sweep.trials=8")
        assert said.code == 1
        assert "failed, ValueError: too far" in said.err
        trials = trials_of(inside)
        assert {trial.state for trial in trials} == {TrialState.COMPLETE, TrialState.FAIL}
        for trial in trials:
            assert (trial.state == TrialState.FAIL) == (trial.params["method.x"] > 0.4)
            assert (trial.value is None) == (trial.state == TrialState.FAIL)
        assert "NaN" not in next(inside.glob("outputs/sweeps/*/search/journal.log")).read_text()
        before = steps_of(inside)
        assert run_cli("sweep", *valley, *wrong, "sweep.sampler=random", "sweep.trials=8").code == 1
        assert steps_of(inside) == before

    @pytest.mark.slow
    def test_a_grid_ends_by_itself(self, run_cli, valley, inside):
        words = ("sweep", *valley, "sweep.sampler=grid", "method.x=0.1,0.3,0.2", "method.steps=1")
        assert run_cli(*words, "sweep.trials=4").code == 0
        assert len(trials_of(inside)) == 4
        assert run_cli(*words).code == 0
        found = [(trial.params["method.kind"], trial.params["method.x"]) for trial in trials_of(inside)]
        assert found == [(kind, x) for kind in "ab" for x in ("0.1", "0.3", "0.2")]

    def test_equal_trials_share_a_run(self, run_cli, valley, inside):
        words = ("method.x=0.1", "method.kind=a,b", "method.steps=1", "sweep.sampler=random", "sweep.trials=5")
        said = run_cli("sweep", *valley, *words)
        assert said.code == 0, said.err
        assert len(trials_of(inside)) == 5
        assert len(runs_of(inside)) == 2
        assert set(steps_of(inside).values()) <= {2} or len((inside / "steps.txt").read_text().splitlines()) == 2

    def test_shipped_space_of_the_command_line(self, run_cli, inside):
        said = run_cli("sweep", "sweep.sampler=random", "sweep.trials=2", "sweep.space=training", "dataset=iris",
                       "model=linear", "method.epochs=1", "method.lr=0.01", *QUIET)  # fmt: skip
        assert said.code == 0, said.err
        assert {run.tree()["method"]["lr"] for run in runs_of(inside)} == {0.01}
        assert "method.lr" not in trials_of(inside)[0].params


class TestSeveralProcesses:
    def test_two_join_and_the_number_of_trials_is_right(self, forks, valley, inside):
        words = ("sweep", *valley, "sweep.sampler=tpe", "sweep.trials=7", "method.pause=0.03")
        both = [forks.start("cli", *words, cwd=inside) for _ in range(2)]
        ends = [process.wait() for process in both]
        assert [end.code for end in ends] == [0, 0], [end.err for end in ends]
        trials = trials_of(inside)
        assert [trial.state for trial in trials] == [TrialState.COMPLETE] * 7
        assert len({trial.user_attrs["owner"] for trial in trials}) == 2
        assert set(steps_of(inside).values()) == {1}
        assert len(steps_of(inside)) == 7 * 4
        assert ends[0].out == ends[1].out  # both waited for all trials
        assert not list(inside.glob("outputs/sweeps/*/search/owners/*"))

    @pytest.mark.parametrize(("sampler", "trials", "kills"), [
        ("random", 4, (6, 10)),  # after so many steps: in the second trial, then in the third
        ("tpe", 14, (6, 46)),  # in the twelfth, which TPE no more draws at random
    ])  # fmt: skip
    @pytest.mark.slow
    def test_killed_and_repeated_is_as_never_killed(self, forks, valley, inside, sampler, trials, kills):
        words = ("sweep", *valley, f"sweep.sampler={sampler}", f"sweep.trials={trials}", "method.kind=a")
        for name in ("killed", "whole"):
            (inside / name).mkdir()
            for part in ("mine", "valley.py"):
                (inside / name / part).symlink_to(inside / part)
        process = forks.start("cli", *words, "method.pause=0.02", cwd=inside / "killed")
        for count in kills:
            log = inside / "killed/steps.txt"
            wait_for(lambda log=log, count=count: log.exists() and len(log.read_text().splitlines()) >= count)
            process.send(signal.SIGKILL)
            assert process.wait().code == -signal.SIGKILL
            states = [trial.state for trial in trials_of(inside / "killed")]
            assert states.count(TrialState.RUNNING) == 1
            process = forks.start("cli", *words, "method.pause=0.02", cwd=inside / "killed")
        ended = process.wait()
        assert ended.code == 0, ended.err
        assert forks.run("cli", *words, "method.pause=0.02", cwd=inside / "whole").code == 0
        killed, whole = trials_of(inside / "killed"), trials_of(inside / "whole")
        assert len(killed) == len(whole) == trials
        assert [trial.params for trial in killed] == [trial.params for trial in whole]
        assert [trial.value for trial in killed] == [trial.value for trial in whole]
        made = steps_of(inside / "killed")
        assert len(made) == trials * 4
        assert sum(made.values()) <= trials * 4 + 2  # a step is made again only where it was cut off


class TestPruning:
    WORDS = ("sweep.sampler=random", "sweep.trials=10", "method.steps=16", "method.kind=a", "sweep.pruner=asha")

    def test_bad_runs_stop_early(self, run_cli, valley, inside):
        said = run_cli("sweep", *valley, *self.WORDS)
        assert said.code == 0, said.err
        trials = trials_of(inside)
        pruned = [trial for trial in trials if trial.state == TrialState.PRUNED]
        assert 3 <= len(pruned) < 10
        made = Counter(x for x, _ in steps_of(inside))
        for trial in trials:
            rungs = (1, 4) if trial in pruned else (16,)
            assert made[float(f"{trial.params['method.x']:.6g}")] in rungs
        assert said.out.count("│ pruned ") == len(pruned)
        best = min(abs(trial.params["method.x"] - 0.3) for trial in trials)
        assert best == min(abs(trial.params["method.x"] - 0.3) for trial in trials if trial not in pruned)
        for run in runs_of(inside):
            result = run.result()
            assert run.status()["state"] == "completed"
            splits = {record["split"] for record in run.records()}
            if result["stopped_by"]:
                assert result["stopped_by"].startswith("pruned by ASHA: loss ")
                assert result["metrics"]["test"] == result["best"]["test"] == {}
                assert "test" not in splits
            else:
                assert "test" in splits
        before = steps_of(inside)
        assert run_cli("sweep", *valley, *self.WORDS).code == 0
        assert steps_of(inside) == before
        said = run_cli("compare", said.last)
        assert f"{len(pruned)} of 10 runs were pruned" in " ".join(said.out.split())

    @pytest.mark.slow
    def test_in_processes(self, forks, valley, inside):
        words = ("sweep", *valley, *self.WORDS, "sweep.jobs=2", "sweep.trials=4", "method.x=0.3,0.9")
        ended = forks.run("cli", *words, cwd=inside)
        assert ended.code == 0, ended.err
        trials = trials_of(inside)
        assert len(trials) == 4
        assert any(trial.intermediate_values for trial in trials)  # from the children
        assert all((run / "output.txt").exists() for run in runs_of(inside))

    @pytest.mark.slow
    def test_a_pruned_run_goes_on_for_who_prunes_nothing(self, run_cli, valley, inside):
        said = run_cli("sweep", *valley, *self.WORDS, "sweep.sampler=grid", "method.x=0.3,0.2,0.9")
        pruned = next(run for run in runs_of(inside) if run.result()["stopped_by"])
        x, folder = pruned.tree()["method"]["x"], Path(said.last).name
        words = (word for word in valley if not word.startswith("sweep."))
        same = ("method=valley", f"method.x={x!r}", "method.steps=16", "method.kind=a", f"sweep.name={folder}")
        assert run_cli("sweep", *words, *same).code == 0
        assert pruned.result()["stopped_by"] is None
        assert pruned.result()["budget"]["steps"] == 16


WRONG = {
    "interval without a sampler": ("method.x=interval(0,1)", ["method.x: an interval needs sweep.sampler=random or"]),
    "trials without a sampler": ("sweep.trials=3 sweep.pruner=asha", [
        "sweep.trials=3: needs sweep.sampler=", "sweep.pruner=asha: needs sweep.sampler=",
    ]),
    "unknown sampler": ("sweep.sampler=tpee", ["sweep.sampler: must be 'random', 'grid' or 'tpe'"]),
    "unknown space": ("sweep.sampler=tpe sweep.space=valey", ["sweep.space=valey: unknown search; did you mean "]),
    "nothing to search": ("sweep.sampler=tpe", ["sweep.sampler: nothing to search; "]),
    "interval in a grid": ("sweep.sampler=grid sweep.space=valley", ["method.x: an interval has no grid; "]),
    "two sweepers": ("sweep.sampler=tpe hydra/sweeper=basic", ["hydra/sweeper: not with sweep.sampler"]),
    "unknown key": ("sweep.sampler=tpe method.xx=0,1", ["method.xx: unknown key; did you mean method.x?"]),
    "wrong value": ("sweep.sampler=random method.steps=int(interval(-3,4))", ["method.steps: must be greater than or"]),
    "turned interval": ("sweep.sampler=tpe method.x=interval(1,0)", ["method.x: interval(1,0): the second "]),
    "log of zero": ("sweep.sampler=tpe method.x=tag(log,interval(0,1))", ["method.x: interval(0,1): with tag"]),
    "broken space": ("sweep.sampler=tpe sweep.space=broken", ["{mine}/broken.yaml: cannot be read: "]),
    "nested space": ("sweep.sampler=tpe sweep.space=nested", ["{mine}/nested.yaml: method: must be a text"]),
    "wrong word": ("sweep.sampler=tpe sweep.space=word", ["{mine}/word.yaml: method.x=interval(0: not an"]),
    "several searches": ("sweep.sampler=random,tpe", ["sweep.sampler: belongs to the sweep as a whole"]),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_words(valley, run_cli, inside, name):
    (inside / "mine/search/broken.yaml").write_text("method.x: [1\n")
    (inside / "mine/search/nested.yaml").write_text("method:\n  x: interval(0,1)\n")
    (inside / "mine/search/word.yaml").write_text("method.x: interval(0\n")
    words, lines = WRONG[name]
    base = [word for word in valley if not word.startswith("sweep.")]
    said = run_cli("sweep", *base, "method=valley", *words.split())
    assert (said.code, said.out) == (2, "")
    assert len(said.err.splitlines()) == len(lines), said.err
    for line, start in zip(said.err.splitlines(), lines, strict=True):
        assert line.startswith(f"advml: {start.format(mine=inside / 'mine/search')}")
    assert not (inside / "outputs").exists()


def test_another_search_under_the_same_name(valley, run_cli, inside):
    words = ("sweep", *valley, "sweep.name=mine", "sweep.trials=1", "method.steps=1")
    assert run_cli(*words, "sweep.sampler=random").code == 0
    said = run_cli(*words, "sweep.sampler=tpe")
    assert said.code == 2
    assert said.err.startswith(f"advml: {inside}/outputs/sweeps/mine: holds another search (sampler: random, not tpe)")
    said = run_cli(*words, "sweep.sampler=random", "method.steps=2", "sweep.trials=3")
    assert said.code == 2
    assert "holds another search (fixed: [" in said.err
    assert len(list((inside / "outputs/sweeps/mine").glob("*/config.yaml"))) == 1
    assert run_cli(*words, "sweep.sampler=random", "sweep.trials=2", "sweep.jobs=1", "threads=1").code == 0


def test_without_optuna(valley, forks, inside):
    (inside / "optuna.py").write_text("raise ImportError('no optuna here')\n")
    import subprocess

    code = "import sys; from advml.cli import main; sys.exit(main(sys.argv[1:]))"
    ended = subprocess.run([sys.executable, "-c", code, "sweep", *valley, "sweep.sampler=tpe"], cwd=inside,
                           capture_output=True, text=True, check=False)  # fmt: skip
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr == 'advml: sweep.sampler: needs Optuna (no optuna here): pip install "advml[search]"\n'


def test_the_searches_are_listed(run_cli):
    said = run_cli("list", "searches")
    assert [line.split()[0] for line in said.out.splitlines()] == ["ewc", "training"]
