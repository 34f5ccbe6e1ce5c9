"""Pictures are decoded once: the cache of Omniglot's, damaged, of other zips, and where nothing can be written."""

import os

import pytest
import torch
from omniglot_cases import NAMES, PICTURES, spoil

from advml.data import decoded as caching
from advml.data import omniglot
from advml.data.decoded import Decoded, cached
from advml.data.omniglot import DRAWERS


@pytest.fixture
def decodings(monkeypatch):
    """How often pictures were decoded."""
    done = []
    decode = omniglot.decode
    monkeypatch.setattr(omniglot, "decode", lambda *arguments: (done.append(arguments[1]), decode(*arguments))[1])
    return done


def caches(folder):
    return sorted(folder.rglob("decoded-*"))


def test_pictures_are_decoded_once_for_each_size(data_dir, made, make_source, decodings, own_cache):
    first = made().load(make_source(data_dir)[0])
    source, notes = make_source(data_dir)
    second = made().load(source)
    assert decodings == [28]
    assert not any("decoding" in note for note in notes)
    assert torch.equal(first.examples.inputs["image"], second.examples.inputs["image"])
    assert [path.parent for path in caches(data_dir)] == [data_dir / "omniglot" / "python"]
    assert caches(own_cache) == []
    made(14).load(make_source(data_dir)[0])
    made(28).load(make_source(data_dir)[0])
    assert decodings == [28, 14]


def test_other_zips_are_decoded_anew(data_dir, made, make_source, decodings):
    made().load(make_source(data_dir)[0])
    before = made().load(make_source(data_dir)[0]).examples.inputs["image"]
    swapped = PICTURES["images_background", "Greek", 2, 1][0]
    spoil(data_dir, lambda contents, name: contents.update({name: swapped}))
    after = made().load(make_source(data_dir)[0]).examples.inputs["image"]
    assert decodings == [28, 28]
    different = (before != after).flatten(1).any(1).nonzero().flatten().tolist()
    assert different == [NAMES.index("Zulu/character01") * DRAWERS + 6]


def tampered(path):
    stored = torch.load(path, weights_only=True)
    stored["images"][3, 0, 4, 4] ^= 1
    torch.save(stored, path)


def renamed(path):
    stored = torch.load(path, weights_only=True)
    torch.save(stored | {"names": list(reversed(stored["names"]))}, path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-500]),
        lambda path: torch.save({"other": 1}, path),
        lambda path: torch.save([1, 2], path),
        tampered,
        renamed,
    ],
)
def test_a_damaged_cache_is_made_again(data_dir, made, make_source, decodings, damage):
    expected = made().load(make_source(data_dir)[0])
    (cache,) = caches(data_dir)
    damage(cache)
    loaded = made().load(make_source(data_dir)[0])
    assert decodings == [28, 28]
    assert torch.equal(loaded.examples.inputs["image"], expected.examples.inputs["image"])
    made().load(make_source(data_dir)[0])
    assert decodings == [28, 28]


def test_a_read_only_folder_is_left_alone(data_dir, made, make_source, decodings, own_cache):
    folder = data_dir / "omniglot" / "python"
    folder.chmod(0o555)
    try:
        made().load(make_source(data_dir)[0])
        made().load(make_source(data_dir)[0])
        assert caches(data_dir) == []
    finally:
        folder.chmod(0o755)
    assert len(caches(own_cache)) == 1
    assert decodings == [28]


def test_where_nothing_can_be_written_that_is_said(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    notes, pictures = [], Decoded(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), ("A/character01",))
    assert cached(tmp_path / "file" / "x", "omniglot", "key", lambda: pictures, notes.append) is pictures
    assert "could not be kept" in notes[-1]


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch):
    def fail(*arguments):
        arguments[1].write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(caching.torch, "save", fail)
    pictures = Decoded(torch.zeros(1, 1, 2, 2, dtype=torch.uint8), ("A/character01",))
    cached(tmp_path, "omniglot", "key", lambda: pictures, lambda text: None)
    assert os.listdir(tmp_path) == []
