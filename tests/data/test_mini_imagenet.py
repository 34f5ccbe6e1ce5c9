"""miniImageNet on a small tree of made pictures; the official lists for their facts."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from advml.contracts import Classes, Spec
from advml.data import mini_imagenet
from advml.data.episodes import Episodes, EpisodesSettings
from advml.data.mini_imagenet import CLASSES, LISTS, MiniImagenet, MiniImagenetSettings, read_list
from advml.data.source import Whole
from advml.errors import AdvmlError, ConfigError
from advml.runner.randomness import KeyedRng

LABELS = {"train.csv": ["n09", "n01", "n05"], "val.csv": ["n04", "n03"], "test.csv": ["n08", "n02"]}
ORDER = ["n01", "n05", "n09", "n03", "n04", "n02", "n08"]
EACH = 4


def colour(label, number):
    """The one colour of a picture."""
    return (10 * int(label[1:]), 50 * number, 255 - 10 * int(label[1:]))


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(mini_imagenet, "CLASSES", {"train": 3, "valid": 2, "test": 2})


@pytest.fixture
def data_dir(few, tmp_path):
    folder = tmp_path / "mini_imagenet"
    (folder / "images").mkdir(parents=True)
    for name, labels in LABELS.items():
        with (folder / name).open("w", newline="") as stream:
            writer = csv.writer(stream)
            writer.writerow(["filename", "label"])
            for number in range(EACH):
                for label in labels:
                    writer.writerow([f"{label}{number}.png", label])
                    picture = Image.new("RGB", (30 + number, 20), colour(label, number))
                    picture.save(folder / "images" / f"{label}{number}.png")
    return tmp_path


@pytest.fixture
def made(split_values):
    return lambda size=84: MiniImagenet(MiniImagenetSettings(**split_values, size=size))


def test_the_shapes_are_known_beforehand(made):
    spec = made().spec()
    assert spec == Spec({"image": (3, 84, 84)}, Classes(100))
    assert {name: len(part) for name, part in spec.class_splits.items()} == {"train": 64, "valid": 16, "test": 20}
    assert [*spec.class_splits["train"], *spec.class_splits["valid"], *spec.class_splits["test"]] == list(range(100))


def test_pictures_and_classes(data_dir, made, make_source):
    loaded = made(12).load(make_source(data_dir)[0])
    images, target = loaded.examples.inputs["image"], loaded.examples.target
    assert images.shape == (7 * EACH, 3, 12, 12)
    assert images.dtype == torch.uint8
    assert loaded.scale == 255
    assert loaded.test is None
    assert target.bincount().tolist() == [EACH] * 7
    listed = [(label, number) for labels in LABELS.values() for number in range(EACH) for label in labels]
    for image, label, (name, number) in zip(images, target, listed, strict=True):
        assert ORDER[label] == name
        assert image.flatten(1).unique(dim=1).squeeze(1).tolist() == list(colour(name, number))
    assert set(loaded.files) == {"train.csv", "val.csv", "test.csv", "images"}


def test_pictures_are_resized_whole(data_dir, made, make_source):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 25, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(data_dir / "mini_imagenet" / "images" / "n010.png")
    loaded = made(9).load(make_source(data_dir)[0])
    expected = np.asarray(Image.fromarray(pixels).resize((9, 9), Image.Resampling.LANCZOS)).transpose(2, 0, 1)
    (place,) = [number for number, name in enumerate(LABELS["train.csv"]) if name == "n01"]
    assert torch.equal(loaded.examples.inputs["image"][place], torch.from_numpy(expected.copy()))


def test_grey_pictures_are_shown_in_three_channels(data_dir, made, make_source):
    Image.new("L", (8, 8), 77).save(data_dir / "mini_imagenet" / "images" / "n010.png")
    assert (made(6).load(make_source(data_dir)[0]).examples.inputs["image"][1] == 77).all()


def test_grey_of_16_bits_and_turned_photographs(data_dir, made, make_source):
    folder = data_dir / "mini_imagenet" / "images"
    grey = np.arange(256, dtype=np.uint16).reshape(16, 16)
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    Image.fromarray(grey * 257).save(folder / "n090.png")
    Image.fromarray(grey.astype(np.uint8)).save(folder / "n010.png", exif=exif)
    first, second = made(16).load(make_source(data_dir)[0]).examples.inputs["image"][:2]
    expected = torch.arange(256).view(16, 16).byte().expand(3, -1, -1)
    assert torch.equal(first, expected)
    assert torch.equal(second, expected.flip(1, 2))


def test_numbers_without_a_white_are_refused(data_dir, made, make_source):
    folder = data_dir / "mini_imagenet"
    Image.new("F", (8, 8)).save(folder / "images" / "n010.png", format="TIFF")
    with pytest.raises(ConfigError) as caught:
        made(6).load(make_source(data_dir)[0])
    assert str(caught.value) == (
        f"mini_imagenet: in {folder}, images/n010.png is of real numbers (mode F), which do not say how bright white "
        "is; save it with 8 or 16 bits"
    )


def test_decoded_once_for_each_size_and_content(data_dir, made, make_source, monkeypatch):
    sizes = []
    decode = mini_imagenet.decode
    monkeypatch.setattr(mini_imagenet, "decode", lambda paths, size: (sizes.append(size), decode(paths, size))[1])
    first = made(6).load(make_source(data_dir)[0])
    again = made(6).load(make_source(data_dir)[0])
    assert sizes == [6]
    assert torch.equal(first.examples.inputs["image"], again.examples.inputs["image"])
    assert first.files == again.files
    made(7).load(make_source(data_dir)[0])
    Image.new("RGB", (300, 200), (1, 2, 3)).save(data_dir / "mini_imagenet" / "images" / "n010.png")
    other = made(6).load(make_source(data_dir)[0])
    assert sizes == [6, 7, 6]
    assert other.files != first.files
    assert other.examples.inputs["image"][1].flatten(1)[:, 0].tolist() == [1, 2, 3]
    monkeypatch.setattr(mini_imagenet, "MANNER", "as an older advml did")
    made(6).load(make_source(data_dir)[0])
    assert sizes == [6, 7, 6, 6]


def test_tasks_have_the_official_classes(data_dir, made, make_source):
    dataset = made(6)
    keys = {"ways": 2, "shots": 1, "queries": 3, "train_ways": 3, "train_shots": None, "train_queries": 2,
            "valid_tasks": 3, "test_tasks": 5, "split": "dataset", "valid_classes": None, "test_classes": None,
            "rotations": "none"}  # fmt: skip
    whole = Whole(dataset.load(make_source(data_dir)[0]), dataset.spec(), dataset.config)
    view = Episodes.of(whole, EpisodesSettings(**keys), KeyedRng(0))
    record = view.describe()
    assert [record[name]["classes"] for name in ("train", "valid", "test")] == [[0, 1, 2], [3, 4], [5, 6]]
    assert view.draw(2, torch.Generator()).query.inputs["image"].shape == (2, 6, 3, 6, 6)
    shown = view.fixed("test", 0, 5).query
    # The preparation undone: red names the class.
    (step,) = view.prepare["image"]
    red = (shown.inputs["image"] - step.offset)[..., 0, 0, 0] / step.factor[0, 0, 0, 0]
    assert set(red.round().flatten().tolist()) == {20.0, 80.0}


# --- what is refused ----------------------------------------------------------------------------------------------


def rewritten(folder, name, change):
    path = folder / name
    path.write_text(change(path.read_text()))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: (folder / "val.csv").unlink(), "val.csv is not there; put the lists train.csv, val.csv and"),
        (lambda folder: (folder / "images" / "n031.png").unlink(), "1 of 28 pictures are not in images/, such as n031"),
        (lambda folder: (folder / "images").rename(folder / "x"), "28 of 28 pictures are not in images/, such as n090"),
        (lambda folder: (folder / "images" / "n031.png").write_bytes(b"no"), "images/n031.png cannot be read"),
        (lambda folder: rewritten(folder, "test.csv", lambda text: text.replace("el", "")), "test.csv is no list"),
        (lambda folder: rewritten(folder, "test.csv", lambda text: text + "alone\n"), "test.csv is no list with the"),
        (lambda folder: (folder / "test.csv").write_bytes(b""), "test.csv is no list with the columns filename,label"),
        (lambda folder: (folder / "test.csv").write_bytes(b"\xff\xfe\x00"), "test.csv is no list with the columns"),
        (lambda folder: rewritten(folder, "test.csv", lambda text: text + "n031.png,n03\n"), "names 3 classes, not 2"),
        (lambda folder: rewritten(folder, "test.csv", lambda text: text.replace(",n08", ",n01")), "share a class"),
    ],
)
def test_refused_in_one_line(data_dir, made, make_source, damage, words):
    damage(data_dir / "mini_imagenet")
    with pytest.raises(AdvmlError) as caught:
        made(6).load(make_source(data_dir)[0])
    message = str(caught.value)
    assert words in message
    assert message.startswith(f"mini_imagenet: in {data_dir / 'mini_imagenet'}, ")
    assert ";" in message
    assert "\n" not in message


def test_a_run_without_the_pictures_says_what_to_do(run_cli, tmp_path):
    said = run_cli("data", "verify", "mini_imagenet")
    assert said.code != 0
    assert "mini_imagenet: has files that cannot be downloaded and that you put there yourself" in said.err
    said = run_cli("run", "method=supervised", "dataset=mini_imagenet", f"data_dir={tmp_path}")
    assert said.code != 0
    assert "train.csv is not there; put the lists" in said.err


def test_the_shipped_configurations_bind():
    from advml.compose import compose
    from advml.config import bind

    bound = bind(compose(["dataset=mini_imagenet", "view=episodes_mini_imagenet"])[0])
    assert bound.dataset.cls is MiniImagenet
    spec = bound.view.cls.view_spec(bound.dataset.cls(bound.dataset.settings).spec(), bound.view.settings)
    assert spec == Spec({"image": (3, 84, 84)}, Classes(5))


@pytest.mark.real_data
def test_the_official_lists_are_read(real_data):
    folder = real_data("miniimagenet/splits/ravi")
    lists = {name: read_list(folder, name) for name in LISTS}
    seen = set()
    for name, listed in lists.items():
        labels = [label for _, label in listed.rows]
        assert len(labels) == 600 * CLASSES[name]
        assert {labels.count(label) for label in set(labels)} == {600}
        assert not seen & set(labels)
        seen |= set(labels)
