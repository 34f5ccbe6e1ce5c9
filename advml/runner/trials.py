"""Optuna, as far as it is used: a study in a sweep's folder, shared by processes; its samplers; its pruner as an
observer of runs. Imported only where a search asks for it.
"""

from __future__ import annotations

import fcntl
import hashlib
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

from advml.contracts import Objective, Phase, Record
from advml.errors import ConfigError
from advml.runner.observers import PRUNED
from advml.runner.spaces import Dimension

try:
    import optuna
    from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
    from optuna.samplers import BaseSampler, RandomSampler, TPESampler
    from optuna.storages.journal import JournalFileBackend, JournalStorage
    from optuna.storages.journal._file import BaseJournalFileLock  # to be subclassed; no other way to it
    from optuna.trial import FrozenTrial, TrialState
    from optuna.trial import Trial as Asking
except ImportError as error:
    raise ConfigError(f'sweep.sampler: needs Optuna ({error}): pip install "advml[search]"') from None

__all__ = ["Asking", "FrozenTrial", "TrialState"]  # and what is defined below

JOURNAL, STUDY = "journal.log", "search"
ETA = 4  # of asynchronous successive halving: at each rung the best quarter goes on
FIRST = 16  # the first rung is at 1/16 of the steps of a run, the next and last one at ETA times that


class Held(BaseJournalFileLock):
    """A lock on a file (flock): given back by the kernel, however its holder ends."""

    def __init__(self, path: Path) -> None:
        self.path, self._handle = path, list[IO[str]]()

    def acquire(self) -> bool:
        """Wait for it."""
        handle = open(self.path, "a")  # noqa: SIM115  (held open on purpose: closing it gives the lock back)
        fcntl.flock(handle, fcntl.LOCK_EX)
        self._handle.append(handle)
        return True

    def release(self) -> None:
        """Give it back."""
        self._handle.pop().close()

    def __enter__(self) -> None:
        self.acquire()

    def __exit__(self, *_: object) -> None:
        self.release()


def open_study(folder: Path, pruner: optuna.pruners.BasePruner | None = None) -> optuna.Study:
    """The study in a folder, made if there is none. It maximises; see `score`."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    storage = JournalStorage(JournalFileBackend(str(folder / JOURNAL), Held(folder / f"{JOURNAL}.lock")))
    return optuna.create_study(
        study_name=STUDY, storage=storage, direction="maximize", sampler=RandomSampler(seed=0),
        pruner=pruner or optuna.pruners.NopPruner(), load_if_exists=True,
    )  # fmt: skip


def score(value: float, mode: Literal["max", "min"]) -> float:
    """An objective as a study sees it: more is better."""
    return value if mode == "max" else -value


def distribution(one: Dimension) -> BaseDistribution:
    """A dimension in Optuna's words."""
    if one.kind == "choice":
        return CategoricalDistribution(one.choices)
    if one.kind == "int":
        return IntDistribution(int(one.low), int(one.high), log=one.log, step=int(one.step or 1))
    return FloatDistribution(one.low, one.high, log=one.log, step=one.step)


class Point(BaseSampler):
    """Samples one point, given beforehand: a trial of a grid."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        self.values = values

    def infer_relative_search_space(self, study: Any, trial: Any) -> dict[str, BaseDistribution]:
        """Nothing depends on each other."""
        return {}

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        """Nothing depends on each other."""
        return {}

    def sample_independent(self, study: Any, trial: Any, param_name: str, param_distribution: Any) -> Any:
        """The value of the point."""
        return self.values[param_name]


def sampler_for(kind: str, seed: int, number: int) -> BaseSampler:
    """The sampler of one trial, seeded by (seed, number of the trial): what it draws depends on nothing but these and
    the trials told so far, in whatever processes they were.
    """
    key = int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:4], "big")
    if kind == "random":
        return RandomSampler(seed=key)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return TPESampler(seed=key, constant_liar=True)  # trials in progress count as bad: workers keep apart


def suggested(trial: Asking, dimensions: Sequence[Dimension]) -> dict[str, Any]:
    """The values of a trial, each sampled now unless it was before."""
    values: dict[str, Any] = {}
    for one in dimensions:
        if one.kind == "choice":
            values[one.key] = trial.suggest_categorical(one.key, one.choices)
        elif one.kind == "int":
            step = int(one.step or 1)
            values[one.key] = trial.suggest_int(one.key, int(one.low), int(one.high), step=step, log=one.log)
        else:
            values[one.key] = trial.suggest_float(one.key, one.low, one.high, step=one.step, log=one.log)
    return values


# --- pruning ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Watch:
    """Makes the observer that prunes one trial, in whatever process its run takes place."""

    folder: Path
    number: int

    def __call__(self) -> Asha:
        """The observer."""
        return Asha(self.folder, self.number)


class Asha:
    """Asynchronous successive halving (Li et al. 2020, arXiv 1810.05934), by Optuna: at 1/16 and at 1/4 of its steps a
    run goes on only if its objective is among the best quarter of all that ever came so far.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self.folder, self.number = folder, number

    def judge_by(self, objective: Objective) -> None:
        """What is reported, at each of its measurements."""
        self.objective = objective

    def start(self, phases: Sequence[Phase], done: int) -> None:
        """Open the study. The rungs follow from the steps that are planned."""
        planned = sum(phase.steps for phase in phases)
        first = max(1, -(-planned // FIRST))
        pruner = optuna.pruners.SuccessiveHalvingPruner(min_resource=first, reduction_factor=ETA)
        self.study = open_study(self.folder, pruner)
        (frozen,) = (trial for trial in self.study.get_trials(deepcopy=False) if trial.number == self.number)
        self.told = frozen.state.is_finished()  # by another process: nothing is left to decide
        self.trial = Asking(self.study, frozen._trial_id)
        self.seen = set(frozen.intermediate_values)
        self.pruned: str | None = frozen.user_attrs.get(PRUNED)  # decided, but killed before the run knew

    def record(self, record: Record) -> str | None:
        """Report the objective where it was measured; stop if it is not good enough to go on."""
        value, step = record.get(self.objective.metric), record["step"]
        if self.told or record["split"] != self.objective.split or value is None or step in self.seen:
            return self.pruned
        self.seen.add(step)
        try:
            self.trial.report(score(float(value), self.objective.mode), step)
            if self.pruned is None and self.trial.should_prune():
                self.pruned = f"{PRUNED} by ASHA: {self.objective.metric} {value:.4g} at step {step}"
                self.trial.set_user_attr(PRUNED, self.pruned)
        except optuna.exceptions.UpdateFinishedTrialError:  # told by another process: nothing is left to decide
            self.told = True
        return self.pruned

    def note(self, text: str) -> None:
        """Nothing to tell."""

    def finish(self) -> None:
        """Nothing to close."""
        with suppress(AttributeError):
            del self.study, self.trial
