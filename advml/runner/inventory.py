"""Which runs there are: each in a line, chosen by what its configuration says, weighed, deleted."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR
from typing import Any

import yaml

from advml.errors import AdvmlError, ConfigError, did_you_mean
from advml.runner.folder import RunFolder, find, is_run
from advml.runner.identity import flattened

STATES = ("running", "completed", "failed", "interrupted", "crashed", "corrupt")
LAST_TO_GO = ("status.json", ".lock", "config.yaml")  # a deletion cut short leaves a run, which can be deleted again


# --- in a line ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Summary:
    """A run in a line: its state and what to say of it."""

    folder: RunFolder
    state: str
    text: str


def summary(folder: RunFolder) -> Summary:
    """Never raises for what lies in the folder: such a run is `corrupt`, and the text says why."""
    try:
        status = folder.status()
        state, text = status["state"], f"step {status['step']:<7}"
        if state == "completed":
            objective = folder.result()["objective"]
            value = "–" if objective["value"] is None else f"{objective['value']:.4g}"
            text += f"{objective['split']} {objective['metric']} {value}"
    except AdvmlError as error:
        state, text = "corrupt", str(error).removeprefix(f"{folder.path}/")
    except (KeyError, TypeError, ValueError):
        state, text = "corrupt", "result.json: damaged"
    return Summary(folder, state, text)


# --- chosen -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Filter:
    """`key=value` or `key=one,other`: a state, a choice (`method=ewc`) or a dotted key of the configuration."""

    key: str
    texts: tuple[str, ...]

    @classmethod
    def parse(cls, word: str) -> Filter:
        """Raises ConfigError for a word that says nothing and for states that there are not."""
        key, _, text = word.partition("=")
        texts = tuple(_alternatives(text))
        if not key or not all(texts):
            raise ConfigError(f"{word}: not a filter; write key=value, or key=one,other")
        wrong = [text for text in texts if key == "status" and text not in STATES]
        if wrong:
            there_are = f"there are {', '.join(STATES)}"
            raise ConfigError(f"status={one}: unknown status{did_you_mean(one, STATES)}; {there_are}" for one in wrong)
        return cls(key, texts)

    def takes(self, values: Iterable[Any]) -> bool:
        """Is any of a run's values for the key one of those asked for?"""
        return any(_same(text, value) for value in values for text in self.texts)


def chosen(folders: Iterable[RunFolder], filters: Sequence[Filter]) -> list[RunFolder]:
    """The runs that pass every filter.

    Raises ConfigError for a key that none of the runs knows: it is a slip of the pen, not a choice of none.
    """
    folders = list(folders)
    if not filters or not folders:
        return folders
    needed = {one.key for one in filters}
    facts = [(folder, facts_of(folder, needed)) for folder in folders]
    known = {"status"}.union(*(said for _, said in facts))
    unknown = sorted(needed - known)
    if unknown:
        raise ConfigError(f"{key}: no run has such a key{did_you_mean(key, known)}" for key in unknown)
    return [folder for folder, said in facts if all(one.takes(said.get(one.key, ())) for one in filters)]


def facts_of(folder: RunFolder, needed: Iterable[str]) -> dict[str, list[Any]]:
    """Key → the values by which a run may be chosen: its state, its dotted keys, its choices.

    A choice has two names: model=mlp_400 is the YAML file, model=mlp what is registered under the name in it.
    Only what is needed is read; a damaged run has no keys.
    """
    wanted = set(needed)
    facts: dict[str, list[Any]] = {"status": [summary(folder).state]} if "status" in wanted else {}
    if wanted == {"status"}:
        return facts
    try:
        tree = folder.tree()
    except AdvmlError:
        return facts
    facts |= {key: [value] for key, value in flattened(tree).items()}
    facts |= {key: [name] for key, name in names_of(tree).items()}
    for group, choice in choices_of(folder).items():
        facts.setdefault(group, []).append(choice)
    return facts


def names_of(tree: Mapping[str, Any]) -> dict[str, str]:
    """Group → the name in its block: method, dataset, view, model."""
    blocks = {key: block["name"] for key, block in tree.items() if isinstance(block, Mapping) and "name" in block}
    return {key: name for key, name in blocks.items() if isinstance(name, str) and key != "sweep"}


