"""advml sweep, with real runs: in this process, in child processes, killed and repeated."""

import os
import re
import signal
import time
from collections import Counter

import pytest
from test_run_command import QUIET

from advml.cli import main
from advml.runner.folder import RunFolder

TINY = ("dataset=iris", "model=linear", "method.epochs=2", *QUIET)

TROUBLE = '''
import os, signal, time
from pathlib import Path
import torch
from advml.config import CountFloat, CountInt, settings
from advml.contracts import Method, Needs, Nothing, Objective, Phase, Step


@settings
class Settings:
    job: CountInt
    steps: CountInt
    raises: int
    dies: int
    slow: int
    orphans: int
    pause: CountFloat


class Trouble(Method):
    """Adds up steps. The jobs named in the settings get into trouble at step 3: always, or once."""

    settings = Settings
    needs = Needs(view="none", targets=(Nothing,), model=False)
    objective = Objective("sum", "valid", "max")

    def setup(self, context):
        self.config, self.job = context.settings, context.settings.job
        self.sum = torch.zeros(())

    def phases(self):
        return [Phase("adding", "step", self.config.steps)]

    def step(self, at):
        with open("steps.txt", "a") as log:
            log.write(f"{self.job} {at.total}\\n")
        if at.total == 3:
            if self.job == self.config.raises:
                raise ValueError("trouble")
            if self.job == self.config.dies and once(f"died-{self.job}"):
                os.kill(os.getpid(), signal.SIGKILL)
            if self.job == self.config.orphans and once(f"orphaned-{self.job}"):
                parent = os.getppid()
                if b"nursery" in open(f"/proc/{parent}/cmdline", "rb").read():  # which the sweep has forked us from
                    parent = int(open(f"/proc/{parent}/stat").read().rpartition(")")[2].split()[1])
                os.kill(parent, signal.SIGKILL)
                time.sleep(600)
        if self.job == self.config.slow:
            time.sleep(self.config.pause)
        self.sum = self.sum + at.total + self.job
        return Step({"sum": self.sum})

    def evaluate(self, split):
        return {"sum": self.sum} if split == "valid" else {}

    def state_dict(self):
        return {"sum": self.sum}

    def load_state_dict(self, state):
        self.sum = state["sum"]


def once(name):
    """Is it the first time?"""
    try:
        os.close(os.open(name, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return False
    return True
'''

YAML = """\
# Gets into trouble.
defaults:
  - override /dataset@_global_.dataset: none
  - override /model@_global_.model: none
  - _self_
name: trouble:Trouble
job: 0
steps: 6
raises: -1
dies: -1
slow: -1
orphans: -1
pause: 0.5
"""


@pytest.fixture
def trouble(inside):
    """A method of one's own in the current folder, and the words that choose it."""
    (inside / "trouble.py").write_text(TROUBLE)
    (inside / "mine/method").mkdir(parents=True)
    (inside / "mine/method/trouble.yaml").write_text(YAML)
    return ("--config-dir", "mine", "method=trouble", "checkpoint_seconds=0", "sweep.name=s", *QUIET)


def jobs_of(folder):
    """{method.job: run folder} of a sweep."""
    runs = [RunFolder.open(path.parent) for path in (folder / "outputs/sweeps/s").glob("*/config.yaml")]
    return {run.tree()["method"]["job"]: run for run in runs}


def steps_of(folder):
    """How often each (job, step) was made."""
    return Counter(tuple(map(int, line.split())) for line in (folder / "steps.txt").read_text().splitlines())


def table_of(said):
    """{job: (state, objective)} as the table at the end says."""
    rows = re.findall(r"^│ (.+?) +│ (\w[\w ]*?) +│ +(\S+) │ +\S+ │$", said.out, re.MULTILINE)
    return {name: (state, objective) for name, state, objective in rows}


