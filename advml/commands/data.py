"""advml data list | download NAME... | verify NAME... | verify --all    [data_dir=FOLDER]

Files of the data sets that are read from files (the others need none). They lie in DATA_DIR/<data set>/; DATA_DIR is
what data_dir=FOLDER says, otherwise $ADVML_DATA, otherwise the user's cache folder.

  advml data list                            every data set: which files are there, which are not, their size
  advml data download mnist                  fetch what is missing or damaged; half a file is gone on with
  advml data download mnist fashion_mnist    several at once
  advml data verify mnist                    read every file and compare its checksum
  advml data verify --all data_dir=~/data    every data set, in a folder of your own

A file that you put there by hand is accepted if its content is right, even if its checksum is not the official one
(state "accepted"). Names, places and checksums of the files: docs/data.md.
Exit code: 0 all is well, 1 a file is missing or damaged, 2 wrong command.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advml import registry
from advml.errors import AdvmlError, ConfigError, did_you_mean

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from advml.data.fetch import Progress
    from advml.data.files import FileState

ACTIONS = ("list", "download", "verify")
STYLES = {"official": "green", "accepted": "yellow", "absent": "dim", "damaged": "bold red"}


def main(arguments: Sequence[str]) -> int:
    """Dispatch to list, download or verify."""
    words = [word for word in arguments if not word.startswith("data_dir=")]
    folders = [word.removeprefix("data_dir=") for word in arguments if word.startswith("data_dir=")]
    action, names = (words[0], words[1:]) if words else ("", [])
    if action not in ACTIONS:
        asked = f"{action}: unknown action{did_you_mean(action, ACTIONS)}" if action else "say what to do"
        raise ConfigError(f"data: {asked} (list, download NAME or verify NAME; see: advml data --help)")
    _check_words(action, names)
    if len(folders) > 1 or "" in folders:
        raise ConfigError("data_dir: name one folder, like data_dir=~/data")

    from advml.data.files import resolve_data_dir

    data_dir, known = resolve_data_dir(folders[0] if folders else None), _with_files()
    mistakes = [
        f"{name}: unknown data set{did_you_mean(name, known)} (with files: {', '.join(known)})"
        if name not in registry.names("dataset")
        else f"{name}: {getattr(registry.resolve('dataset', name), 'by_hand', 'needs no files')} "
        f"(with files: {', '.join(known)})"
        for name in names
        if name not in known and name != "--all"
    ]
    if mistakes:
        raise ConfigError(mistakes)
    chosen = known if action == "list" or "--all" in names else {name: known[name] for name in names}
    if action == "list":
        return _list(chosen, data_dir)
    return _download(chosen, data_dir) if action == "download" else _verify(chosen, data_dir)


def _check_words(action: str, names: Sequence[str]) -> None:
    """Refuse what no action knows, and what this one has no use for."""
    for word in names:
        if "=" in word:
            key = word.split("=", 1)[0]
            raise ConfigError(f"data: {key}: unknown key{did_you_mean(key, ['data_dir'])} (known: data_dir)")
        if word.startswith("-") and word != "--all":
            raise ConfigError(f"data {action}: {word}: unknown option (known: --all, for verify and download)")
    if action == "list" and names:
        raise ConfigError(f"data list: takes no {names[0]} (one data set: advml data verify {names[0]})")
    if action != "list" and not names:
        raise ConfigError(f"data {action}: name a data set, like: advml data {action} mnist (or --all)")


def _with_files() -> dict[str, Any]:
    """Name → class of every data set that is read from files. A plug-in that does not load keeps no one from these."""
    found = {}
    for name in registry.names("dataset"):
        with suppress(ConfigError):
            cls = registry.resolve("dataset", name)
            if getattr(cls, "files", ()):
                found[name] = cls
    return found


def _list(datasets: dict[str, Any], data_dir: Path) -> int:
    """A table of all files. That files are missing is no failure here."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from advml.data.files import download_command, inspect

    console = Console()
    _say(console, f"{data_dir}, a folder for each data set:")
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("data set", no_wrap=True)
    table.add_column("file", no_wrap=True)
    table.add_column("size", justify="right", no_wrap=True)
    table.add_column("state", overflow="fold")
    lacking = []
    for name, cls in datasets.items():
        states = inspect(cls, data_dir)
        for number, state in enumerate(states):
            table.add_row(name if number == 0 else "", state.file.name, _size(state), _state(state))
        if any(state.state in ("absent", "damaged") for state in states):
            lacking.append(name)
        table.add_section()
    console.print(table)
    for name in lacking:
        _say(console, f"fetch {name} with: {download_command(name, data_dir)}")
    return 0


