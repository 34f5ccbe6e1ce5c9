"""Finding and identifying files: where they may lie, what stands in their place, and how to get them."""

import gzip
import hashlib
import struct

import pooch
import pytest
from loopback import Page, serving

from advml.data.fetch import RemoteFile
from advml.data.files import (
    Damaged,
    default_data_dir,
    download_command,
    identify,
    inspect,
    locate,
    remedy,
    resolve_data_dir,
)
from advml.data.idx import Mnist
from advml.errors import AdvmlError

CONTENT = bytes(range(256)) * 1000


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as running:
        yield running


def remote(*urls, content=CONTENT):
    return RemoteFile("toy.bin", hashlib.sha256(content).hexdigest(), len(content), urls)


def test_the_data_folder_is_the_key_or_the_variable_or_the_cache(own_cache, tmp_path, monkeypatch):
    assert default_data_dir() == own_cache / "advml"
    assert resolve_data_dir(None) == own_cache / "advml"
    monkeypatch.setenv("ADVML_DATA", str(tmp_path / "elsewhere"))
    assert resolve_data_dir(None) == tmp_path / "elsewhere"
    assert resolve_data_dir(str(tmp_path)) == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_data_dir("~/data") == tmp_path / "data"
    monkeypatch.chdir(tmp_path)
    assert resolve_data_dir("data") == tmp_path / "data"


def test_the_remedy_names_the_folder_only_where_it_must(tmp_path, monkeypatch):
    assert download_command("mnist", default_data_dir()) == "advml data download mnist"
    assert download_command("mnist", tmp_path / "my data") == f"advml data download mnist data_dir='{tmp_path}/my data'"
    monkeypatch.setenv("ADVML_DATA", str(tmp_path))
    assert download_command("mnist", tmp_path) == "advml data download mnist"


def test_missing_files_are_one_line_with_the_command(tmp_path, monkeypatch):
    monkeypatch.setenv("ADVML_DATA", str(tmp_path))
    with pytest.raises(AdvmlError) as caught:
        locate(tmp_path, "mnist", Mnist.files, False, print)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith("fetch with: advml data download mnist")
    assert str(tmp_path / "mnist") in message
    assert all(file.name in message for file in Mnist.files)


def test_a_half_finished_download_never_counts(tmp_path):
    (tmp_path / "toy").mkdir()
    (tmp_path / "toy" / "toy.bin.part").write_bytes(CONTENT)
    with pytest.raises(AdvmlError, match=r"toy\.bin is not in .* \(only a half-finished download\)"):
        locate(tmp_path, "toy", [remote()], False, print)


def test_missing_files_are_fetched_where_that_is_wanted(server, tmp_path):
    server.pages["/toy"] = Page(CONTENT)
    notes = []
    paths = locate(tmp_path, "toy", [remote(server.url("/toy"))], True, notes.append)
    assert paths == {"toy.bin": tmp_path / "toy" / "toy.bin"}
    assert paths["toy.bin"].read_bytes() == CONTENT
    assert notes == [f"toy: fetching toy.bin (0.3 MB) into {tmp_path / 'toy'}"]


def test_a_failed_fetch_names_the_data_set(server, tmp_path):
    with pytest.raises(AdvmlError, match=r"^toy: toy\.bin could not be downloaded \(127\.0\.0\.1:\d+: HTTP 404"):
        locate(tmp_path, "toy", [remote(server.url("/toy"))], True, lambda text: None)


def test_other_places_and_unpacked_archives_serve_too(tmp_path):
    file = RemoteFile("deep/toy.zip", "", 0, (), also=("toy.zip",), unpacked={"out/a": "", "out/b": ""})
    assert locate_one(tmp_path, file) is None
    (tmp_path / "toy" / "out").mkdir(parents=True)
    (tmp_path / "toy" / "out" / "b").write_bytes(b"b")
    assert locate_one(tmp_path, file) == tmp_path / "toy" / "out"
    (tmp_path / "toy" / "toy.zip").write_bytes(b"zip")
    assert locate_one(tmp_path, file) == tmp_path / "toy" / "toy.zip"
    (tmp_path / "toy" / "deep").mkdir()
    (tmp_path / "toy" / "deep" / "toy.zip").write_bytes(b"zip")
    assert locate_one(tmp_path, file) == tmp_path / "toy" / "deep" / "toy.zip"


def locate_one(data_dir, file):
    try:
        return locate(data_dir, "toy", [file], False, print)[file.name]
    except AdvmlError:
        return None


def test_identity_is_sha256_of_a_file_and_md5_of_unpacked_parts(tmp_path):
    path = tmp_path / "toy.bin"
    path.write_bytes(CONTENT)
    identity = identify(remote(), path)
    assert identity.official
    assert identity.hashes == {"toy.bin": hashlib.sha256(CONTENT).hexdigest()}
    path.write_bytes(CONTENT[:-1])
    assert not identify(remote(), path).official

    (tmp_path / "out").mkdir()
    for name in "ab":
        (tmp_path / "out" / name).write_bytes(name.encode())
    md5 = {f"out/{name}": hashlib.md5(name.encode()).hexdigest() for name in "ab"}
    file = RemoteFile("toy.zip", "", 0, (), unpacked=md5)
    identity = identify(file, tmp_path / "out")
    assert identity.official
    assert identity.hashes["out/a"] == hashlib.sha256(b"a").hexdigest()
    (tmp_path / "out" / "b").write_bytes(b"c")
    assert not identify(file, tmp_path / "out").official
    (tmp_path / "out" / "b").unlink()
    with pytest.raises(Damaged, match="out/b is missing"):
        identify(file, tmp_path / "out")


def test_a_folder_in_place_of_a_file_is_no_file(tmp_path):
    with pytest.raises(Damaged, match="is not a file"):
        identify(remote(), tmp_path)


def test_the_remedy_is_one_line_with_file_fault_and_command(tmp_path):
    with pytest.raises(AdvmlError) as caught, remedy("mnist", tmp_path):
        raise Damaged(tmp_path / "mnist" / "x.gz", "is truncated")
    assert str(caught.value) == (
        f"mnist: {tmp_path}/mnist/x.gz is truncated; mend it with: advml data download mnist data_dir={tmp_path}"
    )


def test_inspect_tells_official_accepted_absent_and_damaged_apart(tmp_path, monkeypatch):
    folder = tmp_path / "mnist"
    folder.mkdir()
    labels = struct.pack(">4BI", 0, 0, 8, 1, 10_000) + bytes(10_000)
    train = struct.pack(">4BI", 0, 0, 8, 1, 60_000) + bytes(60_000)
    images, train_labels, test_images, test_labels = (file.name for file in Mnist.files)
    (folder / train_labels).write_bytes(gzip.compress(train))
    (folder / test_labels).write_bytes(gzip.compress(labels)[:-20])
    (folder / (images + ".part")).write_bytes(b"half")
    states = {state.file.name: state for state in inspect(Mnist, tmp_path)}
    assert {name: state.state for name, state in states.items()} == {
        images: "absent", train_labels: "accepted", test_images: "absent", test_labels: "damaged"
    }  # fmt: skip
    assert states[images].detail == "half-finished download"
    assert states[test_labels].detail.startswith("is truncated")
    known = pooch.file_hash(str(folder / train_labels))
    files = [RemoteFile(file.name, known, 0, ()) for file in Mnist.files]
    monkeypatch.setattr(Mnist, "files", tuple(files))
    assert {state.file.name: state.state for state in inspect(Mnist, tmp_path)}[train_labels] == "official"