def choices_of(folder: RunFolder) -> dict[str, str]:
    """The YAML file that was chosen in each group, Hydra's own aside; empty where that is not known."""
    try:
        said = folder.environment().get("choices", {})
    except AdvmlError:
        return {}
    return {str(key): str(value) for key, value in said.items() if "/" not in str(key) and value not in (None, "None")}


def _alternatives(text: str) -> Iterator[str]:
    """Split at commas outside of brackets."""
    depth, start = 0, 0
    for place, letter in enumerate(text):
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            yield text[start:place]
            start = place + 1
    yield text[start:]


def _same(text: str, value: Any) -> bool:
    """Does a typed word mean this value? 1e-3 is 0.001 and 1 is 1.0, but true is no 1 and "1" in a file no number."""
    if isinstance(value, str):
        return text == value
    return _equal(_typed(text), value)


def _typed(text: str) -> Any:
    for read in (json.loads, float, yaml.safe_load):
        try:
            return read(text)
        except (ValueError, yaml.YAMLError):
            pass
    return text


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_equal, left, right))
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    return bool(left == right)


# --- weighed ------------------------------------------------------------------------------------------------------


def disk_use(path: Path) -> int:
    """Bytes on the disk of a file or of a folder with all in it, as `du` counts them: blocks, hard links once.

    Links are not followed.
    """
    seen: set[tuple[int, int]] = set()

    def weigh(one: Path) -> int:
        try:
            stat = one.lstat()
            if (stat.st_dev, stat.st_ino) in seen:
                return 0
            seen.add((stat.st_dev, stat.st_ino))
            inside = os.listdir(one) if S_ISDIR(stat.st_mode) else []
        except FileNotFoundError:  # gone since it was listed
            return 0
        return stat.st_blocks * 512 + sum(weigh(one / name) for name in inside)

    return weigh(path)


def own_disk_use(folder: RunFolder) -> int:
    """Bytes on the disk of a run, without those of the runs inside it."""
    inside = [one for one in find(folder.path) if one.path != folder.path]
    return disk_use(folder.path) - sum(disk_use(one.path) for one in outermost(inside))


def outermost(folders: Sequence[RunFolder]) -> list[RunFolder]:
    """Those that lie in no other of them."""
    paths = {folder.path for folder in folders}
    return [folder for folder in folders if not paths & set(folder.path.parents)]


def contents(folder: RunFolder) -> list[tuple[str, int, int]]:
    """(name, number of files, bytes on the disk) of what lies in a run folder; the names of folders end in /."""
    found = []
    for path in sorted(folder.path.iterdir()):
        is_folder = path.is_dir() and not path.is_symlink()
        count = sum(len(names) for _, _, names in os.walk(path)) if is_folder else 1
        found.append((f"{path.name}/" if is_folder else path.name, count, disk_use(path)))
    return found


def amount(size: float) -> str:
    """Bytes for a person, in powers of 1000: 512 B, 1.5 kB, 20 MB."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"


# --- deleted ------------------------------------------------------------------------------------------------------


def open_for_deletion(path: Path) -> RunFolder:
    """The run at `path`. Raises ConfigError for anything that is not a run folder itself: links, other folders."""
    folder = RunFolder(path)
    if folder.path.is_symlink():
        raise ConfigError(f"{path}: is a link; name the run folder itself")
    if not folder.path.is_dir() or not is_run(os.listdir(folder.path)):
        raise ConfigError(f"{path}: not a run folder (see: advml runs)")
    return folder


def held(folder: RunFolder) -> bool:
    """Is another process working on the run, or on one inside it?"""
    return any(one.locked_elsewhere() for one in find(folder.path))


def delete(folder: RunFolder) -> None:
    """Remove a run and the runs inside it. Raises AdvmlError if a process holds any of them; then nothing is removed.

    The locks are held until the end, so that nobody can resume what is going. Links are removed, not followed.
    """
    open_for_deletion(folder.path)
    with ExitStack() as stack:
        for one in find(folder.path):
            one.lock()
            stack.callback(one.unlock)
        names = os.listdir(folder.path)
        for name in sorted(names, key=lambda name: LAST_TO_GO.index(name) if name in LAST_TO_GO else -1):
            path = folder / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        folder.path.rmdir()
