"""idx files and the three data sets made of them."""

import gzip
import struct

import pytest
import torch

from advml.config import bind
from advml.contracts import Classes, Spec
from advml.data.files import Damaged
from advml.data.idx import NAMES, FashionMnist, Kmnist, Mnist, read_idx
from advml.data.source import SplitSettings
from advml.errors import AdvmlError

SETS = (Mnist, FashionMnist, Kmnist)


def idx(*shape, values=None, kind=8):
    count = 1
    for length in shape:
        count *= length
    body = bytes(count) if values is None else bytes(values)
    return struct.pack(f">4B{len(shape)}I", 0, 0, kind, len(shape), *shape) + body


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture(scope="module")
def contents():
    """Four files of the right shape whose pictures are black, and whose labels run from 0 to 9 again and again."""
    return {
        NAMES["train_images"]: gzip.compress(idx(60_000, 28, 28), 1),
        NAMES["train_labels"]: gzip.compress(idx(60_000, values=list(range(10)) * 6_000), 1),
        NAMES["test_images"]: gzip.compress(idx(10_000, 28, 28), 1),
        NAMES["test_labels"]: gzip.compress(idx(10_000, values=list(range(10)) * 1_000), 1),
    }


@pytest.fixture
def data_dir(tmp_path, contents):
    for name, content in contents.items():
        write(tmp_path / "mnist" / name, content)
    return tmp_path


def refused(data_dir, make_source, split_values):
    """The one line in which MNIST is refused."""
    with pytest.raises(AdvmlError) as caught:
        Mnist(SplitSettings(**split_values)).load(make_source(data_dir)[0])
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("mnist: ")
    assert "advml data download mnist" in message
    return message


# --- read_idx -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [gzip.compress, lambda content: content])
def test_an_array_comes_out_as_it_went_in(tmp_path, pack):
    values = torch.arange(24, dtype=torch.uint8).reshape(2, 3, 4)
    path = write(tmp_path / "x", pack(idx(2, 3, 4, values=range(24))))
    assert torch.equal(read_idx(path), values)


def test_an_array_without_elements_is_an_array(tmp_path):
    assert read_idx(write(tmp_path / "x", idx(0, 28, 28))).shape == (0, 28, 28)


WHOLE = gzip.compress(idx(10, 10, values=range(100)), mtime=0)  # names of tests may not change with the clock
FLIPPED = bytearray(WHOLE)
FLIPPED[-6] ^= 1  # in the checksum at the end of a gzip stream


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "is empty"),
        (gzip.compress(b"", mtime=0), "is empty"),
        (WHOLE[:-1], "is truncated: its gzip stream ends too early"),
        (WHOLE[: len(WHOLE) // 2], "is truncated: its gzip stream ends too early"),
        (WHOLE[:5], "is truncated: its gzip stream ends too early"),
        (bytes(FLIPPED), "is corrupt: gzip says CRC check failed"),
        (WHOLE[:12] + b"\xff\xff\xff" + WHOLE[15:], "is corrupt: gzip says"),
        (b"<html>not found</html>", "is no idx file of bytes: it starts with 0x3c68746d"),
        (idx(3, kind=13), "is no idx file of bytes: it starts with 0x00000d01"),
        (b"\0\0\x08\0", "is no idx file of bytes"),
        (b"\0\0\x08\xff" + bytes(2000), "is no idx file of bytes"),
        (b"\0\0\x08", "is no idx file of bytes"),
        (idx(2, 2)[:10], "is truncated: its header ends too early"),
        (idx(3, 5)[:-1], "is truncated: its header promises 15 bytes, 14 follow"),
        (idx(3, 5) + b"x", "is too long: its header promises 15 bytes, 16 follow"),
        (struct.pack(">4B3I", 0, 0, 8, 3, *[2**32 - 1] * 3), "is truncated: its header promises"),
    ],
)
def test_what_is_no_idx_file_is_refused_in_words(tmp_path, content, fault):
    path = write(tmp_path / "x", content)
    with pytest.raises(Damaged) as caught:
        read_idx(path)
    assert str(caught.value).startswith(f"{path} {fault}")


def test_a_file_that_cannot_be_read_is_refused_in_words(tmp_path):
    with pytest.raises(Damaged, match="cannot be read"):
        read_idx(tmp_path)


# --- the data sets ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", SETS)
def test_the_shape_is_known_without_a_file(cls, split_values):
    assert cls(SplitSettings(**split_values)).spec() == Spec({"image": (1, 28, 28)}, Classes(10))


@pytest.mark.parametrize("cls", SETS)
def test_every_file_has_mirrors_and_a_checksum(cls):
    assert [file.name for file in cls.files] == list(NAMES.values())
    for file in cls.files:
        assert len(file.urls) >= 2
        assert all(url.startswith("http") and url.endswith("/" + file.name) for url in file.urls)
        assert len(bytes.fromhex(file.sha256)) == 32
        assert file.size > 4_000
    assert len({file.sha256 for each in SETS for file in each.files}) == 12


