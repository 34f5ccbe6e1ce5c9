"""The loop: step, record, evaluate, checkpoint, until the phases are done or something asks to stop."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from advml.config import Limits, RunSettings
from advml.contracts import At, Method, Objective, Phase, SplitName
from advml.errors import AdvmlError
from advml.runner.budget import Budget, used_up
from advml.runner.checkpoint import copied
from advml.runner.observers import Observer, Pruner
from advml.runner.randomness import reseed
from advml.runner.recorder import Recorder
from advml.runner.signals import StopRequest


@dataclass
class Progress:
    """Where a run stands: everything beside the method's own state that the next step depends on."""

    phase: int = 0
    index: int = 0
    total: int = 0
    seconds: float = 0.0
    best_value: float | None = None
    best_total: int | None = None
    stopped_by: str | None = None


@dataclass
class Loop:
    """Drives one method. `save(last, best)` writes a checkpoint; `timing(entry)` notes seconds outside the records."""

    method: Method
    settings: RunSettings
    recorder: Recorder
    budget: Budget
    observers: Sequence[Observer]
    stop: StopRequest
    save: Callable[[Mapping[str, Any], Mapping[str, Any] | None], None]
    timing: Callable[[Mapping[str, Any]], None]
    progress: Progress = field(default_factory=Progress)

    def __post_init__(self) -> None:
        self.phases: Sequence[Phase] = list(self.method.phases())
        self.objective: Objective = self.method.objective
        planned = sum(phase.steps for phase in self.phases)
        every = self.settings.evaluate_every
        self.every = None if every == "never" else max(1, -(-planned // 20)) if every == "auto" else every
        self._waiting_best: dict[str, Any] | None = None

    # --- the loop ---

    def run(self) -> None:
        """From where the run stands to its end, a limit or a request to stop (then `progress.stopped_by` says why)."""
        progress = self.progress
        progress.stopped_by = None
        for observer in self.observers:
            if isinstance(observer, Pruner):
                observer.judge_by(self.objective)
            observer.start(self.phases, progress.total)
        self._skip_empty_phases()
        reasons = self._evaluate(phase_ended=True) if not self.recorder.records else []
        saved_at, reason = time.monotonic(), self._asked_to_stop() or _first(reasons)
        while progress.phase < len(self.phases) and reason is None:
            reason, phase_ended = self._step()
            reason = self._asked_to_stop() or reason
            due = time.monotonic() - saved_at >= self.settings.checkpoint_seconds
            if phase_ended or due or reason:
                self.checkpoint()
                saved_at = time.monotonic()
        if self._waiting_best is not None:  # no step was made: nothing planned, or asked to stop before the first
            self.checkpoint()
        if progress.phase < len(self.phases):
            progress.stopped_by = reason

    def _step(self) -> tuple[str | None, bool]:
        progress, started = self.progress, time.perf_counter()
        phase = self.phases[progress.phase]
        at = At(progress.phase, progress.index, progress.total, last=progress.index == phase.steps - 1)
        reseed(self.settings.seed, "step", at.total)
        step = self.method.step(at)
        progress.total += 1
        record = self.recorder.record(progress.total, phase.name, "train", step.metrics)
        seconds = time.perf_counter() - started
        progress.seconds += seconds
        self.timing({"step": progress.total, "seconds": round(seconds, 6), "total": round(progress.seconds, 3)})

        progress.index += 1
        phase_ended = at.last or step.end_phase
        reasons = [observer.record(record) for observer in self.observers]
        if phase_ended or (self.every is not None and progress.total % self.every == 0):
            reasons += self._evaluate(phase_ended)
        if phase_ended:
            progress.phase, progress.index = progress.phase + 1, 0
            self._skip_empty_phases()
        return _first(reasons), phase_ended

    def _skip_empty_phases(self) -> None:
        while self.progress.phase < len(self.phases) and self.phases[self.progress.phase].steps == 0:
            self.progress.phase += 1

    def _asked_to_stop(self) -> str | None:
        limits: Limits = self.settings.limits
        progress = self.progress
        return self.stop.by or used_up(limits, progress.total, progress.seconds, self.budget.counts)

    # --- measuring ---

    def _evaluate(self, phase_ended: bool) -> list[str | None]:
        """Validation, and at phase ends the test split too for methods that want an accuracy matrix."""
        splits: list[SplitName] = ["valid"]
        if phase_ended and self.method.tests_each_phase:
            splits.append("test")
        reasons = []
        for split in splits:
            record = self.measure(split)
            if not record:
                continue
            reasons += [observer.record(record) for observer in self.observers]
            self._keep_if_best(self.value_of(split, record))
        return reasons

    def value_of(self, split: SplitName, record: Mapping[str, Any]) -> float | None:
        """What the objective says of a record; None where it ranks by another split, or nothing."""
        if split != self.objective.split or not self.objective.keep_best:
            return None
        return record.get(self.objective.metric)

    def measure(self, split: SplitName, state: str | None = None) -> Mapping[str, Any]:
        """Evaluate and record. Work done in evaluations is not training and does not count in the budget."""
        progress = self.progress
        counts = dict(self.budget.counts)
        reseed(self.settings.seed, "evaluate", split, progress.total)
        metrics = self.method.evaluate(split)
        self.budget.counts = counts
        if not metrics:  # an empty split
            return {}
        ended = progress.phase >= len(self.phases)
        name = "start" if progress.total == 0 else "end" if state or ended else self.phases[progress.phase].name
        return self.recorder.record(progress.total, name, split, metrics, state)

    def _keep_if_best(self, value: float | None) -> None:
        if self.objective.better(value, self.progress.best_value):
            self.progress.best_value, self.progress.best_total = value, self.progress.total
            self._waiting_best = {"total": self.progress.total, "method": copied(self.method.state_dict())}

    # --- checkpoints ---

    def checkpoint(self) -> None:
        """Everything needed to go on from here, and the best state if it is new."""
        last = {
            **vars(self.progress),
            "counts": dict(self.budget.counts),
            "metrics_bytes": self.recorder.sync(),
            "method": self.method.state_dict(),
        }
        self.save(last, self._waiting_best)
        self._waiting_best = None

    def restore(self, last: Mapping[str, Any]) -> None:
        """Stand where a checkpoint stood."""
        try:
            self.progress = Progress(**{name: last[name] for name in vars(self.progress)})
            self.budget.counts = dict(last["counts"])
            self.method.load_state_dict(last["method"])
        except (KeyError, TypeError, RuntimeError) as error:  # RuntimeError: of torch, for tensors of other shapes
            why = " ".join(str(error).split())[:200]
            raise AdvmlError(f"the checkpoint is not one of this configuration ({why}); start the run anew") from error


def _first(reasons: Sequence[str | None]) -> str | None:
    """The first reason to stop, if there is one."""
    return next((reason for reason in reasons if reason), None)
