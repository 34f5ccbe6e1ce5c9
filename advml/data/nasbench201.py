"""Accuracies of all 15,625 cells of NAS-Bench-201 as a table to search in (Dong and Yang 2020), and its view.

The file nasbench201_accuracy.csv.gz has a line for each cell: arch_str, and in percent <data set>_test_200ep,
<data set>_val_12ep and <data set>_test_12ep. 12-epoch validation is what a search sees, 200-epoch test what it scores.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from advml.config import CountInt, settings
from advml.contracts import Nothing, Prepare, Rng, Spec
from advml.data.source import Source, Whole
from advml.errors import AdvmlError, ConfigError
from advml.nn.cells.nasbench201 import CODES, canonical_code, from_number, from_string, multiply_adds, number
from advml.nn.cells.spaces import NasBench201

FOLDER, FILE = "nasbench201", "nasbench201_accuracy.csv.gz"
TASKS = {"cifar10": "cifar10", "cifar100": "cifar100", "imagenet16": "imagenet16-120"}
CLASSES = {"cifar10": 10, "cifar100": 100, "imagenet16": 120}
SIDES = {"cifar10": 32, "cifar100": 32, "imagenet16": 16}


@settings
class NasBench201TableSettings:
    """Which of the three data sets the cells were trained on."""

    task: Literal["cifar10", "cifar100", "imagenet16"]
    split_seed: CountInt | None


@dataclass(frozen=True)
class Accuracies:
    """What is known of every cell, in the order of `advml.nn.cells.nasbench201.number`; all [15625], on the CPU.

    `signal`: validation accuracy after 12 epochs, `score`: test accuracy after 200, both float64 in percent. `same`:
    the number of the smallest code that is the same cell, int64. `multiply_adds` of a forward pass, int64.
    """

    task: str
    signal: Tensor
    score: Tensor
    same: Tensor
    multiply_adds: Tensor
    files: Mapping[str, str]


class NasBench201Table:
    """Nothing to train on: a search looks accuracies up."""

    settings = NasBench201TableSettings
    name: ClassVar[str] = "nasbench201_table"
    by_hand: ClassVar[str] = "reads a table that cannot be downloaded and that you put there yourself"

    def __init__(self, settings: NasBench201TableSettings) -> None:
        self.config = settings

    def spec(self) -> Spec:
        """No inputs, no target: only the view of tables can show it."""
        return Spec({}, Nothing(), drawn=True)

    def load(self, source: Source) -> Any:
        """The accuracies on the chosen data set."""
        path = source.data_dir / FOLDER / FILE
        rows, sha256 = read(path)
        task = self.config.task
        signal, score = (column(path, rows, f"{TASKS[task]}_{kind}") for kind in ("val_12ep", "test_200ep"))
        codes = [from_number(place) for place in range(CODES)]
        same = torch.tensor([number(canonical_code(code)) for code in codes])
        work = torch.tensor([multiply_adds(code, side=SIDES[task], classes=CLASSES[task]) for code in codes])
        return Accuracies(task, signal, score, same, work, {FILE: sha256})


def read(path: Path) -> tuple[Mapping[int, Mapping[str, str]], str]:
    """Number of a cell → its line, for all of them, and the file's SHA-256. Raises AdvmlError, one line."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise _wrong(path, "is not there; put it there, it cannot be downloaded by advml (see docs/nas.md)") from None
    except OSError as error:
        raise _wrong(path, f"cannot be read ({error.strerror})") from error
    try:
        lines = list(csv.DictReader(io.StringIO(gzip.decompress(content).decode())))
        rows: dict[int, Mapping[str, str]] = {number(from_string(line["arch_str"])): line for line in lines}
    except (OSError, EOFError, zlib.error, ValueError, csv.Error, KeyError, ConfigError) as error:
        raise _wrong(path, f"is damaged or no table of NAS-Bench-201 ({type(error).__name__})") from error
    if len(lines) != CODES or len(rows) != CODES:
        raise _wrong(path, f"has {len(lines):,} lines for {len(rows):,} cells, not {CODES:,}")
    return rows, hashlib.sha256(content).hexdigest()


def column(path: Path, rows: Mapping[int, Mapping[str, str]], name: str) -> Tensor:
    """A column as float64 [15625]. Raises AdvmlError where it is not there or holds anything but percentages."""
    try:
        values = torch.tensor([float(rows[place][name]) for place in range(CODES)], dtype=torch.float64)
    except (KeyError, TypeError, ValueError) as error:
        raise _wrong(path, f"has no column {name} of numbers") from error
    if not bool(((values >= 0) & (values <= 100)).all()):
        raise _wrong(path, f"has numbers in its column {name} that are no percentages")
    return values


def _wrong(path: Path, fault: str) -> AdvmlError:
    return AdvmlError(f"nasbench201_table: {path} {fault}")


@settings
class TableSettings:
    """Nothing to set."""


class Table:
    """The view of a table: all that a search may look up, and the space that it searches."""

    kind: ClassVar[str] = "table"
    settings: ClassVar[type] = TableSettings
    undivided: ClassVar[bool] = True

    def __init__(self, accuracies: Accuracies, spec: Spec) -> None:
        self.accuracies, self.spec, self.space = accuracies, spec, NasBench201()

    @staticmethod
    def view_spec(spec: Spec, settings: TableSettings) -> Spec:
        """Tables have neither inputs nor target. Raises ConfigError for data sets with examples."""
        if spec.inputs or not spec.drawn:
            raise ConfigError("view=table: shows tables only; use dataset=nasbench201_table")
        return spec

    @classmethod
    def of(cls, whole: Whole, settings: TableSettings, rng: Rng) -> Table:
        """The view of a loaded table."""
        return cls(whole.loaded, cls.view_spec(whole.spec, settings))

    @property
    def prepare(self) -> Mapping[str, tuple[Prepare, ...]]:
        """There are no inputs."""
        return {}

    def to(self, device: torch.device, dtype: torch.dtype) -> Table:
        """Looking up is the CPU's work: the table stays where it is, in float64."""
        return self

    def numbers(self, codes: Sequence[Sequence[int]]) -> Tensor:
        """The rows of codes, int64."""
        return torch.tensor([number(code) for code in codes])

    def describe(self) -> Mapping[str, Any]:
        """The data set, how many cells there are, and the file's hash."""
        unique = int(self.accuracies.same.unique().numel())
        return {"task": self.accuracies.task, "cells": CODES, "unique": unique, "files": dict(self.accuracies.files)}
