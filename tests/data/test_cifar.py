"""CIFAR-10: python batches, unpickled without trust."""

import gzip
import io
import os
import pickle
import tarfile

import numpy as np
import pytest
import torch

from advml.contracts import Classes, Spec
from advml.data.cifar import BATCHES, FOLDER, Cifar10, read_batch
from advml.data.files import Damaged
from advml.data.source import SplitSettings
from advml.errors import AdvmlError


def batch(rows=3, seed=0, protocol=2, **changes):
    rng = np.random.default_rng(seed)
    content = {
        b"batch_label": b"a made batch",
        b"labels": [int(label) for label in rng.integers(0, 10, rows)],
        b"data": rng.integers(0, 256, (rows, 3072), dtype=np.uint8),
        b"filenames": [b"x.png"] * rows,
    }
    content |= {key.encode(): value for key, value in changes.items()}
    return pickle.dumps(content, protocol=protocol)


def archive_of(contents, extra=()):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz", compresslevel=1) as archive:
        for name, content in [*((f"{FOLDER}/{name}", content) for name, content in contents.items()), *extra]:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


@pytest.fixture
def contents():
    return {name: batch(rows=2 + number, seed=number) for number, name in enumerate(BATCHES)}


@pytest.fixture
def folder(tmp_path, contents):
    path = tmp_path / "cifar10" / FOLDER
    path.mkdir(parents=True)
    for name, content in contents.items():
        (path / name).write_bytes(content)
    return path


@pytest.fixture
def archive(tmp_path, contents):
    path = tmp_path / "cifar10" / "cifar-10-python.tar.gz"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(archive_of(contents))
    return path


@pytest.fixture
def load(tmp_path, make_source, split_values):
    def run():
        source, notes = make_source(tmp_path)
        return Cifar10(SplitSettings(**split_values)).load(source), notes

    return run


def refused(load):
    with pytest.raises(AdvmlError) as caught:
        load()
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("cifar10: ")
    assert "advml data download cifar10" in message
    return message


# --- one batch ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_batch_comes_out_as_it_went_in(tmp_path, protocol):
    content = batch(protocol=protocol)
    plain = pickle.loads(content)
    images, labels = read_batch(content, tmp_path, "b")
    assert images.dtype == torch.uint8
    assert images.shape == (3, 3, 32, 32)
    assert torch.equal(images.flatten(1), torch.from_numpy(plain[b"data"]))
    assert labels.tolist() == plain[b"labels"]
    # red first, then green, then blue, each row by row: the layout of the official batches
    assert images[1, 2, 4, 5] == plain[b"data"][1, 2 * 1024 + 4 * 32 + 5]


def test_a_batch_as_python_2_wrote_it(tmp_path):
    """Protocol 2 with byte strings, the array inside as the official files have it."""
    row = bytes(range(256)) * 12
    text = lambda value: b"U" + bytes([len(value)]) + value  # noqa: E731
    minus_one = b"J\xff\xff\xff\xff"
    order = b"(K\x03" + text(b"|") + b"NNN" + minus_one * 2 + b"K\x00tb"
    dtype = b"cnumpy\ndtype\n(" + text(b"u1") + b"K\x00K\x01tR" + order
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00t" + text(b"b") + b"tR"
        b"(K\x01K\x01M\x00\x0c\x86" + dtype + b"\x89T" + len(row).to_bytes(4, "little") + row + b"tb"
    )
    content = b"\x80\x02}(" + text(b"data") + array + text(b"labels") + b"](K\x07eu."
    images, labels = read_batch(content, tmp_path, "b")
    assert images.flatten().numpy().tobytes() == row
    assert labels.tolist() == [7]


