"""Pictures with texts on a small made tree: tables in two formats, words of the training texts, what is refused."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from advml.contracts import Classes, Nothing, Stream
from advml.data.decoded import Decoded, cached
from advml.data.image_text import ImageText, ImageTextSettings, encode, looked_at, read_table, vocabulary, words_of
from advml.data.source import Source, split
from advml.errors import AdvmlError, ConfigError
from advml.runner.randomness import KeyedRng

COLOURS = {"red": (200, 10, 10), "blue": (10, 10, 200)}
TEXTS = ("A {} square.", "It's a {} thing, isn't it?", "something {}")


def rows(pictures=10, split=None):
    """Three texts of each of `pictures`, every other one red."""
    for number in range(pictures):
        name = list(COLOURS)[number % 2]
        for text in TEXTS:
            row = {"image": f"pictures/{number}.png", "text": text.format(name), "label": name}
            yield row | ({} if split is None else {"split": split[number % len(split)]})


def write(folder, made, name="table.csv", pictures=10):
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    for number in range(pictures):
        colour = COLOURS[list(COLOURS)[number % 2]]
        Image.new("RGB", (8 + number, 6), colour).save(folder / "pictures" / f"{number}.png")
    path, made = folder / name, list(made)
    if path.suffix == ".csv":
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, list(made[0]))
            writer.writeheader()
            writer.writerows(made)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return path


@pytest.fixture
def load(split_values):
    def read(path, seed=0, **changes):
        values = {"path": str(path), "labels": ("red", "blue"), "size": 6, "words": 30, "length": 9}
        dataset = ImageText(ImageTextSettings(**split_values | values | changes))
        return dataset, dataset.load(Source(KeyedRng(seed), path.parent, note=lambda text: None))

    return read


def test_words():
    assert words_of("It's a Dog-house, ÄRGER!") == ["it's", "a", "dog", "-", "house", ",", "ärger", "!"]
    words = vocabulary(["b a", "b c", "b a d"], 5)
    assert words == ("<padding>", "<unknown>", "b", "a", "c")
    assert encode(["b x a", "", "a b c a b"], words, 4).tolist() == [[2, 1, 3, 0], [0, 0, 0, 0], [3, 2, 4, 3]]


@pytest.mark.parametrize("name", ["table.csv", "table.jsonl"])
def test_pictures_texts_and_labels(tmp_path, load, name):
    dataset, loaded = load(write(tmp_path, rows(), name))
    spec = dataset.spec()
    assert spec.target == Classes(2)
    assert spec.streams == {"image": Stream("image"), "text": Stream("tokens", "text_mask")}
    words = loaded.record["vocabulary"]
    for part in (loaded.examples, loaded.valid, loaded.test):
        assert {key: tuple(values.shape[1:]) for key, values in part.inputs.items()} == dict(spec.inputs)
        for image, text, mask, target in zip(*part.inputs.values(), part.target.tolist(), strict=True):
            colour = list(COLOURS)[target]
            assert image.flatten(1).unique(dim=1).squeeze(1).tolist() == list(COLOURS[colour])
            assert torch.equal(mask, text != 0)
            said = [words[token] for token in text.tolist() if token]
            assert said in [words_of(each.format(colour)) for each in TEXTS]
    assert [len(part) for part in (loaded.examples, loaded.valid, loaded.test)] == [21, 3, 6]
    pictures = [set(part.group.tolist()) for part in (loaded.examples, loaded.valid, loaded.test)]
    assert [len(each) for each in pictures] == [7, 1, 2]
    assert len(set.union(*pictures)) == 10
    assert [words[token] for token in loaded.prompts["text"][:, 0].tolist()] == ["red", "blue"]
    splits = split(loaded, spec, dataset.config, KeyedRng(0))
    assert splits.train.batch(slice(0, 2)).inputs["image"].shape == (2, 3, 6, 6)


def test_words_are_those_of_the_training_texts(tmp_path, load):
    made = list(rows(split=["train", "test"]))
    _, loaded = load(write(tmp_path, made))
    words = loaded.record["vocabulary"]
    assert "red" in words
    assert "blue" not in words
    assert loaded.record["unknown_words"] == {"train": 0, "valid": 0, "test": 15}
    assert (loaded.test.inputs["text"] == 1).sum() == 15
    assert loaded.prompts["text"][:, 0].tolist() == [words.index("red"), 1]
    _, few = load(tmp_path / "table.csv", words=4)
    assert len(few.record["vocabulary"]) == 4


def test_without_labels_a_picture_is_the_target(tmp_path, load):
    made = [{"image": row["image"], "text": row["text"]} for row in rows()]
    dataset, loaded = load(write(tmp_path, made, "table.jsonl"), labels=None)
    assert dataset.spec().target == Nothing()
    assert torch.equal(loaded.examples.target, loaded.examples.group)
    assert loaded.examples.target.bincount().unique().tolist() == [0, 3]
    assert loaded.prompts == {}


def test_parts_are_keyed_or_told(tmp_path, load):
    path = write(tmp_path, rows())
    tested = [load(path, seed)[1].test.group.tolist() for seed in (0, 0, 1, 2, 3)]
    assert tested[0] == tested[1]
    assert len({tuple(each) for each in tested}) > 1
    path = write(tmp_path, rows(split=["train", "train", "valid", "test", "test"]), "told.csv")
    _, loaded = load(path)
    assert [sorted(set(part.group.tolist())) for part in (loaded.examples, loaded.valid, loaded.test)] == [
        [0, 1, 5, 6], [2, 7], [3, 4, 8, 9],
    ]  # fmt: skip


def test_the_record_tells_whether_seeds_have_the_same_parts(tmp_path, load):
    """By it tables know how far the runs of several seeds share their examples."""

    def recorded(path):
        found = []
        for seed in range(4):
            dataset, loaded = load(path, seed)
            made = split(loaded, dataset.spec(), dataset.config, KeyedRng(seed)).record
            found.append(tuple(made[part]["index_sha256"] for part in ("train", "valid", "test")))
        return set(found)

    assert len(recorded(write(tmp_path, rows()))) > 1
    told = rows(split=["train", "train", "valid", "test", "test"])
    assert len(recorded(write(tmp_path, told, "told.csv"))) == 1


def test_decoded_again_when_a_picture_changes(tmp_path, load):
    path = write(tmp_path, rows(split=["train"]))
    first = load(path)[1]
    assert torch.equal(first.examples.inputs["image"], load(path)[1].examples.inputs["image"])
    Image.new("RGB", (50, 50), (1, 2, 3)).save(tmp_path / "pictures" / "0.png")
    again = load(path)[1]
    assert again.examples.inputs["image"][0, :, 0, 0].tolist() == [1, 2, 3]
    assert again.files["table.csv"] == first.files["table.csv"]
    assert again.files["pictures"] != first.files["pictures"]


@pytest.fixture
def pixels(tmp_path, load):
    """File, its name and size → what a data set of it alone holds, [3, size, size]."""

    def read(picture, name, size, **how):
        picture.save(tmp_path / name, **how)
        path = tmp_path / "one.csv"
        path.write_text(f"image,text,label,split\n{name},a,red,train\n")
        return load(path, size=size)[1].examples.inputs["image"][0]

    return read


@pytest.mark.parametrize(("mode", "kind"), [("<u2", "png"), ("<u2", "tif"), (">u2", "tif")])
def test_grey_of_16_bits_keeps_its_shades(pixels, mode, kind):
    """All 65,536 of them, each to the nearest of 256, which are evenly many."""
    grey = np.arange(2**16, dtype=mode).reshape(256, 256)
    found = pixels(Image.fromarray(grey), f"ramp.{kind}", 256)
    expected = torch.from_numpy((grey / 257).round()).byte()
    assert torch.equal(found, expected.expand(3, -1, -1))
    assert (found[0, 0, 0], found[0, -1, -1]) == (0, 255)
    assert set(expected.flatten().long().bincount()[1:-1].tolist()) == {257}


def test_a_photograph_is_turned_as_it_says(pixels):
    colours = torch.tensor([[[200, 200], [90, 0]]]).expand(3, -1, -1)
    shown = {1: colours, 3: colours.flip(1, 2), 6: colours.rot90(-1, (1, 2)), 8: colours.rot90(1, (1, 2))}
    picture = Image.fromarray(colours.permute(1, 2, 0).byte().repeat_interleave(8, 0).repeat_interleave(8, 1).numpy())
    for orientation, expected in shown.items():
        exif = Image.Exif()
        exif[0x0112] = orientation
        found = pixels(picture, f"{orientation}.jpg", 16, exif=exif)[:, 4::8, 4::8]
        assert (found.int() - expected).abs().max() < 4, orientation  # JPEG


@pytest.mark.parametrize(("mode", "said"), [("I", "32-bit integers"), ("F", "real numbers")])
def test_numbers_without_a_white_are_refused(pixels, tmp_path, mode, said):
    with pytest.raises(ConfigError) as caught:
        pixels(Image.new(mode, (6, 6)), "odd.tif", 6)
    assert str(caught.value) == (
        f"image_text: {tmp_path / 'one.csv'}, line 2: the picture odd.tif is of {said} (mode {mode}), which do not "
        "say how bright white is; save it with 8 or 16 bits"
    )


def test_pictures_decoded_by_an_older_advml_are_decoded_again(tmp_path, load):
    path = write(tmp_path, rows(split=["train"]))
    listed = read_table(path)[0][:: len(TEXTS)]
    key = f"image_text 6 lanczos\n{looked_at(path, listed)[0]}"
    cached(tmp_path, "image_text", key, lambda: Decoded(torch.zeros(10, 3, 6, 6).byte(), ()), lambda text: None)
    assert load(path)[1].examples.inputs["image"][0, :, 0, 0].tolist() == list(COLOURS["red"])


GOOD = 'image,text,label\npictures/0.png,"a dog, red",red\n'


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.csv", "picture,text\nx,y\n", "has no column image; its first line must name image and text"),
        ("a.csv", "", "has no column image and no column text"),
        ("a.csv", "image,text\n", "has no rows"),
        ("a.csv", GOOD + "pictures/1.png,,red\n", "line 3: has no text"),
        ("a.csv", GOOD + ",a dog,red\n", "line 3: has no image"),
        ("a.csv", GOOD + "pictures/1.png,a dog, red,red\n", "line 3: has more fields than the first line"),
        ("a.csv", GOOD + "pictures/1.png,a dog,green\n", "line 3: the label 'green' is not in dataset.labels"),
        ("a.csv", GOOD + "pictures/1.png,a dog,\n", "line 3: has no label"),
        ("a.csv", GOOD + 'pictures/1.png,"a dog', "is no CSV"),
        ("a.csv", GOOD + "pictures/77.png,a dog,red\n", "line 3: there is no picture"),
        ("a.csv", GOOD + "bad.png,a dog,red\n", "line 3: the picture bad.png cannot be read"),
        ("a.csv", "image,text,label,split\npictures/0.png,a,red,tset\n", "line 2: the split 'tset' is none of"),
        ("a.csv", "image,text,label,split\npictures/0.png,a,red,train\npictures/1.png,b,red,\n", "3: has no split"),
        ("a.csv", "image,text,label,split\npictures/0.png,a,red,train\npictures/0.png,b,red,test\n",
         "line 3: the picture pictures/0.png is in train and in test; put it into one"),
        ("a.jsonl", '{"image": "pictures/0.png", "text": "a", "label": "red"}\nno\n', "line 2: is no JSON object"),
        ("a.jsonl", '{"image": "pictures/0.png"}\n', "line 1: has no text"),
        ("a.jsonl", '{"image": 3, "text": "a"}\n', "line 1: has no image"),
        ("a.txt", "x", "is neither .csv nor .jsonl"),
        ("a.csv", b"image,text\n\xff\xfe,a\n", "is no text in UTF-8"),
        ("a.csv", None, "cannot be read (No such file or directory); dataset.path must name a .csv or .jsonl file"),
    ],
)  # fmt: skip
def test_refused_in_one_line(tmp_path, load, name, content, words):
    write(tmp_path, rows())
    (tmp_path / "bad.png").write_bytes(b"no picture")
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(AdvmlError) as caught:
        load(path)
    message = str(caught.value)
    assert message.startswith(f"image_text: {path}")
    assert words in message
    assert "\n" not in message


def test_a_table_by_a_spreadsheet(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbfimage,text\r\nx.png,a dog\r\n")
    found, _ = read_table(tmp_path / "a.csv")
    assert [(row.line, row.image, row.text, row.label, row.split) for row in found] == [(2, "x.png", "a dog", "", "")]


def test_runs_with_and_without_labels(tmp_path, run_cli):
    path = write(tmp_path, rows(pictures=20), pictures=20)
    words = ["run", "dataset=image_text", f"dataset.path={path}", "dataset.size=8", "baselines=off", "progress=off"]
    said = run_cli(*words, "dataset.labels=[red,blue]", "view=modalities", "view.use=[image]", "model=linear",
                   "method.epochs=2")  # fmt: skip
    assert said.code == 0
    said = run_cli(*words, "method=contrastive", "model.width=8", "model.heads=2", "model.hidden=8", "method.epochs=2",
                   "method.batch_size=10")  # fmt: skip
    assert said.code == 0, said.err
    assert run_cli("run", "dataset=image_text", f"dataset.path={path}").code == 2