class TestInThisProcess:
    def test_every_combination_then_only_what_is_missing(self, run_cli, inside):
        said = run_cli("sweep", "seed=0,1", "method.lr=0.01,0.1", *TINY)
        assert said.code == 0, said.err
        assert len(said.err.splitlines()) == 4
        for number, line in enumerate(said.err.splitlines(), start=1):
            assert re.fullmatch(rf"\[{number}/4\] seed=\d method.lr=[0-9.]+: completed, objective [0-9.]+", line)
        assert len(table_of(said)) == 4
        sweep = inside / "outputs/sweeps"
        assert said.last == str(next(sweep.iterdir()))
        runs = {path.parent: path.stat().st_mtime_ns for path in sweep.glob("*/*/result.json")}
        assert len(runs) == 4
        for run in runs:
            objective = RunFolder.open(run).result()["objective"]["value"]
            name = " ".join((run / "overrides.txt").read_text().splitlines()[:2])
            assert table_of(said)[name] == ("completed", f"{objective:.4g}")

        again = run_cli("run", "-m", *reversed(TINY), "method.lr=0.01,0.1", "seed=0,1", "sweep.fail_fast=true")
        assert (again.code, again.last) == (0, said.last)
        assert {path.parent: path.stat().st_mtime_ns for path in sweep.glob("*/*/result.json")} == runs

    def test_ctrl_c_ends_the_sweep_and_repeating_it_goes_on(self, forks, trouble, inside):
        words = ("sweep", *trouble, "method.job=0,1", "method.slow=0", "method.pause=0.05", "method.steps=60")
        process = forks.start("cli", *words, cwd=inside)
        end = time.monotonic() + 60
        while not (inside / "steps.txt").exists() or len((inside / "steps.txt").read_text().splitlines()) < 5:
            assert time.monotonic() < end
            time.sleep(0.01)
        process.send(signal.SIGINT)
        ended = process.wait()
        assert ended.code == 130
        assert "method.job=0: interrupted, stopped by SIGINT after step" in ended.err
        assert "Traceback" not in ended.err
        assert table_of(ended) == {"method.job=0": ("interrupted", "–"), "method.job=1": ("not started", "–")}
        assert forks.run("cli", *words, cwd=inside).code == 0
        assert set(steps_of(inside).values()) == {1}
        assert len(steps_of(inside)) == 120

    def test_of_many_that_were_not_started_how_many(self, run_cli, inside):
        words = ("method.lr=1e30,0.1", "method.optimiser=sgd", *TINY, "model=mlp", "sweep.fail_fast=true")
        told = table_of(run_cli("sweep", *words, "seed=0,1,2,3"))  # 7 of 8 wait
        assert [state for state, _ in told.values()] == ["failed"] + ["not started"] * 7
        told = table_of(run_cli("sweep", *words, "seed=5,6,7,8,9"))
        assert list(told.items())[1:] == [("9 more", ("not started", "–"))]

    def test_fail_fast(self, run_cli, inside):
        words = ("method.lr=1e30,0.1", "method.optimiser=sgd", *TINY, "model=mlp")
        said = run_cli("sweep", *words, "sweep.fail_fast=true")
        assert said.code == 1
        assert table_of(said) == {"method.lr=1e+30": ("failed", "–"), "method.lr=0.1": ("not started", "–")}
        said = run_cli("sweep", *words)
        assert said.code == 1
        assert table_of(said)["method.lr=0.1"][0] == "completed"

    def test_a_job_that_cannot_begin(self, run_cli, inside):
        said = run_cli("sweep", "dataset=mnist,iris", "model=mlp", "method.epochs=1", f"data_dir={inside}/none", *QUIET)
        assert said.code == 1
        assert said.err.startswith("[1/2] dataset=mnist: failed, mnist: ")
        assert {name: state for name, (state, _) in table_of(said).items()} == {
            "dataset=mnist": "failed", "dataset=iris": "completed"
        }  # fmt: skip

    def test_questions_to_hydra_run_nothing(self, run_cli, inside):
        said = run_cli("sweep", "--cfg", "job", "dataset=iris")
        assert (said.code, "name: iris" in said.out) == (0, True)
        assert list(inside.iterdir()) == []

    def test_a_configuration_is_shown_of_one_job(self, run_cli, inside):
        said = run_cli("sweep", "--cfg", "job", "seed=1,2")
        assert (said.code, said.out) == (2, "")
        assert said.err == "advml: seed=1,2: a configuration is shown of one job; give one value\n"

    def test_what_is_finished_is_not_composed_again(self, run_cli, inside, monkeypatch):
        first = run_cli("sweep", "seed=0,1", *TINY)
        monkeypatch.setattr("advml.compose.run_hydra", None)
        again = run_cli("sweep", "seed=0,1", *TINY)
        assert (again.code, again.out) == (0, first.out)

    def test_a_job_that_another_process_is_at_comes_last(self, run_cli, inside, monkeypatch):
        words = ("sweep", "seed=0,1", *TINY, "sweep.name=s")
        held = RunFolder.locked_elsewhere
        asked = []

        def locked(folder):
            asked.append(folder.path.name)
            return (asked.count(folder.path.name) == 1 and folder.path.name.startswith("seed-0")) or held(folder)

        monkeypatch.setattr(RunFolder, "locked_elsewhere", locked)
        said = run_cli(*words)
        assert said.code == 0
        assert [line.split(":")[0] for line in said.err.splitlines()] == ["[1/2] seed=1", "[2/2] seed=0"]

    @pytest.mark.parametrize("name", ["x ${y}", r"x\${y}", r"a\b", "end\\", r"it\'s", "a,b=[1]"])
    def test_in_a_folder_of_any_name(self, name, run_cli, inside, monkeypatch):
        (inside / name).mkdir()
        monkeypatch.chdir(inside / name)
        said = run_cli("sweep", "sweep.name=s", "seed=0", *(word for word in TINY if not word.startswith("outputs")))
        assert said.code == 0, said.err
        assert [path.name for path in inside.iterdir()] == [name]
        assert len(list((inside / name / "outputs/sweeps/s").glob("*/result.json"))) == 1
        assert (inside / name / "outputs/sweeps/s/multirun.yaml").is_file()

    def test_a_folder_with_quotes_and_commas(self, run_cli, inside):
        said = run_cli("sweep", "seed=0", *TINY, "outputs='it\\'s, here=1'")
        assert said.code == 0, said.err
        assert [path.name for path in inside.iterdir()] == ["it's, here=1"]


