"""Free Spoken Digit Dataset: 3,000 recordings of English digits by six speakers, 8 kHz (Jackson et al. 2018)."""

from __future__ import annotations

import hashlib
import re
import zipfile
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from advml.config import PositiveInt, settings
from advml.contracts import Classes, Spec, Split, Stream
from advml.data.files import Damaged, RemoteFile, identify, locate, remedy, vouch
from advml.data.mel import log_mel, mel_filters, pad_frames, read_wav
from advml.data.source import Loaded, Source, SplitSettings

RATE = 8000
WINDOW, HOP = 256, 128  # samples: 32 and 16 ms
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")
TAKES = 50  # of each digit by each speaker
TEST_TAKES = 5  # the takes 0 to 4 are the official test split
COMMIT = "26eb9aaf76e81b692f806f9140c2d2777410d7a1"
_ENTRY = re.compile(r"(?:.*/)?(\d)_([a-z]+)_(\d{1,2})\.wav")


class Recordings(NamedTuple):
    """Log-mel frames [N, T, bands], their mask [N, T], digit, speaker (place in SPEAKERS) and take, int64 [N].

    In the order of digit, speaker, take.
    """

    audio: Tensor
    mask: Tensor
    digit: Tensor
    speaker: Tensor
    take: Tensor


def entries(path: Path) -> dict[tuple[int, str, int], bytes]:
    """(digit, speaker, take) → the WAV file, of all 3,000 in a zip, in order. Raises Damaged unless all are there."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = {}
            for name in archive.namelist():
                if match := _ENTRY.fullmatch(name):
                    found[int(match[1]), match[2], int(match[3])] = archive.read(name)
    except Exception as error:  # readers of zips fail in many ways
        raise Damaged(path, f"is truncated or no zip at all ({type(error).__name__})") from error
    expected = [(digit, name, take) for digit in range(10) for name in SPEAKERS for take in range(TAKES)]
    if missing := [key for key in expected if key not in found]:
        one = "_".join(map(str, missing[0])) + ".wav"
        raise Damaged(path, f"is not the right file: {len(missing):,} of 3,000 recordings are not in it, such as {one}")
    return {key: found[key] for key in expected}


def content(path: Path) -> str:
    """The SHA-256 of names and bytes of the 3,000 recordings in a zip, whatever else is in it and however packed."""
    digest = hashlib.sha256()
    for (digit, speaker, take), recording in entries(path).items():
        digest.update(f"{digit}_{speaker}_{take}.wav {len(recording)}\n".encode())
        digest.update(recording)
    return digest.hexdigest()


def read_recordings(path: Path, bands: int, length: int) -> Recordings:
    """All recordings as log-mel frames, cut or padded to `length` frames of 16 ms."""
    filters = mel_filters(bands, WINDOW, RATE)
    found = entries(path)
    sounds = []
    for (digit, speaker, take), recording in found.items():
        try:
            sounds.append(log_mel(read_wav(recording, RATE), filters, WINDOW, HOP))
        except ValueError as error:
            raise Damaged(path, f"is not the right file: {digit}_{speaker}_{take}.wav is {error}") from error
    audio, mask = pad_frames(sounds, length)
    digits, speakers, takes = zip(*found, strict=True)
    numbers = torch.tensor([SPEAKERS.index(name) for name in speakers])
    return Recordings(audio, mask, torch.tensor(digits), numbers, torch.tensor(takes))


@settings
class FsddSettings(SplitSettings):
    """Of how many frames of how many bands a recording is."""

    bands: PositiveInt
    frames: PositiveInt


class Fsdd:
    """Spoken digits; the class is the digit, the group is the speaker."""

    settings: ClassVar[type] = FsddSettings
    name: ClassVar[str] = "fsdd"
    files: ClassVar[tuple[RemoteFile, ...]] = (
        RemoteFile(
            "recordings.zip",
            "61a272ed8401ecbae6aa84bc84d2bfdafe4f4d125e44e1fbbcd96d8e4bdca77d",
            16_157_653,
            (
                f"https://codeload.github.com/Jakobovski/free-spoken-digit-dataset/zip/{COMMIT}",
                f"https://github.com/Jakobovski/free-spoken-digit-dataset/archive/{COMMIT}.zip",
            ),
            content=content,
        ),
    )

    def __init__(self, settings: FsddSettings) -> None:
        self.config = settings

    def spec(self) -> Spec:
        """Frames of a sound and which of them are real → one of ten digits."""
        config = self.config
        inputs = {"audio": (config.frames, config.bands), "audio_mask": (config.frames,)}
        return Spec(inputs, Classes(10), streams={"audio": Stream("frames", "audio_mask")})

    @classmethod
    def check(cls, name: str, path: Path) -> str:
        """Read every recording."""
        read_recordings(path, 1, 1)
        return ""

    @classmethod
    def recordings(cls, source: Source, bands: int, length: int) -> tuple[Recordings, dict[str, str]]:
        """All recordings, and the hash of the file."""
        (file,) = cls.files
        paths = locate(source.data_dir, cls.name, cls.files, source.download, source.note)
        with remedy(cls.name, source.data_dir):
            identity = identify(file, paths[file.name])
            read = read_recordings(paths[file.name], bands, length)
        return read, vouch(cls.name, [identity], {}, source.note)

    def load(self, source: Source) -> Loaded:
        """float32 [2700, frames, bands] and the official test split, takes 0 to 4 of each digit and speaker."""
        read, files = self.recordings(source, self.config.bands, self.config.frames)
        whole = Split({"audio": read.audio, "audio_mask": read.mask}, read.digit, read.speaker)
        tested = read.take < TEST_TAKES
        train, test = (whole.take(which.nonzero().flatten()) for which in (~tested, tested))
        return Loaded(train, test, files=files, record={"speakers": list(SPEAKERS)})
