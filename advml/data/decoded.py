"""A cache of decoded pictures: thousands of small files take seconds to decode and milliseconds to read back."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pooch
import torch
from torch import Tensor


@dataclass(frozen=True)
class Decoded:
    """Pictures uint8 [N, C, H, W] and the names of their classes."""

    images: Tensor
    names: tuple[str, ...]

    def digest(self, key: str) -> str:
        """SHA-256 of everything that is stored, and of what it was made from."""
        text = "\n".join((key, str(tuple(self.images.shape)), *self.names))
        digest = hashlib.sha256(text.encode())
        digest.update(self.images.contiguous().numpy().data)  # no copy: a data set may fill a large part of the memory
        return digest.hexdigest()


def cached(folder: Path, dataset: str, key: str, decode: Callable[[], Decoded], note: Callable[[str], None]) -> Decoded:
    """What `decode()` gives, kept in `folder`, or in the user's cache where `folder` may not be written.

    `key` says what it is made from (checksums, size, manner); a file made from anything else, or damaged, is made
    again. Where nothing can be written the pictures are decoded every time, which is said.
    """
    name = f"decoded-{hashlib.sha256(key.encode()).hexdigest()[:16]}.pt"
    places = [folder / name, Path(pooch.os_cache("advml")) / dataset / name]
    for place in places:
        decoded = _read(place, key)
        if decoded is not None:
            return decoded
    note(f"{dataset}: decoding the pictures; this takes a few seconds, once")
    decoded = decode()
    if not any(_write(place, key, decoded) for place in places):
        note(f"{dataset}: the decoded pictures could not be kept in {places[1].parent}; they are decoded for every run")
    return decoded


def _read(path: Path, key: str) -> Decoded | None:
    """None unless the file is there, whole, and made from `key`."""
    if not path.is_file():
        return None
    try:
        stored: dict[str, Any] = torch.load(path, weights_only=True)
        decoded = Decoded(stored["images"], tuple(stored["names"]))
        return decoded if stored["digest"] == decoded.digest(key) else None
    except Exception:  # a damaged file fails in any way; it is a cache, and is made again
        return None


def _write(path: Path, key: str, decoded: Decoded) -> bool:
    """Store by a temporary file and a rename, so that a reader finds all of it or nothing."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The bits are asked too: the superuser may write anywhere, but a folder marked read-only is meant to stay.
        if not os.access(path.parent, os.W_OK) or not path.parent.stat().st_mode & 0o222:
            return False
        stored = {"images": decoded.images, "names": list(decoded.names), "digest": decoded.digest(key)}
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with os.fdopen(handle, "wb") as stream:
                torch.save(stored, stream)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
    except OSError:
        return False
    return True
