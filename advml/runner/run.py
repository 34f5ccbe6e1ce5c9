"""A run from a checked configuration to a finished folder: start one, or resume one."""

from __future__ import annotations

import json
import logging
import shlex
import shutil
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from advml.config import Bound
from advml.contracts import Method
from advml.data.files import resolve_data_dir
from advml.data.reduce import reduced_spec, told
from advml.data.source import Source, Whole, split
from advml.errors import AdvmlError, ConfigError
from advml.nn.products import keep_freed_memory
from advml.runner import checkpoint, environment, files
from advml.runner.budget import Budget, uncounted
from advml.runner.context import DTYPES, RunContext
from advml.runner.finish import finish
from advml.runner.fit import check_fit
from advml.runner.folder import RunFolder
from advml.runner.loop import Loop, Progress
from advml.runner.observers import Observer
from advml.runner.progress import progress_observer
from advml.runner.randomness import KeyedRng, numeric_settings, reseed
from advml.runner.recorder import Recorder
from advml.runner.signals import StopRequest, stop_requests
from advml.runner.trackers import Tracker, backend
from advml.runner.world import Alone, opened


@dataclass(frozen=True)
class Asked:
    """What the user typed: the whole command, its overrides, and the YAML file chosen in each group."""

    command: str
    overrides: Sequence[str] = ()
    choices: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a run ended. `message` is for the user; None when all went well.

    `asked`: the signal that came, if one did; a completed run heard it at its very end, and nothing must follow it.
    """

    folder: RunFolder
    state: str
    message: str | None = None
    asked: str | None = None

    @property
    def exit_code(self) -> int:
        """0 done, 1 failed, 130 interrupted."""
        return {"completed": 0, "interrupted": 130}.get(self.state, 1)


def start(
    bound: Bound,
    asked: Asked,
    observers: Sequence[Observer] = (),
    folder: RunFolder | None = None,
    world: Alone | None = None,
) -> Outcome:
    """Check, load the data, set up, make the folder, run. A configuration that cannot run leaves nothing behind.

    `folder`: an empty one that the caller has made and keeps (runner/jobs.py); otherwise a new one below `outputs`.
    `world`: who computes together with this process, where that is not for `method.workers` to say.
    """
    check_fit(bound)
    device = environment.resolve_device(bound.run.device)
    threads = environment.resolve_threads(bound.run.threads)
    together = opened(bound, device, threads) if world is None else nullcontext(world)
    with numeric_settings(threads, bound.run.deterministic), together as world:
        job = _job(bound, device, observers, world)
        given = folder is not None
        if folder is None:
            names = (part.name.replace(":", ".") for part in (bound.method, bound.dataset))  # my_module:MyMethod
            folder = RunFolder.create(Path(bound.run.outputs), *names)
        try:
            folder.lock()
            described = environment.describe(device, threads, bound.run.precision)
            files.write_json(folder / "environment.json", {**described, "choices": dict(asked.choices)})
            files.write_text(folder / "command.txt", asked.command + "\n")
            files.write_text(folder / "overrides.txt", "".join(f"{line}\n" for line in asked.overrides))
            if job.data is not None:
                files.write_json(folder / "data.json", job.data)
            folder.write_status("running", 0, attempt=1)
            files.write_text(folder / "config.yaml", as_yaml(_to_save(bound)))  # the last: from here on it is a run
            return job.carry_out(folder, attempt=1)
        except OSError as error:
            raise _storage_error(error, folder) from error
        finally:
            folder.unlock()
            if not given and not (folder / "config.yaml").exists():
                shutil.rmtree(folder.path, ignore_errors=True)


def resume(folder: RunFolder, bound: Bound, observers: Sequence[Observer] = ()) -> Outcome:
    """Go on from the last checkpoint, on the same kind of device and with the same number of threads."""
    check_fit(bound)
    folder.lock()
    try:
        before, status = folder.environment(), folder.status()
        if status["state"] == "completed":  # before anything of it is touched
            checkpoint.load_complete(folder)
        device = environment.resolve_device(bound.run.device)
        if before["device"].partition(":")[0] != device.type:
            raise ConfigError(
                f"{folder.path}: was started on {before['device']}, but here device={bound.run.device} is {device}; "
                f"resume it on such a device or start a new run"
            )
        threads = before["threads"]
        with numeric_settings(threads, bound.run.deterministic), opened(bound, device, threads) as world:
            job = _job(bound, device, observers, world)
            job.check_data(folder)
            now = environment.describe(device, threads, bound.run.precision)
            then, now = ({key: whole.get(key) for key in environment.BITS} for whole in (before, now))
            for line in environment.differences(then, now):
                job.note(f"advml: since the run began, {line}; bits may differ from those of a run never stopped")
            for leftover in folder.path.rglob("*.tmp"):  # of a write that a crash cut off
                if "baselines" not in leftover.relative_to(folder.path).parts:  # runs of their own, perhaps at work
                    leftover.unlink()
            files.write_text(folder / "config.yaml", as_yaml(_to_save(bound)))
            return job.carry_out(folder, attempt=status["attempt"] + 1, step=status["step"])
    except OSError as error:
        raise _storage_error(error, folder) from error
    finally:
        folder.unlock()


def _to_save(bound: Bound) -> Mapping[str, Any]:
    """The configuration with its data found from any folder: where they lie is no part of a run's identity."""
    data_dir = bound.run.data_dir
    return bound.tree if data_dir is None else {**bound.tree, "data_dir": str(resolve_data_dir(data_dir))}


