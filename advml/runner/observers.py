"""Observers: the runner's only hook. Each sees every record and may ask the run to stop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:  # contracts import torch, and whoever only asks `was_pruned` shall not wait for it
    from advml.contracts import Objective, Phase, Record

PRUNED = "pruned"
"""How the reason of a Pruner begins: such a run has a result, but reads no test split."""


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


@runtime_checkable
class Pruner(Observer, Protocol):
    """An observer that stops a run which other runs have left behind; its reason begins with PRUNED."""

    def judge_by(self, objective: Objective) -> None:
        """Before `start`: what runs are ranked by."""


def was_pruned(stopped_by: str | None) -> bool:
    """Did a Pruner stop the run, of which result.json says this?"""
    return (stopped_by or "").startswith(PRUNED)
