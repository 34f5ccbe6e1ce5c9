"""advml runs [KEY=VALUE ...] [outputs=FOLDER]
advml runs show RUN
advml runs disk [KEY=VALUE ...] [outputs=FOLDER]
advml runs delete RUN|KEY=VALUE ... [outputs=FOLDER] [yes=true]

What has been run, below ./outputs or another folder, however deep: newest last, with state, step and objective.

  advml runs                                   all of them (also: advml list runs)
  advml runs method=ewc,finetune status=failed those that pass every filter; commas mean or
  advml runs method.lr=0.1 seed=3              any dotted key of the saved configuration
  advml runs show RUN                          one: choices, status, result, files, disk use
  advml runs disk                              where the space went, the largest last
  advml runs delete status=failed,crashed      lists them with their sizes and asks
  advml runs delete RUN RUN yes=true           does not ask: for scripts

status: running, completed, failed, interrupted, crashed, corrupt. A run that a process is working on is never deleted,
nor anything that is not a run folder; links are not followed. RUN may be given as a path or as the list prints it.
Exit code: 0 done, 1 something could not be deleted, 2 wrong command.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from advml.runner.folder import RunFolder
    from advml.runner.inventory import Filter

ACTIONS = ("show", "disk", "delete")


def main(arguments: Sequence[str]) -> int:
    """List, show, weigh or delete runs."""
    action = arguments[0] if arguments and arguments[0] in ACTIONS else "list"
    asked = Asked.of(action, arguments if action == "list" else arguments[1:])
    return {"list": show_list, "show": _show, "disk": _disk, "delete": _delete}[action](asked)


@dataclass(frozen=True)
class Asked:
    """The words of the command, sorted."""

    runs: Sequence[str] = ()
    filters: Sequence[Filter] = ()
    outputs: Path = Path("outputs")
    yes: bool = False

    @classmethod
    def of(cls, action: str, words: Sequence[str]) -> Asked:
        """A word with `=` is a filter, unless there is such a folder. Raises ConfigError for words out of place."""
        from advml.errors import ConfigError, did_you_mean
        from advml.runner.inventory import Filter

        runs = [word for word in words if "=" not in word or "/" in word.partition("=")[0] or Path(word).exists()]
        pairs = [word.split("=", 1) for word in words if word not in runs]
        given = dict(pairs)
        outputs, yes = Path(given.pop("outputs", "outputs")), given.pop("yes", "false")
        mistakes = [
            f"{key}: given {count} times; of several values write {key}=one,other"
            for key, count in Counter(key for key, _ in pairs).items()
            if count > 1
        ]
        if runs and action in ("list", "disk"):
            known = did_you_mean(runs[0], ACTIONS) if action == "list" else ""
            mistakes.append(f"{runs[0]}: not a filter{known}; write key=value, or: advml runs show {runs[0]}")
        if action == "show" and (len(runs) != 1 or given):
            mistakes.append("runs show: name one run folder: advml runs show RUN (see: advml runs)")
        if action == "delete" and bool(runs) == bool(given):
            mistakes.append("runs delete: name run folders, or say which by filters like status=failed")
        if yes not in ("true", "false") or (yes == "true" and action != "delete"):
            mistakes.append(f"yes={yes}: only `advml runs delete` takes yes=true")
        if mistakes:
            raise ConfigError(mistakes)
        return cls(runs, [Filter.parse(f"{key}={text}") for key, text in given.items()], outputs, yes == "true")

    def found(self) -> list[RunFolder]:
        """The runs below `outputs` that pass the filters."""
        from advml.runner.folder import find
        from advml.runner.inventory import chosen

        return chosen(find(self.outputs), self.filters)


def show_list(asked: Asked) -> int:
    """A line for each run."""
    from advml.runner.inventory import summary

    folders = asked.found()
    if not folders:
        print(_none(asked))
    for folder in folders:
        one = summary(folder)
        print(f"{_name(folder, asked)}  {one.state:<12}{one.text}")
    return 0


def _disk(asked: Asked) -> int:
    from advml.runner.inventory import amount, contents, own_disk_use, summary

    folders = asked.found()
    if not folders:
        print(_none(asked))
        return 0
    parts: dict[str, int] = {}
    sizes = [(own_disk_use(folder), folder) for folder in folders]
    for size, folder in sorted(sizes, key=lambda pair: pair[0]):
        print(f"{amount(size):>8}  {summary(folder).state:<12}{_name(folder, asked)}")
        for name, _, weight in contents(folder):
            if name.endswith("/") and name != "baselines/":  # they are runs of their own, with their own lines
                parts[name] = parts.get(name, 0) + weight
    most = sorted(parts.items(), key=lambda item: -item[1])
    total = sum(size for size, _ in sizes)
    print(f"{amount(total):>8}  {_count(len(folders))}: {', '.join(f'{name} {amount(size)}' for name, size in most)}")
    return 0


def _show(asked: Asked) -> int:
    from rich.console import Console

    from advml.commands.show import show_result
    from advml.errors import AdvmlError
    from advml.runner.folder import RunFolder
    from advml.runner.inventory import amount, contents

    path = _path(asked.runs[0], asked)
    folder = RunFolder.open(path)
    console = Console(highlight=False)
    console.print(str(path), markup=False, soft_wrap=True)
    for title, tell in {"command": _command, "choices": _choices, "status": _status, "machine": _machine}.items():
        try:
            text = tell(folder)
        except (AdvmlError, KeyError, TypeError, ValueError, AttributeError) as error:
            text = f"corrupt: {error}"
        console.print(f"  {title:<9}{text}", markup=False, soft_wrap=True)
    if (folder / "result.json").exists():
        try:
            beside = sorted(folder.path.glob("baselines/*/result.json"))
            show_result(folder.result(), {one.parent.name: RunFolder(one.parent).result() for one in beside})
        except (AdvmlError, KeyError, TypeError, ValueError, AttributeError):
            print("  result.json: damaged")
    total = 0
    for name, count, size in contents(folder):
        total += size
        files = f"{count} files" if name.endswith("/") and count != 1 else ""
        print(f"  {name:<24}{amount(size):>8}  {files}".rstrip())
    print(f"  {'':<24}{amount(total):>8}")
    return 0


def _command(folder: RunFolder) -> str:
    try:
        return (folder / "command.txt").read_text().strip()
    except OSError:
        return "–"


def _choices(folder: RunFolder) -> str:
    """What was chosen in each group; for a run that was made without choosing, the names in its configuration."""
    from advml.runner.inventory import choices_of, names_of

    names = names_of(folder.tree())
    return " ".join(f"{key}={value}" for key, value in {**names, **choices_of(folder)}.items())


def _status(folder: RunFolder) -> str:
    status = folder.status()
    where = f"{status['time']} on {status['host']}, pid {status['pid']}"
    error = f": {status['error']}" if status.get("error") else ""
    return f"{status['state']} at step {status['step']}, attempt {status['attempt']}; {where}{error}"


def _machine(folder: RunFolder) -> str:
    said: Mapping[str, Any] = folder.environment()
    source = said.get("source")
    commit = f", commit {source['commit'][:10]}{' with changes' if source['dirty'] else ''}" if source else ""
    packages = f"advml {said['advml']}, torch {said['packages']['torch']}, Python {said['python']}"
    device = f"{said['device']} ({said['gpu']})" if said.get("gpu") else said["device"]
    return f"{device}, {said['threads']} threads, {said['precision']}; {packages}{commit}"


def _delete(asked: Asked) -> int:
    """List, ask, delete."""
    from advml.errors import AdvmlError, ConfigError
    from advml.runner.inventory import amount, delete, disk_use, held, open_for_deletion, outermost, summary

    if asked.runs:
        named = (open_for_deletion(_path(word, asked)) for word in asked.runs)
        folders = list({folder.path: folder for folder in named}.values())
    else:
        folders = asked.found()
    kept = [folder for folder in outermost(folders) if held(folder)]
    going = [folder for folder in outermost(folders) if folder not in kept]
    for folder in kept:
        print(f"advml: {folder.path}: not deleted, a process is working on it", file=sys.stderr)
    if not folders:
        print(_none(asked))
    if not going:
        return 1 if kept else 0
    total = 0
    for folder in going:
        size = disk_use(folder.path)
        total += size
        print(f"{amount(size):>8}  {summary(folder).state:<12}{_name(folder, asked)}")
    if not asked.yes and not sys.stdin.isatty():
        raise ConfigError("runs delete: there is no terminal to ask on; to delete these, add yes=true")
    if not asked.yes and not _agreed(f"delete {_count(len(going))}, {amount(total)}?"):
        print("nothing deleted")
        return 0
    for folder in going.copy():
        try:
            delete(folder)
        except (AdvmlError, OSError) as error:  # begun since, or not ours to delete
            going.remove(folder)
            kept.append(folder)
            print(f"advml: {folder.path}: not deleted: {error}", file=sys.stderr)
    print(f"deleted {_count(len(going))}")
    return 1 if kept else 0


def _agreed(question: str) -> bool:
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        print()
        return False


def _path(word: str, asked: Asked) -> Path:
    """A run as a path from here, or as the list prints it."""
    below = asked.outputs / word
    return below if below.is_dir() and not Path(word).exists() else Path(word)


def _name(folder: RunFolder, asked: Asked) -> str:
    root = asked.outputs.absolute()
    return str(folder.path.relative_to(root) if folder.path.is_relative_to(root) else folder.path)


def _count(number: int) -> str:
    return f"{number} run" if number == 1 else f"{number} runs"


def _none(asked: Asked) -> str:
    such = " ".join(f"{one.key}={','.join(one.texts)}" for one in asked.filters)
    return f"no runs below {asked.outputs}{' with ' if such else ''}{such}"