def _say(console: Console, *words: str | Text) -> None:
    """One line, however long: paths are copied, and programs read them."""
    console.print(*words, soft_wrap=True, highlight=False, markup=False)


def _size(state: FileState) -> str:
    """The size on the disk of what is there, otherwise the official size."""
    size = state.file.size
    if state.path is not None:
        parts = [state.path.parent / name for name in state.file.unpacked] if state.path.is_dir() else [state.path]
        size = sum(part.stat().st_size for part in parts if part.is_file())
    return f"{size / 1e6:,.1f} MB" if size > 1e5 else f"{size / 1e3:,.1f} kB"


def _state(state: FileState) -> Text:
    from rich.text import Text

    other = state.path is not None and state.path.name != Path(state.file.name).name
    details = [f"as {state.path.name}" if state.path and other else "", state.detail]
    text = ": ".join([state.state, ", ".join(filter(None, details))]) if any(details) else state.state
    return Text(text, style=STYLES[state.state])


def _verify(datasets: dict[str, Any], data_dir: Path) -> int:
    """Read every file; a line for each, and the remedy where there is something to mend."""
    from rich.console import Console

    from advml.data.files import download_command, inspect

    console, code = Console(), 0
    for name, cls in datasets.items():
        states = inspect(cls, data_dir)
        for state in states:
            place = state.path or data_dir / name / state.file.name
            _say(console, _state(state), str(place))
        if any(state.state in ("absent", "damaged") for state in states):
            _say(console, f"mend {name} with: {download_command(name, data_dir)}")
            code = 1
    return code


def _download(datasets: dict[str, Any], data_dir: Path) -> int:
    """Fetch what is missing or damaged; one data set that cannot be had does not keep the others from it."""
    from rich.console import Console

    from advml.data.files import fetch, inspect

    console, code = Console(), 0

    def note(text: str) -> None:
        _say(console, text)

    for name, cls in datasets.items():
        try:
            for state in inspect(cls, data_dir):
                if state.state == "damaged":
                    note(f"{name}: {state.path} is damaged ({state.detail}); fetching it anew")
                if state.state in ("absent", "damaged"):
                    with _progress(console) as progress:
                        fetch(data_dir, name, state.file, note, progress)
                elif state.state == "accepted":
                    note(f"{name}: {state.path} is kept: not the official checksum, but the right content")
            note(f"{name}: complete in {data_dir / name}")
        except AdvmlError as error:
            if len(datasets) == 1:
                raise
            note(f"advml: {error}")
            code = 1
    return code


@contextmanager
def _progress(console: Console) -> Iterator[Progress | None]:
    """A bar in a terminal; nothing elsewhere, where it would fill a log."""
    if not console.is_terminal:
        yield None
        return
    from rich import progress as rich

    columns = (rich.TextColumn("{task.description}"), rich.BarColumn(), rich.DownloadColumn(),
               rich.TransferSpeedColumn(), rich.TimeRemainingColumn())  # fmt: skip
    with rich.Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=None)

        def report(name: str, done: int, total: int) -> None:
            bar.update(task, description=name, completed=done, total=total)

        yield report
