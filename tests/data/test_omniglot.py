"""Omniglot: small made zips for every fault, the real ones for the facts."""

import io
import os
import zipfile
from fractions import Fraction

import numpy as np
import pytest
import torch
from PIL import Image

from advml.contracts import Classes, Spec
from advml.data import decoded as caching
from advml.data import omniglot
from advml.data.decoded import Decoded, cached
from advml.data.omniglot import DRAWERS, Omniglot, OmniglotSettings, area_resize, list_drawings
from advml.errors import AdvmlError

MADE = {"images_background": [("Zulu", 1), ("Greek", 2)], "images_evaluation": [("Alpha", 1), ("Alpha", 2)]}
NAMES = ("Greek/character02", "Zulu/character01", "Alpha/character01", "Alpha/character02")


def picture(*seed):
    """A black drawing on white paper, and its ink as bool [105, 105]."""
    ink = np.random.default_rng(seed).random((105, 105)) < 0.1
    stream = io.BytesIO()
    Image.fromarray(~ink).save(stream, "PNG")
    return stream.getvalue(), ink


PICTURES = {
    (folder, alphabet, number, drawer): picture(len(alphabet), number, drawer)
    for folder, characters in MADE.items()
    for alphabet, number in characters
    for drawer in range(1, DRAWERS + 1)
}


def entries(folder):
    """Name in the zip → content, in an order that nothing relies on."""
    made = {
        f"{folder}/{alphabet}/character{number:02}/{900 - number:04}_{drawer:02}.png": content
        for (where, alphabet, number, drawer), (content, _) in PICTURES.items()
        if where == folder
    }
    return dict(sorted(made.items(), key=lambda item: item[0][::-1])) | {f"{folder}/.DS_Store": b"junk"}


def zip_of(contents):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return stream.getvalue()


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(omniglot, "CHARACTERS", {folder: len(characters) for folder, characters in MADE.items()})


@pytest.fixture
def data_dir(few, tmp_path):
    folder = tmp_path / "omniglot" / "python"
    folder.mkdir(parents=True)
    for name in MADE:
        (folder / f"{name}.zip").write_bytes(zip_of(entries(name)))
    return tmp_path


@pytest.fixture
def made(split_values):
    def make(size=28):
        return Omniglot(OmniglotSettings(**split_values, size=size))

    return make


def refused(data_dir, made, make_source):
    with pytest.raises(AdvmlError) as caught:
        made().load(make_source(data_dir)[0])
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("omniglot: ")
    assert "advml data download omniglot" in message
    return message


# --- resizing -----------------------------------------------------------------------------------------------------


def by_fractions(ink, size):
    """The mean over each output pixel's area in exact fractions, rounded half up."""
    side = len(ink)
    result = torch.zeros(size, size, dtype=torch.uint8)

    def overlaps(index):
        low, high = Fraction(index * side, size), Fraction((index + 1) * side, size)
        return [(at, min(high, at + 1) - max(low, at)) for at in range(side) if min(high, at + 1) > max(low, at)]

    for row in range(size):
        for column in range(size):
            covered = sum(
                height * width * int(ink[y, x]) for y, height in overlaps(row) for x, width in overlaps(column)
            )
            share = Fraction(covered) * size * size / (side * side)
            result[row, column] = int(255 * share + Fraction(1, 2))
    return result


@pytest.mark.parametrize(("side", "size"), [(105, 28), (105, 7), (10, 3), (6, 5), (5, 5), (7, 1)])
def test_the_mean_over_the_area_is_exact(side, size):
    ink = torch.rand(2, side, side, generator=torch.Generator().manual_seed(side)) < 0.3
    resized = area_resize(ink, size)
    assert resized.dtype == torch.uint8
    assert resized.shape == (2, size, size)
    for before, after in zip(ink, resized, strict=True):
        assert torch.equal(after, by_fractions(before, size))


