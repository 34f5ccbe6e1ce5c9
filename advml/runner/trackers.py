"""Trackers: the records of a run shown elsewhere while it goes on, in TensorBoard or in MLflow.

What a tracker holds is a copy of metrics.jsonl. Whenever a run begins, goes on or ends, the tracker is asked how far it
has come, and what it lacks is sent to it. So a resumed run goes on in the same place without a step shown twice, and a
tracker that was away for a while has no gap in the end. Nothing that a tracker does or fails to do touches the run.
"""

from __future__ import annotations

import json
import logging
import math
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from textwrap import shorten
from typing import Any, NamedTuple, Protocol

from advml.config import RunSettings
from advml.contracts import Phase, Record
from advml.errors import AdvmlError, ConfigError
from advml.runner import files
from advml.runner.folder import RunFolder
from advml.runner.identity import FREE_TO_CHANGE, flattened

SECONDS, PAUSE = 1.0, 60.0  # between two deliveries; after one that failed
SHARE = 20.0  # and at least so many times what the last one took: a slow tracker costs a twentieth of the time
TEXT = 500  # characters of a parameter, the least that MLflow servers in use accept


class Point(NamedTuple):
    """A number of a record, as a tracker knows it."""

    name: str
    value: float
    step: int


class Backend(Protocol):
    """Where the numbers go. Any method may raise anything."""

    def open(self, folder: RunFolder, tree: Mapping[str, Any]) -> Mapping[str, int]:
        """Begin, or go on with what an earlier attempt began; name → the newest step that is already there."""

    def send(self, points: Sequence[Point]) -> None:
        """Take these, in their order."""

    def close(self, state: str) -> None:
        """The run is over: completed, failed or interrupted."""


def backend(settings: RunSettings) -> Backend | None:
    """The backend of `tracker=…`, reached and ready. Raises ConfigError where it cannot be used."""
    match settings.tracker:
        case "tensorboard":
            return TensorBoard()
        case "mlflow":
            return MLflow(settings.tracker_uri or os.environ.get("MLFLOW_TRACKING_URI"))
        case _:
            return None


class Tracker:
    """The observer: hands every number on, about once a second, and stands between the run and what may go wrong."""

    def __init__(
        self, name: str, backend: Backend, folder: RunFolder, tree: Mapping[str, Any], say: Callable[[str], None]
    ) -> None:
        self._name, self._backend, self._folder, self._tree, self._say = name, backend, folder, tree, say
        self._newest: dict[str, int] | None = None  # None: not known, the backend must be asked
        self._waiting: list[Point] = []
        self._due, self._warned = 0.0, False

    def start(self, phases: Sequence[Phase], done: int) -> None:
        """Bring the tracker to where the run stands."""
        self._attempt(self._catch_up)

    def record(self, record: Record) -> str | None:
        """Hand the numbers on, now or soon; never asks the run to stop."""
        if self._newest is not None:
            self._waiting += points_of(record)
        if time.monotonic() >= self._due:
            self._attempt(self._catch_up if self._newest is None else self._deliver)
        return None

    def note(self, text: str) -> None:
        """Not for trackers."""

    def finish(self) -> None:
        """Deliver what is left, the test at the end and the result, and say how the run ended."""
        self._attempt(self._end)

    def _catch_up(self) -> None:
        if self._newest is None:
            self._newest = dict(self._backend.open(self._folder, self._tree))
        self._waiting = [point for record in self._folder.records() for point in points_of(record)]
        self._deliver()

    def _deliver(self) -> None:
        assert self._newest is not None
        lacking = []
        for point in self._waiting:
            if point.step > self._newest.get(point.name, -1):
                self._newest[point.name] = point.step
                lacking.append(point)
        self._waiting = []
        if lacking:
            self._backend.send(lacking)

    def _end(self) -> None:
        self._catch_up()
        state = str(self._folder.status()["state"])
        if state == "completed":
            self._waiting = list(points_of_result(self._folder.result()))
            self._deliver()
        self._backend.close(state)

    def _attempt(self, act: Callable[[], None]) -> None:
        """Do it; if it fails, say so once. The next attempt comes when it costs little."""
        started = time.monotonic()
        try:
            act()
            pause = SECONDS
        except Exception as error:
            self._newest, self._waiting, pause = None, [], PAUSE
            if not self._warned:
                self._warned = True
                text = f"tracker={self._name}: fails ({_in_a_line(error)}); the run goes on without it"
                logging.getLogger("advml").warning(text)
                self._say(f"advml: {text}")
        now = time.monotonic()
        self._due = now + max(pause, SHARE * (now - started))


