"""Studies: published comparisons as configuration files, configs/study/NAME.yaml; their rows × seeds as jobs.

A study lies in OUTPUTS/studies/NAME; with overrides that change what is computed, in OUTPUTS/studies/NAME-<their hash>.
"""

from __future__ import annotations

import copy
import hashlib
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import yaml
from annotated_types import Len

from advml.compose import compose
from advml.config import CountInt, PositiveFloat, SweepSettings, bind, bind_settings, settings
from advml.errors import ConfigError, did_you_mean
from advml.overrides import config_dirs, separate
from advml.roots import config_root, extra_roots, members
from advml.runner.environment import resolve_device
from advml.runner.fit import check_fit
from advml.runner.jobs import Job
from advml.runner.run import Asked
from advml.runner.sweeps import job_folder, telling

HASH_LENGTH = 10
Word = Annotated[str, Len(1)]


@settings
class CellSettings:
    """A row in one column: further overrides, and the number that was published, if one was."""

    run: tuple[Word, ...] = ()
    reported: float | None = None


@settings
class RowSettings:
    """A row: the overrides that make its runs, and the number that was published, if one was.

    `columns`: what is its own in a column of the study. A row that names columns has no others.
    """

    run: Annotated[tuple[Word, ...], Len(1)]
    reported: float | None = None
    columns: Mapping[str, CellSettings] = field(default_factory=dict)


@settings
class StudySettings:
    """A file of configs/study. What must be said before a study runs has no default: see docs/comparing.md."""

    title: Word
    source: Word
    hypothesis: Word
    chosen: Word
    budget: Word
    metric: Word
    mode: Literal["max", "min"] = "max"
    scale: PositiveFloat = 1.0
    unit: str = ""
    also: tuple[Word, ...] = ()
    counts: tuple[Word, ...] = ()
    tables: tuple[Word, ...] = ()
    against: str | None = None
    seeds: Annotated[tuple[CountInt, ...], Len(1)]
    settings: tuple[Word, ...] = ()
    columns: Mapping[str, tuple[Word, ...]] = field(default_factory=dict)
    rows: Annotated[Mapping[str, RowSettings], Len(1)]

    def __post_init__(self) -> None:
        """Raises ValueError for a reference that is no row, repeated seeds, a number with and without the unit."""
        if self.against is not None and self.against not in self.rows:
            raise ValueError(f"against: no row is called {self.against}{did_you_mean(self.against, self.rows)}")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds: one of them is there twice")
        if twice := {self.metric, *self.also} & {*self.counts}:
            raise ValueError(
                f"counts: {min(twice)} is there already; counts are further numbers, without factor and unit"
            )
        for name, row in self.rows.items():
            if strange := next((column for column in row.columns if column not in self.columns), None):
                raise ValueError(f"rows.{name}: no column is called {strange}{did_you_mean(strange, self.columns)}")

    @property
    def cells(self) -> dict[str, Cell]:
        """Name → what is run: a cell for each row, or for each column that a row has."""
        if not self.columns:
            return {name: Cell(name, None, row.run, row.reported) for name, row in self.rows.items()}
        return {
            f"{name}, {column}": Cell(name, column, (*row.run, *words, *own.run), own.reported)
            for name, row in self.rows.items()
            for column, words in self.columns.items()
            if not row.columns or column in row.columns
            for own in [row.columns.get(column, CellSettings())]
        }


@dataclass(frozen=True)
class Cell:
    """A row in a column (None where a study has none): overrides, published number."""

    row: str
    column: str | None
    run: tuple[str, ...]
    reported: float | None


@dataclass(frozen=True)
class Study:
    """A checked study. `changed`: overrides of the user that change what is computed, other seeds than the study's own
    among them. `jobs`: cell → a job per seed.

    `command`: the shortest that computes the same; where data lie and how jobs are carried out is not in it.
    """

    name: str
    folder: Path
    asked: StudySettings
    command: str
    changed: tuple[str, ...]
    sweep: SweepSettings
    jobs: Mapping[str, tuple[Job, ...]]

    @property
    def every_job(self) -> list[Job]:
        """All jobs, seed by seed, so that every cell has its first number early."""
        return [job for of_seed in zip(*self.jobs.values(), strict=True) for job in of_seed]


