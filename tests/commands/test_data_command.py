"""advml data list | download | verify, from the words typed to the exit code."""

import gzip
import hashlib
import math
import struct
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from loopback import Page, serving

from advml import cli
from advml.commands import data
from advml.data.fetch import RemoteFile
from advml.data.idx import Mnist
from advml.errors import ConfigError


def black(*shape):
    """A packed idx file of zeros."""
    return gzip.compress(struct.pack(f">4B{len(shape)}I", 0, 0, 8, len(shape), *shape) + bytes(math.prod(shape)), 4)


CONTENTS = {
    "train-images-idx3-ubyte.gz": black(60_000, 28, 28),
    "train-labels-idx1-ubyte.gz": black(60_000),
    "t10k-images-idx3-ubyte.gz": black(10_000, 28, 28),
    "t10k-labels-idx1-ubyte.gz": black(10_000),
}
LABELS = "train-labels-idx1-ubyte.gz"


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    """The data folder of the test, given by the variable; a wide screen, so that no line is folded."""
    monkeypatch.setenv("ADVML_DATA", str(tmp_path / "data"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("COLUMNS", "300")
    return tmp_path


@pytest.fixture
def server(monkeypatch):
    """A server that has made files, which pass for the official ones of MNIST."""
    with serving() as running:
        files = []
        for name, content in CONTENTS.items():
            running.pages[f"/{name}"] = Page(content)
            sha256 = hashlib.sha256(content).hexdigest()
            files.append(RemoteFile(name, sha256, len(content), (running.url(f"/{name}"),)))
        monkeypatch.setattr(Mnist, "files", tuple(files))
        yield running


def say(capsys, *words):
    """Exit code, output and errors of a command."""
    code = cli.main(["data", *words])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_list_shows_every_data_set_with_files(capsys, own_folders):
    code, out, _ = say(capsys, "list")
    assert code == 0
    assert str(own_folders / "data") in out
    for name in ("mnist", "fashion_mnist", "kmnist", "cifar10", "omniglot"):
        assert f"fetch {name} with: advml data download {name}" in out
    assert out.count("absent") >= 15
    assert "170.5 MB" in out
    assert "digits" not in out


def test_list_tells_the_states_apart(capsys, server, own_folders):
    folder = own_folders / "elsewhere" / "mnist"
    folder.mkdir(parents=True)
    (folder / "train-images-idx3-ubyte.gz.part").write_bytes(b"half")
    (folder / LABELS).write_bytes(CONTENTS[LABELS])
    (folder / "t10k-images-idx3-ubyte.gz").write_bytes(CONTENTS["t10k-images-idx3-ubyte.gz"][:-9])
    plain = gzip.decompress(CONTENTS["t10k-labels-idx1-ubyte.gz"])
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(gzip.compress(plain, 1))
    code, out, _ = say(capsys, "list", f"data_dir={own_folders / 'elsewhere'}")
    assert code == 0
    mnist = out[out.index(" mnist ") :]
    lines = {name: next(line for line in mnist.splitlines() if name in line) for name in CONTENTS}
    assert "absent: half-finished download" in lines["train-images-idx3-ubyte.gz"]
    assert "official" in lines[LABELS]
    assert "damaged: is truncated" in lines["t10k-images-idx3-ubyte.gz"]
    assert "accepted" in lines["t10k-labels-idx1-ubyte.gz"]
    assert f"advml data download mnist data_dir={own_folders / 'elsewhere'}" in out


def test_download_fetches_what_is_missing_or_damaged_and_verify_agrees(capsys, server, own_folders):
    folder = own_folders / "data" / "mnist"
    folder.mkdir(parents=True)
    (folder / LABELS).write_bytes(CONTENTS[LABELS][:-9])
    assert say(capsys, "verify", "mnist")[0] == 1
    code, out, err = say(capsys, "download", "mnist")
    assert (code, err) == (0, "")
    assert f"{folder / LABELS} is damaged (is truncated" in out
    assert f"mnist: complete in {folder}" in out
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == CONTENTS
    code, out, _ = say(capsys, "verify", "mnist")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["official"] * 4

    server.asked.clear()
    assert say(capsys, "download", "mnist")[0] == 0
    assert server.asked == []


def test_download_keeps_what_is_right_though_not_official(capsys, server, own_folders):
    folder = own_folders / "data" / "mnist"
    folder.mkdir(parents=True)
    mine = gzip.compress(gzip.decompress(CONTENTS[LABELS]), 1)
    (folder / LABELS).write_bytes(mine)
    code, out, _ = say(capsys, "download", "mnist")
    assert code == 0
    assert (folder / LABELS).read_bytes() == mine
    assert f"{folder / LABELS} is kept" in out
    assert (f"/{LABELS}", None) not in server.asked


def test_a_download_that_fails_is_one_line_and_code_1(capsys, server, own_folders):
    server.pages[f"/{LABELS}"] = Page(b"", status=503)
    code, out, err = say(capsys, "download", "mnist")
    assert code == 1
    assert len(err.splitlines()) == 1
    assert err.startswith(f"advml: mnist: {LABELS} could not be downloaded (127.0.0.1:")
    assert "HTTP 503" in err
    assert "complete" not in out
    assert not (own_folders / "data" / "mnist" / LABELS).exists()


def test_one_data_set_that_fails_does_not_keep_the_others(capsys, server, monkeypatch):
    from advml.data.idx import Kmnist

    monkeypatch.setattr(Kmnist, "files", (RemoteFile("x.gz", "0" * 64, 9, (server.url("/nowhere"),)),))
    code, out, _ = say(capsys, "download", "kmnist", "mnist")
    assert code == 1
    assert "kmnist: x.gz could not be downloaded" in out
    assert "mnist: complete in" in out


def test_verify_all_fails_while_anything_is_missing(capsys, server):
    assert say(capsys, "download", "mnist")[0] == 0
    code, out, _ = say(capsys, "verify", "--all")
    assert code == 1
    assert out.count("official") == 4
    assert "mend cifar10 with: advml data download cifar10" in out
    assert "mend mnist" not in out


@pytest.mark.parametrize(
    ("words", "mistake"),
    [
        ([], "data: say what to do (list, download NAME or verify NAME; see: advml data --help)"),
        (["lst"], "data: lst: unknown action; did you mean list?"),
        (["download"], "data download: name a data set, like: advml data download mnist (or --all)"),
        (["verify"], "data verify: name a data set"),
        (["list", "mnist"], "data list: takes no mnist"),
        (["verify", "mnits"], "mnits: unknown data set; did you mean mnist?"),
        (["download", "digits"], "digits: needs no files (with files: cifar10, "),
        (["list", "data_dri=x"], "data: data_dri: unknown key; did you mean data_dir?"),
        (["verify", "--every"], "data verify: --every: unknown option"),
        (["list", "data_dir="], "data_dir: name one folder"),
        (["list", "data_dir=a", "data_dir=b"], "data_dir: name one folder"),
    ],
)
def test_wrong_words_are_code_2_and_say_what_would_be_right(capsys, words, mistake):
    code, out, err = say(capsys, *words)
    assert (code, out) == (2, "")
    assert err.startswith(f"advml: {mistake}")
    assert len(err.splitlines()) == 1


def test_all_wrong_names_are_told_at_once():
    with pytest.raises(ConfigError) as caught:
        data.main(["download", "mnits", "kmnist", "iris"])
    assert [mistake.split(":")[0] for mistake in caught.value.mistakes] == ["mnits", "iris"]


def test_a_plug_in_that_does_not_load_keeps_no_one_from_the_others(capsys, monkeypatch):
    from advml import registry

    names, resolve = registry.names, registry.resolve

    def broken(kind, name):
        if name == "theirs":
            raise ConfigError("dataset=theirs: cannot load")
        return resolve(kind, name)

    monkeypatch.setattr(registry, "names", lambda kind: [*names(kind), "theirs"])
    monkeypatch.setattr(registry, "resolve", broken)
    assert say(capsys, "list")[0] == 0


def test_the_progress_bar_shows_in_a_terminal_only():
    import io

    from rich.console import Console

    for terminal in (True, False):
        screen = io.StringIO()
        with data._progress(Console(file=screen, force_terminal=terminal, width=120)) as report:
            assert (report is not None) == terminal
            if report:
                report("toy.bin", 500, 1000)
                report("toy.bin", 1000, 1000)
        assert ("toy.bin" in screen.getvalue()) == terminal


def test_help_imports_nothing_heavy():
    code = "import sys; from advml.cli import main; main(['data', '--help']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "advml data download mnist" in done.stdout
    loaded = done.stdout.splitlines()[-1].split()
    assert not {"torch", "numpy", "rich", "pooch", "requests", "hydra", "pennylane"} & set(loaded)