def as_yaml(tree: Mapping[str, Any]) -> str:
    """A configuration as YAML: keys in their own order, but the name of each block first."""
    ordered = {
        key: dict(sorted(value.items(), key=lambda item: item[0] != "name")) if isinstance(value, Mapping) else value
        for key, value in tree.items()
    }
    return yaml.safe_dump(ordered, sort_keys=False, default_flow_style=None, allow_unicode=True, width=120)


class _Job:
    """The pieces of a run put together: data and a set-up method; then the loop, and its end of whatever kind."""

    def __init__(self, bound: Bound, device: torch.device, observers: Sequence[Observer], world: Alone) -> None:
        run = self.run = bound.run
        self.bound, self.device, self.budget, self.world = bound, device, Budget(), world
        self.observers = [progress_observer(run.progress), *observers]
        self.tracking = backend(run)  # before any work: a tracker that cannot be used is refused
        self.view = None if bound.dataset.name == "none" else load_view(bound, self.note)
        self.data = None if self.view is None else {"dataset": bound.dataset.name, **self.view.describe()}
        world.join()
        self.method = world.lead(set_up(bound, self.view, device, self.budget, world))

    def note(self, text: str) -> None:
        self.observers[0].note(text)

    def check_data(self, folder: RunFolder) -> None:
        """Refuse to go on with other examples than the run began with; say it where only the files differ."""
        if self.data is None or not (folder / "data.json").exists():
            return
        then, now = folder.data(), dict(self.data)
        files_then, files_now = then.pop("files", {}), now.pop("files", {})
        if other := [line.partition(":")[0] for line in environment.differences(then, now)]:
            raise ConfigError(
                f"{folder.path}: began with other examples than there are now ({', '.join(other)} in data.json); "
                "bring those back or start a new run"
            )
        for line in environment.differences(files_then, files_now):  # unpacked, or another of right content
            self.note(f"advml: since the run began, data file {line}; bits may differ from a run never stopped")

    def carry_out(self, folder: RunFolder, attempt: int, step: int = 0) -> Outcome:
        """Run to the end, a limit, a signal or an error, and write down which."""
        with stop_requests() as stop:
            outcome = self._carry_out(folder, stop, attempt, step)
        return replace(outcome, asked=stop.by)

    def _carry_out(self, folder: RunFolder, stop: StopRequest, attempt: int, step: int) -> Outcome:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        with ExitStack() as stack:
            log = stack.enter_context(_log(folder))
            if self.tracking is not None:
                name, tree = self.run.tracker, self.bound.tree
                self.observers.append(Tracker(name, self.tracking, folder, tree, self.note))
            for observer in self.observers:
                stack.callback(observer.finish)
            progress = Progress(total=step)
            try:
                loop = self._loop(folder, stop, attempt, stack)
                progress = loop.progress
                folder.write_status("running", progress.total, attempt)
                log.info("attempt %d starts at step %d", attempt, progress.total)
                loop.run()
                if stop.by and progress.stopped_by == stop.by:
                    return _end(folder, log, "interrupted", progress.total, attempt, f"stopped by {stop.by}")
                for counter in uncounted(self.run.limits, self.budget.counts) if progress.total else ():
                    self.note(f"advml: limits.{counter}: this run counted none, so the limit could stop nothing")
                finish(folder, self.bound, loop, self.view, self.device)
                self.world.dismiss()
                return _end(folder, log, "completed", progress.total, attempt)
            except KeyboardInterrupt:
                return _end(folder, log, "interrupted", progress.total, attempt, "stopped at once")
            except Exception as error:
                return _failed(folder, log, error, progress.total, attempt)

    def _loop(self, folder: RunFolder, stop: StopRequest, attempt: int, stack: ExitStack) -> Loop:
        """The loop, standing at the last checkpoint if there is one."""
        last = checkpoint.load_last(folder)
        recorder = Recorder(folder / "metrics.jsonl", keep_bytes=last["metrics_bytes"] if last else 0)
        stack.callback(recorder.close)
        timing_file = stack.enter_context(open(folder / "timing.jsonl", "a"))  # noqa: SIM115  (the stack closes it)

        def timing(entry: Mapping[str, Any]) -> None:
            timing_file.write(json.dumps({"attempt": attempt, **entry}) + "\n")

        def save(last: Mapping[str, Any], best: Mapping[str, Any] | None) -> None:
            checkpoint.save(folder, last, best)
            timing_file.flush()
            folder.write_status("running", last["total"], attempt)

        loop = Loop(self.method, self.run, recorder, self.budget, self.observers, stop, save, timing)
        if last is not None:
            loop.restore(last)
        return loop