def test_a_whole_factor_is_the_mean_of_blocks_and_no_factor_changes_nothing():
    ink = torch.rand(3, 105, 105, generator=torch.Generator().manual_seed(1)) < 0.2
    blocks = ink.reshape(3, 35, 3, 35, 3).double().mean((2, 4)) * 255
    assert torch.equal(area_resize(ink, 35), (blocks + 0.5).floor().to(torch.uint8))
    assert torch.equal(area_resize(ink, 105), ink.to(torch.uint8) * 255)


# --- loading ------------------------------------------------------------------------------------------------------


def test_the_shape_is_known_without_a_file(made):
    assert made().spec() == Spec({"image": (1, 28, 28)}, Classes(1623))
    assert made(35).spec().inputs == {"image": (1, 35, 35)}


def test_classes_are_characters_in_order_and_groups_are_drawers(data_dir, made, make_source):
    source, notes = make_source(data_dir)
    loaded = made(105).load(source)
    images = loaded.examples.inputs["image"]
    assert images.shape == (80, 1, 105, 105)
    assert images.dtype == torch.uint8
    assert loaded.test is None
    assert loaded.scale == 255
    assert made(105).names(source) == NAMES
    folders = ["images_background"] * 2 + ["images_evaluation"] * 2
    for position, (image, target, group) in enumerate(
        zip(images, loaded.examples.target, loaded.examples.group, strict=True)
    ):
        assert (position // DRAWERS, position % DRAWERS) == (target, group)
        alphabet, character = NAMES[target].split("/")
        _, ink = PICTURES[folders[target], alphabet, int(character[-2:]), int(group) + 1]
        assert np.array_equal(image[0].numpy(), ink * np.uint8(255)), "ink is 255"
    assert set(loaded.files) == {"python/images_background.zip", "python/images_evaluation.zip"}
    assert sum("has not the official checksum" in note for note in notes) == 2


def test_zips_directly_below_the_folder_serve_too(data_dir, made, make_source):
    expected = made().load(make_source(data_dir)[0]).examples.inputs["image"]
    for name in MADE:
        (data_dir / "omniglot" / "python" / f"{name}.zip").rename(data_dir / "omniglot" / f"{name}.zip")
    loaded = made().load(make_source(data_dir)[0])
    assert torch.equal(loaded.examples.inputs["image"], expected)


@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_pictures_saved_in_another_mode_are_the_same_pictures(data_dir, made, make_source, mode):
    expected = made(105).load(make_source(data_dir)[0]).examples.inputs["image"]
    contents = entries("images_background")
    for name in contents:
        if name.endswith(".png"):
            stream = io.BytesIO()
            Image.open(io.BytesIO(contents[name])).convert(mode).save(stream, "PNG")
            contents[name] = stream.getvalue()
    (data_dir / "omniglot" / "python" / "images_background.zip").write_bytes(zip_of(contents))
    assert torch.equal(made(105).load(make_source(data_dir)[0]).examples.inputs["image"], expected)


# --- faults -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", [lambda content: b"", lambda content: b"<html>", lambda content: content[:-30]])
def test_what_is_no_zip_is_one_line_with_the_remedy(data_dir, made, make_source, damage):
    path = data_dir / "omniglot" / "python" / "images_evaluation.zip"
    path.write_bytes(damage(path.read_bytes()))
    assert f"{path} is truncated or no zip at all" in refused(data_dir, made, make_source)


def test_a_spoiled_picture_is_named(data_dir, made, make_source):
    path = data_dir / "omniglot" / "python" / "images_background.zip"
    entry = "images_background/Zulu/character01/0899_07.png"
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo(entry).header_offset + 30 + len(entry)
    content = bytearray(path.read_bytes())
    content[start + 300] ^= 255
    path.write_bytes(content)
    assert f"is corrupt: {entry} cannot be read" in refused(data_dir, made, make_source)


def spoil(data_dir, change):
    contents = entries("images_background")
    name = "images_background/Zulu/character01/0899_07.png"
    assert name in contents
    change(contents, name)
    (data_dir / "omniglot" / "python" / "images_background.zip").write_bytes(zip_of(contents))


@pytest.mark.parametrize("content", [b"no picture", PICTURES["images_background", "Zulu", 1, 7][0][:-40]])
def test_a_picture_that_is_none_is_named(data_dir, made, make_source, content):
    spoil(data_dir, lambda contents, name: contents.update({name: content}))
    message = refused(data_dir, made, make_source)
    assert "is corrupt: images_background/Zulu/character01/0899_07.png cannot be read" in message


def test_a_picture_of_another_size_is_named(data_dir, made, make_source):
    stream = io.BytesIO()
    Image.new("1", (105, 104)).save(stream, "PNG")
    spoil(data_dir, lambda contents, name: contents.update({name: stream.getvalue()}))
    assert "0899_07.png is not 105×105" in refused(data_dir, made, make_source)


@pytest.mark.parametrize(
    "change",
    [
        lambda contents, name: contents.pop(name),
        lambda contents, name: contents.update({name.replace("_07", "_21"): contents.pop(name)}),
        lambda contents, name: contents.update({name.replace("0899", "0898"): b"a second drawing 07"}),
    ],
)
def test_each_character_has_one_drawing_of_each_person(data_dir, made, make_source, change):
    spoil(data_dir, change)
    assert "not every character in it has the drawings 01 to 20" in refused(data_dir, made, make_source)


def test_the_number_of_characters_is_fixed(data_dir, made, make_source, monkeypatch):
    monkeypatch.setattr(omniglot, "CHARACTERS", {"images_background": 2, "images_evaluation": 659})
    assert "it holds 2 characters, not 659" in refused(data_dir, made, make_source)


def test_the_other_zip_under_this_name_is_refused(data_dir, made, make_source):
    path = data_dir / "omniglot" / "python" / "images_background.zip"
    path.write_bytes(path.with_name("images_evaluation.zip").read_bytes())
    assert "it holds 0 characters, not 2" in refused(data_dir, made, make_source)


def test_missing_zips_are_one_line_with_the_remedy(data_dir, made, make_source):
    (data_dir / "omniglot" / "python" / "images_background.zip").unlink()
    assert "python/images_background.zip is not in" in refused(data_dir, made, make_source)


# --- the cache ----------------------------------------------------------------------------------------------------


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


# --- the real zips ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real_dir(real_data, tmp_path_factory):
    """A folder of links: what is cached beside the zips stays out of the real folder, and serves all tests here."""
    folder = tmp_path_factory.mktemp("data")
    (folder / "omniglot").mkdir()
    for name in MADE:
        (folder / "omniglot" / f"{name}.zip").symlink_to(real_data("omniglot/python") / f"{name}.zip")
    return folder


@pytest.mark.real_data
def test_omniglot_is_omniglot(real_data, real_dir, made, make_source):
    source, _ = make_source(real_dir)
    loaded, names = made().load(source), made().names(source)
    images = loaded.examples.inputs["image"]
    assert images.shape == (32_460, 1, 28, 28)
    assert len(names) == len(set(names)) == 1_623
    assert loaded.examples.target.bincount().tolist() == [20] * 1_623
    assert loaded.examples.group.bincount().tolist() == [1_623] * 20
    background, evaluation = names[:964], names[964:]
    assert [len({name.split("/")[0] for name in part}) for part in (background, evaluation)] == [30, 20]
    assert [*background] == sorted(background)
    assert [*evaluation] == sorted(evaluation)
    assert names[0] == "Alphabet_of_the_Magi/character01"
    assert names[964] == "Angelic/character01"
    # Thin black strokes: little ink, and every picture has some.
    assert 0.05 < (images.double().mean() / 255) < 0.11
    assert (images.flatten(1).amax(1) > 100).all()

    path = real_dir / "omniglot" / "images_evaluation.zip"
    with zipfile.ZipFile(path) as archive:
        for drawing in list_drawings(path)[:: 13_180 // 2]:
            with Image.open(io.BytesIO(archive.read(drawing.entry))) as original:
                ink = ~np.asarray(original)
            position = names.index(f"{drawing.alphabet}/{drawing.character}") * DRAWERS + drawer_of(drawing.entry)
            assert torch.equal(images[position, 0], by_fractions(ink, 28))

    splits = real_data("omniglot/splits/vinyals")
    listed = {part: splits.joinpath(f"{part}.txt").read_text().split() for part in ("trainval", "test")}
    classes = {part: {line.rsplit("/", 1)[0] for line in lines} for part, lines in listed.items()}
    assert len(classes["trainval"]) == 1_200
    assert len(classes["test"]) == 423
    assert classes["trainval"] | classes["test"] == set(names)


def drawer_of(entry):
    return int(entry[-6:-4]) - 1


def test_the_shipped_configuration_binds():
    from advml.compose import compose
    from advml.config import bind

    bound = bind(compose(["dataset=omniglot"])[0])
    assert bound.dataset.cls is Omniglot
    assert bound.dataset.settings.size == 28


# --- who is for training ------------------------------------------------------------------------------------------


def test_characters_are_divided_as_by_vinyals(made):
    spec = made().spec()
    sizes = {name: len(part) for name, part in spec.class_splits.items()}
    assert sizes == {"train": 1028, "valid": 172, "test": 423}
    assert sorted(number for part in spec.class_splits.values() for number in part) == list(range(1623))


@pytest.mark.real_data
def test_the_division_is_the_official_one(real_data, real_dir, made, make_source):
    source, _ = make_source(real_dir)
    names, dataset = made().names(source), made()
    for part, file in (("train", "train"), ("valid", "val"), ("test", "test")):
        lines = real_data("omniglot/splits/vinyals").joinpath(f"{file}.txt").read_text().split()
        ours = {f"{names[number]}/rot{turn}" for number in dataset.spec().class_splits[part]
                for turn in ("000", "090", "180", "270")}  # fmt: skip
        assert len(lines) == len(ours)
        assert set(lines) == ours


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("view", "classes", "shapes"),
    [
        ("5way_1shot", (1100, 100, 423), ((5, 5), (5, 5), (5, 5))),
        ("20way_5shot", (1100, 100, 423), ((100, 100), (100, 100), (100, 100))),
        ("vinyals_5way", (1028, 172, 423), ((60, 300), (5, 75), (5, 75))),
    ],
)
def test_tasks_of_real_characters(real_dir, view, classes, shapes):
    from advml.compose import compose
    from advml.config import bind
    from advml.runner.run import load_view

    chosen = ["dataset=omniglot", f"view=episodes_omniglot_{view}", f"data_dir={real_dir}"]
    episodes = load_view(bind(compose(chosen)[0]), lambda text: None)
    record = episodes.describe()
    assert tuple(len(record[name]["classes"]) for name in ("train", "valid", "test")) == classes
    assert episodes.base_spec.outputs == classes[0] * (4 if "vinyals" in view else 1)
    found = (episodes.draw(2, torch.Generator()), episodes.fixed("valid", 0, 2), episodes.fixed("test", 5, 7))
    for tasks, (support, query) in zip(found, shapes, strict=True):
        assert tasks.support.inputs["image"].shape == (2, support, 1, 28, 28)
        assert tasks.query.target.shape == (2, query)
    # Two drawings of a character are more alike than those of two others: labels belong to their pictures.
    support, query = episodes.fixed("test", 0, 200)
    ink = [batch.inputs["image"].flatten(2) for batch in (support, query)]
    near = torch.cdist(ink[1], ink[0]).argmin(-1)
    right = (support.target.gather(1, near) == query.target).double().mean()
    assert right > 1.5 / episodes.ways
