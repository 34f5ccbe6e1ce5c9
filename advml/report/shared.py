"""What runs have in common, said once, and what is particular to some: settings, environments, commands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from advml.errors import AdvmlError
from advml.report.gather import Gathered
from advml.report.keys import Flat, canonical, shown
from advml.report.tables import Row
from advml.runner.folder import RunFolder
from advml.runner.identity import flattened

NOT_OF_THE_MACHINE = ("choices",)  # what was chosen is told by the settings


@dataclass(frozen=True)
class Shared:
    """`common`: keys that all of several flat mappings have, with the same value. `own`: the others, for each."""

    common: dict[str, Any]
    own: list[dict[str, Any]]


def shared(rows: Sequence[Flat]) -> Shared:
    """Take apart what is equal everywhere. Of a single mapping everything is common."""
    first = rows[0] if rows else {}
    common = {
        key: value for key, value in first.items()
        if all(key in row and canonical({key: row[key]}) == canonical({key: value}) for row in rows)
    }  # fmt: skip
    return Shared(common, [{key: value for key, value in row.items() if key not in common} for row in rows])


@dataclass(frozen=True)
class Environments:
    """`common`: what is equal for all runs. `different`: key → value → the runs that have it. `unknown`: no file."""

    common: Mapping[str, str]
    different: Mapping[str, Mapping[str, Sequence[str]]]
    unknown: Sequence[str]


def environments(runs: Mapping[str, RunFolder]) -> Environments:
    """The machines, versions and commits of runs, which are given by the names that the page has for them."""
    read: dict[str, dict[str, str]] = {}
    unknown = []
    for name, folder in runs.items():
        try:
            said = folder.environment()
        except AdvmlError:
            unknown.append(name)
            continue
        told = flattened({key: value for key, value in said.items() if key not in NOT_OF_THE_MACHINE})
        read[name] = {key: shown(value) for key, value in told.items() if value not in (None, {})}
    apart = shared(list(read.values()))
    different: dict[str, dict[str, list[str]]] = {}
    for key in dict.fromkeys(key for own in apart.own for key in own):
        for name, own in zip(read, apart.own, strict=True):
            different.setdefault(key, {}).setdefault(own.get(key, "–"), []).append(name)
    return Environments(apart.common, different, unknown)


def commands(folders: Sequence[RunFolder]) -> dict[str, int]:
    """What was typed → how many of the runs came of it; runs whose command.txt is gone are left out."""
    counts: dict[str, int] = {}
    for folder in folders:
        try:
            typed = (folder / "command.txt").read_text(errors="replace").strip()
        except OSError:
            continue
        counts[typed] = counts.get(typed, 0) + 1
    return counts


def named_runs(rows: Sequence[Row]) -> dict[str, RunFolder]:
    """`row 2, seed 0` → folder, for every run that is in the table."""
    return {
        f"row {row.number}, seed {seed}": run.folder for row in rows for seed, run in row.group.runs.items()
    }  # fmt: skip


def unfinished(gathered: Gathered, rows: Sequence[Row]) -> list[tuple[str, str, Any]]:
    """(row, seed, run) for each without a result; damaged configurations belong to no row."""
    found = [(str(row.number), shown((one.tree or {}).get("seed")), one) for row in rows for one in row.group.missing]
    return [*found, *(("–", "–", one) for one in gathered.lost)]
