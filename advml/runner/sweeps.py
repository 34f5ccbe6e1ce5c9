"""A sweep before it runs: its folder, its jobs and theirs, every one of them checked.

A sweep lies in OUTPUTS/sweeps/NAME; NAME is `sweep.name`, or a hash of the command, so that repeating a command finds
what it did. A job lies in a folder named by what tells it from the others and by the identity of its configuration.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from advml.compose import as_tree, composed, each_job
from advml.config import SweepSettings, bind
from advml.errors import ConfigError
from advml.overrides import config_dirs, is_hydras
from advml.runner.environment import resolve_device
from advml.runner.fit import check_fit
from advml.runner.folder import RunFolder
from advml.runner.identity import INDIFFERENT, identity
from advml.runner.jobs import Job
from advml.runner.run import Asked

NAME_LENGTH, HASH_LENGTH = 100, 10


@dataclass(frozen=True)
class Sweep:
    """A checked sweep. `constant`: keys with one value for all jobs. `jobs`: None if they are invented as it goes."""

    folder: Path
    settings: SweepSettings
    command: str
    constant: frozenset[str]
    jobs: tuple[Job, ...] | None

    def job(self, tree: Mapping[str, Any], hydra: Any) -> Job:
        """The job with this configuration; `hydra` is Hydra's own block of it."""
        typed = [str(word).lstrip("+") for word in hydra.overrides.task]
        choices = {str(group): str(choice) for group, choice in hydra.runtime.choices.items()}
        own = [word for word in typed if word.partition("=")[0] not in self.constant] or telling(typed)
        asked = Asked(self.command, [word for word in typed if not word.startswith("sweep.")], choices)
        key = identity(tree)[:HASH_LENGTH]
        alike = (job.folder for job in self.jobs or () if job.folder.name.endswith(f"-{key}"))
        folder = next(alike, None) or job_folder(self.folder, own, tree)
        return Job(" ".join(own) or "defaults", folder, tree, asked)

    def begin(self) -> None:
        """Make the folder, and note the command in its command.txt, a line for each that was ever used."""
        self.folder.mkdir(parents=True, exist_ok=True)
        file = self.folder / "command.txt"
        if not file.exists() or self.command not in file.read_text().splitlines():
            with open(file, "a") as commands:  # appended in one write: another process may do the same
                commands.write(self.command + "\n")

    def found(self) -> list[Job]:
        """The jobs whose folders are there, in the order of their names."""
        folders = sorted(path.parent for path in self.folder.glob("*/config.yaml"))
        return [self._found(RunFolder(folder)) for folder in folders]

    def _found(self, folder: RunFolder) -> Job:
        overrides = (folder / "overrides.txt").read_text().splitlines() if (folder / "overrides.txt").exists() else []
        own = [word for word in overrides if word.partition("=")[0] not in self.constant]
        return Job(" ".join(own) or folder.path.name, folder.path, folder.tree(), Asked(self.command, overrides))


def plan(options: Sequence[str], typed: Sequence[str], prepared: Sequence[str], command: str) -> Sweep:
    """Compose, bind and fit every job. Raises ConfigError with the mistakes of all.

    `prepared` are the `typed` overrides as overrides.forced leaves them. Of another sweeper than Hydra's own nothing is
    known beforehand but the configuration that all jobs share.
    """
    single, mistakes = single_words(prepared)
    if mistakes := [*mistakes, *_valueless(prepared)]:
        raise ConfigError(mistakes)
    dirs = config_dirs(options)
    invented = any(word.lstrip("+").startswith("hydra/sweeper") for word in prepared)
    configs = iter([composed(single, dirs)]) if invented else each_job(prepared, dirs)
    trees: list[tuple[Mapping[str, Any], DictConfig]] = []
    found: dict[str, None] = {}
    for config in configs:
        try:
            trees.append((as_tree(config), config.hydra))
            bound = bind(trees[-1][0])
            if not invented:
                check_fit(bound)
                resolve_device(bound.run.device)
        except ConfigError as error:
            found.update(dict.fromkeys(error.mistakes))
    found.update(dict.fromkeys(_useless(bound.run.sweep) if trees and not found else ()))
    if found:
        raise ConfigError(found)
    name = bound.run.sweep.name or command_hash([word for word in options if word not in ("-m", "--multirun")], typed)
    folder = Path(bound.run.outputs).absolute() / "sweeps" / name
    constant = frozenset(word.lstrip("+").partition("=")[0] for word in single)
    sweep = Sweep(folder, bound.run.sweep, command, constant, None)
    if invented:
        return sweep
    jobs: dict[str, Job] = {}
    for tree, hydra in trees:
        jobs.setdefault(identity(tree), sweep.job(tree, hydra))  # two of equal content are one run, by its first name
    return replace(sweep, jobs=tuple(jobs.values()))


