"""Asked to stop when the last step is made: the run is completed, and nothing follows it."""

import os
import signal

import pytest
from runs import QUIET, TINY

import advml
from advml.runner import run as runs
from advml.runner.folder import RunFolder, find

EWC = ("method=ewc", "dataset=iris", "view.tasks=2", "method.iterations=6", "method.block=3", "model.hidden=[4]",
       *QUIET)  # fmt: skip


@pytest.fixture
def asked_at_the_end(monkeypatch):
    """The first run gets a SIGTERM when it writes its summary; the signal handlers are as before afterwards."""
    finish, before = runs.finish, signal.getsignal(signal.SIGTERM)

    def asked(*arguments):
        monkeypatch.setattr(runs, "finish", finish)
        os.kill(os.getpid(), signal.SIGTERM)
        finish(*arguments)

    monkeypatch.setattr(runs, "finish", asked)
    yield
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.usefixtures("asked_at_the_end")
class TestAskedAtTheEnd:
    def test_a_sweep_begins_no_other_job(self, run_cli, inside):
        words = ("sweep", "seed=0,1", *TINY, *QUIET)
        said = run_cli(*words)
        assert said.code == 130
        assert [one.status()["state"] for one in find(inside / "outputs")] == ["completed"]
        assert "not started" in said.out
        assert run_cli(*words).code == 0

    def test_a_run_begins_no_baseline(self, run_cli, inside):
        said = run_cli("run", *EWC)
        assert said.code == 130
        assert RunFolder.open(said.last).status()["state"] == "completed"
        assert not (RunFolder(said.last) / "baselines").exists()
        assert said.err == f"advml: stopped before all baselines had run; to go on: advml resume {said.last}\n"
        again = run_cli("resume", said.last)
        assert (again.code, again.err) == (0, "")
        assert len(find(inside / "outputs")) == 3

    def test_a_run_without_baselines_has_all_that_was_asked_for(self, run_cli):
        said = run_cli("run", *EWC, "baselines=off")
        assert (said.code, said.err) == (0, "")

    def test_from_python(self, inside):
        with pytest.raises(KeyboardInterrupt, match="SIGTERM came at the end of the run, which is completed: "):
            advml.run(*EWC)
        assert len(find(inside / "outputs")) == 1
