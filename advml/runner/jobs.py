"""Jobs: runs whose folder is known before they begin, so that asking again finds them. Sweeps and studies are made of
them, and the baselines of a run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advml.config import Bound, bind
from advml.errors import AdvmlError, ConfigError
from advml.runner.folder import RunFolder
from advml.runner.identity import INDIFFERENT
from advml.runner.observers import Observer, Pruner, was_pruned
from advml.runner.progress import progress_observer
from advml.runner.run import Asked, Outcome, resume, start


@dataclass(frozen=True)
class Job:
    """A run to be ensured: its name for people, its folder, its whole configuration and what the user typed.

    `watch` makes an observer of it, in whatever process the run takes place: it can be pickled.
    """

    name: str
    folder: Path
    tree: Mapping[str, Any]
    asked: Asked
    watch: Callable[[], Observer] | None = None

    def observers(self) -> list[Observer]:
        """The observer that `watch` makes, if any."""
        return [] if self.watch is None else [self.watch()]


@dataclass(frozen=True)
class Ended:
    """How a job stands or ended: completed, failed, killed, interrupted, crashed, damaged, running or "not started".

    `objective` and `seconds` (of training, over all attempts) are those of a completed run; `message` is for people.
    """

    job: Job
    state: str
    objective: float | None = None
    seconds: float | None = None
    message: str | None = None


def ensure(path: Path, bound: Bound, asked: Asked, observers: Sequence[Observer] = ()) -> Outcome:
    """Bring the run in the folder `path` to its end, whatever happened to it before.

    Missing: it is started there. Interrupted, crashed, failed, or stopped by a limit that is now another, or by a
    pruner that is no more among the `observers`: it is resumed. Completed: it is left as it is. Held by another
    process: waited for, then looked at again. Raises ConfigError if the folder holds another experiment.
    """
    folder = RunFolder(path)
    folder.make()
    if folder.locked_elsewhere():
        waiting = f"{folder.path}: another process is working on this run; waiting for it"
        progress_observer(bound.run.progress).note(waiting)
    folder.lock(wait=True)
    try:
        if not (folder / "config.yaml").exists():
            folder.clear()
            return start(bound, asked, observers, folder)
        if other := next(_contradictions(_of_interest(folder.tree()), _of_interest(bound.tree)), None):
            raise ConfigError(f"{folder.path}: holds another run ({other}); choose another folder or delete this one")
        if finished(folder, bound.tree, any(isinstance(observer, Pruner) for observer in observers)):
            return Outcome(folder, "completed")
        return resume(folder, bound, observers)
    finally:
        folder.unlock()


def finished(folder: RunFolder, tree: Mapping[str, Any], pruning: bool = False) -> bool:
    """Is nothing left to do? A run that a limit stopped has something left if `tree` asks for other limits; one that
    was pruned, unless who asks would have pruned it too.
    """
    if not (folder / "config.yaml").exists() or folder.status()["state"] != "completed":
        return False
    stopped_by = folder.result().get("stopped_by")
    if not stopped_by or was_pruned(stopped_by):
        return pruning or not stopped_by
    return _given(folder.tree()["limits"]) == _given(tree["limits"])


def nothing_left(job: Job) -> bool:
    """Is the job finished? A damaged folder is not: whoever begins with it will say what is wrong."""
    try:
        return finished(RunFolder(job.folder), job.tree, pruning=job.watch is not None)
    except AdvmlError:
        return False


def look(job: Job) -> Ended:
    """How a job stands, from its folder alone; "damaged" if that cannot be told."""
    folder = RunFolder(job.folder)
    if not (folder / "config.yaml").exists():
        return Ended(job, "running" if folder.locked_elsewhere() else "not started")
    try:
        status = folder.status()
        if status["state"] != "completed":
            return Ended(job, status["state"], message=status.get("error"))
        result = folder.result()
    except AdvmlError as error:
        return Ended(job, "damaged", message=str(error))
    value, seconds = result["objective"].get("value"), result.get("seconds")
    return Ended(job, "completed", value, seconds, result.get("stopped_by"))


def ended(job: Job, outcome: Outcome) -> Ended:
    """An outcome of `ensure` as the end of a job."""
    if outcome.state == "completed":
        return look(job)
    return Ended(job, outcome.state, message=outcome.message)


def here(job: Job) -> Ended:
    """Bring a job to its end in this process; never raises for what goes wrong in it.

    Raises KeyboardInterrupt where the run was asked to stop when it had nothing left to stop: whoever asked means all.
    """
    try:
        outcome = ensure(job.folder, bind(job.tree), job.asked, job.observers())
    except AdvmlError as error:
        return failed(job, error)
    if outcome.state == "completed" and outcome.asked:
        raise KeyboardInterrupt
    return ended(job, outcome)


def failed(job: Job, error: AdvmlError) -> Ended:
    """The end of a job that could not even begin."""
    return Ended(job, "failed", message="; ".join(str(error).splitlines()))


def _of_interest(tree: Mapping[str, Any]) -> dict[str, Any]:
    """What makes an experiment this one. Limits do not: a run may be led further under another limit."""
    return {key: value for key, value in tree.items() if key not in (*INDIFFERENT, "limits")}


def _contradictions(saved: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Where two configurations differ, key by key. A key that the saved one lacks came with a newer advml."""
    for key, value in saved.items():
        if key not in wanted:
            yield f"{prefix}{key}: {value}, unknown today"
        elif isinstance(value, Mapping) and isinstance(wanted[key], Mapping):
            yield from _contradictions(value, wanted[key], f"{prefix}{key}.")
        elif value != wanted[key]:
            yield f"{prefix}{key}: {value}, not {wanted[key]}"


def _given(limits: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in limits.items() if value is not None}