def single_words(prepared: Sequence[str]) -> tuple[list[str], list[str]]:
    """The overrides with one value for all jobs, and a line for each that should be one of them."""
    single: dict[str, str] = {}
    mistakes = []
    for word in prepared:
        if is_hydras(word):
            continue
        parsed = OverridesParser.create().parse_override(word)
        single.pop(parsed.key_or_group, None)  # of several words for a key the last counts
        if not parsed.is_sweep_override():
            single[parsed.key_or_group] = word
        elif parsed.key_or_group.partition(".")[0] in ("sweep", "outputs"):
            mistakes.append(f"{parsed.key_or_group}: belongs to the sweep as a whole and takes one value")
        elif parsed.key_or_group.partition(".")[0] in INDIFFERENT:
            several = "would make the same run several times, since it does not change what is computed"
            mistakes.append(f"{parsed.key_or_group}: {several}; give it one value")
    return list(single.values()), mistakes


def _valueless(prepared: Sequence[str]) -> Iterator[str]:
    """A line for each key that is to be sampled, though nothing samples, and for each range that holds nothing."""
    if any(word.lstrip("+").startswith("hydra/sweeper") for word in prepared):
        return
    for word in prepared:
        if is_hydras(word):
            continue
        parsed = OverridesParser.create().parse_override(word)
        if parsed.is_interval_sweep():
            yield f"{parsed.key_or_group}: an interval needs sweep.sampler=random or sweep.sampler=tpe (docs/search.md)"
        elif parsed.is_range_sweep() and next(parsed.sweep_iterator(), None) is None:
            yield f"{parsed.key_or_group}: a range without numbers; its end must lie beyond its beginning"


def _useless(settings: SweepSettings) -> Iterator[str]:
    """A line for each setting of a search where there is none."""
    for name, given in (("space", settings.space), ("trials", settings.trials)):
        if given is not None:
            yield f"sweep.{name}={given}: needs sweep.sampler=random, grid or tpe (docs/search.md)"
    if settings.pruner != "none":
        yield f"sweep.pruner={settings.pruner}: needs sweep.sampler=random, grid or tpe (docs/search.md)"


def launcher(settings: SweepSettings, prepared: Sequence[str]) -> list[str]:
    """The override that chooses the launcher, unless the user has: processes where the settings need them."""
    chosen = [word.partition("=")[2] for word in prepared if word.lstrip("+").startswith("hydra/launcher=")]
    searching = settings.sampler is not None  # then sweep.jobs is how many trials are asked for together
    several = settings.jobs > 1 and (not searching or not chosen or chosen[-1] == "basic")
    needs = {"jobs": several, "seconds": settings.seconds, "memory_mb": settings.memory_mb}
    needing = [f"sweep.{name}={getattr(settings, name):g}" for name, needed in needs.items() if needed]
    if not chosen:
        return ["hydra/launcher=process"] if needing else []
    if chosen[-1] not in ("process", "basic") and settings.fail_fast:
        needing.append("sweep.fail_fast=true")
    if chosen[-1] != "process" and needing:
        raise ConfigError(f"{', '.join(needing)}: not with hydra/launcher={chosen[-1]}, which cannot; =process can")
    return []


# --- names --------------------------------------------------------------------------------------------------------


def command_hash(options: Sequence[str], overrides: Sequence[str]) -> str:
    """Equal for commands that ask for the same jobs, in whatever order and however they are to be carried out."""
    words = sorted(telling([word.lstrip("+") for word in overrides]))
    kept = [word for word in words if not re.match(r"~?hydra[/.]launcher", word)]
    return hashlib.sha256("\n".join([*options, *kept]).encode()).hexdigest()[:HASH_LENGTH]


def job_folder(sweep: Path, own: Sequence[str], tree: Mapping[str, Any]) -> Path:
    """The folder of a job: one that is there for its configuration, whatever it is called, or a new name."""
    key = identity(tree)[:HASH_LENGTH]
    there: Iterator[Path] = sweep.glob(f"*-{key}")
    return min(there, default=sweep / f"{readable(own)}-{key}")


def readable(overrides: Sequence[str]) -> str:
    """Overrides as the name of a folder, of characters that neither a shell nor Hydra's own grammar gives a meaning."""
    plain = (re.sub(r"(?<=\de)\+", "", word) for word in overrides)  # 1e+30 is not 1e-30
    words = (re.sub(r"[^A-Za-z0-9_.]+", "-", word).strip("-") for word in plain)
    name = "+".join(word for word in words if word)
    return name[:NAME_LENGTH].rstrip("+-.") or "defaults"


def telling(overrides: Sequence[str]) -> list[str]:
    """The overrides that say what is computed."""
    return [word for word in overrides if word.lstrip("~").partition("=")[0].partition(".")[0] not in INDIFFERENT]
