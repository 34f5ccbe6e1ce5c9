"""Tiny Shakespeare: the next character of what a role says (Karpathy 2015; by roles: McMahan et al. 2017).

The file holds speeches of several plays: a line "NAME:", the lines of the speech, an empty line. It does not say where
a play begins, so that roles of the same name are one role: "First Citizen", "Messenger".
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from advml.config import CountInt, PositiveInt, settings
from advml.contracts import Classes, Spec, Split
from advml.data.files import Damaged, Identity, RemoteFile, identify, locate, remedy, vouch
from advml.data.source import Loaded, Source, SplitSettings
from advml.errors import ConfigError

VOCABULARY = "\n !$&',-.3:;?ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_PLACE = torch.full((256,), 255, dtype=torch.uint8)
_PLACE[list(VOCABULARY.encode())] = torch.arange(len(VOCABULARY), dtype=torch.uint8)


@settings
class ShakespeareSettings(SplitSettings):
    """How the text of a role is cut into sequences."""

    length: PositiveInt
    stride: PositiveInt
    least_characters: CountInt


class Sequences(NamedTuple):
    """Tokens uint8 [N, length], the token that follows each int64 [N], the number of its role int64 [N]."""

    text: Tensor
    following: Tensor
    role: Tensor


def encode(text: str) -> Tensor:
    """The places of the characters in the vocabulary, uint8 [len(text)]. The text must hold no others."""
    return _PLACE[torch.tensor(list(text.encode("ascii")), dtype=torch.int64)]


def by_role(play: str) -> dict[str, str]:
    """Role → all that it says, line after line, in the order of the first speeches.

    Names are compared in capitals, since the file has "Nurse" and "NURSE".
    """
    lines: dict[str, list[str]] = {}
    name, before = "", ""
    for line in play.split("\n"):
        if not before and line.endswith(":"):
            name = " ".join(line[:-1].upper().split())
            lines.setdefault(name, [])
        elif line and name:
            lines[name].append(line + "\n")
        before = line
    return {name: "".join(said) for name, said in lines.items()}


def sequences(texts: Iterable[Tensor], length: int, stride: int) -> Sequences:
    """Windows of `length` tokens of each text, starting every `stride` tokens, each with a token after it.

    A text that is not longer than `length` gives none.
    """
    windows = [text.unfold(0, length + 1, stride) for text in texts if len(text) > length]
    roles = [number for number, text in enumerate(texts) if len(text) > length]
    if not windows:
        nothing = torch.empty(0, dtype=torch.int64)
        return Sequences(torch.empty(0, length, dtype=torch.uint8), nothing, nothing)
    whole = torch.cat(windows)
    role = torch.tensor(roles).repeat_interleave(torch.tensor([len(window) for window in windows]))
    return Sequences(whole[:, :-1].contiguous(), whole[:, -1].long(), role)


class Shakespeare:
    """Sequences of characters; the class is the character that follows, the group is the role that speaks."""

    settings = ShakespeareSettings
    name: ClassVar[str] = "shakespeare"
    files: ClassVar[tuple[RemoteFile, ...]] = (
        RemoteFile(
            "input.txt",
            "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
            1_115_394,
            tuple(
                f"https://raw.githubusercontent.com/karpathy/char-rnn/{version}/data/tinyshakespeare/input.txt"
                for version in ("master", "6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e")
            ),
        ),
    )

    def __init__(self, settings: ShakespeareSettings) -> None:
        self.config = settings

    def spec(self) -> Spec:
        """`length` characters → the next one, out of 65."""
        count = len(VOCABULARY)
        return Spec({"text": (self.config.length,)}, Classes(count), tokens={"text": count})

    @classmethod
    def check(cls, name: str, path: Path) -> str:
        """Read the file; raise Damaged unless its text is the official one."""
        cls._read(path)
        return ""

    @classmethod
    def _read(cls, path: Path) -> tuple[Identity, str]:
        """Only the ends of the lines may be other ones, as some programs that copy texts make them."""
        (file,) = cls.files
        identity = identify(file, path)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise Damaged(path, f"cannot be read ({error.strerror})") from error
        content = content.replace(b"\r\n", b"\n")
        if hashlib.sha256(content).hexdigest() != file.sha256:
            what = f"it has {len(content):,} characters, the official text {file.size:,}"
            raise Damaged(path, f"is not the right file: {'its text differs' if len(content) == file.size else what}")
        return identity, content.decode("ascii")

    def load(self, source: Source) -> Loaded:
        """uint8 [N, length]; target = the next character, group = the role, numbered by its first speech.

        As in McMahan et al. 2017 the last part of what each role says, `test` of its characters, is for testing: no
        character of it is seen in training.
        """
        paths = locate(source.data_dir, self.name, self.files, source.download, source.note)
        with remedy(self.name, source.data_dir):
            identity, play = self._read(paths["input.txt"])
        config = self.config
        said = {name: text for name, text in by_role(play).items() if len(text) >= config.least_characters}
        texts = [encode(text) for text in said.values()]
        ends = [len(text) - round(config.test * len(text)) for text in texts]
        train = sequences([text[:end] for text, end in zip(texts, ends, strict=True)], config.length, config.stride)
        test = sequences([text[end:] for text, end in zip(texts, ends, strict=True)], config.length, config.stride)
        if not len(train.role):
            raise ConfigError(f"dataset.length={config.length}: no role says so much; use a smaller one")
        record = {"roles": list(said), "vocabulary": VOCABULARY}
        files = vouch(self.name, [identity], {identity.path: "its lines end otherwise"}, source.note)
        examples, held_out = (Split({"text": part.text}, part.following, part.role) for part in (train, test))
        return Loaded(examples, held_out, files=files, record=record)
