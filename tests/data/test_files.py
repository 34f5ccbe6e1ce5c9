"""Finding, fetching and identifying files, against a server on the loopback address."""

import gzip
import hashlib
import struct
import threading

import pooch
import pytest
from loopback import Page, serving

from advml.data import fetch as fetching
from advml.data.fetch import RemoteFile, download
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
HALF = 16 * fetching.CHUNK


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving() as running:
        yield running


@pytest.fixture
def target(tmp_path):
    return tmp_path / "data" / "toy" / "toy.bin"


def remote(*urls, content=CONTENT):
    return RemoteFile("toy.bin", hashlib.sha256(content).hexdigest(), len(content), urls)


def part_of(target):
    return target.with_name(target.name + ".part")


def fetch(file, target, progress=None):
    notes = []
    download(file, target, notes.append, progress)
    return notes


def refused(file, target):
    with pytest.raises(AdvmlError) as caught:
        fetch(file, target)
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- download -----------------------------------------------------------------------------------------------------


def test_a_complete_download_gives_the_file_and_nothing_else(server, target):
    server.pages["/toy"] = Page(CONTENT)
    seen = []
    notes = fetch(remote(server.url("/toy")), target, lambda *step: seen.append(step))
    assert target.read_bytes() == CONTENT
    assert [path.name for path in target.parent.iterdir()] == ["toy.bin"]
    assert notes == []
    assert server.asked == [("/toy", None)]
    assert server.encodings == ["identity"]
    assert [done for _, done, _ in seen] == sorted(done for _, done, _ in seen)
    assert len(seen) > 2
    assert seen[-1] == ("toy.bin", len(CONTENT), len(CONTENT))


def test_a_cut_connection_is_gone_on_with_from_where_it_broke(server, target):
    server.pages["/toy"] = Page(CONTENT, cuts=[2 * fetching.CHUNK, 8 * fetching.CHUNK + 5])
    seen = []
    fetch(remote(server.url("/toy")), target, lambda *step: seen.append(step))
    assert target.read_bytes() == CONTENT
    assert server.asked == [("/toy", None), ("/toy", "bytes=16384-"), ("/toy", "bytes=81920-")]
    assert not part_of(target).exists()
    assert seen[-1] == ("toy.bin", len(CONTENT), len(CONTENT))


def test_a_connection_that_stays_cut_leaves_half_a_file_that_the_next_download_goes_on_with(server, target):
    server.pages["/toy"] = Page(CONTENT, cuts=[HALF, 0])
    message = refused(remote(server.url("/toy")), target)
    assert f"cut after {HALF:,} of {len(CONTENT):,} bytes" in message
    assert not target.exists()
    assert part_of(target).read_bytes() == CONTENT[:HALF]

    server.asked.clear()
    fetch(remote(server.url("/toy")), target)
    assert server.asked == [("/toy", f"bytes={HALF}-")]
    assert target.read_bytes() == CONTENT
    assert not part_of(target).exists()


def test_a_cut_that_the_server_does_not_announce_is_a_cut_too(server, target):
    server.pages["/toy"] = Page(CONTENT, cuts=[HALF], says_length=False)
    fetch(remote(server.url("/toy")), target)
    assert target.read_bytes() == CONTENT
    assert server.asked[1] == ("/toy", f"bytes={HALF}-")


def test_a_server_without_ranges_sends_everything_again(server, target):
    server.pages["/toy"] = Page(CONTENT, ranges=False, cuts=[HALF])
    fetch(remote(server.url("/toy")), target)
    assert server.asked == [("/toy", None), ("/toy", f"bytes={HALF}-")]
    assert target.read_bytes() == CONTENT


def test_a_mirror_goes_on_where_another_stopped(server, target):
    server.pages["/one"] = Page(CONTENT, cuts=[HALF, 0])
    server.pages["/two"] = Page(CONTENT)
    notes = fetch(remote(server.url("/one"), server.url("/two")), target)
    assert server.asked[-1] == ("/two", f"bytes={HALF}-")
    assert target.read_bytes() == CONTENT
    assert len(notes) == 1
    assert "trying the next mirror" in notes[0]


def test_a_wrong_checksum_sends_to_the_next_mirror(server, target):
    server.pages["/one"] = Page(CONTENT[::-1])
    server.pages["/two"] = Page(CONTENT)
    notes = fetch(remote(server.url("/one"), server.url("/two")), target)
    assert target.read_bytes() == CONTENT
    assert "wrong checksum" in notes[0]
    assert server.asked == [("/one", None), ("/two", None)]


def test_a_wrong_checksum_everywhere_is_an_error_and_leaves_nothing(server, target):
    server.pages["/toy"] = Page(CONTENT[::-1])
    message = refused(remote(server.url("/toy"), server.url("/toy")), target)
    assert "toy.bin" in message
    assert "wrong checksum" in message
    assert "by hand" in message
    assert list(target.parent.iterdir()) == []


