"""Fetching files, from a server on the loopback address."""

import hashlib
import threading

import pytest
from loopback import Page, serving

from advml.data import fetch as fetching
from advml.data.fetch import RemoteFile, download
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