def points_of(record: Record) -> Iterator[Point]:
    """The numbers of a record: train/loss, valid/accuracy, and test_best/accuracy where it names a state."""
    group = f"{record['split']}_{record['state']}" if "state" in record else str(record["split"])
    for name, value in record.items():
        if name not in ("step", "phase", "split", "state") and value is not None:
            yield Point(_allowed(f"{group}/{name}"), value, record["step"])


def points_of_result(result: Mapping[str, Any]) -> Iterator[Point]:
    """What result.json adds to the records: the objective, the summary, the budget, parameters and seconds."""
    found = {
        "objective": result["objective"]["value"],
        **{f"summary/{name}": value for name, value in result["summary"].items()},
        **{f"budget/{name}": value for name, value in result["budget"].items()},
        "budget/seconds": result["seconds"],
        "parameters": result["parameters"],
    }
    for name, value in found.items():
        if value is not None and math.isfinite(value):
            yield Point(_allowed(name), value, result["budget"]["steps"])


def parameters(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The dotted keys of a configuration that stay what they are when a run is resumed."""
    passing = (*FREE_TO_CHANGE, "outputs", "sweep")
    return flattened({key: value for key, value in tree.items() if key not in passing})


def text_of(value: Any) -> str:
    """A value of a configuration as one would type it."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


class TensorBoard:
    """Event files in RUN/tensorboard: the records as scalars, the configuration for its HParams table."""

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ConfigError('tracker=tensorboard: needs TensorBoard: pip install "advml[tensorboard]"') from None
        self._writer_class = SummaryWriter
        self._writer: Any = None

    def open(self, folder: RunFolder, tree: Mapping[str, Any]) -> Mapping[str, int]:
        """Read back what is there, and go on in a new event file beside the others."""
        place = folder / "tensorboard"
        if self._writer is not None:  # it failed: what it still holds would come twice
            with suppress(Exception):
                self._writer.close()
        known, begun = _events(str(place)) if place.is_dir() else ({}, False)
        self._writer = self._writer_class(str(place))
        self._table = _hparams_table(tree)
        if not begun:
            for event in self._table[:2]:
                self._writer.file_writer.add_summary(event)
        return known

    def send(self, points: Sequence[Point]) -> None:
        """Add and flush, so that a browser sees them."""
        for point in points:
            self._writer.add_scalar(point.name, point.value, point.step)
        self._writer.flush()

    def close(self, state: str) -> None:
        """Close the event file."""
        if state == "completed":
            self._writer.file_writer.add_summary(self._table[2])
        self._writer.close()
        self._writer = None


def _events(place: str) -> tuple[dict[str, int], bool]:
    """(name → newest step, is the HParams table begun?) of the event files in a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    quiet = logging.getLogger("tensorboard")
    before, quiet.level = quiet.level, logging.CRITICAL
    try:
        read = EventAccumulator(place, size_guidance={"scalars": 0}).Reload()
    finally:
        quiet.level = before
    tags = read.Tags()["scalars"]
    begun = "_hparams_/experiment" in read.summary_metadata
    return {tag: max(event.step for event in read.Scalars(tag)) for tag in tags}, begun


def _hparams_table(tree: Mapping[str, Any]) -> tuple[Any, Any, Any]:
    """TensorBoard's events for its HParams table: the experiment, the session's beginning, its good end."""
    from torch.utils.tensorboard.summary import hparams

    plain = {key: value if isinstance(value, bool | int | float | str) else text_of(value)
             for key, value in parameters(tree).items()}  # fmt: skip
    experiment, begin, end = hparams(plain, {"objective": 0.0})
    return experiment, begin, end


class MLflow:
    """A run in MLflow's experiment `advml`, or $MLFLOW_EXPERIMENT_NAME; RUN/mlflow.json remembers which.

    The configuration becomes its parameters; what a resumed run may change (limits) and the folder become tags.
    """

    ENDS: Mapping[str, str] = {"completed": "FINISHED", "interrupted": "KILLED"}

    def __init__(self, uri: str | None) -> None:
        if not uri:
            raise ConfigError(
                "tracker_uri: tracker=mlflow needs the address of a server: tracker_uri=http://HOST:PORT, "
                "or set MLFLOW_TRACKING_URI"
            )
        with _patient():
            try:
                from mlflow import MlflowClient, entities
            except ImportError:
                raise ConfigError('tracker=mlflow: needs MLflow: pip install "advml[mlflow]"') from None
            self._uri, self._entities, self._run = uri, entities, ""
            try:
                self._client = MlflowClient(tracking_uri=uri)
                self._experiment = self._find_or_make(os.environ.get("MLFLOW_EXPERIMENT_NAME") or "advml")
            except Exception as error:
                raise AdvmlError(
                    f"tracker_uri={uri}: MLflow cannot be used there: {_in_a_line(error)}; to do without: tracker=none"
                ) from None

    def open(self, folder: RunFolder, tree: Mapping[str, Any]) -> Mapping[str, int]:
        """Go on with the run that mlflow.json names, if it is there; otherwise begin one."""
        with _patient():
            return self._open(folder, tree)

    def send(self, points: Sequence[Point]) -> None:
        """A thousand at a time, as many as a request may hold."""
        now = int(time.time() * 1000)
        metrics = [self._entities.Metric(name, value, now, step) for name, value, step in points]
        with _patient():
            for first in range(0, len(metrics), 1000):
                self._client.log_batch(self._run, metrics=metrics[first : first + 1000])

    def close(self, state: str) -> None:
        """Say how it ended."""
        with _patient():
            self._client.set_tag(self._run, "advml.state", state)
            self._client.set_terminated(self._run, self.ENDS.get(state, "FAILED"))

    def _find_or_make(self, name: str) -> str:
        for _ in range(2):
            found = self._client.get_experiment_by_name(name)
            if found is not None:
                return str(found.experiment_id)
            try:
                return str(self._client.create_experiment(name))
            except Exception as error:  # another job was quicker
                failure = error
        raise failure

    def _open(self, folder: RunFolder, tree: Mapping[str, Any]) -> Mapping[str, int]:
        found = self._remembered(folder)
        if found is None:
            found = self._client.create_run(self._experiment, run_name=folder.path.name)
            files.write_json(folder / "mlflow.json", {"uri": self._uri, "run_id": found.info.run_id})
        self._run = found.info.run_id
        if found.info.status != "RUNNING":
            self._client.update_run(self._run, status="RUNNING")
        new = [item for item in parameters(tree).items() if _allowed(item[0]) not in found.data.params]
        texts = [self._entities.Param(_allowed(key), text_of(value)[:TEXT]) for key, value in new]
        limits = {f"advml.limits.{key}": value for key, value in tree.get("limits", {}).items()}
        told = {key: value for key, value in limits.items() if value is not None or key in found.data.tags}
        tags = {"advml.folder": str(folder.path), **{key: text_of(value) for key, value in told.items()}}
        for first in range(0, len(texts), 100):
            self._client.log_batch(self._run, params=texts[first : first + 100])
        self._client.log_batch(self._run, tags=[self._entities.RunTag(key, value) for key, value in tags.items()])
        names = found.data.metrics
        return {name: max(one.step for one in self._client.get_metric_history(self._run, name)) for name in names}

    def _remembered(self, folder: RunFolder) -> Any:
        """The run that an earlier attempt began in this place, if both still know of it."""
        try:
            said = json.loads((folder / "mlflow.json").read_text())
            run_id = said["run_id"] if said["uri"] == self._uri else None
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if run_id is None:
            return None
        try:
            found = self._client.get_run(run_id)
        except Exception as error:
            if getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return found if found.info.lifecycle_stage == "active" else None


@contextmanager
def _patient() -> Iterator[None]:
    """MLflow's own settings where the user has chosen none: no waiting for minutes, no reports about its use, no lines
    on stdout, and folders are taken as a place too.
    """
    wanted = {
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
        "MLFLOW_ALLOW_FILE_STORE": "true",
    }
    ours = {key: value for key, value in wanted.items() if key not in os.environ}
    os.environ.update(ours)
    try:
        yield
    finally:
        for key in ours:
            os.environ.pop(key, None)


def _allowed(name: str) -> str:
    """A name that every tracker accepts: letters, digits, spaces and _ - . / only."""
    return re.sub(r"[^\w\-./ ]", "_", name, flags=re.ASCII)


def _in_a_line(error: Exception) -> str:
    """What an error says, in one line that a person will read."""
    return shorten(str(error), 200, placeholder=" …") or type(error).__name__
