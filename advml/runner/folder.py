"""The run folder: where everything of a run lies, who may write to it, and how it is read back."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Container, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import yaml

from advml.errors import AdvmlError, ConfigError
from advml.runner import files

OUTPUT = "output.txt"  # what a job in a process of its own printed (runner/pool.py)

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the same in C, eight times as fast: filters read every run's


class RunFolder:
    """A folder that is a run: config.yaml, environment.json, status.json, metrics.jsonl, checkpoints/ and the rest."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path).absolute()
        self._lock: IO[str] | None = None

    @classmethod
    def create(cls, root: Path, method: str, dataset: str) -> RunFolder:
        """Make ROOT/<method>/<dataset>/<YYYYmmdd-HHMMSS>-<4 hex>; mkdir is atomic, so two starts never share one."""
        parent = root.absolute() / method / dataset
        try:
            parent.mkdir(parents=True, exist_ok=True)
            while True:
                stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
                path = parent / f"{stamp}-{os.urandom(2).hex()}"
                try:
                    path.mkdir()
                except FileExistsError:
                    continue
                (path / "checkpoints").mkdir()
                return cls(path)
        except OSError as error:
            raise AdvmlError(
                f"{root}: no run folder can be made below it: {error.strerror}; choose another with outputs=FOLDER"
            ) from None

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """An existing run folder. Raises ConfigError where there is none."""
        folder = cls(path)
        if not folder.path.is_dir():
            raise ConfigError(f"{path}: no such folder (see: advml list runs)")
        if not (folder.path / "config.yaml").is_file():
            raise ConfigError(f"{path}: not a run folder, it has no config.yaml (see: advml list runs)")
        return folder

    def make(self) -> None:
        """Make a folder at a place of the caller's choice, if there is none."""
        try:
            (self / "checkpoints").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise AdvmlError(f"{self.path}: cannot be made: {error.strerror}; choose another folder") from None

    def clear(self) -> None:
        """Remove what a crash left behind before the run began; the lock and a job's output stay."""
        for path in self.path.iterdir():
            if path.is_dir():
                shutil.rmtree(path)
            elif path.name not in (".lock", OUTPUT):
                path.unlink()
        self.make()

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    # --- who may write ---

    def lock(self, wait: bool = False) -> None:
        """Hold the run for the life of this process, or until `unlock`. While another process holds it: wait for it,
        or raise AdvmlError.
        """
        if self._lock is not None:
            return
        handle = open(self / ".lock", "a")  # noqa: SIM115  (held open on purpose: closing it gives the lock back)
        try:
            if not _try_lock(handle):
                if not wait:
                    raise AdvmlError(f"{self.path}: another process{self._holder()} is working on this run")
                fcntl.flock(handle, fcntl.LOCK_EX)
        except BaseException:
            handle.close()
            raise
        self._lock = handle

    def unlock(self) -> None:
        """Give the run back."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def locked_elsewhere(self) -> bool:
        """Does another process hold the run?"""
        try:
            handle = open(self / ".lock")  # noqa: SIM115  (closed below)
        except OSError:  # there is none, or nobody may look: whoever tries to begin will be told
            return False
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except OSError:
                return True
        return False

    # --- what it holds ---

    def write_status(self, state: str, step: int, attempt: int, error: str | None = None) -> None:
        """Replace status.json: running, completed, failed or interrupted."""
        now = datetime.now(UTC).isoformat(timespec="seconds")
        status = {"state": state, "step": step, "attempt": attempt, "pid": os.getpid(), "host": socket.gethostname()}
        files.write_json(self / "status.json", {**status, "time": now, "error": error})

    def status(self) -> dict[str, Any]:
        """status.json; its state reads "crashed" when it says running but no process holds the run."""
        status = self._json("status.json", state=str, step=int, attempt=int)
        if status["state"] == "running" and self._lock is None and not self.locked_elsewhere():
            status["state"] = "crashed"
        return status

    def tree(self) -> dict[str, Any]:
        """config.yaml as plain data."""
        try:
            tree = yaml.load((self / "config.yaml").read_text(), Loader=LOADER)
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ConfigError(f"{self / 'config.yaml'}: cannot be read: {_first_line(error)}") from None
        if not isinstance(tree, dict):
            raise ConfigError(f"{self / 'config.yaml'}: holds no configuration")
        return {str(key): value for key, value in tree.items()}

    def environment(self) -> dict[str, Any]:
        """environment.json."""
        found = self._json("environment.json", device=str, threads=int)
        if not isinstance(found.setdefault("choices", {}), dict):
            raise ConfigError(f"{self / 'environment.json'}: damaged, its choices are no block")
        return found

    def data(self) -> dict[str, Any]:
        """data.json."""
        return self._json("data.json")

    def result(self) -> dict[str, Any]:
        """result.json. Raises ConfigError while the run is not completed."""
        return self._json("result.json", objective=dict, metrics=dict, budget=dict)

    def records(self) -> list[dict[str, Any]]:
        """metrics.jsonl, one mapping a line; a last line cut by a crash is left out. Raises ConfigError for any other
        line that is no record.
        """
        try:
            lines = (self / "metrics.jsonl").read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return []
        return [self._record(number, line) for number, line in enumerate(lines, start=1)]

    def _record(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            record = json.loads(line, parse_constant=_no_number)
        except ValueError:
            record = None
        keys = {"step": int, "phase": str, "split": str}
        if not isinstance(record, dict) or not all(isinstance(record.get(key), kind) for key, kind in keys.items()):
            raise ConfigError(f"{self / 'metrics.jsonl'}: damaged, line {number} is no record of a run; leave it out")
        return record

    def _holder(self) -> str:
        """The number of the process that status.json names, unless that is another machine's, or of one long gone."""
        with suppress(ConfigError, ProcessLookupError):
            status = self._json("status.json", pid=int, host=str)
            if status["host"] == socket.gethostname():
                with suppress(PermissionError):  # somebody else's process: it lives
                    os.kill(status["pid"], 0)
                return f" (pid {status['pid']})"
        return ""

    def _json(self, name: str, **keys: type) -> dict[str, Any]:
        """A file that holds one JSON object with at least these keys, of these types."""
        try:
            value = json.loads((self / name).read_text())
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self / name}: cannot be read: {_first_line(error)}") from None
        if not isinstance(value, dict):
            raise ConfigError(f"{self / name}: holds no JSON object")
        for key, kind in keys.items():
            if not isinstance(value.get(key), kind):
                raise ConfigError(f"{self / name}: damaged, it says no {key}")
        return value