def plan(name: str, arguments: Sequence[str]) -> Study:
    """Read a study, compose, bind and fit each of its runs with the user's overrides on top.

    Of these `seed=1` or `seed=1,2` replaces the study's own seeds. Raises ConfigError with every mistake.
    """
    options, words = separate(arguments)
    dirs = config_dirs(options)
    asked = read(name, dirs)
    seeds = [seed for word in words if word.startswith("seed=") for seed in _seeds(word)] or list(asked.seeds)
    words = [word for word in words if not word.startswith("seed=")]
    mistakes: dict[str, None] = {}
    if any(word.lstrip("+").startswith("sweep.name=") for word in words):
        mistakes["sweep.name: the folder of a study has the study's name; outputs=FOLDER moves it"] = None
    composed: dict[str, list[Composed]] = {}
    for cell, of in asked.cells.items():
        try:
            composed[cell] = _of_each_seed([*options], [*asked.settings, *of.run, *words], seeds)
            for one in composed[cell]:
                bound = bind(one.tree)
            check_fit(bound)  # which no seed changes
            resolve_device(bound.run.device)
        except ConfigError as error:
            mistakes |= dict.fromkeys(error.mistakes)
    if mistakes:
        raise ConfigError(mistakes)
    own = [] if sorted(seeds) == sorted(asked.seeds) else [f"seed={','.join(map(str, sorted(seeds)))}"]
    changed = (*telling([word.lstrip("+") for word in words]), *own)
    differing = hashlib.sha256("\n".join(sorted(changed)).encode()).hexdigest()[:HASH_LENGTH]
    label = f"{name}-{differing}" if changed else name
    folder = Path(bound.run.outputs).absolute() / "studies" / label
    command = shlex.join(["advml", "study", name, *options, *changed])
    jobs = {
        cell: tuple(
            Job(f"{cell}, seed {one.tree['seed']}", job_folder(folder, [cell, f"seed={one.tree['seed']}"], one.tree),
                one.tree, Asked(command, one.typed, one.choices))
            for one in of
        )
        for cell, of in composed.items()
    }  # fmt: skip
    return Study(name, folder, asked, command, changed, bound.run.sweep, jobs)


class Composed(NamedTuple):
    """What was typed for a run, its configuration, the file chosen in each group."""

    typed: list[str]
    tree: Mapping[str, Any]
    choices: Mapping[str, str]


def _of_each_seed(options: Sequence[str], words: Sequence[str], seeds: Sequence[int]) -> list[Composed]:
    """One configuration for each seed. Composing takes 80 ms, and a study may have twenty seeds of eighty cells: where
    the first two differ in nothing but the seed, the others are made from the first.
    """
    typed = [[*words, f"seed={seed}"] for seed in seeds]
    known = [Composed(one, *compose([*options, *one, "baselines=off"])) for one in typed[:2]]
    alike = all({**one.tree, "seed": known[0].tree["seed"]} == known[0].tree for one in known)
    for seed, one in zip(seeds[2:], typed[2:], strict=True):
        if alike:
            known.append(Composed(one, {**copy.deepcopy(dict(known[0].tree)), "seed": seed}, known[0].choices))
        else:
            known.append(Composed(one, *compose([*options, *one, "baselines=off"])))
    return known


def read(name: str, dirs: Sequence[Path] = ()) -> StudySettings:
    """The study NAME of the configuration folders. Raises ConfigError where there is none, or a wrong one."""
    known = members("study", [config_root(), *extra_roots(), *dirs])
    if name not in known:
        raise ConfigError(f"study {name}: unknown study{did_you_mean(name, known)} (see: advml list studies)")
    try:
        tree = yaml.safe_load(known[name].read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{known[name]}: cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{known[name]}: holds no study")
    return bind_settings(StudySettings, tree, f"study {name}: ")


def _seeds(word: str) -> list[int]:
    said = word.partition("=")[2].strip("[]").split(",")
    numbers = [int(one) for one in said if re.fullmatch(r"\s*\d+\s*", one, re.ASCII)]
    if len(set(numbers)) != len(said):
        raise ConfigError(f"{word}: give different whole numbers, like seed=0 or seed=0,1")
    return numbers
