"""AV-digits: MNIST pictures and spoken digits, paired by class by a keyed recipe.

Its kin, AV-MNIST (Vielzeuf et al. 2018), was published without the program that made it. Here the recipe is this file,
the sources are public, and the pairs have a hash.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import torch
from annotated_types import Ge
from torch import Tensor

from advml.config import CountFloat, CountInt, PositiveInt, settings
from advml.contracts import Classes, Rng, Spec, Split, Stream
from advml.data.fsdd import SPEAKERS, TEST_TAKES, Fsdd, Recordings
from advml.data.idx import Mnist
from advml.data.source import Loaded, Source, SplitSettings
from advml.errors import ConfigError

SIDE = 28
TEST_SPEAKERS, VALID_SPEAKERS = 2, 1  # how many are drawn where none are named
PARTS = ("train", "valid", "test")

Speaker = Literal["george", "jackson", "lucas", "nicolas", "theo", "yweweler"]


@settings
class AvDigitsSettings(SplitSettings):
    """What is asked, who speaks in the test, how many pairs there are, how noisy they are."""

    task: Literal["digit", "same"]
    split: Literal["official", "speakers"]
    test_speakers: tuple[Speaker, ...] | None
    valid_speakers: tuple[Speaker, ...] | None
    train_pairs: Annotated[int, Ge(20)]
    valid_pairs: CountInt
    test_pairs: CountInt
    pixel_noise: CountFloat
    mel_noise: CountFloat
    bands: PositiveInt
    frames: PositiveInt


class Pairs(NamedTuple):
    """Place of the picture in its file, place of the recording among all, target: int64 [N] each."""

    image: Tensor
    recording: Tensor
    target: Tensor

    def digest(self) -> str:
        """The SHA-256 of all pairs in order."""
        return hashlib.sha256(torch.stack(self, 1).numpy().tobytes()).hexdigest()


def asked(count: int, task: str) -> tuple[Tensor, Tensor, Tensor]:
    """(digit shown, digit said, target) of each pair, int64 [count].

    Task `digit`: both are the target, each digit as often. Task `same`: pairs 2 i and 2 i + 1 show the same digit; in
    the first another is said (0), in the second the same (1), and the other one is each of the nine in turn. So with a
    multiple of 180 pairs either digit alone says nothing about the target, and with any number hardly anything.
    """
    number = torch.arange(count)
    if task == "digit":
        digit = number % 10
        return digit, digit, digit
    same = number % 2
    shown = number // 2 % 10
    other = (shown + 1 + number // 20 % 9) % 10
    return shown, torch.where(same == 1, shown, other), same


def in_turn(wanted: Tensor, kinds: Tensor, generator: torch.Generator, again: bool) -> Tensor:
    """For each of `wanted` (int64 [N]) the place of an item of that kind in `kinds` (int64 [M], −1 = not to be used).

    Items of a kind are used in a shuffled order, all of them before any a second time (`again`), reshuffled each time.
    Raises ConfigError where they do not suffice.
    """
    chosen = torch.empty(len(wanted), dtype=torch.int64)
    for kind in wanted.unique().tolist():
        places, items = (wanted == kind).nonzero().flatten(), (kinds == kind).nonzero().flatten()
        if not len(items) or (len(places) > len(items) and not again):
            cure = "use fewer pairs" if len(items) else "use a larger dataset.valid"
            there = f"there are {len(items):,}"
            raise ConfigError(f"dataset: {len(places):,} pairs want a digit {kind}, and {there}; {cure}")
        rounds = [items[torch.randperm(len(items), generator=generator)] for _ in range(-(-len(places) // len(items)))]
        chosen[places] = torch.cat(rounds)[: len(places)]
    return chosen


def recordings_of(config: AvDigitsSettings, read: Recordings, rng: Rng) -> dict[str, Tensor]:
    """Part → bool [recordings], who and what may be heard in it. No recording is in two of them.

    Split `official`: takes 0 to 4 are for testing; of the others a keyed share `valid` of each digit and speaker is to
    validate on. Split `speakers`: nobody speaks in two parts, so that validation too is about unknown voices.
    """
    if config.split == "speakers":
        named = speakers_of(config, rng)
        numbers = {part: torch.tensor([SPEAKERS.index(name) for name in names]) for part, names in named.items()}
        return {part: torch.isin(read.speaker, chosen) for part, chosen in numbers.items()}
    test = read.take < TEST_TAKES
    valid = torch.zeros_like(test)
    draw = rng("data", "av_digits", "valid takes")
    kinds = read.digit * len(SPEAKERS) + read.speaker
    for kind in kinds.unique().tolist():
        takes = ((kinds == kind) & ~test).nonzero().flatten()
        shuffled = takes[torch.randperm(len(takes), generator=draw)]
        valid[shuffled[: round(config.valid * len(takes))]] = True
    return {"train": ~test & ~valid, "valid": valid, "test": test}


def speakers_of(config: AvDigitsSettings, rng: Rng) -> dict[str, tuple[str, ...]]:
    """Part → who speaks in it; those not named in the settings are drawn by key. Raises ConfigError."""
    if config.split == "official":
        return dict.fromkeys(PARTS, SPEAKERS)
    test: tuple[str, ...] | None = config.test_speakers
    valid: tuple[str, ...] | None = config.valid_speakers
    order = [SPEAKERS[place] for place in torch.randperm(len(SPEAKERS), generator=rng("data", "av_digits", "speakers"))]
    if test is None:
        test = tuple([name for name in order if name not in (valid or ())][:TEST_SPEAKERS])
    if valid is None:
        valid = tuple([name for name in order if name not in test][:VALID_SPEAKERS])
    train = tuple(name for name in SPEAKERS if name not in test and name not in valid)
    if not train or not test or len({*test, *valid}) < len(test) + len(valid):
        raise ConfigError(
            "dataset.test_speakers, dataset.valid_speakers: name each speaker once, one or more to test on, and "
            "leave one or more to train on"
        )
    return {"train": train, "valid": valid, "test": test}


class AvDigits:
    """A noisy picture of a digit and a noisy recording of one, in log-mel frames; the group is the speaker, the
    meaning the digit shown.

    Task `digit` (redundant): both are of the digit that is asked for; given the digit they are independent, so that
    the product of two experts is the best there can be. Task `same` (synergy): are they of the same digit? Half are.
    """

    settings: ClassVar[type] = AvDigitsSettings
    by_hand: ClassVar[str] = "is made from mnist and fsdd; name these"

    def __init__(self, settings: AvDigitsSettings) -> None:
        self.config = settings

    def spec(self) -> Spec:
        """A picture, frames of a sound and which of them are real → a digit, or whether both are of one."""
        config = self.config
        inputs = {"image": (1, SIDE, SIDE), "audio": (config.frames, config.bands), "audio_mask": (config.frames,)}
        streams = {"image": Stream("image"), "audio": Stream("frames", "audio_mask")}
        matched = config.task == "digit"
        return Spec(inputs, Classes(10 if matched else 2), streams=streams, matched=matched)

    def load(self, source: Source) -> Loaded:
        """Read both data sets and pair them. Training and validation pictures are MNIST's training pictures."""
        config, rng = self.config, source.rng
        speakers = speakers_of(config, rng)
        pictures = Mnist(config).load(source)
        read, files = Fsdd.recordings(source, config.bands, config.frames)
        heard = recordings_of(config, read, rng)
        assert pictures.test is not None
        free, made, record = pictures.examples.target.clone(), {}, {}
        for part, count in zip(PARTS, (config.train_pairs, config.valid_pairs, config.test_pairs), strict=True):
            shown = pictures.test if part == "test" else pictures.examples
            pairs = self._pairs(part, count, shown.target if part == "test" else free, read.digit, heard[part], rng)
            if part != "test":
                free[pairs.image] = -1  # a picture is used once
            examples = self._examples(part, pairs, shown.inputs["image"], read, rng)
            made[part] = replace(examples, meaning=shown.target[pairs.image])
            who = read.speaker[pairs.recording].bincount(minlength=len(SPEAKERS)).tolist()
            record[part] = {
                "pairs": count, "sha256": pairs.digest(), "recordings": len(pairs.recording.unique()),
                "speakers": list(speakers[part]), "per_speaker": dict(zip(SPEAKERS, who, strict=True)),
            }  # fmt: skip
        hashes = {f"mnist/{name}": value for name, value in pictures.files.items()}
        hashes |= {f"fsdd/{name}": value for name, value in files.items()}
        told: dict[str, Any] = {"pairing": {"task": config.task, "split": config.split, **record}}
        return Loaded(made["train"], made["test"], files=hashes, record=told, valid=made["valid"])

    def _pairs(self, part: str, count: int, pictures: Tensor, digits: Tensor, heard: Tensor, rng: Rng) -> Pairs:
        shown, said, target = asked(count, self.config.task)
        image = in_turn(shown, pictures, rng("data", "av_digits", "pictures", part), again=False)
        usable = torch.where(heard, digits, -1)
        recording = in_turn(said, usable, rng("data", "av_digits", "recordings", part), again=True)
        return Pairs(image, recording, target)

    def _examples(self, part: str, pairs: Pairs, pictures: Tensor, read: Recordings, rng: Rng) -> Split:
        """Pictures in [0, 1] with noise on every pixel, log-mel frames with noise on the real ones, both float32."""
        draw = rng("data", "av_digits", "noise", part)
        image = pictures[pairs.image].float() / 255
        image += self.config.pixel_noise * torch.randn(image.shape, generator=draw)
        audio, mask = read.audio[pairs.recording], read.mask[pairs.recording]
        audio += self.config.mel_noise * torch.randn(audio.shape, generator=draw) * mask.unsqueeze(2)
        return Split({"image": image, "audio": audio, "audio_mask": mask}, pairs.target, read.speaker[pairs.recording])
