"""A search: trials that a sampler invents one after another, in a sweep's folder, by one process or several.

SWEEP/search/ holds Optuna's journal, a lock under which trials are asked for, told and taken over, and a file for each
process at work, locked for as long as it lives. So the number of trials is exact, and a trial whose process has died is
taken over by whoever asks next; its run, in its fixed folder, is resumed.
"""

from __future__ import annotations

import fcntl
import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from advml.compose import as_tree, composed
from advml.errors import ConfigError
from advml.overrides import forced
from advml.runner.folder import RunFolder
from advml.runner.jobs import Ended, Job, look
from advml.runner.observers import was_pruned
from advml.runner.run import Asked
from advml.runner.spaces import Dimension, grid
from advml.runner.sweeps import Sweep, telling
from advml.runner.trials import (
    Asking,
    FrozenTrial,
    Held,
    Point,
    TrialState,
    Watch,
    open_study,
    sampler_for,
    score,
    suggested,
)

WAIT = 0.5  # seconds between two looks at trials of other processes


@dataclass(frozen=True)
class Plan:
    """What a search is. `fixed`: the prepared overrides of all trials; `dirs`: folders of --config-dir."""

    sampler: str
    trials: int
    seed: int
    pruner: str
    dimensions: tuple[Dimension, ...]
    fixed: tuple[str, ...]
    dirs: tuple[Path, ...]


@dataclass(frozen=True)
class Trial:
    """A trial to be carried out: its number, its overrides, and its run."""

    number: int
    words: tuple[str, ...]
    job: Job


