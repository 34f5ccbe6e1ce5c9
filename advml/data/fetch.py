"""Fetching one file: mirrors, resuming, checksum, and a rename at the very end, so that half a file never counts."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pooch
import requests

from advml.errors import AdvmlError

Note = Callable[[str], None]
Progress = Callable[[str, int, int], None]
"""Called with a file's name, the bytes there are so far and the bytes there will be."""

ATTEMPTS = 5
"""Tries at one mirror, as long as each brings the file further."""
CHUNK = 1 << 13
"""Bytes written at a time; a chunk that a cut connection leaves incomplete is lost."""
TIMEOUT = 30
"""Seconds without a byte after which a connection counts as dead."""


@dataclass(frozen=True)
class RemoteFile:
    """A file as its authors published it.

    `name` is its place below the data set's folder; `also` lists other places there, and other forms (unpacked) that
    a person may have put there by hand. `unpacked` names the files that serve in place of an archive, with the
    MD5 of each: hashes of archives' contents are published in no better form. `content`: path → the SHA-256 of what is
    in an archive that its server packs anew for whoever asks; `sha256` is that, and `size` is about right.
    """

    name: str
    sha256: str
    size: int
    urls: tuple[str, ...]
    also: tuple[str, ...] = ()
    unpacked: Mapping[str, str] = field(default_factory=dict)
    content: Callable[[Path], str] | None = None

    def digest(self, path: Path) -> str:
        """The SHA-256 of the file at `path`, or of its content; AdvmlError where that cannot be read."""
        return str(pooch.file_hash(str(path))) if self.content is None else self.content(path)


class _OtherFile(Exception):
    """What a mirror offers is not the file; seen before a byte of it is taken, so what we have stays."""


class _WrongContent(Exception):
    """All bytes are there and they are not the file's."""


def download(file: RemoteFile, target: Path, note: Note, progress: Progress | None = None) -> None:
    """Fetch `file` to `target`, going on where an earlier attempt stopped (`target` + ".part").

    The checksum is compared before the rename: `target` is the right file or does not change. Two processes that
    want the same file do not disturb each other; the second finds what the first has fetched.
    """
    part = target.with_name(target.name + ".part")
    faults = []
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _alone(target.parent):
            with suppress(AdvmlError):
                if target.is_file() and file.digest(target) == file.sha256:
                    return
            for url in file.urls:
                fault = _from_mirror(file, url, part, progress)
                if fault is None:
                    os.replace(part, target)
                    return
                faults.append(f"{urlsplit(url).netloc}: {fault}")
                if url != file.urls[-1]:
                    note(f"{file.name}: {faults[-1]}; trying the next mirror")
    except OSError as error:
        raise AdvmlError(
            f"{target}: cannot be written ({error.strerror or error}); "
            "free the way, or name another folder with data_dir=PATH or ADVML_DATA=PATH"
        ) from error
    raise AdvmlError(
        f"{file.name} could not be downloaded ({'; '.join(faults)}); "
        f"try again later, or put the file into {target.parent} by hand"
    )


def _from_mirror(file: RemoteFile, url: str, part: Path, progress: Progress | None) -> str | None:
    """None when `part` has become the whole, right file; otherwise what is wrong with this mirror."""
    fault = ""
    for _ in range(ATTEMPTS):
        if file.content is not None:  # packed anew, it may not go on where the last one broke
            part.unlink(missing_ok=True)
        had = part.stat().st_size if part.exists() else 0
        try:
            if file.content is not None or had < file.size:
                _receive(file, url, part, had, progress)
            _compare(file, part)
            return None
        except _OtherFile as error:
            return str(error)
        except _WrongContent as error:
            fault = str(error)
            part.unlink()
            if not had:
                return fault
            # The bytes of an earlier attempt may be to blame: once more, from the start.
        except requests.RequestException as error:
            now = part.stat().st_size
            fault = _in_words(error, now, file.size)
            if not now:
                part.unlink()
            if now <= had:
                return fault
    return fault


def _receive(file: RemoteFile, url: str, part: Path, had: int, progress: Progress | None) -> None:
    """Append the bytes from `had` on to `part`; all bytes where the server knows no ranges."""
    # A server that packs what it sends would upset ranges and checksums alike.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={had}-"} if had else {})
    with part.open("ab") as stream:

        def look(response: Any, *args: Any, **kwargs: Any) -> None:
            if response.status_code not in (200, 206):
                return  # a redirection, or an error that the downloader raises
            start = had if response.status_code == 206 else 0
            fault = None if file.content is not None else _mismatch(response, start, file.size)
            if fault:
                response.close()
                raise _OtherFile(fault)
            stream.truncate(start)

        bar = _Bar(lambda: progress and progress(file.name, stream.tell(), file.size))
        try:
            pooch.HTTPDownloader(
                progressbar=bar, chunk_size=CHUNK, timeout=TIMEOUT, headers=headers, hooks={"response": look}
            )(url, stream, None)
        finally:
            stream.flush()
            os.fsync(stream.fileno())
    if file.content is None and part.stat().st_size < file.size:
        raise requests.ConnectionError("cut")


def _mismatch(response: Any, start: int, size: int) -> str | None:
    """Why the body that a response announces cannot complete a file of `size` bytes of which we have `start`."""
    given = response.headers.get("Content-Range", f"bytes {start}-")
    if not given.startswith(f"bytes {start}-"):
        return f"the server sent another part than the one asked for ({given})"
    length = response.headers.get("Content-Length", "")
    if length.isdigit() and start + int(length) != size:
        return f"the file there has {start + int(length):,} bytes, the official one has {size:,}"
    return None


def _compare(file: RemoteFile, part: Path) -> None:
    """Refuse a whole file that is not the official one."""
    try:
        found = file.digest(part)
    except AdvmlError as error:
        raise _WrongContent(f"wrong content ({str(error).removeprefix(f'{part} ')})") from error
    if found != file.sha256:
        raise _WrongContent(f"wrong checksum (SHA-256 {found[:8]}…, official {file.sha256[:8]}…)")


def _in_words(error: requests.RequestException, now: int, size: int) -> str:
    """A few words for a fault of the network; the libraries' own are a page long."""
    if isinstance(error, requests.HTTPError) and error.response is not None:
        return f"HTTP {error.response.status_code} {error.response.reason}".rstrip()
    if now:
        return f"the connection was cut after {now:,} of {size:,} bytes"
    return "no answer in time" if isinstance(error, requests.Timeout) else "no connection"


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait until no other process is downloading into `folder`; the lock is on the folder and leaves no file."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems lock no folders; the checksum is left to rely on
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


class _Bar:
    """What pooch takes for a progress bar: it says "more", we look how far the file has come."""

    total = 0

    def __init__(self, look: Callable[[], Any]) -> None:
        self.look = look

    def update(self, count: int) -> None:
        """Some bytes arrived."""
        self.look()

    def reset(self) -> None:
        """Nothing is counted here."""

    def close(self) -> None:
        """All bytes arrived."""
