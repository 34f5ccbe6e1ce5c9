"""Run folders read back: which there are, which configurations they belong to, and what came out of each."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from advml.errors import AdvmlError, ConfigError
from advml.report.keys import canonical, of_problem
from advml.runner.folder import RunFolder, find
from advml.runner.identity import INDIFFERENT, flattened

DRAWN = ("moons", "circles", "shapes_captions")
"""Data sets that make their examples from the run's seed, all anew. It is not data.json that names them: with a new
word in it, a run that began before could not be resumed. Data sets of others write `drawn` there.
"""


@dataclass(frozen=True)
class Run:
    """A completed run. `numbers`: everything in result.json that is a number, by the names that `metric=` takes;
    `undefined`: the names under which there is none: null, as of a target that was not reached.

    `splits`: split → (examples, hash of which they are), from data.json; empty where there is none, and where all were
    drawn anew.
    """

    folder: RunFolder
    seed: int
    tree: Mapping[str, Any]
    result: Mapping[str, Any]
    numbers: Mapping[str, float]
    undefined: frozenset[str]
    splits: Mapping[str, tuple[int, str]]
    ended: str

    @property
    def configuration(self) -> str:
        """Equal for runs that differ in nothing but the seed."""
        return configuration(self.tree)


@dataclass(frozen=True)
class Missing:
    """A run without a result: failed, interrupted, running, crashed or damaged. `tree`: None where it is unreadable."""

    folder: RunFolder
    state: str
    reason: str
    tree: Mapping[str, Any] | None


@dataclass(frozen=True)
class Group:
    """One configuration: its runs by seed, its missing runs, and its settings as dotted keys, without the seed."""

    settings: Mapping[str, Any]
    runs: Mapping[int, Run]
    missing: tuple[Missing, ...]

    @property
    def problem(self) -> str:
        """What must be equal for numbers to be comparable at all: the data set and the view of it.

        Null is no value: older runs lack keys that came since, and null is what those were like without them.
        """
        given = {key: value for key, value in self.settings.items() if of_problem(key) and value is not None}
        return canonical(given)


@dataclass(frozen=True)
class Gathered:
    """All that was found. `lost`: runs whose configuration cannot be read. `repeated`: older runs of the same seed."""

    groups: tuple[Group, ...]
    lost: tuple[Missing, ...]
    repeated: tuple[RunFolder, ...]

    @property
    def missing(self) -> tuple[Missing, ...]:
        """All runs without a result."""
        return (*(one for group in self.groups for one in group.missing), *self.lost)


def gather(paths: Sequence[Path], curves: bool = False) -> Gathered:
    """Everything below `paths`, each run once. For `curves` runs need records that can be read, too.

    Raises ConfigError for a path without runs, AdvmlError where no run is completed.
    """
    folders: dict[Path, RunFolder] = {}
    mistakes = []
    for path in paths:
        found = find(path) if path.is_dir() else []
        folders |= {folder.path.resolve(): folder for folder in found}
        if not path.is_dir():
            mistakes.append(f"{path}: no such folder (see: advml list runs)")
        elif not found:
            mistakes.append(f"{path}: no run in it or below it; a run has config.yaml and status.json")
    if mistakes:
        raise ConfigError(mistakes)
    read = [read_run(folder, curves) for folder in folders.values()]
    runs = sorted((one for one in read if isinstance(one, Run)), key=lambda run: (run.ended, str(run.folder.path)))
    missing = [one for one in read if isinstance(one, Missing)]
    if not runs:
        counts = ", ".join(f"{count} {state}" for state, count in states(missing).items())
        raise AdvmlError(f"{', '.join(map(str, paths))}: no run is completed ({counts}); nothing to compare")
    return _grouped(runs, missing)


def states(missing: Sequence[Missing]) -> dict[str, int]:
    """How many runs are in each state."""
    every = [one.state for one in missing]
    return {state: every.count(state) for state in sorted(set(every))}


def _grouped(runs: Sequence[Run], missing: Sequence[Missing]) -> Gathered:
    """Runs by configuration; of several with the same seed the one that ended last counts."""
    trees: dict[str, Mapping[str, Any]] = {}
    by_seed: dict[str, dict[int, Run]] = {}
    without: dict[str, list[Missing]] = {}
    repeated: list[RunFolder] = []
    for run in runs:
        trees[run.configuration] = run.tree
        older = by_seed.setdefault(run.configuration, {}).get(run.seed)
        if older is not None:
            repeated.append(older.folder)
        by_seed[run.configuration][run.seed] = run
    for one in missing:
        if one.tree is not None:
            key = configuration(one.tree)
            trees.setdefault(key, one.tree)
            if one.tree.get("seed") in by_seed.get(key, {}):
                continue  # tried again since, with success
            without.setdefault(key, []).append(one)
    groups = tuple(
        Group(settings_of(tree), dict(sorted(by_seed.get(key, {}).items())), tuple(without.get(key, ())))
        for key, tree in trees.items()
    )
    return Gathered(groups, tuple(one for one in missing if one.tree is None), tuple(repeated))


def configuration(tree: Mapping[str, Any]) -> str:
    """Equal for two configurations that ask for the same experiment, whatever the seed."""
    return canonical(settings_of(tree))


def settings_of(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The dotted keys of a configuration that change what it computes, without the seed."""
    return flattened({key: value for key, value in tree.items() if key not in (*INDIFFERENT, "seed")})