class TestInProcesses:
    def test_raised_killed_parent_killed_repeated(self, forks, trouble, inside):
        """Of four jobs one raises, one is killed, one kills the parent; then the command is repeated."""
        words = (
            "sweep", *trouble, "method.job=range(0,4)", "method.raises=1", "method.dies=2", "method.orphans=3",
            "hydra/launcher=process",
        )  # fmt: skip
        first = forks.run("cli", *words, cwd=inside)
        assert first.code == -signal.SIGKILL
        assert "method.job=1: failed, ValueError: trouble (traceback: " in first.err
        assert "method.job=2: killed, killed by SIGKILL; was the machine out of memory?" in first.err
        end = time.monotonic() + 30
        while jobs_of(inside)[3].status()["state"] == "running" and time.monotonic() < end:
            time.sleep(0.01)  # it dies with its parent, but a moment later
        assert {number: run.status()["state"] for number, run in jobs_of(inside).items()} == {
            0: "completed", 1: "failed", 2: "crashed", 3: "crashed"
        }  # fmt: skip
        before = (jobs_of(inside)[0] / "result.json").stat().st_mtime_ns

        second = forks.run("cli", *words, cwd=inside)
        assert second.code == 1, second.err
        assert "method.job=1: failed, ValueError: trouble" in second.err
        sums = {number: float(sum(range(6)) + 6 * number) for number in (0, 2, 3)}
        assert table_of(second) == {"method.job=1": ("failed", "–")} | {
            f"method.job={number}": ("completed", f"{value:.4g}") for number, value in sums.items()
        }
        assert (jobs_of(inside)[0] / "result.json").stat().st_mtime_ns == before
        made = steps_of(inside)
        assert {(job, step) for job, step in made if made[(job, step)] > 1} == {(1, 3), (2, 3), (3, 3)}

    def test_two_identical_sweeps_share_the_work(self, forks, trouble, inside):
        words = ("sweep", *trouble, "method.job=range(0,3)", "hydra/launcher=process")
        both = [forks.start("cli", *words, cwd=inside) for _ in range(2)]
        ends = [process.wait() for process in both]
        assert [end.code for end in ends] == [0, 0], [end.err for end in ends]
        assert table_of(ends[0]) == table_of(ends[1])
        assert set(steps_of(inside).values()) == {1}
        assert len(steps_of(inside)) == 18


@pytest.mark.slow
def test_twelve_jobs_and_everything_that_can_happen(forks, trouble, inside):
    """One raises, one is killed, one is over its time, and the parent is killed once: repeating completes the rest."""
    words = (
        "sweep", *trouble, "method.job=range(0,12)", "method.raises=2", "method.dies=4", "method.slow=6",
        "method.orphans=9", "method.pause=8", "sweep.jobs=2", "sweep.seconds=30",
    )  # fmt: skip
    ends, finished = [], []
    for _ in range(6):
        ends.append(forks.run("cli", *words, cwd=inside))
        done = {n: (run / "result.json").stat().st_mtime_ns for n, run in jobs_of(inside).items()
                if (run / "result.json").exists()}  # fmt: skip
        for before in finished:
            assert before.items() <= done.items()  # what was completed stays untouched
        finished.append(done)
        if len(done) == 11:
            break
    assert ends[0].code == -signal.SIGKILL
    assert {end.code for end in ends[1:]} == {1}
    said = "".join(end.err for end in ends)
    assert "method.job=2: failed, ValueError: trouble" in said
    assert "method.job=4: killed, killed by SIGKILL" in said
    assert "method.job=6: interrupted, over its time, sweep.seconds=30" in said
    assert table_of(ends[-1]) == {"method.job=2": ("failed", "–")} | {
        f"method.job={job}": ("completed", f"{15 + 6 * job:.4g}") for job in range(12) if job != 2
    }
    for number, run in jobs_of(inside).items():
        assert (run / "log.txt").read_text().count("completed at step") == (number != 2)
    made = steps_of(inside)
    assert len(made) == 11 * 6 + 4
    # A step is made again only where a process was killed in the middle of it: by itself, or with its parent.
    again = {(job, step): count for (job, step), count in made.items() if count > 1 and job != 2}
    assert {(4, 3), (9, 3)} <= set(again)
    assert len({job for job, _ in again} - {4, 9}) <= 1
    assert set(again.values()) == {2}


def test_more_than_the_help_says_is_refused(run_cli, inside):
    said = run_cli("sweep", "seed=0,1", "sweep.jobs=2", "hydra/launcher=basic", *TINY)
    assert said.code == 2
    assert said.err.splitlines() == [
        "advml: sweep.jobs=2: not with hydra/launcher=basic, which cannot; =process can"
    ]  # fmt: skip
    assert os.listdir(inside) == []
    assert main(["sweep", "seed=0,1", "sweep.job=2"]) == 2
