"""Every write of a run goes through here: whole or not at all, and known by name so that tests can break each one."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any


def reached(point: str) -> None:
    """Called at every named write point with "NAME: before|written|renamed". Fault-injection tests replace it."""


def write_atomic(path: Path, data: bytes, name: str | None = None) -> None:
    """Write to a temporary file beside `path`, flush it to the disk, rename: readers see old or new content."""
    point = name or path.name
    temporary = path.with_name(path.name + ".tmp")
    reached(f"{point}: before")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        reached(f"{point}: written")
        os.replace(temporary, path)
    except BaseException:  # a full disk, a second Ctrl-C
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)
    reached(f"{point}: renamed")


def write_text(path: Path, text: str) -> None:
    """`write_atomic` for text, in UTF-8."""
    write_atomic(path, text.encode())


def write_out(path: Path, text: str) -> None:
    """Write a file where somebody said, making its folder: behind a link what it points at, into a device or a pipe
    (/dev/stdout, a FIFO) as into a stream, and every ordinary file whole or not at all.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not (path.is_file() or path.is_dir()):
        path.write_text(text, encoding="utf-8")
    else:
        write_text(path.resolve(), text)


def write_json(path: Path, value: Any) -> None:
    """`write_atomic` for plain data, indented, ending in a newline. NaN and infinity are errors."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def sync_folder(folder: Path) -> None:
    """Flush a folder's list of names, so that a rename survives a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