def _job(bound: Bound, device: torch.device, observers: Sequence[Observer], world: Alone) -> _Job:
    """Data and a set-up method. What goes wrong in them, perhaps in somebody's own, is one line: AdvmlError."""
    try:
        return _Job(bound, device, observers, world)
    except (AdvmlError, OSError):
        raise
    except Exception as error:
        if full := _memory_full(error):
            raise AdvmlError(full) from error
        place = traceback.extract_tb(error.__traceback__)[-1]
        raise AdvmlError(f"{_explained(error)} ({place.filename}, line {place.lineno})") from error


def set_up(bound: Bound, view: Any, device: torch.device, budget: Budget, world: Alone) -> Method:
    """The method at its beginning, with the view on the device: alike in every process of a run."""
    run = bound.run
    keep_freed_memory()
    reseed(run.seed, "setup")
    method: Method = bound.method.cls()
    seen = None if view is None else view.to(device, DTYPES[run.precision])
    method.setup(RunContext(bound.method.settings, seen, bound.model, run.seed, device, run.precision, budget, world))
    return method


def load_view(bound: Bound, note: Callable[[str], None]) -> Any:
    """The data set, divided and seen through the view, on the CPU; keyed by the run's seed or the data set's own.

    A view that is `undivided` gets a Whole and divides it itself.
    """
    dataset = bound.dataset.cls(bound.dataset.settings)
    split_seed = bound.dataset.settings.split_seed
    rng = KeyedRng(bound.run.seed if split_seed is None else split_seed)
    source = Source(rng, resolve_data_dir(bound.run.data_dir), bound.run.download, note)
    loaded, spec = dataset.load(source), reduced_spec(dataset.spec(), bound.dataset.settings)
    if (classes := getattr(bound.dataset.settings, "keep_classes", None)) is not None:
        loaded = loaded.of_classes(classes)
    whole = Whole(loaded, spec, bound.dataset.settings)
    if getattr(bound.view.cls, "undivided", False):
        return bound.view.cls.of(whole, bound.view.settings, rng)
    examples = split(*whole, rng)
    if beyond := examples.record.get("angles_outside"):
        note(told(beyond))
    return bound.view.cls.of(examples, bound.view.settings, rng)