def test_a_spoiled_half_is_thrown_away_and_fetched_anew(server, target):
    target.parent.mkdir(parents=True)
    part_of(target).write_bytes(b"x" * HALF)
    server.pages["/toy"] = Page(CONTENT)
    fetch(remote(server.url("/toy")), target)
    assert server.asked == [("/toy", f"bytes={HALF}-"), ("/toy", None)]
    assert target.read_bytes() == CONTENT


def test_a_download_killed_just_before_its_end_needs_no_server(server, target):
    target.parent.mkdir(parents=True)
    part_of(target).write_bytes(CONTENT)
    fetch(remote(server.url("/toy")), target)
    assert server.asked == []
    assert target.read_bytes() == CONTENT


def test_a_half_longer_than_the_whole_is_thrown_away(server, target):
    target.parent.mkdir(parents=True)
    part_of(target).write_bytes(CONTENT + b"more")
    server.pages["/toy"] = Page(CONTENT)
    fetch(remote(server.url("/toy")), target)
    assert server.asked == [("/toy", None)]
    assert target.read_bytes() == CONTENT


@pytest.mark.parametrize("ranges", [True, False])
def test_a_page_of_another_length_is_not_taken_and_costs_nothing(server, target, ranges):
    server.pages["/one"] = Page(CONTENT, cuts=[HALF, 0])
    server.pages["/login"] = Page(b"<html>please log in</html>" * 3, ranges=ranges)
    server.pages["/three"] = Page(CONTENT)
    urls = [server.url(path) for path in ("/one", "/login", "/three")]
    fetch(remote(*urls), target)
    assert target.read_bytes() == CONTENT
    assert server.asked[-1] == ("/three", f"bytes={HALF}-")


def test_another_part_than_the_one_asked_for_is_not_taken(server, target):
    server.pages["/toy"] = Page(CONTENT, cuts=[HALF], wrong_range=True)
    message = refused(remote(server.url("/toy")), target)
    assert "another part" in message
    assert part_of(target).read_bytes() == CONTENT[:HALF]


def test_redirections_are_followed(server, target):
    server.pages["/old"] = Page(b"", moved_to=server.url("/new"))
    server.pages["/new"] = Page(CONTENT, cuts=[HALF])
    fetch(remote(server.url("/old")), target)
    assert target.read_bytes() == CONTENT
    assert server.asked[-1] == ("/new", f"bytes={HALF}-")


def test_errors_are_told_in_few_words(server, target):
    server.pages["/broken"] = Page(b"oops", status=503)
    gone = "http://127.0.0.1:1/toy"
    message = refused(remote(server.url("/nowhere"), server.url("/broken"), gone), target)
    assert "HTTP 404 Not Found" in message
    assert "HTTP 503" in message
    assert "127.0.0.1:1: no connection" in message
    assert len(message) < 400
    assert list(target.parent.iterdir()) == []


def test_a_silent_server_is_given_up(server, target, monkeypatch):
    monkeypatch.setattr(fetching, "TIMEOUT", 0.2)
    server.pages["/toy"] = Page(CONTENT, stall=threading.Event())
    message = refused(remote(server.url("/toy")), target)
    server.pages["/toy"].stall.set()
    assert "no answer in time" in message


def test_a_damaged_file_stays_until_the_right_one_is_there(server, target):
    target.parent.mkdir(parents=True)
    target.write_bytes(b"damaged")
    server.pages["/toy"] = Page(CONTENT, cuts=[HALF, 0])
    refused(remote(server.url("/toy")), target)
    assert target.read_bytes() == b"damaged"
    fetch(remote(server.url("/toy")), target)
    assert target.read_bytes() == CONTENT


def test_a_right_file_is_not_fetched_again(server, target):
    target.parent.mkdir(parents=True)
    target.write_bytes(CONTENT)
    fetch(remote(server.url("/toy")), target)
    assert server.asked == []


def test_two_at_once_fetch_it_once(server, target):
    server.pages["/toy"] = Page(CONTENT)
    faults = []

    def one():
        try:
            fetch(remote(server.url("/toy")), target)
        except AdvmlError as error:
            faults.append(error)

    threads = [threading.Thread(target=one) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert server.asked == [("/toy", None)]
    assert target.read_bytes() == CONTENT


def test_a_folder_that_cannot_be_written_is_named(server, tmp_path):
    server.pages["/toy"] = Page(CONTENT)
    tmp_path.joinpath("file").write_text("in the way")
    message = refused(remote(server.url("/toy")), tmp_path / "file" / "toy" / "toy.bin")
    assert str(tmp_path / "file" / "toy") in message
    assert "data_dir=PATH" in message
    assert server.asked == []


def test_a_read_only_folder_is_named(server, target, monkeypatch):
    def refuse(self, *arguments, **options):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(type(target), "open", refuse)  # permission bits do not keep out a superuser
    server.pages["/toy"] = Page(CONTENT)
    message = refused(remote(server.url("/toy")), target)
    assert "Permission denied" in message
    assert str(target) in message
    assert server.asked == []


# --- locate, identify, inspect ------------------------------------------------------------------------------------


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