def is_run(names: Container[str]) -> bool:
    """Are these the names in a run folder: config.yaml, and beside it status.json or metrics.jsonl?"""
    return "config.yaml" in names and ("status.json" in names or "metrics.jsonl" in names)


def find(root: Path) -> list[RunFolder]:
    """All run folders at or below `root`, at any depth, oldest first."""
    return sorted(_below(root), key=_started)


def _below(path: Path) -> Iterator[RunFolder]:
    """Links to folders are not followed; a run folder is not searched, but for its baselines/."""
    try:
        names = {entry.name: entry for entry in os.scandir(path)}
    except OSError:  # not there, or not ours to read
        return
    if is_run(names):
        yield RunFolder(path)
        names = {name: entry for name, entry in names.items() if name == "baselines"}
    for name in sorted(names):
        if not name.startswith(".") and names[name].is_dir(follow_symlinks=False):
            yield from _below(path / name)


def _started(folder: RunFolder) -> str:
    """When a run began, as YYYYmmdd-HHMMSS…: its name says so, or else the file that is written once, at its start."""
    name = folder.path.name
    if re.match(r"\d{8}-\d{6}-", name):
        return name
    try:
        written = (folder / "command.txt").stat().st_mtime
    except OSError:
        written = 0.0
    return f"{datetime.fromtimestamp(written):%Y%m%d-%H%M%S}-{name}"


def _try_lock(handle: IO[str]) -> bool:
    for pause in (0.05, 0.05, None):  # `advml list runs` holds it too, for an instant, to see whether it is free
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except OSError:
            if pause is not None:
                time.sleep(pause)
    return False


def _no_number(text: str) -> None:
    """NaN and infinities, which Python reads and no run writes."""
    raise ValueError(text)


def _first_line(error: Exception) -> str:
    return getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
