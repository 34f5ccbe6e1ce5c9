"""Omniglot: 1,623 characters of 50 alphabets, each drawn once by 20 people (Lake, Salakhutdinov, Tenenbaum 2015)."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple

import numpy as np
import torch
from annotated_types import Interval
from PIL import Image
from torch import Tensor

from advml.config import settings
from advml.contracts import Classes, Spec, Split
from advml.data.decoded import Decoded, cached
from advml.data.files import Damaged, Identity, RemoteFile, identify, locate, remedy, vouch
from advml.data.source import Loaded, Source, SplitSettings

SIDE = 105
DRAWERS = 20
ALPHABETS = {  # how many characters each has, in the order of the classes
    "images_background": {
        "Alphabet_of_the_Magi": 20, "Anglo-Saxon_Futhorc": 29, "Arcadian": 26, "Armenian": 41,
        "Asomtavruli_(Georgian)": 40, "Balinese": 24, "Bengali": 46, "Blackfoot_(Canadian_Aboriginal_Syllabics)": 14,
        "Braille": 26, "Burmese_(Myanmar)": 34, "Cyrillic": 33, "Early_Aramaic": 22, "Futurama": 26, "Grantha": 43,
        "Greek": 24, "Gujarati": 48, "Hebrew": 22, "Inuktitut_(Canadian_Aboriginal_Syllabics)": 16,
        "Japanese_(hiragana)": 52, "Japanese_(katakana)": 47, "Korean": 40, "Latin": 26, "Malay_(Jawi_-_Arabic)": 40,
        "Mkhedruli_(Georgian)": 41, "N_Ko": 33, "Ojibwe_(Canadian_Aboriginal_Syllabics)": 14, "Sanskrit": 42,
        "Syriac_(Estrangelo)": 23, "Tagalog": 17, "Tifinagh": 55,
    },
    "images_evaluation": {
        "Angelic": 20, "Atemayar_Qelisayer": 26, "Atlantean": 26, "Aurek-Besh": 26, "Avesta": 26, "Ge_ez": 26,
        "Glagolitic": 45, "Gurmukhi": 45, "Kannada": 41, "Keble": 26, "Malayalam": 47, "Manipuri": 40,
        "Mongolian": 30, "Old_Church_Slavonic_(Cyrillic)": 45, "Oriya": 46, "Sylheti": 28, "Syriac_(Serto)": 23,
        "Tengwar": 25, "Tibetan": 42, "ULOG": 26,
    },
}  # fmt: skip
CHARACTERS = {folder: sum(alphabets.values()) for folder, alphabets in ALPHABETS.items()}  # 964 and 659
# Vinyals et al. 2016, in the lists of jakesnell/prototypical-networks (data/omniglot/splits/vinyals): the characters
# after the first 1,200 are for testing, of the others those of five alphabets for validation: 1,028, 172 and 423.
VINYALS_FIRST_TEST = 1200
VINYALS_VALID = ("Armenian", "Bengali", "Early_Aramaic", "Hebrew", "Mkhedruli_(Georgian)")
CHUNK = 1000
_ENTRY = re.compile(r"(images_\w+)/([^/]+)/(character\d\d)/\d{4}_(\d\d)\.png")


@settings
class OmniglotSettings(SplitSettings):
    """How large the pictures are made."""

    size: Annotated[int, Interval(ge=1, le=SIDE)]


class Drawing(NamedTuple):
    """A picture in a zip: whose alphabet, which character, drawn by whom (0 to 19), and its name there."""

    alphabet: str
    character: str
    drawer: int
    entry: str


def area_resize(ink: Tensor, size: int) -> Tensor:
    """Shrink binary pictures [N, S, S] to uint8 [N, size, size] by the mean over the area that each pixel covers.

    An output pixel covers S/size input pixels a side, cut at fractions of a pixel; its value is 255 · the covered
    share of ink, rounded half up. All is counted in whole numbers (overlaps in units of 1/size of an input pixel, so
    S² for a pixel full of ink), which float32 holds exactly below 2²⁴: the result is the same on every machine.
    NumPy multiplies, since torch may be told to round float32 products.
    """
    side = ink.shape[-1]
    edges = np.arange(side) * size
    starts = np.arange(size)[:, None] * side
    overlap = np.minimum(edges + size, starts + side) - np.maximum(edges, starts)
    weights = overlap.clip(min=0).astype(np.float32)
    rows = ink.numpy().astype(np.float32).reshape(-1, side) @ weights.T
    covered = (weights @ rows.reshape(-1, side, size)).astype(np.int64)
    return torch.from_numpy(((2 * 255 * covered + side * side) // (2 * side * side)).astype(np.uint8))


def list_drawings(path: Path) -> list[Drawing]:
    """The pictures in a zip, sorted by alphabet, character and drawer; complete, or Damaged is raised."""
    try:
        with zipfile.ZipFile(path) as archive:
            matches = [_ENTRY.fullmatch(name) for name in archive.namelist()]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise Damaged(path, f"is truncated or no zip at all ({error})") from error
    folder = path.stem
    found = (match for match in matches if match and match[1] == folder)
    drawings = sorted(Drawing(match[2], match[3], int(match[4]) - 1, match[0]) for match in found)
    expected = CHARACTERS[folder]
    characters = sorted({drawing[:2] for drawing in drawings})
    if len(characters) != expected:
        raise Damaged(path, f"is not the right file: it holds {len(characters):,} characters, not {expected:,}")
    if [drawing[:3] for drawing in drawings] != [(*name, drawer) for name in characters for drawer in range(DRAWERS)]:
        raise Damaged(path, f"is not the right file: not every character in it has the drawings 01 to {DRAWERS}")
    return drawings


def read_ink(path: Path, drawings: Sequence[Drawing]) -> Iterator[Tensor]:
    """The pictures as bool [≤ 1000, 105, 105], ink = True; decoded in chunks, since all of them take 360 MB."""
    with zipfile.ZipFile(path) as archive:
        for start in range(0, len(drawings), CHUNK):
            chunk = [_decode(archive, path, drawing.entry) for drawing in drawings[start : start + CHUNK]]
            yield torch.from_numpy(np.stack(chunk))


def _decode(archive: zipfile.ZipFile, path: Path, entry: str) -> np.ndarray:
    """One picture, bool [105, 105]; black ink on white paper in the file."""
    try:
        with Image.open(io.BytesIO(archive.read(entry)), formats=("PNG",)) as picture:
            if picture.size != (SIDE, SIDE):
                raise Damaged(path, f"is not the right file: {entry} is not {SIDE}×{SIDE}")
            return np.asarray(picture.convert("L")) < 128
    except Damaged:
        raise
    except Exception as error:  # zip, zlib and PNG readers fail in many ways, and say it with addresses of objects
        raise Damaged(path, f"is corrupt: {entry} cannot be read ({type(error).__name__})") from error


def decode(paths: Sequence[Path], size: int) -> Decoded:
    """All pictures of the zips, uint8 [N, 1, size, size] (255 = ink), and the names of the characters in order."""
    images: list[Tensor] = []
    names: list[str] = []
    for path in paths:
        drawings = list_drawings(path)
        names.extend(f"{drawing.alphabet}/{drawing.character}" for drawing in drawings[::DRAWERS])
        images.extend(area_resize(ink, size) for ink in read_ink(path, drawings))
    return Decoded(torch.cat(images).unsqueeze(1), tuple(names))


def vinyals_splits() -> dict[str, tuple[int, ...]]:
    """The classes of train, valid and test in the division by Vinyals et al. 2016."""
    alphabets = (pair for folder in ALPHABETS.values() for pair in folder.items())
    owners = [alphabet for alphabet, characters in alphabets for _ in range(characters)]
    known = range(VINYALS_FIRST_TEST)
    return {
        "train": tuple(number for number in known if owners[number] not in VINYALS_VALID),
        "valid": tuple(number for number in known if owners[number] in VINYALS_VALID),
        "test": tuple(range(VINYALS_FIRST_TEST, len(owners))),
    }


def _file(stem: str, sha256: str, size: int) -> RemoteFile:
    below = f"brendenlake/omniglot/{{}}master/python/{stem}.zip"
    urls = ("https://github.com/" + below.format("raw/"), "https://raw.githubusercontent.com/" + below.format(""))
    return RemoteFile(f"python/{stem}.zip", sha256, size, urls, also=(f"{stem}.zip",))


class Omniglot:
    """Handwritten characters; the class is the character, the group is the person who drew it."""

    settings = OmniglotSettings
    name: ClassVar[str] = "omniglot"
    files: ClassVar[tuple[RemoteFile, ...]] = (
        _file("images_background", "ad41ab679c8b5d90b271ef46be6987cc81211774a695c29dcc5367b2b26ee640", 9_464_212),
        _file("images_evaluation", "1f61a8f3366785b057fc117d9228e78a16e3d976c8953b2a10fcc74cf0609cee", 6_462_886),
    )

    def __init__(self, settings: OmniglotSettings) -> None:
        self.config = settings

    def spec(self) -> Spec:
        """One grey picture → one of 1,623 characters, in groups by alphabet."""
        alphabets = {name: count for folder in ALPHABETS.values() for name, count in folder.items()}
        image, target = (1, self.config.size, self.config.size), Classes(sum(CHARACTERS.values()))
        return Spec({"image": image}, target, alphabets, class_splits=vinyals_splits())

    @classmethod
    def check(cls, name: str, path: Path) -> str:
        """Decode every picture of a zip."""
        for _ in read_ink(path, list_drawings(path)):
            pass
        return ""

    def names(self, source: Source) -> tuple[str, ...]:
        """The name of each class, like "Greek/character01": background alphabets first, each part sorted."""
        return self._decoded(source)[0].names

    def load(self, source: Source) -> Loaded:
        """uint8 [32460, 1, size, size], ink = 255; target = index into `names`, group = who drew it, 0 to 19.

        There is no official test split into drawings: the official parts hold different characters, and are for
        learning new ones from a few examples.
        """
        decoded, identities = self._decoded(source)
        target = torch.arange(len(decoded.names)).repeat_interleave(DRAWERS)
        group = torch.arange(DRAWERS).repeat(len(decoded.names))
        files = vouch(self.name, identities, {}, source.note)
        return Loaded(Split({"image": decoded.images}, target, group), scale=255, files=files)

    def _decoded(self, source: Source) -> tuple[Decoded, list[Identity]]:
        paths = locate(source.data_dir, self.name, self.files, source.download, source.note)
        with remedy(self.name, source.data_dir):
            identities = [identify(file, paths[file.name]) for file in self.files]
            hashes = [identity.hashes[file.name] for identity, file in zip(identities, self.files, strict=True)]
            zips = list(paths.values())
            key = f"omniglot {self.config.size} area {' '.join(hashes)}"
            decoded = cached(zips[0].parent, self.name, key, lambda: decode(zips, self.config.size), source.note)
        return decoded, identities
