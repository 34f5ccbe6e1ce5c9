"""Fixtures for whole runs: the command line in this process, and processes that may be killed."""

import os
from dataclasses import dataclass

import pytest
import torch
from forks import Forks
from runs import QUIET, TINY

torch.set_num_threads(1)


@dataclass
class Said:
    """What a command answered."""

    code: int
    out: str
    err: str

    @property
    def last(self):
        """The last line of stdout: the run folder."""
        return self.out.splitlines()[-1]


@pytest.fixture
def inside(tmp_path, monkeypatch):
    """An empty current folder, and nobody's settings."""
    folder = tmp_path / "cwd"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for name in [name for name in os.environ if name.startswith("ADVML_")]:
        monkeypatch.delenv(name)
    return folder


@pytest.fixture
def run_cli(inside, capsys):
    """run_cli("run", "seed=1"): an advml command in this process, in an empty folder."""
    from advml.cli import main

    def run(*words):
        capsys.readouterr()
        code = main(list(words))
        said = capsys.readouterr()
        return Said(code, said.out, said.err)

    return run


@pytest.fixture
def tiny(run_cli):
    """tiny("seed=1"): `advml run` at the smallest size; it must succeed. The run folder."""
    from advml.runner.folder import RunFolder

    def run(*overrides):
        said = run_cli("run", *TINY, *QUIET, *overrides)
        assert said.code == 0, said.err
        return RunFolder.open(said.last)

    return run


@pytest.fixture(scope="session")
def forks(tmp_path_factory):
    """Processes of their own; see forks.py."""
    client = Forks(tmp_path_factory.mktemp("forks"))
    yield client
    client.close()


@pytest.fixture
def tree(inside):
    """tree("seed=1"): the composed configuration of a tiny run, to be changed or bound."""
    from advml.compose import compose

    def composed(*overrides, base=TINY):
        return compose([*base, *QUIET, *overrides])[0]

    return composed