def test_files_put_there_by_hand_are_accepted_with_a_note(data_dir, make_source, split_values):
    source, notes = make_source(data_dir)
    loaded = Mnist(SplitSettings(**split_values)).load(source)
    assert loaded.examples.inputs["image"].shape == (60_000, 1, 28, 28)
    assert loaded.examples.inputs["image"].dtype == torch.uint8
    assert loaded.examples.target.dtype == torch.int64
    assert torch.equal(loaded.examples.target[:12], torch.tensor([*range(10), 0, 1]))
    assert loaded.test.inputs["image"].shape == (10_000, 1, 28, 28)
    assert loaded.scale == 255
    assert set(loaded.files) == set(NAMES.values())
    assert len(notes) == 4
    assert all("has not the official checksum" in note and "mnist/" in note for note in notes)


def test_unpacked_files_serve_too(data_dir, contents, make_source, split_values):
    for name, content in contents.items():
        (data_dir / "mnist" / name).unlink()
        write(data_dir / "mnist" / name.removesuffix(".gz"), gzip.decompress(content))
    loaded = Mnist(SplitSettings(**split_values)).load(make_source(data_dir)[0])
    assert len(loaded.examples) == 60_000


def test_a_truncated_file_is_one_line_with_the_remedy(data_dir, contents, make_source, split_values):
    path = write(data_dir / "mnist" / NAMES["test_images"], contents[NAMES["test_images"]][:-100])
    message = refused(data_dir, make_source, split_values)
    assert f"{path} is truncated" in message
    assert f"mend it with: advml data download mnist data_dir={data_dir}" in message


def test_a_missing_file_is_one_line_with_the_remedy(data_dir, make_source, split_values):
    (data_dir / "mnist" / NAMES["train_labels"]).unlink()
    assert "train-labels-idx1-ubyte.gz is not in" in refused(data_dir, make_source, split_values)


@pytest.mark.parametrize(
    ("part", "content", "fault"),
    [
        ("train_images", idx(10_000, 28, 28), "it holds 10,000×28×28 bytes, not 60,000×28×28"),
        ("test_images", idx(10_000, 28, 27), "it holds 10,000×28×27 bytes, not 10,000×28×28"),
        ("test_labels", idx(9_999), "it holds 9,999 bytes, not 10,000"),
        ("train_labels", idx(10_000, 28, 28), "it holds 10,000×28×28 bytes, not 60,000"),
        ("test_labels", idx(10_000, values=[10] * 10_000), "it holds the label 10, and the labels are 0 to 9"),
    ],
)
def test_a_file_with_other_counts_is_the_wrong_file(data_dir, make_source, split_values, part, content, fault):
    write(data_dir / "mnist" / NAMES[part], gzip.compress(content, 1))
    message = refused(data_dir, make_source, split_values)
    assert f"{NAMES[part]} is not the right file: {fault}" in message


# --- the real files -----------------------------------------------------------------------------------------------


def load_real(cls, real_data, make_source, split_values):
    source, notes = make_source(real_data(cls.name).parent)
    loaded = cls(SplitSettings(**split_values)).load(source)
    assert notes == []
    assert dict(loaded.files) == {file.name: file.sha256 for file in cls.files}
    return loaded


def moments(part):
    pixels = part.inputs["image"].flatten().bincount(minlength=256).double()
    values = torch.arange(256, dtype=torch.float64) / 255
    mean = (pixels * values).sum() / pixels.sum()
    return mean.item(), ((pixels * (values - mean) ** 2).sum() / pixels.sum()).sqrt().item()


@pytest.mark.real_data
def test_mnist_is_mnist(real_data, make_source, split_values):
    loaded = load_real(Mnist, real_data, make_source, split_values)
    assert loaded.examples.target[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert loaded.test.target[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert loaded.examples.target.bincount().tolist() == counts
    assert loaded.test.target.bincount().tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert moments(loaded.examples) == pytest.approx((0.1307, 0.3081), abs=5e-5)


@pytest.mark.real_data
def test_fashion_mnist_is_fashion_mnist(real_data, make_source, split_values):
    loaded = load_real(FashionMnist, real_data, make_source, split_values)
    assert loaded.examples.target[:5].tolist() == [9, 0, 0, 3, 0]
    assert loaded.test.target[:5].tolist() == [9, 2, 1, 1, 6]
    assert loaded.examples.target.bincount().tolist() == [6_000] * 10
    assert loaded.test.target.bincount().tolist() == [1_000] * 10
    assert moments(loaded.examples) == pytest.approx((0.2860, 0.3530), abs=5e-5)


@pytest.mark.real_data
def test_a_file_of_another_data_set_is_refused(real_data, tmp_path, make_source, split_values):
    """The four names are the same everywhere, so files get mixed up; the counts alone would not tell."""
    for name in NAMES.values():
        write(tmp_path / "mnist" / name, (real_data("mnist") / name).read_bytes())
    write(tmp_path / "mnist" / NAMES["test_labels"], (real_data("fashion_mnist") / NAMES["test_labels"]).read_bytes())
    message = refused(tmp_path, make_source, split_values)
    assert "it is t10k-labels-idx1-ubyte.gz of fashion_mnist" in message


@pytest.mark.parametrize("cls", SETS)
def test_the_shipped_configuration_binds(cls):
    assert_binds(cls.name, cls)


def assert_binds(name, cls):
    """The YAML of a data set names exactly the keys of its settings."""
    from advml.compose import compose

    bound = bind(compose([f"dataset={name}"])[0])
    assert bound.dataset.cls is cls
    assert bound.dataset.settings.valid == 0.1