class Attack:
    """Unpickled with trust, it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


class Evaluate:
    def __init__(self, text):
        self.text = text

    def __reduce__(self):
        return eval, (self.text,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("where", ["all", "data", "labels", "extra"])
def test_a_pickle_that_would_run_code_is_refused_and_runs_none(tmp_path, protocol, where):
    trap = tmp_path / "sprung"
    attack = Attack(trap)
    content = pickle.dumps(attack, protocol) if where == "all" else batch(protocol=protocol, **{where: attack})
    with pytest.raises(Damaged, match=r"is refused: b asks for \w+\.mkdir, which no batch of pictures needs"):
        read_batch(content, tmp_path, "b")
    assert not trap.exists()
    with pytest.raises(Damaged, match=r"is refused: b asks for \w+\.eval"):
        read_batch(pickle.dumps(Evaluate(f"__import__('os').mkdir({str(trap)!r})"), protocol), tmp_path, "b")
    assert not trap.exists()
    pickle.loads(content)
    assert trap.exists(), "the trap itself works"


@pytest.mark.parametrize(
    "content",
    [
        b"c_codecs\nencode\n(Vx\nVrot13\ntR.",
        b"cnumpy\nload\n(Vx.npy\ntR.",
        b"cnumpy.core.multiarray\nfromfile\n(Vx\ntR.",
        b"cbuiltins\ngetattr\n.",
        b"\x80\x04\x8c\x0bcollections\x8c\x0bOrderedDict\x93.",
    ],
)
def test_nothing_but_arrays_is_built(tmp_path, content):
    with pytest.raises(Damaged, match="is refused: b asks for"):
        read_batch(content, tmp_path, "b")


def test_any_damage_to_a_pickle_is_told_as_damage(tmp_path):
    content = batch(rows=1)
    rng = np.random.default_rng(0)
    places = [*range(400), *rng.integers(0, len(content), 100).tolist()]
    outcomes, lines = set(), []
    for place in places:
        spoiled = bytearray(content)
        spoiled[place] ^= int(rng.integers(1, 256))
        try:
            read_batch(bytes(spoiled), tmp_path, "b")
            outcomes.add("read")  # a pixel, a label or a name that nobody looks at
        except Damaged as error:
            outcomes.add(str(error).split()[2])
            lines.append(str(error))
    assert not any("\n" in line for line in lines)
    assert outcomes >= {"read", "corrupt:"}
    for length in range(0, len(content), 37):
        with pytest.raises(Damaged, match="is corrupt"):
            read_batch(content[:length], tmp_path, "b")


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (pickle.dumps([1, 2]), "holds no rows of 3,072 bytes"),
        (batch(data=np.zeros((3, 3071), np.uint8)), "holds no rows of 3,072 bytes"),
        (batch(data=np.zeros((3, 3072))), "holds no rows of 3,072 bytes"),
        (batch(data=[[0] * 3072] * 3), "holds no rows of 3,072 bytes"),
        (batch(labels=[0, 1, 10]), "holds no labels from 0 to 9"),
        (batch(labels=[0, 1, -1]), "holds no labels from 0 to 9"),
        (batch(labels=[0, 1, 1.0]), "holds no labels from 0 to 9"),
        (batch(labels=None), "holds no labels from 0 to 9"),
        (batch(labels=[0, 1]), "holds 3 pictures and 2 labels"),
        (batch(rows=0, protocol=4), "holds 0 pictures and 0 labels"),
    ],
)
def test_another_content_is_the_wrong_file(tmp_path, content, fault):
    with pytest.raises(Damaged, match="is not the right file") as caught:
        read_batch(content, tmp_path, "b")
    assert fault in str(caught.value)


# --- the data set -------------------------------------------------------------------------------------------------


def test_the_shape_is_known_without_a_file(split_values):
    assert Cifar10(SplitSettings(**split_values)).spec() == Spec({"image": (3, 32, 32)}, Classes(10))


def check_made(loaded, notes, contents, path):
    expected = [pickle.loads(contents[name]) for name in BATCHES]
    images = np.concatenate([part[b"data"] for part in expected[:-1]])
    assert np.array_equal(loaded.examples.inputs["image"].flatten(1).numpy(), images)
    assert loaded.examples.target.tolist() == [label for part in expected[:-1] for label in part[b"labels"]]
    assert loaded.test.target.tolist() == expected[-1][b"labels"]
    assert np.array_equal(loaded.test.inputs["image"].flatten(1).numpy(), expected[-1][b"data"])
    assert loaded.scale == 255
    assert notes == [
        f"cifar10: {path} has not the official checksum; it is used because its content is right "
        "(20 training and 7 test pictures, not 50,000 and 10,000)"
    ]


def test_a_smaller_folder_of_batches_is_accepted_with_a_note(load, folder, contents):
    loaded, notes = load()
    check_made(loaded, notes, contents, folder)
    assert set(loaded.files) == {f"{FOLDER}/{name}" for name in BATCHES}


def test_a_smaller_archive_is_accepted_with_a_note(load, archive, contents):
    loaded, notes = load()
    check_made(loaded, notes, contents, archive)
    assert set(loaded.files) == {"cifar-10-python.tar.gz"}
    assert sorted(path.name for path in archive.parent.iterdir()) == [archive.name], "nothing is unpacked"


def test_the_archive_goes_before_the_folder_so_that_a_download_mends(load, folder, archive, contents):
    (folder / "data_batch_2").write_bytes(b"damaged")
    check_made(*load(), contents, archive)


def test_the_order_in_the_archive_does_not_matter(load, archive, contents):
    archive.write_bytes(archive_of(dict(reversed(contents.items())), [("../evil", b"x"), (f"{FOLDER}/readme", b"x")]))
    check_made(*load(), contents, archive)
    assert not (archive.parent.parent / "evil").exists()


def test_a_missing_batch_is_named(load, folder):
    (folder / "data_batch_4").unlink()
    assert f"{folder / 'data_batch_4'} is missing" in refused(load)


def test_a_batch_missing_from_the_archive_is_named(load, archive, contents):
    del contents["test_batch"]
    archive.write_bytes(archive_of(contents))
    assert f"{archive} is incomplete: test_batch missing" in refused(load)


def test_a_link_in_the_archive_is_not_followed(load, archive, contents):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as made:
        for name in BATCHES:
            member = tarfile.TarInfo(f"{FOLDER}/{name}")
            member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            made.addfile(member)
    archive.write_bytes(stream.getvalue())
    assert "is incomplete" in refused(load)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: b"<html>not found</html>",
        lambda content: gzip.compress(b"no tar"),
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: content[:-6] + bytes([content[-6] ^ 1]) + content[-5:],  # the checksum of the whole
        lambda content: content[:2000] + b"\xff" * 50 + content[2050:],
    ],
)
def test_a_damaged_archive_is_one_line_with_the_remedy(load, archive, damage):
    archive.write_bytes(damage(archive.read_bytes()))
    assert f"{archive} is truncated or corrupt" in refused(load)


def test_a_damaged_batch_in_the_folder_is_one_line_with_the_remedy(load, folder):
    (folder / "data_batch_1").write_bytes((folder / "data_batch_1").read_bytes()[:-50])
    assert "is corrupt: data_batch_1 is no readable pickle" in refused(load)


def test_no_files_at_all_is_one_line_with_the_remedy(load):
    assert "cifar-10-python.tar.gz is not in" in refused(load)


# --- the real pictures --------------------------------------------------------------------------------------------


@pytest.mark.real_data
def test_the_small_cifar10_is_a_part_of_cifar10(real_data, tmp_path, load):
    """1,000 + 200 pictures of each class, JPEG copies; the moments are near the published ones of all 50,000."""
    (tmp_path / "cifar10").mkdir()
    (tmp_path / "cifar10" / FOLDER).symlink_to(real_data(f"cifar10_small/{FOLDER}"))
    loaded, notes = load()
    assert loaded.examples.inputs["image"].shape == (10_000, 3, 32, 32)
    assert loaded.examples.target.bincount().tolist() == [1_000] * 10
    assert loaded.test.target.bincount().tolist() == [200] * 10
    assert loaded.test.target[:8].tolist() == [3, 8, 8, 0, 6, 6, 1, 6]
    assert len(notes) == 1
    assert "10,000 training and 2,000 test pictures" in notes[0]
    pixels = loaded.examples.inputs["image"].double() / 255
    assert pixels.mean((0, 2, 3)).tolist() == pytest.approx([0.4914, 0.4822, 0.4465], abs=5e-3)
    assert pixels.std((0, 2, 3)).tolist() == pytest.approx([0.2470, 0.2435, 0.2616], abs=5e-3)


def test_the_shipped_configuration_binds():
    from advml.compose import compose
    from advml.config import bind

    bound = bind(compose(["dataset=cifar10"])[0])
    assert bound.dataset.cls is Cifar10
    assert bound.dataset.settings.valid == 0.1
