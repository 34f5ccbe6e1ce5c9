"""What a person sees while a run goes on; all of it on stderr, none of it in the way of the result."""

import io
import re

import pytest

from advml.contracts import Phase
from advml.runner import progress
from advml.runner.progress import PlainLines, RichBar, Silent, progress_observer

PHASES = [Phase("search", "epoch", 2), Phase("retrain", "epoch", 3)]
RECORDS = [
    {"step": 0, "phase": "start", "split": "valid", "loss": 2.5, "accuracy": 0.1},
    {"step": 1, "phase": "search", "split": "train", "loss": 2.0, "accuracy/task1": 0.5},
    {"step": 2, "phase": "search", "split": "train", "loss": 1.0},
    {"step": 2, "phase": "search", "split": "valid", "loss": 1.25, "accuracy": None},
    {"step": 3, "phase": "retrain", "split": "train", "loss": 0.5},
]


def show(observer, done=0):
    observer.start(PHASES, done)
    assert [observer.record(record) for record in RECORDS] == [None] * len(RECORDS)
    observer.finish()


class TestChoice:
    @pytest.mark.parametrize(("kind", "terminal", "expected"), [
        ("off", True, Silent), ("plain", True, PlainLines), ("rich", False, RichBar), ("auto", True, RichBar),
        ("auto", False, PlainLines),
    ])  # fmt: skip
    def test_auto_looks_at_the_terminal(self, kind, terminal, expected, monkeypatch):
        monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: terminal, raising=False)
        assert type(progress_observer(kind)) is expected


def test_silence(capsys):
    show(Silent())
    assert capsys.readouterr() == ("", "")


def test_notes_are_never_silent(capsys):
    for observer in (Silent(), PlainLines(), RichBar()):
        observer.note("files are [complete]")
    assert capsys.readouterr() == ("", "files are [complete]\n" * 3)


class TestPlainLines:
    def test_a_line_for_each_phase(self, capsys):
        show(PlainLines())
        said = capsys.readouterr()
        assert said.out == ""
        first, second = said.err.splitlines()
        pattern = r"search: step 1/5, [\d.e+]+ epochs/s, \d+ s left \| train loss 2 \| valid loss 2.5 accuracy 0.1"
        assert re.fullmatch(pattern, first)
        assert re.fullmatch(r"retrain: step 3/5, .* \| train loss 0.5 \| valid loss 1.25", second)

    def test_and_one_every_ten_seconds(self, capsys, monkeypatch):
        now = [0.0]
        monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
        observer = PlainLines()
        observer.start([Phase("train", "step", 4)], 0)
        for step, now[0] in enumerate((1.0, 9.0, 12.0, 13.0), start=1):
            observer.record({"step": step, "phase": "train", "split": "train", "loss": 1.0})
        assert [line.split(",")[0] for line in capsys.readouterr().err.splitlines()] == [
            "train: step 1/4", "train: step 3/4"
        ]  # fmt: skip

    def test_the_rate_of_a_resumed_run_counts_its_own_steps(self, capsys, monkeypatch):
        now = [100.0]
        monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
        observer = PlainLines()
        observer.start([Phase("train", "step", 100)], 50)
        now[0] += 2
        observer.record({"step": 60, "phase": "train", "split": "train", "loss": 1.0})
        assert capsys.readouterr().err.startswith("train: step 60/100, 5 steps/s, 8 s left")


def test_a_bar_in_a_terminal(monkeypatch):
    """Drawn on a made-up terminal: phase, steps, newest metrics."""
    screen = io.StringIO()
    monkeypatch.setattr(progress, "Console", lambda stderr: __import__("rich.console").console.Console(
        file=screen, force_terminal=True, width=160))  # fmt: skip
    observer = RichBar()
    show(observer, done=0)
    last = screen.getvalue()
    assert "retrain" in last
    assert "3/5" in last
    assert "train loss 0.5 | valid loss 1.25" in last
    observer.note("a [note]")
    assert "a [note]" in screen.getvalue()


def test_a_bar_that_was_never_shown_can_be_taken_down():
    RichBar().finish()
