"""Observers: the runner's only hook. Each sees every record and may ask the run to stop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from advml.contracts import Phase, Record


class Observer(Protocol):
    """Limits, progress, pruning, trackers."""

    def start(self, phases: Sequence[Phase], done: int) -> None:
        """The run begins or goes on after `done` steps."""

    def record(self, record: Record) -> str | None:
        """See a record; a text asks the run to stop between steps, and says why."""

    def note(self, text: str) -> None:
        """Something worth telling the user."""

    def finish(self) -> None:
        """No record will follow."""
