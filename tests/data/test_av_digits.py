"""Spoken digits and AV-digits on a small made archive; the real files where there are any."""

import gzip
import io
import struct
import wave
import zipfile

import numpy as np
import pytest
import torch

from advml.contracts import Classes
from advml.data import av_digits, fsdd
from advml.data.av_digits import AvDigits, AvDigitsSettings, asked, in_turn, recordings_of, speakers_of
from advml.data.fetch import RemoteFile
from advml.data.files import Damaged
from advml.data.fsdd import SPEAKERS, Fsdd, FsddSettings, Recordings, content, entries, read_recordings
from advml.data.idx import NAMES, Mnist
from advml.data.mel import mel_filters
from advml.data.source import Source, split
from advml.errors import AdvmlError, ConfigError
from advml.nn.multimodal.losses import recall_at, same_meaning
from advml.runner.randomness import KeyedRng

TAKES, TEST_TAKES = 4, 1


def recording(digit, speaker, take):
    """A tone whose height is the digit, of a length that tells speaker and take."""
    count = 300 + 40 * SPEAKERS.index(speaker) + 10 * take
    samples = 8000 * np.sin(2 * np.pi * (300 + 300 * digit) / 8000 * np.arange(count))
    stream = io.BytesIO()
    with wave.open(stream, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(samples.astype("<i2").tobytes())
    return stream.getvalue()


def pack(path, folder="recordings/", skip=(), compression=zipfile.ZIP_STORED, changed=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr(folder + "README.md", "spoken digits")
        for digit in reversed(range(10)):
            for speaker in SPEAKERS:
                for take in range(TAKES):
                    key = (digit, speaker, take)
                    if key not in skip:
                        told = changed if changed is not None and key == (3, "theo", 1) else recording(*key)
                        archive.writestr(f"{folder}{digit}_{speaker}_{take}.wav", told)
    return path


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(fsdd, "TAKES", TAKES)
    monkeypatch.setattr(fsdd, "TEST_TAKES", TEST_TAKES)
    monkeypatch.setattr(av_digits, "TEST_TAKES", TEST_TAKES)


@pytest.fixture
def data_dir(few, tmp_path, monkeypatch):
    """A zip of 240 tones, and MNIST files in which a picture is its label and its number."""
    pack(tmp_path / "fsdd" / "recordings.zip")
    shapes = {"train": 200, "test": 100}
    (tmp_path / "mnist").mkdir()
    for part, count in shapes.items():
        labels = torch.arange(count) % 10
        images = torch.zeros(count, 28, 28, dtype=torch.uint8)
        images[:, 0, 0], images[:, 0, 1] = labels.to(torch.uint8) * 20, torch.arange(count).to(torch.uint8)
        for kind, values in (("images", images), ("labels", labels.to(torch.uint8))):
            header = b"\0\0\x08" + bytes([values.dim()]) + struct.pack(f">{values.dim()}I", *values.shape)
            file = tmp_path / "mnist" / NAMES[f"{part}_{kind}"]
            file.write_bytes(gzip.compress(header + values.numpy().tobytes()))
    monkeypatch.setattr("advml.data.idx.SHAPES", {
        "train_images": (200, 28, 28), "train_labels": (200,), "test_images": (100, 28, 28), "test_labels": (100,),
    })  # fmt: skip
    return tmp_path


def config(split_values, **changes):
    values = {"task": "digit", "split": "official", "test_speakers": ("theo", "lucas"), "valid_speakers": None,
              "train_pairs": 100, "valid_pairs": 40, "test_pairs": 60, "pixel_noise": 0.0, "mel_noise": 0.0,
              "bands": 4, "frames": 5, "valid": 0.4}  # fmt: skip
    return AvDigitsSettings(**split_values | values | changes)


def load(settings, data_dir, seed=0):
    return AvDigits(settings).load(Source(KeyedRng(seed), data_dir, note=lambda text: None))


def digits_of(examples):
    """(digit shown, digit said) of noiseless examples: the bright pixel, and the loudest of ten bands."""
    loudest = examples.inputs["audio"][:, 0].argmax(1)
    centres = (mel_filters(60, 256, 8000).argmax(1) * 8000 / 256).float()
    heard = ((centres[loudest] - 300) / 300).round().long()
    return (examples.inputs["image"][:, 0, 0, 0] * 255 / 20).round().long(), heard


# --- the archive --------------------------------------------------------------------------------------------------


def test_an_archive_is_known_by_what_is_in_it(few, tmp_path):
    first = pack(tmp_path / "a.zip")
    again = pack(tmp_path / "b.zip", "free-spoken-digit-dataset-26eb/recordings/", compression=zipfile.ZIP_DEFLATED)
    assert first.read_bytes() != again.read_bytes()
    assert content(first) == content(again)
    assert content(pack(tmp_path / "c.zip", changed=recording(3, "theo", 2))) != content(first)
    assert list(entries(again))[:3] == [(0, "george", 0), (0, "george", 1), (0, "george", 2)]


def test_damaged_archives(few, tmp_path):
    short = pack(tmp_path / "short.zip", skip=[(3, "theo", 1), (4, "theo", 1)])
    with pytest.raises(Damaged, match=r"2 of 3,000 recordings are not in it, such as 3_theo_1\.wav"):
        content(short)
    (tmp_path / "cut.zip").write_bytes(short.read_bytes()[:500])
    with pytest.raises(Damaged, match="truncated or no zip at all"):
        content(tmp_path / "cut.zip")
    with pytest.raises(Damaged, match=r"3_theo_1\.wav is no WAV file"):
        read_recordings(pack(tmp_path / "odd.zip", changed=b"nothing"), 3, 4)


def test_it_is_fetched_however_it_is_packed(few, tmp_path, monkeypatch):
    from loopback import Page, serving

    from advml.data.fetch import download

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    right = pack(tmp_path / "right.zip")
    other = pack(tmp_path / "other.zip", "x/", compression=zipfile.ZIP_DEFLATED)
    wrong = pack(tmp_path / "wrong.zip", changed=recording(3, "theo", 2))
    target = tmp_path / "fsdd" / "recordings.zip"
    with serving() as server:
        server.pages["/other"] = Page(other.read_bytes(), ranges=False, says_length=False)
        server.pages["/wrong"] = Page(wrong.read_bytes())
        server.pages["/page"] = Page(b"<html>not found</html>")
        urls = tuple(server.url(path) for path in ("/wrong", "/page", "/other"))
        file = RemoteFile("recordings.zip", content(right), 123, urls, content=content)
        notes = []
        download(file, target, notes.append)
        assert target.read_bytes() == other.read_bytes()
        assert "wrong checksum" in notes[0]
        assert "wrong content (is truncated or no zip at all" in notes[1]
        asked_before = len(server.asked)
        download(file, target, notes.append)
        assert len(server.asked) == asked_before
        target.write_bytes(b"spoiled")
        download(file, target, notes.append)
        assert content(target) == content(right)
    assert [path.name for path in target.parent.iterdir()] == ["recordings.zip"]


def test_spoken_digits(data_dir, split_values, make_source):
    dataset = Fsdd(FsddSettings(**split_values, bands=60, frames=6))
    source, notes = make_source(data_dir)
    loaded = dataset.load(source)
    assert len(loaded.examples) == 10 * 6 * (TAKES - TEST_TAKES)
    assert len(loaded.test) == 10 * 6 * TEST_TAKES
    assert loaded.test.group.bincount().tolist() == [10 * TEST_TAKES] * 6
    assert "has not the official checksum" in notes[0]
    centres = (mel_filters(60, 256, 8000).argmax(1) * 8000 / 256).float()
    assert torch.equal(((centres[loaded.test.inputs["audio"][:, 0].argmax(1)] - 300) / 300).round().long(),
                       loaded.test.target)  # fmt: skip
    spec = dataset.spec()
    assert dict(spec.inputs) == {"audio": (6, 60), "audio_mask": (6,)}
    assert split(loaded, spec, dataset.config, KeyedRng(0)).train.prepare["audio_mask"] == ()


# --- pairs --------------------------------------------------------------------------------------------------------


def test_neither_digit_tells_whether_they_are_the_same():
    shown, said, same = asked(360, "same")
    assert torch.equal(same, (shown == said).long())
    for half in (shown, said):
        assert torch.equal(2 * half.bincount(same), half.bincount().double())
    pairs = (shown * 10 + said)[same == 0].bincount(minlength=100).reshape(10, 10)
    assert pairs[~torch.eye(10, dtype=torch.bool)].unique().tolist() == [2]
    digit = asked(100, "digit")
    assert torch.equal(digit[0], digit[1])
    assert digit[2].bincount().tolist() == [10] * 10


def test_items_are_used_in_turn():
    kinds = torch.tensor([0, 0, 0, 1, 1, -1])
    wanted = torch.tensor([0] * 7 + [1] * 4)
    chosen = in_turn(wanted, kinds, torch.Generator().manual_seed(0), again=True)
    assert torch.equal(kinds[chosen], wanted)
    assert sorted(chosen[:7].bincount(minlength=3).tolist()) == [2, 2, 3]
    assert chosen[7:].bincount().tolist()[3:] == [2, 2]
    with pytest.raises(ConfigError, match="7 pairs want a digit 0, and there are 3; use fewer pairs"):
        in_turn(wanted, kinds, torch.Generator(), again=False)


@pytest.mark.parametrize("task", ["digit", "same"])
@pytest.mark.parametrize("how", ["official", "speakers"])
def test_pairs_are_what_they_say(data_dir, split_values, task, how):
    settings = config(split_values, task=task, split=how, bands=60)
    loaded = load(settings, data_dir)
    dataset = AvDigits(settings)
    spec = dataset.spec()
    assert spec.target == Classes(10 if task == "digit" else 2)
    splits = split(loaded, spec, settings, KeyedRng(0))
    pictures = {}
    for name, count in (("train", 100), ("valid", 40), ("test", 60)):
        part = getattr(splits, name)
        assert len(part) == count
        assert {key: tuple(values.shape[1:]) for key, values in part.inputs.items()} == dict(spec.inputs)
        shown, said = digits_of(part)
        expected = shown if task == "digit" else (shown == said).long()
        assert torch.equal(part.target, expected)
        if task == "digit":
            assert torch.equal(shown, said)
        assert torch.equal(part.meaning, shown)
        if task == "same":  # who judges sameness perfectly finds every partner
            match = part.take(part.target.nonzero().flatten())
            picture, sound = digits_of(match)
            positives = same_meaning(match.meaning, match.meaning)
            assert recall_at(same_meaning(picture, sound), positives, (1,))[1] == 1
        record = splits.record["pairing"][name]
        heard = {SPEAKERS[number] for number in part.group.unique().tolist()}
        assert heard <= set(record["speakers"])
        if how == "speakers" and name == "test":
            assert set(record["speakers"]) == {"theo", "lucas"}
        pictures[name] = set((part.inputs["image"][:, 0, 0, 1] * 255).round().long().tolist())
        assert len(pictures[name]) == count
    assert not pictures["train"] & pictures["valid"]
    hashes = [splits.record["pairing"][name]["sha256"] for name in ("train", "valid", "test")]
    assert len(set(hashes)) == 3


@pytest.mark.parametrize("how", ["official", "speakers"])
@pytest.mark.parametrize("named", [("theo", "lucas"), None])
def test_no_recording_is_in_two_parts(split_values, how, named):
    number = torch.arange(10 * 6 * 50)
    read = Recordings(torch.empty(0), torch.empty(0), number // 300, number // 50 % 6, number % 50)
    settings = config(split_values, split=how, test_speakers=named)
    parts = recordings_of(settings, read, KeyedRng(2))
    assert torch.equal(sum(part.long() for part in parts.values()), torch.ones_like(number))
    voices = {name: set(read.speaker[part].tolist()) for name, part in parts.items()}
    if how == "official":
        assert torch.equal(parts["test"], read.take < 5)
        assert (read.digit * 6 + read.speaker)[parts["valid"]].bincount().tolist() == [18] * 60
    else:
        assert [len(voices[name]) for name in ("train", "valid", "test")] == [3, 1, 2]
        assert not voices["train"] & voices["test"]
        assert not voices["train"] & voices["valid"]
        assert not voices["valid"] & voices["test"]
        assert {SPEAKERS[voice] for voice in voices["test"]} == set(speakers_of(settings, KeyedRng(2))["test"])


def test_speakers_are_drawn_by_key(split_values):
    settings = config(split_values, split="speakers", test_speakers=None)
    drawn = [speakers_of(settings, KeyedRng(seed)) for seed in (0, 0, *range(1, 6))]
    assert drawn[0] == drawn[1]
    assert len({each["test"] for each in drawn}) > 2


@pytest.mark.parametrize(
    "speakers", [{"test_speakers": ()}, {"test_speakers": ("theo", "theo")}, {"valid_speakers": ("theo",)},
                 {"test_speakers": SPEAKERS[:4], "valid_speakers": SPEAKERS[4:]}],
)  # fmt: skip
def test_impossible_speakers_are_refused(split_values, speakers):
    with pytest.raises(ConfigError, match="name each speaker once"):
        speakers_of(config(split_values, split="speakers", **speakers), KeyedRng(0))


def test_noise_is_fixed_and_on_what_is_real(data_dir, split_values):
    clean = load(config(split_values), data_dir)
    loud, again, other = (
        load(config(split_values, pixel_noise=0.6, mel_noise=2.5), data_dir, seed) for seed in (0, 0, 1)
    )
    for name, sigma in (("image", 0.6), ("audio", 2.5)):
        assert torch.equal(loud.test.inputs[name], again.test.inputs[name])
        assert not torch.equal(loud.test.inputs[name], other.test.inputs[name])
        difference = loud.examples.inputs[name] - clean.examples.inputs[name]
        mask = loud.examples.inputs["audio_mask"]
        assert abs(float((difference if name == "image" else difference[mask]).std()) - sigma) < 0.05 * sigma
    assert (loud.examples.inputs["audio"][~mask] == 0).all()
    assert loud.record == again.record == clean.record
    assert loud.record != other.record


def test_too_many_pairs_and_missing_files(data_dir, split_values, run_cli):
    with pytest.raises(ConfigError, match="16 pairs want a digit 0, and there are 10; use fewer pairs"):
        load(config(split_values, train_pairs=100, valid_pairs=160), data_dir)
    (data_dir / "fsdd" / "recordings.zip").unlink()
    with pytest.raises(AdvmlError, match=r"fsdd: recordings\.zip is not in .*; fetch with: advml data download fsdd"):
        load(config(split_values), data_dir)
    said = run_cli("data", "verify", "av_digits")
    assert "av_digits: is made from mnist and fsdd; name these" in said.err


@pytest.mark.real_data
def test_real_files(real_data, split_values):
    folder = real_data("fsdd")
    assert content(folder / "recordings.zip") == Fsdd.files[0].sha256
    real_data("mnist")
    settings = config(split_values, train_pairs=400, bands=24, frames=48)
    loaded = load(settings, folder.parent)
    lengths = loaded.examples.inputs["audio_mask"].sum(1)
    assert 20 < float(lengths.float().mean()) < 32
    assert loaded.record["pairing"]["test"]["recordings"] == 60
    assert set(loaded.files) == {"fsdd/recordings.zip", *(f"mnist/{file.name}" for file in Mnist.files)}
