"""Many jobs, each in a child process: so many at a time, limited in time and memory, surviving each other's ends.

More jobs than slots are forked from a process that has imported torch once (runner/nursery.py), where that is possible.
"""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import torch

import advml
from advml.runner.environment import resolve_threads
from advml.runner.folder import OUTPUT, RunFolder
from advml.runner.jobs import Ended, Job, look, nothing_left
from advml.runner.nursery import POSSIBLE, Fork, Nursery
from advml.runner.signals import stop_requests

TICK = 0.05  # seconds between two looks at the children
SLOW_TICK = 0.5  # between two looks at what costs more: memory, and runs that other processes hold
GRACE = 10.0  # seconds to finish a step and save, for a job that is over its time
LIBRARY = str(Path(advml.__file__).parents[1])
CHILD = "import sys; sys.path.append(sys.argv[1]); from advml.runner.worker import main; main(int(sys.argv[2]))"


@dataclass(frozen=True)
class Limits:
    """How many jobs at a time, and what each may use; None = no limit. Memory is watched on Linux only."""

    jobs: int = 1
    seconds: float | None = None
    memory_mb: float | None = None
    fail_fast: bool = False


class Watcher(Protocol):
    """Told what happens, when it happens."""

    def started(self, job: Job) -> None:
        """A child process begins with the job."""

    def ended(self, ended: Ended) -> None:
        """The job has ended, or needed nothing."""


def run_jobs(jobs: Sequence[Job], limits: Limits, watcher: Watcher) -> list[Ended]:
    """Ensure all jobs, each in a process of its own; how each ended, in their order.

    One that fails or is killed leaves the others alone, unless `limits.fail_fast`. A run that another process holds
    comes last, and is waited for. SIGINT and SIGTERM: each child finishes its step and saves, then KeyboardInterrupt
    is raised; the second time they are killed. Dies this process, its children die too (on Linux).
    """
    pool = _Pool(jobs, limits, watcher)
    with stop_requests() as stop:
        try:
            while pool.waiting or pool.running:
                if stop.by and pool.stopped_by is None:
                    pool.stop(f"stopped by {stop.by}")
                pool.launch()
                pool.look_after()
                if pool.running or pool.waiting:
                    time.sleep(TICK)
        finally:
            for child in pool.running.values():
                child.kill()
                child.process.wait()
            for nursery in pool.nurseries.values():
                nursery.close()
    if stop.by:
        raise KeyboardInterrupt
    return [pool.results[index] for index in range(len(jobs))]


def worth_forking(jobs: int, limits: Limits) -> bool:
    """Are there more jobs than slots, so that one import of torch serves several?"""
    return POSSIBLE and jobs > limits.jobs


class _Pool:
    """The jobs that wait, those that run, one a slot, and those that have ended, by their number."""

    def __init__(self, jobs: Sequence[Job], limits: Limits, watcher: Watcher) -> None:
        self.limits, self.watcher = limits, watcher
        self.waiting = dict(enumerate(jobs))
        self.running: dict[int, _Child] = {}
        self.numbers: dict[int, int] = {}
        self.results: dict[int, Ended] = {}
        self.stopped_by: str | None = None
        self._look_again = 0.0
        self._fork = worth_forking(len(jobs), limits)
        self.nurseries: dict[tuple[tuple[str, str], ...], Nursery] = {}  # by what is set in their environment

    def launch(self) -> None:
        """Fill the free slots. What is finished already needs none."""
        while self.waiting and len(self.running) < self.limits.jobs and time.monotonic() >= self._look_again:
            number = next((number for number, job in self.waiting.items() if self._free(job)), None)
            if number is None:
                self._look_again = time.monotonic() + SLOW_TICK
                return
            job = self.waiting.pop(number)
            if nothing_left(job):
                self._end(number, look(job))
                continue
            slot = min(set(range(self.limits.jobs)) - set(self.running))
            try:
                self.running[slot] = self._launch(job, slot)
            except OSError as error:
                self._end(number, Ended(job, "failed", message=f"cannot be launched: {error.strerror or error}"))
                continue
            self.numbers[slot] = number
            self.watcher.started(job)

    def _launch(self, job: Job, slot: int) -> _Child:
        """Start it, in a process group of its own: a Ctrl-C in the terminal reaches us only. Raises OSError."""
        job.folder.mkdir(parents=True, exist_ok=True)
        fitted, environment = _fitted(job, slot, self.limits)
        with open(job.folder / OUTPUT, "ab") as output:
            data, began_at = pickle.dumps(fitted), output.tell()
            if self._fork:
                nursery = self._nursery(environment)
                return _Child(job, nursery.fork(CHILD, LIBRARY, data, job.folder / OUTPUT), began_at)
            process = subprocess.Popen(
                [sys.executable, "-P", "-c", CHILD, LIBRARY, str(os.getpid())],
                stdin=subprocess.PIPE, stdout=output, stderr=subprocess.STDOUT,
                env={**os.environ, **environment}, start_new_session=True,
            )  # fmt: skip
        assert process.stdin is not None
        with suppress(BrokenPipeError), process.stdin as pipe:
            pipe.write(data)
        return _Child(job, process, began_at)

    def _nursery(self, environment: Mapping[str, str]) -> Nursery:
        """One for each environment; another where it has died."""
        key = tuple(sorted(environment.items()))
        if key not in self.nurseries or not self.nurseries[key].alive:
            self.nurseries[key] = Nursery(LIBRARY, environment)
        return self.nurseries[key]

    def _free(self, job: Job) -> bool:
        ours = any(child.job.folder == job.folder for child in self.running.values())
        return not ours and not RunFolder(job.folder).locked_elsewhere()

    def look_after(self) -> None:
        """See which children have ended, and which must be."""
        for slot, child in list(self.running.items()):
            code = child.process.poll()
            if code is None:
                child.check(self.limits)
            else:
                del self.running[slot]
                child.kill()  # whatever it has left behind
                self._look_again = 0.0
                self._end(self.numbers[slot], child.ended(code))

    def stop(self, why: str) -> None:
        """Launch nothing more; let the children finish their step."""
        self.stopped_by = why
        for number in list(self.waiting):
            self.results[number] = Ended(self.waiting.pop(number), "not started")
        for child in self.running.values():
            child.stop(why)

    def _end(self, number: int, ended: Ended) -> None:
        self.results[number] = ended
        self.watcher.ended(ended)
        if self.limits.fail_fast and ended.state != "completed" and self.stopped_by is None:
            self.stop("stopped since another job failed")


