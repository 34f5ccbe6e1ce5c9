"""MNIST and the data sets made in its image: four idx files of 60,000 + 10,000 grey pictures, 28×28, ten classes.

The idx format (LeCun's MNIST page): two zero bytes, one byte for the type of the elements (8: unsigned byte), one for
the number of axes, a big-endian 32-bit length for each axis, then the elements in row-major order.
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from advml.contracts import Classes, Spec, Split
from advml.data.files import Damaged, Identity, RemoteFile, identify, locate, remedy, vouch
from advml.data.source import Loaded, Source, SplitSettings


def read_idx(path: Path) -> Tensor:
    """The array of bytes in an idx file, packed by gzip or not: uint8, of the shape that the file states."""
    try:
        raw = path.read_bytes()
        content = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except EOFError as error:
        raise Damaged(path, "is truncated: its gzip stream ends too early") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise Damaged(path, f"is corrupt: gzip says {error}") from error
    except OSError as error:
        raise Damaged(path, f"cannot be read ({error.strerror})") from error
    if not content:
        raise Damaged(path, "is empty")
    if len(content) < 4 or content[:3] != b"\x00\x00\x08" or not 1 <= content[3] <= 8:
        raise Damaged(path, f"is no idx file of bytes: it starts with 0x{content[:4].hex()}")

    start = 4 + 4 * content[3]
    if len(content) < start:
        raise Damaged(path, "is truncated: its header ends too early")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    if len(content) - start != math.prod(shape):
        word = "truncated" if len(content) - start < math.prod(shape) else "too long"
        promise = f"its header promises {math.prod(shape):,} bytes, {len(content) - start:,} follow"
        raise Damaged(path, f"is {word}: {promise}")
    # With its header the buffer is never empty, which frombuffer refuses; a bytearray may be written to.
    values = torch.frombuffer(bytearray(content), dtype=torch.uint8)
    return values[start:].reshape(shape).clone()


def _files(mirrors: tuple[str, ...], **known: tuple[str, int]) -> tuple[RemoteFile, ...]:
    """The four files in the order of NAMES: `train_images=(SHA-256, bytes)` and so on, below each mirror's address."""
    files = []
    for part, name in NAMES.items():
        sha256, size = known[part]
        urls = tuple(mirror + name for mirror in mirrors)
        files.append(RemoteFile(name, sha256, size, urls, also=(name.removesuffix(".gz"),)))
    return tuple(files)


NAMES = {
    "train_images": "train-images-idx3-ubyte.gz",
    "train_labels": "train-labels-idx1-ubyte.gz",
    "test_images": "t10k-images-idx3-ubyte.gz",
    "test_labels": "t10k-labels-idx1-ubyte.gz",
}
SHAPES = {
    "train_images": (60_000, 28, 28),
    "train_labels": (60_000,),
    "test_images": (10_000, 28, 28),
    "test_labels": (10_000,),
}


class _Idx:
    settings = SplitSettings
    name: ClassVar[str]
    files: ClassVar[tuple[RemoteFile, ...]]

    def __init__(self, settings: SplitSettings) -> None:
        self.config = settings

    def spec(self) -> Spec:
        """One 28×28 grey picture → one of ten classes."""
        return Spec({"image": (1, 28, 28)}, Classes(10))

    @classmethod
    def check(cls, name: str, path: Path) -> str:
        """Read one of the files; raise Damaged unless its shape and its labels are right."""
        cls._read(next(file for file in cls.files if file.name == name), path)
        return ""

    @classmethod
    def _read(cls, file: RemoteFile, path: Path) -> tuple[Identity, Tensor]:
        identity = identify(file, path)
        stranger = None if identity.official else _owner(identity.hashes[file.name])
        if stranger:
            raise Damaged(path, f"is not the right file: it is {stranger}")
        values = read_idx(path)
        expected = next(SHAPES[part] for part, name in NAMES.items() if name == file.name)
        if values.shape != expected:
            raise Damaged(path, f"is not the right file: it holds {_shown(values.shape)} bytes, not {_shown(expected)}")
        if values.dim() == 1 and values.amax() > 9:
            raise Damaged(path, f"is not the right file: it holds the label {values.amax()}, and the labels are 0 to 9")
        return identity, values

    def load(self, source: Source) -> Loaded:
        """Read the four files; uint8 [60000, 1, 28, 28] and the official test split."""
        paths = locate(source.data_dir, self.name, self.files, source.download, source.note)
        with remedy(self.name, source.data_dir):
            read = [self._read(file, paths[file.name]) for file in self.files]
        identities = [identity for identity, _ in read]
        images, labels, test_images, test_labels = (values for _, values in read)
        train = Split({"image": images.unsqueeze(1)}, labels.long())
        test = Split({"image": test_images.unsqueeze(1)}, test_labels.long())
        return Loaded(train, test, scale=255, files=vouch(self.name, identities, {}, source.note))


class Mnist(_Idx):
    """Handwritten digits (LeCun, Bottou, Bengio, Haffner 1998)."""

    name = "mnist"
    files = _files(
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        train_images=("440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609", 9_912_422),
        train_labels=("3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c", 28_881),
        test_images=("8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6", 1_648_877),
        test_labels=("f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6", 4_542),
    )


class FashionMnist(_Idx):
    """Photographs of clothing: T-shirt, trouser, pullover, dress, coat, sandal, shirt, sneaker, bag, ankle boot
    (Xiao, Rasul, Vollgraf 2017).
    """

    name = "fashion_mnist"
    files = _files(
        (
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
        ),
        train_images=("3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84", 26_421_880),
        train_labels=("a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845", 29_515),
        test_images=("346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073", 4_422_102),
        test_labels=("67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5", 5_148),
    )


class Kmnist(_Idx):
    """Cursive Japanese characters, one of each row of the syllabary: o, ki, su, tsu, na, ha, ma, ya, re, wo
    (Clanuwat et al. 2018).
    """

    name = "kmnist"
    files = _files(
        (
            "https://codh.rois.ac.jp/kmnist/dataset/kmnist/",
            "https://huggingface.co/datasets/tanganke/kmnist/resolve/756d43e894032ce8838db8b32e7500c9c3b5d050/raw/",
        ),
        train_images=("51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4", 18_165_135),
        train_labels=("e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17", 29_497),
        test_images=("edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5", 3_041_136),
        test_labels=("20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c", 5_120),
    )


def _owner(sha256: str) -> str | None:
    """Whose official file has this checksum: the four names are the same in every data set, and easily mixed up."""
    sets: tuple[type[_Idx], ...] = (Mnist, FashionMnist, Kmnist)
    return next((f"{file.name} of {each.name}" for each in sets for file in each.files if file.sha256 == sha256), None)


def _shown(shape: tuple[int, ...]) -> str:
    return "×".join(f"{length:,}" for length in shape)