def _end(
    folder: RunFolder, log: logging.Logger, state: str, step: int, attempt: int, why: str | None = None
) -> Outcome:
    log.info("%s at step %d%s", state, step, f": {why}" if why else "")
    folder.write_status(state, step, attempt)
    if state == "interrupted":
        return Outcome(folder, state, f"{why} after step {step}; to go on: {_resume(folder)}")
    return Outcome(folder, state)


def _failed(folder: RunFolder, log: logging.Logger, error: Exception, step: int, attempt: int) -> Outcome:
    """One line for the user; for a fault that is ours, the traceback in error.txt."""
    if isinstance(error, OSError):
        message = str(_storage_error(error, folder))
    elif isinstance(error, AdvmlError):
        message = str(error)
    else:
        message = f"{_explained(error)} (traceback: {folder / 'error.txt'})"
    try:
        if not isinstance(error, AdvmlError | OSError):
            files.write_text(folder / "error.txt", "".join(traceback.format_exception(error)))
        folder.write_status("failed", step, attempt, message)
        log.error("failed at step %d: %s", step, message)
    except OSError:
        pass  # the disk is full: what was written before still stands, and the message reaches the user
    return Outcome(folder, "failed", message)


def _explained(error: Exception) -> str:
    first = (str(error).splitlines() or [""])[0]
    if "does not have a deterministic implementation" in first:
        return f"{first.split(' does not')[0]} has no deterministic form on this device; use deterministic=warn"
    if first.startswith("Expected more than 1 value per channel when training"):
        return "a batch norm cannot learn from one example; choose a batch size that leaves none alone"
    return _memory_full(error) or f"{type(error).__name__}: {first}"


def _memory_full(error: Exception) -> str | None:
    """What to do about an error that tells of too little memory (torch has a class for GPUs only); None for others."""
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return "the GPU's memory is full; use a smaller method.batch_size or model"
    signs = ("can't allocate memory", "Storage size calculation overflowed")
    if isinstance(error, MemoryError) or any(sign in str(error) for sign in signs):
        return "the memory is full; use a smaller method.batch_size or model"
    return None


def _storage_error(error: OSError, folder: RunFolder) -> AdvmlError:
    what = error.filename or folder.path
    again = _resume(folder) if (folder / "config.yaml").exists() else "start the run again"
    return AdvmlError(f"{what}: {error.strerror or error}; mend that, then: {again}")


def _resume(folder: RunFolder) -> str:
    return f"advml resume {shlex.quote(str(folder.path))}"


class _LogFile(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """A full disk: say nothing here, the next write that matters will."""

    def close(self) -> None:
        """What could not be written stays unwritten."""
        with suppress(OSError):
            super().close()


@contextmanager
def _log(folder: RunFolder) -> Iterator[logging.Logger]:
    """log.txt, which also collects Python's warnings."""
    handler = _LogFile(folder / "log.txt", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    loggers = [logging.getLogger("advml"), logging.getLogger("py.warnings")]
    logging.captureWarnings(True)
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    try:
        yield loggers[0]
    finally:
        logging.captureWarnings(False)
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()
