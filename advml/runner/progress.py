"""Progress for a person: a live bar in a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from advml.contracts import Phase, Record
from advml.runner.observers import Observer

PLAIN_SECONDS = 10.0


def progress_observer(kind: Literal["auto", "rich", "plain", "off"]) -> Observer:
    """The observer for `progress=...`; auto is rich on a terminal and plain elsewhere. All write to stderr."""
    if kind == "off":
        return Silent()
    if kind == "rich" or (kind == "auto" and sys.stderr.isatty()):
        return RichBar()
    return PlainLines()


class Silent:
    """Says nothing, except notes."""

    def start(self, phases: Sequence[Phase], done: int) -> None:
        """Nothing to show."""

    def record(self, record: Record) -> str | None:
        """Nothing to show."""
        return None

    def note(self, text: str) -> None:
        """A line on stderr."""
        print(text, file=sys.stderr)

    def finish(self) -> None:
        """Nothing to close."""


class _Counting(Silent):
    """Keeps count of steps, rate and the newest metrics."""

    def start(self, phases: Sequence[Phase], done: int) -> None:
        """Remember the plan."""
        self.phases = {phase.name: phase for phase in phases}
        self.planned = sum(phase.steps for phase in phases)
        self.done = self.first = done
        self.started = time.monotonic()
        self.newest: dict[str, str] = {}

    def note_record(self, record: Record) -> None:
        self.done = record["step"]
        numbers = [f"{name} {value:.4g}" for name, value in _main_metrics(record).items()]
        self.newest[record["split"]] = f"{record['split']} {' '.join(numbers)}" if numbers else ""

    def rate(self, phase: str) -> str:
        elapsed = max(time.monotonic() - self.started, 1e-9)
        unit = self.phases[phase].unit if phase in self.phases else "step"
        return f"{(self.done - self.first) / elapsed:.3g} {unit}s/s"

    def metrics(self) -> str:
        return " | ".join(self.newest[split] for split in ("train", "valid", "test") if self.newest.get(split))


class RichBar(_Counting):
    """One bar over the whole run: phase, steps, rate, remaining time, newest metrics."""

    def start(self, phases: Sequence[Phase], done: int) -> None:
        """Show the bar."""
        super().start(phases, done)
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[metrics]}"),
            console=Console(stderr=True),
        )
        self.task = self.bar.add_task("start", total=self.planned, completed=done, rate="", metrics="")
        self.bar.start()

    def record(self, record: Record) -> str | None:
        """Move the bar."""
        self.note_record(record)
        phase = record["phase"]
        self.bar.update(
            self.task, completed=self.done, description=phase, rate=self.rate(phase), metrics=self.metrics()
        )
        return None

    def note(self, text: str) -> None:
        """A line above the bar."""
        if hasattr(self, "bar"):
            self.bar.console.print(text, markup=False, highlight=False)
        else:
            super().note(text)

    def finish(self) -> None:
        """Take the bar down."""
        if hasattr(self, "bar"):
            self.bar.stop()


class PlainLines(_Counting):
    """A line now and then, for logs and pipes: every ten seconds, and when a phase begins."""

    def start(self, phases: Sequence[Phase], done: int) -> None:
        """Start counting."""
        super().start(phases, done)
        self.phase, self.said = "", 0.0

    def record(self, record: Record) -> str | None:
        """Perhaps say where the run is."""
        self.note_record(record)
        now = time.monotonic()
        if record["split"] == "train" and (record["phase"] != self.phase or now - self.said >= PLAIN_SECONDS):
            self.phase, self.said = record["phase"], now
            done, elapsed = self.done - self.first, now - self.started
            remaining = (self.planned - self.done) * elapsed / max(done, 1)
            where = f"{record['phase']}: step {self.done}/{self.planned}"
            self.note(f"{where}, {self.rate(self.phase)}, {remaining:.0f} s left | {self.metrics()}")
        return None


def _main_metrics(record: Mapping[str, Any]) -> dict[str, float]:
    """The first three numbers of a record, without those of single tasks."""
    plain = {
        name: value
        for name, value in record.items()
        if name not in ("step", "phase", "split", "state") and "/" not in name and value is not None
    }
    return dict(list(plain.items())[:3])