# --- one run ------------------------------------------------------------------------------------------------------


def read_run(folder: RunFolder, curves: bool = False) -> Run | Missing:
    """A completed run, or why there is none: with `curves` also where its records are damaged.

    Never raises for what lies in the folder.
    """
    tree: Mapping[str, Any] | None = None
    try:
        tree = folder.tree()
        if isinstance(tree.get("seed"), float) and float(tree["seed"]).is_integer():
            tree = {**tree, "seed": int(tree["seed"])}
        if type(tree.get("seed")) is not int:
            tree = None
            raise ConfigError(f"{folder / 'config.yaml'}: damaged, it says no seed")
        status = folder.status()
        if status["state"] != "completed":
            reason = str(status.get("error") or f"at step {status['step']}").splitlines()[0]
            return Missing(folder, status["state"], reason, tree)
        result = folder.result()
        objective = result["objective"]
        if objective.get("mode") not in ("max", "min") or not all(
            isinstance(objective.get(key), str) for key in ("metric", "split")
        ):
            raise ConfigError(f"{folder / 'result.json'}: damaged, its objective has no metric, split or mode")
        if curves:
            folder.records()
        ended = str(status.get("time", ""))
        undefined = frozenset(name for name, value in named(result) if value is None)
        return Run(folder, tree["seed"], tree, result, numbers(result), undefined, _splits(folder, tree), ended)
    except (AdvmlError, OSError) as error:
        reason = str(error).splitlines()[0].removeprefix(f"{folder.path}/")
        return Missing(folder, "damaged", reason, tree)


def named(result: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and values of a result.json: test/accuracy, best/test/accuracy, the summary's names, samples, seconds, …"""
    blocks = (
        ("", result.get("metrics")),
        ("best/", result.get("best")),
        ("", result.get("summary")),
        ("", result.get("budget")),
        ("", {key: result.get(key) for key in ("parameters", "seconds")}),
        ("peak_memory_mb/", result.get("peak_memory_mb")),
    )
    for prefix, block in blocks:
        for name, value in flattened(block if isinstance(block, Mapping) else {}, "/").items():
            yield prefix + name, value


def numbers(result: Mapping[str, Any]) -> dict[str, float]:
    """All numbers of a result.json, by these names."""
    return {
        name: value
        for name, value in named(result)
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def _splits(folder: RunFolder, tree: Mapping[str, Any]) -> dict[str, tuple[int, str]]:
    """What data.json says of each split; a run without data, or with a damaged file, says nothing.

    Nor does one whose examples were drawn anew: their places in what was drawn differ by seed, but none is shared.
    """
    try:
        said = json.loads((folder / "data.json").read_text())
    except (OSError, ValueError):
        return {}
    if not isinstance(said, dict) or said.get("drawn") is True or _drawn(tree.get("dataset")):
        return {}
    found = {}
    for split in ("train", "valid", "test"):
        part = said.get(split)
        if isinstance(part, dict) and isinstance(part.get("examples"), int) and "index_sha256" in part:
            found[split] = (part["examples"], str(part["index_sha256"]))
    return found


def _drawn(dataset: Any) -> bool:
    """Does this data set make its examples anew for each seed? Without noise moons and circles have the same points."""
    if not isinstance(dataset, Mapping):
        return False
    names = dataset.get("parts", [dataset.get("name")])  # of a series: the data sets it is made of
    if not isinstance(names, list) or not all(name in DRAWN for name in names):
        return False
    return dataset.get("noise") != 0


def overlap(groups: Sequence[Group], split: str | None) -> float:
    """n_test / n_train where the seeds drew different examples for `split` out of one table, otherwise 0.

    `split`: where a metric was measured; for training numbers (`train`, None) there is nothing to correct.
    """
    largest = 0.0
    for group in groups:
        drawn = [run.splits for run in group.runs.values() if split in run.splits and "train" in run.splits]
        if split in ("valid", "test") and len({of[split][1] for of in drawn}) > 1:
            largest = max(largest, *(of[split][0] / of["train"][0] for of in drawn))
    return largest


def split_of(metric: str) -> str | None:
    """The split on which a metric was measured: test/accuracy, best/test/accuracy, test_forgetting; None if on none."""
    name = metric.removeprefix("best/")
    if name != metric and not name.startswith("test/"):
        return None if name == "step" else "valid"
    start = name.replace("_", "/").partition("/")[0]
    return start if start in ("train", "valid", "test") else None
