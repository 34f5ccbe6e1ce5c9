"""Runs as a study's document holds them, so that a study begun on one machine is ended on another, or takes its
baselines from numbers that are published.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from advml.errors import AdvmlError, ConfigError
from advml.report.gather import Run, read_run
from advml.runner.artifacts import read_csv
from advml.runner.folder import RunFolder
from advml.runner.identity import identity
from advml.runner.jobs import Job

OWN = ("choices", "variables")  # of environment.json what is the run's own; all else is where it ran


@dataclass(frozen=True)
class Recorded:
    """A completed run, its `ended` a date alone, with all else that a document says of it. `environments`: where it
    ran; several where an older document does not tell which.
    """

    run: Run
    tables: Mapping[str, list[list[str]]]
    environments: tuple[Mapping[str, Any], ...]


def from_folder(job: Job, metric: str, tables: Sequence[str]) -> Recorded:
    """A completed job with its `tables`, artifacts/NAME.csv. Raises AdvmlError if it lacks one, or `metric`."""
    found = read_run(RunFolder(job.folder))
    if not isinstance(found, Run):
        raise AdvmlError(f"{job.folder}: {found.state}: {found.reason}")
    if metric not in found.numbers and metric not in found.undefined:
        raise AdvmlError(f"{job.folder}: result.json has no {metric}; there are {', '.join(found.numbers)}")
    found = replace(found, ended=found.ended.partition("T")[0])
    machine = {key: value for key, value in found.folder.environment().items() if key not in OWN}
    return Recorded(found, {name: _table(found.folder / f"artifacts/{name}.csv") for name in tables}, (machine,))


def _table(path: Path) -> list[list[str]]:
    try:
        return read_csv(path)
    except OSError as error:
        there = ", ".join(sorted(one.stem for one in path.parent.glob("*.csv"))) or "none"
        raise AdvmlError(f"{path}: {error.strerror}; the tables of this run: {there}") from None


def entry(found: Recorded, environments: list[Mapping[str, Any]]) -> dict[str, Any]:
    """What a document says of a run, to be read by `from_documents`; its machine is looked up in `environments`, where
    it is put if it is new.
    """
    for one in found.environments:
        if one not in environments:
            environments.append(one)
    return {
        "seed": found.run.seed,
        "ended": found.run.ended,
        "numbers": dict(found.run.numbers),
        "undefined": sorted(found.run.undefined),
        "splits": {name: list(of) for name, of in found.run.splits.items()},
        "environments": [environments.index(one) for one in found.environments],
        "identity": found.run.result["identity"],
        "tables": dict(found.tables),
    }


def from_documents(
    paths: Sequence[Path], jobs: Sequence[Job], metric: str, tables: Sequence[str]
) -> dict[Path, Recorded]:
    """Of the `jobs` those that one of these documents holds, by their folders: the same configuration and seed, with
    `metric` and all `tables`. The first document that has one counts.

    Raises ConfigError with every path that is no study's document.
    """
    mistakes: list[str] = []
    wanted = {identity(job.tree): job for job in jobs}
    found: dict[Path, Recorded] = {}
    for path in paths:
        try:
            for job, one in _entries(json.loads(path.read_text(encoding="utf-8")), wanted):
                has = metric in one.run.numbers or metric in one.run.undefined
                if has and set(tables) <= set(one.tables):
                    found.setdefault(job.folder, one)
        except OSError as error:
            mistakes.append(f"reuse={path}: {error.strerror}")
        except (ValueError, LookupError, TypeError, AttributeError):
            mistakes.append(f"reuse={path}: no study's document, which advml study NAME out=FOLDER writes, or damaged")
    if mistakes:
        raise ConfigError(mistakes)
    return found


def _entries(said: Mapping[str, Any], wanted: Mapping[str, Job]) -> Iterator[tuple[Job, Recorded]]:
    """The runs of a document that are `wanted`, a job by its identity. Older documents do not say of which examples the
    splits are; where that matters (a row with `overlap`) their runs are left out.
    """
    for row in said["rows"].values():
        for one in row["runs"]:
            if not all(isinstance(one[key], dict) for key in ("numbers", "tables")):
                raise ValueError("not what a document says of a run")
            if one["identity"] in wanted and ("splits" in one or "overlap" not in row):
                job = wanted[one["identity"]]
                yield job, _from_entry(job, one, said)


def _from_entry(job: Job, one: Mapping[str, Any], said: Mapping[str, Any]) -> Recorded:
    undefined = one["undefined"] if "undefined" in one else [name for name, value in one.items() if value is None]
    splits = {name: (int(count), str(which)) for name, (count, which) in one.get("splits", {}).items()}
    result = {"identity": one["identity"]}
    folder, seed, ended = RunFolder(job.folder), job.tree["seed"], str(one.get("ended") or said.get("date", ""))
    run = Run(folder, seed, job.tree, result, one["numbers"], frozenset(undefined), splits, ended)
    places = one.get("environments", range(len(said["environments"])))
    return Recorded(run, one["tables"], tuple(said["environments"][place] for place in places))
