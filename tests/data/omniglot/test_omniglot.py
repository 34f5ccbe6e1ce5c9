"""Omniglot: small made zips for every fault, the real ones for the facts."""

import io
import zipfile
from fractions import Fraction

import numpy as np
import pytest
import torch
from omniglot_cases import MADE, NAMES, PICTURES, entries, spoil, zip_of
from PIL import Image

from advml.contracts import Classes, Spec
from advml.data import omniglot
from advml.data.omniglot import DRAWERS, Omniglot, area_resize, list_drawings
from advml.errors import AdvmlError


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
