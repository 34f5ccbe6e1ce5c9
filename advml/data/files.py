"""Files of data sets: where they are looked for, whether they are right, and what mends them if they are not.

The layout is DATA_DIR/<data set>/<file>. A file with the official checksum is right; another one is right when its
content is, and that is said; anything else is refused in one line. Fetching is in advml/data/fetch.py.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol

import pooch

from advml.data.fetch import Note, Progress, RemoteFile, download
from advml.errors import AdvmlError

__all__ = ["Damaged", "FileDataset", "FileState", "Identity", "RemoteFile", "default_data_dir", "download_command",
           "fetch", "identify", "inspect", "locate", "remedy", "resolve_data_dir", "vouch"]  # fmt: skip


class Damaged(AdvmlError):
    """A file that is not what it should be: which one, and what is wrong with it. `remedy` adds the cure."""

    def __init__(self, path: Path, fault: str) -> None:
        self.path, self.fault = path, fault
        super().__init__(f"{path} {fault}")


class FileDataset(Protocol):
    """What a data set that is read from files tells about them."""

    name: ClassVar[str]
    files: ClassVar[tuple[RemoteFile, ...]]

    @classmethod
    def check(cls, name: str, path: Path) -> str:
        """Read the file called `name` at `path`; raise Damaged, or give a remark worth telling ("" for none)."""
        ...


def default_data_dir() -> Path:
    """$ADVML_DATA, otherwise the user's cache folder."""
    named = os.environ.get("ADVML_DATA")
    return Path(named).expanduser().absolute() if named else Path(pooch.os_cache("advml"))


def resolve_data_dir(setting: str | None) -> Path:
    """The folder of data files: what the key `data_dir` says, otherwise the default."""
    return default_data_dir() if setting is None else Path(setting).expanduser().absolute()


def download_command(dataset: str, data_dir: Path) -> str:
    """The command line that fetches what is missing or damaged."""
    elsewhere = "" if data_dir == default_data_dir() else f" data_dir={shlex.quote(str(data_dir))}"
    return f"advml data download {dataset}{elsewhere}"


def locate(
    data_dir: Path, dataset: str, files: Sequence[RemoteFile], fetch_missing: bool, note: Note
) -> dict[str, Path]:
    """Where each file lies: name → path (a folder, where an archive lies unpacked). Nothing is read.

    Missing files are fetched if `fetch_missing`; otherwise one line names them and the command that fetches them.
    """
    folder = data_dir / dataset
    missing = [file for file in files if _present(folder, file) is None]
    if missing and not fetch_missing:
        names = " and ".join(filter(None, [", ".join(file.name for file in missing[:-1]), missing[-1].name]))
        half = any(folder.joinpath(file.name + ".part").exists() for file in missing)
        raise AdvmlError(
            f"{dataset}: {names} {'is' if len(missing) == 1 else 'are'} not in {folder}"
            f"{' (only a half-finished download)' if half else ''}; "
            f"fetch with: {download_command(dataset, data_dir)}"
        )
    for file in missing:
        fetch(data_dir, dataset, file, note)
    paths = {file.name: _present(folder, file) for file in files}
    return {name: path for name, path in paths.items() if path is not None}


def fetch(data_dir: Path, dataset: str, file: RemoteFile, note: Note, progress: Progress | None = None) -> None:
    """Download one file to its place, over whatever lies there."""
    note(f"{dataset}: fetching {file.name} ({file.size / 1e6:,.1f} MB) into {data_dir / dataset}")
    try:
        download(file, data_dir / dataset / file.name, note, progress)
    except AdvmlError as error:
        raise AdvmlError(f"{dataset}: {error}") from error


def _present(folder: Path, file: RemoteFile) -> Path | None:
    """The file, or what serves in its place; nothing ending in .part is ever looked at."""
    for name in (file.name, *file.also):
        if (folder / name).exists():
            return folder / name
    loose = [folder / name for name in file.unpacked]
    return loose[0].parent if any(path.exists() for path in loose) else None


@dataclass(frozen=True)
class Identity:
    """The SHA-256 of each file read, and whether they are the official ones."""

    path: Path
    hashes: Mapping[str, str]
    official: bool


def identify(file: RemoteFile, path: Path) -> Identity:
    """Hash a file, or the files of an unpacked archive. Raises Damaged if one cannot be read."""
    if not (path.is_dir() and file.unpacked):
        found = _hash(path, "sha256") if file.content is None else file.content(path)
        return Identity(path, {file.name: found}, found == file.sha256)
    parts = {name: path.parent / name for name in file.unpacked}
    hashes = {name: _hash(part, "sha256") for name, part in parts.items()}
    official = all(_hash(parts[name], "md5") == expected for name, expected in file.unpacked.items())
    return Identity(path, hashes, official)


def _hash(path: Path, algorithm: str) -> str:
    if not path.is_file():
        raise Damaged(path, "is not a file" if path.exists() else "is missing")
    try:
        return str(pooch.file_hash(str(path), algorithm))
    except OSError as error:
        raise Damaged(path, f"cannot be read ({error.strerror})") from error


def vouch(dataset: str, identities: Sequence[Identity], remarks: Mapping[Path, str], note: Note) -> dict[str, str]:
    """The hashes of all files that were read, for the run's record; says which are not the official ones."""
    for identity in identities:
        if not identity.official:
            remark = remarks.get(identity.path, "")
            note(
                f"{dataset}: {identity.path} has not the official checksum; it is used because its content is right"
                f"{f' ({remark})' if remark else ''}"
            )
    return {name: value for identity in identities for name, value in identity.hashes.items()}


@contextmanager
def remedy(dataset: str, data_dir: Path) -> Iterator[None]:
    """Add to the complaint about a damaged file the command that mends it."""
    try:
        yield
    except Damaged as error:
        raise AdvmlError(f"{dataset}: {error}; mend it with: {download_command(dataset, data_dir)}") from error


@dataclass(frozen=True)
class FileState:
    """What was found for one file: `official` checksum, `accepted` for its content, `absent` or `damaged`."""

    file: RemoteFile
    path: Path | None
    state: Literal["official", "accepted", "absent", "damaged"]
    detail: str = ""


def inspect(dataset: type[FileDataset], data_dir: Path) -> list[FileState]:
    """Look at every file of a data set; those without the official checksum are read."""
    states = []
    for file in dataset.files:
        path = _present(data_dir / dataset.name, file)
        if path is None:
            half = (data_dir / dataset.name / (file.name + ".part")).exists()
            states.append(FileState(file, None, "absent", "half-finished download" if half else ""))
            continue
        try:
            if identify(file, path).official:
                states.append(FileState(file, path, "official"))
            else:
                states.append(FileState(file, path, "accepted", dataset.check(file.name, path)))
        except Damaged as error:
            elsewhere = "" if error.path == path else f"{error.path.name} "
            states.append(FileState(file, path, "damaged", elsewhere + error.fault))
    return states
