"""The jobs of a sweep as a person sees them: live on a terminal, a line for each end, a table of all at the end."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from advml.runner.jobs import Ended, Job

STYLES = {
    "completed": "green", "pruned": "green", "failed": "red", "killed": "red", "crashed": "red",
    "interrupted": "yellow",
}  # fmt: skip
MOST_WAITING = 8  # jobs that were not started and are told one by one


class JobsShown:
    """Says on stderr how each job ended, when it ends. `total`: None if nobody knows how many there will be."""

    def __init__(self, total: int | None) -> None:
        self.total, self.ends = total, dict[Path, Ended]()
        self._running = dict[Path, tuple[Job, float]]()
        self._process = os.getpid()
        self._live: Live | None = None

    @property
    def failed(self) -> bool:
        """Has any job ended otherwise than completed?"""
        return any(end.state not in ("completed", "pruned") for end in self.ends.values())

    def started(self, job: Job) -> None:
        """A child process begins with a job."""
        self._running[job.folder] = (job, time.monotonic())

    def ended(self, ended: Ended) -> None:
        """One line."""
        self._running.pop(ended.job.folder, None)
        self.ends[ended.job.folder] = ended
        count = f"[{len(self.ends)}/{self.total or '?'}] " if os.getpid() == self._process else ""
        line = Text(f"{count}{ended.job.name}: ") + _state(ended.state)
        if ended.objective is not None:
            line += Text(f", objective {ended.objective:.4g}")
        if ended.message:
            line += Text(f", {ended.message}")
        console = self._live.console if self._live is not None else Console(stderr=True)
        console.print(line, highlight=False, soft_wrap=True)

    @contextmanager
    def live(self) -> Iterator[None]:
        """On a terminal, a table of the running jobs that moves; elsewhere nothing."""
        console = Console(stderr=True)
        if not console.is_terminal:
            yield
            return
        with Live(get_renderable=self._now, console=console, refresh_per_second=2, transient=True) as self._live:
            try:
                yield
            finally:
                self._live = None

    def _now(self) -> Group:
        states = Counter(end.state for end in list(self.ends.values()))
        said = [f"{count} {state}" for state, count in states.items()]
        if self.total is not None:
            said.append(f"{self.total - len(self.ends) - len(self._running)} waiting")
        running = list(self._running.values())
        table = Table()
        table.add_column("job", overflow="fold")
        table.add_column("seconds", justify="right")
        for job, began in running:
            table.add_row(Text(job.name), f"{time.monotonic() - began:.0f}")
        return Group(Text(", ".join([f"{len(running)} running", *said])), table)


def show_jobs(ends: Sequence[Ended]) -> None:
    """All jobs: name, state, objective, seconds of training. Of many that were not started, how many they are."""
    table = Table()
    table.add_column("job", overflow="fold")
    table.add_column("state")
    table.add_column("objective", justify="right")
    table.add_column("seconds", justify="right")
    waiting = sum(end.state == "not started" for end in ends)
    for end in ends:
        if end.state == "not started" and waiting > MOST_WAITING:
            continue
        objective = "–" if end.objective is None else f"{end.objective:.4g}"
        seconds = "–" if end.seconds is None else f"{end.seconds:.1f}"
        table.add_row(Text(end.job.name), _state(end.state), objective, seconds)
    if waiting > MOST_WAITING:
        table.add_row(f"{waiting} more", _state("not started"), "–", "–")
    Console().print(table)


def _state(state: str) -> Text:
    return Text(state, style=STYLES.get(state, ""))
