"""miniImageNet: 100 classes of ImageNet with 600 photographs each, 64 to train on, 16 and 20 of other classes to
validate and test on (Vinyals et al. 2016, in the division by Ravi and Larochelle 2017).

Nobody may pass the photographs on, so nothing is fetched: they are read from a folder that the user fills.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch

from advml.config import PositiveInt, settings
from advml.contracts import Classes, Spec, Split
from advml.data.decoded import Decoded, cached
from advml.data.pictures import MANNER, read
from advml.data.source import Loaded, Source, SplitSettings
from advml.errors import AdvmlError, ConfigError

LISTS = {"train": "train.csv", "valid": "val.csv", "test": "test.csv"}
CLASSES = {"train": 64, "valid": 16, "test": 20}
COLUMNS = ["filename", "label"]


@settings
class MiniImagenetSettings(SplitSettings):
    """How large the pictures are made."""

    size: PositiveInt


class Listed(NamedTuple):
    """The pictures of a list with their labels, and the checksum of the list."""

    rows: list[tuple[str, str]]
    sha256: str


class MiniImagenet:
    """Photographs of 100 kinds of things; the class is the kind, those to train on first, each part sorted."""

    settings = MiniImagenetSettings
    name: ClassVar[str] = "mini_imagenet"
    by_hand: ClassVar[str] = "has files that cannot be downloaded and that you put there yourself"

    def __init__(self, settings: MiniImagenetSettings) -> None:
        self.config = settings

    def spec(self) -> Spec:
        """A colour picture → one of 100 classes, of which 64, 16 and 20 are to train, validate and test on."""
        parts = torch.arange(sum(CLASSES.values())).split(list(CLASSES.values()))
        class_splits = {name: tuple(part.tolist()) for name, part in zip(CLASSES, parts, strict=True)}
        image, target = (3, self.config.size, self.config.size), Classes(sum(CLASSES.values()))
        return Spec({"image": image}, target, class_splits=class_splits)

    def load(self, source: Source) -> Loaded:
        """uint8 [60000, 3, size, size], in the order of the lists, all to be divided."""
        folder = source.data_dir / self.name
        lists = {name: read_list(folder, name) for name in LISTS}
        names = [label for part in lists.values() for label in sorted({label for _, label in part.rows})]
        if len(set(names)) < len(names):
            raise _wrong(folder, f"{' and '.join(LISTS.values())} share a class", "bring back the official lists")
        rows = [row for part in lists.values() for row in part.rows]
        pictures = hashlib.sha256()
        for file, size in zip((row[0] for row in rows), sizes(folder, [row[0] for row in rows]), strict=True):
            pictures.update(f"{file} {size}\n".encode())
        hashes = {LISTS[name]: part.sha256 for name, part in lists.items()} | {"images": pictures.hexdigest()}
        key = f"{self.name} {self.config.size} {MANNER} {' '.join(hashes.values())}"
        paths = [folder / "images" / file for file, _ in rows]
        decoded = cached(
            folder, self.name, key, lambda: Decoded(decode(paths, self.config.size), tuple(names)), source.note
        )
        numbers = {label: number for number, label in enumerate(names)}
        target = torch.tensor([numbers[label] for _, label in rows])
        return Loaded(Split({"image": decoded.images}, target), scale=255, files=hashes)


def read_list(folder: Path, name: str) -> Listed:
    """The list of a split. Raises AdvmlError where it is not there or not right."""
    file = LISTS[name]
    try:
        content = (folder / file).read_bytes()
        header, *rows = csv.reader(io.StringIO(content.decode()))
    except FileNotFoundError:
        raise _wrong(
            folder,
            f"{file} is not there",
            "put the lists train.csv, val.csv and test.csv of Ravi and Larochelle there, and the pictures that they "
            "name into images/; they cannot be downloaded by advml",
        ) from None
    except OSError as error:
        raise _wrong(folder, f"{file} cannot be read ({error.strerror})", "make it readable") from error
    except (ValueError, csv.Error):
        header, rows = [], []
    if header != COLUMNS or not all(len(row) == len(COLUMNS) for row in rows):
        raise _wrong(folder, f"{file} is no list with the columns filename,label", "bring back the official list")
    labels = {label for _, label in rows}
    if len(labels) != CLASSES[name]:
        raise _wrong(folder, f"{file} names {len(labels)} classes, not {CLASSES[name]}", "bring back the official list")
    return Listed([(file, label) for file, label in rows], hashlib.sha256(content).hexdigest())


def sizes(folder: Path, files: Sequence[str]) -> list[int]:
    """The size of each picture in bytes. Raises AdvmlError where some are missing."""
    images = folder / "images"
    try:
        there = {entry.name: entry.stat().st_size for entry in images.iterdir()}
    except OSError:
        there = {}
    if missing := [file for file in files if file not in there]:
        raise _wrong(
            folder,
            f"{len(missing):,} of {len(files):,} pictures are not in images/, such as {missing[0]}",
            "put them there; they cannot be downloaded by advml",
        )
    return [there[file] for file in files]


def decode(paths: Sequence[Path], size: int) -> torch.Tensor:
    """The pictures, uint8 [N, 3, size, size], each as `read` gives it."""
    images = torch.empty(len(paths), 3, size, size, dtype=torch.uint8)
    for number, path in enumerate(paths):
        try:
            images[number] = read(path, size)
        except ConfigError as error:
            raise ConfigError(f"mini_imagenet: in {path.parents[1]}, images/{path.name} {error}") from None
        except Exception as error:  # readers of pictures fail in many ways
            raise _wrong(
                path.parents[1],
                f"images/{path.name} cannot be read ({type(error).__name__})",
                "put a whole picture there",
            ) from error
    return images


def _wrong(folder: Path, fault: str, cure: str) -> AdvmlError:
    return AdvmlError(f"mini_imagenet: in {folder}, {fault}; {cure}")