@dataclass
class _Child:
    """A process at work on a job; `why` says for which reason we ended it, if we did."""

    job: Job
    process: subprocess.Popen[bytes] | Fork
    output_from: int
    began: float = field(default_factory=time.monotonic)
    why: str | None = None
    kill_at: float | None = None
    _looked: float = 0.0

    def check(self, limits: Limits) -> None:
        """End it if it is over a limit."""
        now = time.monotonic()
        if limits.seconds is not None and now > self.began + limits.seconds:
            self.stop(f"over its time, sweep.seconds={limits.seconds:g}", GRACE)
        if self.kill_at is not None and now > self.kill_at:
            self.kill()
        if limits.memory_mb is not None and now > self._looked + SLOW_TICK:
            self._looked = now
            used = group_memory_mb(self.process.pid)
            if used > limits.memory_mb:
                self.why = f"used {used:,.0f} MB, over sweep.memory_mb={limits.memory_mb:g}"
                self.kill()

    def stop(self, why: str, grace: float | None = None) -> None:
        """Ask it, once, to finish its step and save; kill it if that takes longer than `grace` seconds.

        By SIGTERM: to a run it says the same as SIGINT, and it ends a process that is still importing without a word.
        """
        if self.why is None:
            self.why, self.kill_at = why, None if grace is None else time.monotonic() + grace
            self.process.terminate()

    def kill(self) -> None:
        """End it, and all that it has started, at once."""
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def ended(self, code: int) -> Ended:
        """How it ended, from its exit code, what we did to it, and its folder."""
        if code == 0:
            return look(self.job)
        if self.why is not None:
            state = "killed" if code == -signal.SIGKILL else "interrupted"
            return Ended(self.job, state, message=self.why)
        if code < 0:
            name = signal.Signals(-code).name
            hint = "; was the machine out of memory?" if name == "SIGKILL" else ""
            return Ended(self.job, "killed", message=f"killed by {name}{hint}")
        if code == 130:
            return Ended(self.job, "interrupted", message=self._last_words())
        return Ended(self.job, "failed", message=self._last_words())

    def _last_words(self) -> str:
        file = self.job.folder / OUTPUT
        with suppress(OSError), open(file, "rb") as output:
            output.seek(self.output_from)
            lines = [line for line in output.read().decode(errors="replace").splitlines() if line.strip()]
            if lines:
                return lines[-1].removeprefix("advml: ")
        return f"no word why (see {file})"


# --- a slot's share of the machine --------------------------------------------------------------------------------


def _fitted(job: Job, slot: int, limits: Limits) -> tuple[Job, dict[str, str]]:
    """The job with its slot's number of threads, and the environment of its process: threads, and one GPU."""
    wanted = job.tree["threads"]
    threads = max(1, resolve_threads("auto") // limits.jobs) if wanted == "auto" else wanted
    environment = {"OMP_NUM_THREADS": str(threads)}
    gpus = visible_gpus() if job.tree["device"] in ("auto", "cuda") else []
    if gpus:
        environment["CUDA_VISIBLE_DEVICES"] = gpus[slot % len(gpus)]
    return replace(job, tree={**job.tree, "threads": threads}), environment


def visible_gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    named = environment.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip() not in ("", "-1")]
    return [str(number) for number in range(torch.cuda.device_count())]


def group_memory_mb(group: int) -> float:
    """Resident memory of all processes of a process group, in MB, from /proc: on Linux; 0 elsewhere.

    Pages that processes share are counted for each of them.
    """
    pages = 0
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            after_name = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(after_name[2]) == group:
                pages += int((folder / "statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
