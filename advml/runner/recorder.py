"""metrics.jsonl: one record a line, without a clock in it, so that equal runs give equal bytes."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor

from advml.contracts import Metrics
from advml.errors import AdvmlError
from advml.runner import files

RESERVED = ("step", "phase", "split", "state")


class NonFinite(AdvmlError):
    """A training number became NaN or infinite."""


class Recorder:
    """Appends records, and keeps them in memory for the tables and pictures at the end."""

    def __init__(self, path: Path, keep_bytes: int = 0) -> None:
        """Open for appending after the first `keep_bytes` bytes; what lies behind them is cut off."""
        self.path = path
        self.records: list[dict[str, Any]] = []
        if keep_bytes:
            self.records = _kept(path, keep_bytes)
        self._file: IO[bytes] = open(path, "ab")  # noqa: SIM115  (closed by close())
        self._file.truncate(keep_bytes)
        self._file.seek(0, os.SEEK_END)

    def record(self, step: int, phase: str, split: str, metrics: Metrics, state: str | None = None) -> dict[str, Any]:
        """Read the metrics off the device, append them, return the record.

        An undefined value (None, NaN) becomes null; but in a training record, and for any `loss`, a value that is not
        finite raises NonFinite and nothing is written.
        """
        values = read(metrics)
        for name, value in values.items():
            if value is not None and not math.isfinite(value):
                if split == "train" or name == "loss":
                    cure = (
                        "try a smaller learning rate"
                        if step
                        else "nothing is trained yet: look at the data, or at the rate of adaptation"
                    )
                    raise NonFinite(f"step {step}: {name} of split {split} became {value}; {cure}")
                values[name] = None
        where = {"step": step, "phase": phase, "split": split} | ({"state": state} if state else {})
        record = where | values
        files.reached("metrics.jsonl: before")
        self._file.write(json.dumps(record).encode() + b"\n")
        self._file.flush()
        files.reached("metrics.jsonl: written")
        self.records.append(record)
        return record

    def sync(self) -> int:
        """Flush to the disk; the number of bytes that are safe there."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _kept(path: Path, keep_bytes: int) -> list[dict[str, Any]]:
    """The records in the first bytes of a file. Raises AdvmlError where they are no longer what a checkpoint saw."""
    try:
        data = path.read_bytes()[:keep_bytes]
        if len(data) == keep_bytes and data.endswith(b"\n"):
            return [json.loads(line) for line in data.splitlines()]
    except (FileNotFoundError, ValueError):
        pass
    raise AdvmlError(f"{path}: no longer holds what the checkpoint counts on; start the run anew")


def read(metrics: Metrics) -> dict[str, float | None]:
    """Numbers out of metrics: all 0-d tensors are fetched from the device in one transfer. Counts stay whole."""
    clash = set(metrics) & set(RESERVED)
    if clash:
        raise ValueError(f"metrics may not be called {', '.join(sorted(clash))}")
    tensors = {name: value for name, value in metrics.items() if isinstance(value, Tensor)}
    fetched: dict[str, float] = {}
    if tensors:
        stacked = torch.stack([value.detach().double().reshape(()) for value in tensors.values()])
        fetched = dict(zip(tensors, stacked.tolist(), strict=True))
    plain = {
        name: value if value is None or type(value) is int else float(value)
        for name, value in metrics.items()
        if name not in fetched
    }
    return {name: fetched[name] if name in fetched else plain[name] for name in metrics}