class Search:
    """Asks for trials and tells how they ended. May be pickled, for the sake of `watch`: it holds nothing then."""

    def __init__(self, plan: Plan, sweep: Sweep, note: Callable[[str], None]) -> None:
        self.plan, self.sweep, self.note = plan, sweep, note
        self.folder = sweep.folder / "search"
        self.watched = dict[Path, Watch]()
        self._attempted = set[int]()

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "watched": self.watched}

    def begin(self) -> None:
        """Open the study, or join the one that is there. Raises ConfigError if that one searches something else."""
        (self.folder / "owners").mkdir(parents=True, exist_ok=True)
        self.owner = f"{socket.gethostname()}-{os.getpid()}-{os.urandom(3).hex()}"
        self._alive: IO[str] = open(self.folder / "owners" / self.owner, "a")  # noqa: SIM115  (locked while we live)
        fcntl.flock(self._alive, fcntl.LOCK_EX)
        self._lock = Held(self.folder / "lock")
        what = {
            "sampler": self.plan.sampler, "sampler_seed": self.plan.seed, "pruner": self.plan.pruner,
            "space": [str(one) for one in self.plan.dimensions],
            "fixed": sorted(telling([word.lstrip("+") for word in self.plan.fixed])),
        }  # fmt: skip
        with self._lock:
            self.study = open_study(self.folder)
            before = self.study.user_attrs.get("what")
            if before is None:
                self.study.set_user_attr("what", what)
        if before not in (None, what):
            key = next(key for key in what if before.get(key) != what[key])
            raise ConfigError(
                f"{self.sweep.folder}: holds another search ({key}: {before.get(key)}, not {what[key]}); "
                f"choose another sweep.name"
            )

    def close(self) -> None:
        """Say that this process is no more at work."""
        self._alive.close()
        with suppress(OSError):
            (self.folder / "owners" / self.owner).unlink()

    # --- asking ---

    def ask(self, count: int) -> list[Trial]:
        """Up to `count` trials to be carried out now; none if all have ended.

        First those whose process has died, then new ones. While there is nothing but what other processes are at, wait.
        """
        said = False
        while True:
            with self._lock:
                claimed = self._claim(count)
                others = not claimed and any(self._elsewhere(trial) for trial in self._trials())
            self.watched.clear()
            if trials := [trial for trial in map(self._composed, claimed) if trial is not None]:
                return trials
            if not claimed and not others:
                return []
            if others and not said:
                self.note(f"{self.sweep.folder}: another process is at work on the last trials; waiting for it")
                said = True
            time.sleep(WAIT if others else 0)

    def _claim(self, count: int) -> list[tuple[int, dict[str, Any]]]:
        """Mark up to `count` trials as ours: (number, values) of each."""
        claimed: list[tuple[int, dict[str, Any]]] = []
        trials = self._trials()
        orphans = [trial for trial in trials if self._orphaned(trial)]
        free = [trial for trial in orphans if not self._held(trial)]
        created = len(trials)
        while len(claimed) < count:
            if free:
                number, trial = free[0].number, free.pop(0)
            elif created < self.plan.trials:
                number, trial, created = created, None, created + 1
            elif not claimed and orphans:  # its run is still held, by a process that outlived its parent: wait for that
                number, trial = orphans[0].number, orphans[0]
            else:
                break
            whole = trial is not None and len(trial.params) == len(self.plan.dimensions)
            self.study.sampler = Point({}) if whole else self._sampler(number)
            asking = self.study.ask() if trial is None else Asking(self.study, trial._trial_id)
            assert asking.number == number
            asking.set_user_attr("owner", self.owner)
            claimed.append((number, suggested(asking, self.plan.dimensions)))
            self._attempted.add(number)
        return claimed

    def _sampler(self, number: int) -> Any:
        if self.plan.sampler != "grid":
            return sampler_for(self.plan.sampler, self.plan.seed, number)
        point = grid(self.plan.dimensions)[number]
        numbers = {"int": int, "float": float, "choice": str}
        return Point({one.key: numbers[one.kind](text) for one, text in zip(self.plan.dimensions, point, strict=True)})

    def _composed(self, claimed: tuple[int, dict[str, Any]]) -> Trial | None:
        """The trial with its job; None, and the trial failed, if its values do not go together."""
        number, values = claimed
        words = tuple(f"{one.key}={one.text(values[one.key])}" for one in self.plan.dimensions)
        prepared = tuple(forced(words, self.plan.dirs))
        try:
            config = composed([*self.plan.fixed, *prepared], self.plan.dirs)
            job = self.sweep.job(as_tree(config), config.hydra)
        except ConfigError as error:
            self.note(f"trial {number}: {' '.join(words)}: failed, {'; '.join(error.mistakes)}")
            self._tell(number, TrialState.FAIL)
            return None
        with self._lock, suppress(RuntimeError):  # told by another process in the meantime
            self._asking(number).set_user_attr("folder", job.folder.name)
        if self.plan.pruner == "asha":
            self.watched.setdefault(job.folder, Watch(self.folder, number))
        return Trial(number, prepared, job)

    def watching(self, job: Job) -> Job:
        """The job, with the observer that its trial asks for."""
        return replace(job, watch=self.watched.get(job.folder))

    # --- telling ---

    def tell(self, trial: Trial, end: Ended) -> None:
        """Say how a trial ended. One that was killed or interrupted has not: it stays open, to be resumed."""
        if end.state == "completed":
            result = RunFolder(end.job.folder).result()
            objective = result["objective"]
            if was_pruned(result.get("stopped_by")):
                self._tell(trial.number, TrialState.PRUNED, objective)
            elif objective.get("value") is None:  # undefined; Optuna never sees a NaN
                self._tell(trial.number, TrialState.FAIL)
            else:
                self._tell(trial.number, TrialState.COMPLETE, objective)
        elif end.state in ("failed", "damaged", "not started"):
            self._tell(trial.number, TrialState.FAIL)

    def _tell(self, number: int, state: TrialState, objective: Any = None) -> None:
        with self._lock:
            if next(trial for trial in self._trials() if trial.number == number).state.is_finished():
                return  # by another process that was at it too
            if objective is not None:
                self._asking(number).set_user_attr("objective", objective)
            values = score(objective["value"], objective["mode"]) if state == TrialState.COMPLETE else None
            self.study.tell(number, values, state=state)

    # --- looking ---

    def ends(self) -> list[Ended]:
        """How every trial stands, in the order of their numbers."""
        return [self._end(trial) for trial in self._trials()]

    def best(self) -> FrozenTrial | None:
        """The completed trial with the best objective, of equal ones the first; a pruned one is none."""
        complete = [trial for trial in self._trials() if trial.state == TrialState.COMPLETE]
        return max(complete, key=lambda trial: (trial.value, -trial.number), default=None)

    def words(self, trial: FrozenTrial) -> list[str]:
        """The overrides of a trial, as one would type them."""
        known = [one for one in self.plan.dimensions if one.key in trial.params]
        return [f"{one.key}={one.text(trial.params[one.key])}" for one in known]

    def _end(self, trial: FrozenTrial) -> Ended:
        name = " ".join(self.words(trial)) or f"trial {trial.number}"
        job = Job(name, self.sweep.folder / trial.user_attrs.get("folder", f"trial-{trial.number}"), {}, Asked(""))
        end = look(job)
        if trial.state == TrialState.PRUNED:
            return replace(end, state="pruned")
        if trial.state == TrialState.FAIL and end.state != "completed":
            return replace(end, state="failed")
        return end

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _asking(self, number: int) -> Asking:
        self.study.sampler = Point({})  # nothing is sampled
        return Asking(self.study, self._trials()[number]._trial_id)

    def _orphaned(self, trial: FrozenTrial) -> bool:
        """Is it open, not yet tried by us, and nobody's who lives?"""
        return not trial.state.is_finished() and trial.number not in self._attempted and not self._lives(trial)

    def _elsewhere(self, trial: FrozenTrial) -> bool:
        """Is another living process at it?"""
        return not trial.state.is_finished() and trial.number not in self._attempted and self._lives(trial)

    def _lives(self, trial: FrozenTrial) -> bool:
        try:
            handle = open(self.folder / "owners" / trial.user_attrs["owner"])  # noqa: SIM115  (closed below)
        except (KeyError, OSError):
            return False
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return True
        return False

    def _held(self, trial: FrozenTrial) -> bool:
        """Is its run in the hands of a process, though the one that asked for it is dead?"""
        folder = trial.user_attrs.get("folder")
        return folder is not None and RunFolder(self.sweep.folder / folder).locked_elsewhere()
