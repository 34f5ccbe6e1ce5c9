"""Fixtures for whole runs: the command line in this process, and processes that may be killed."""

import copy
import os
from dataclasses import dataclass

import pytest
import torch
from forks import Forks
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from runs import QUIET, TINY

from advml.roots import config_root

torch.set_num_threads(1)
hypothesis_settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("untimed")  # no test is about time

SHIPPED = (str(config_root()), "hydra.conf")


@pytest.fixture(scope="session", autouse=True)
def shipped_files_are_parsed_once():
    """Hydra reads them anew for each composition, which takes a sixth of a small run; here they do not change."""
    Plugins.instance()  # fills the registry
    with pytest.MonkeyPatch.context() as patch:
        for source in map(SourcesRegistry.instance().resolve, ("file", "pkg")):
            patch.setattr(source, "load_config", parsed_once(source.load_config))
        yield


def parsed_once(plain):
    known = {}

    def load_config(self, config_path):
        if self.path not in SHIPPED:
            return plain(self, config_path)
        key = self.path, config_path
        if key not in known:
            known[key] = plain(self, config_path)
        return copy.deepcopy(known[key])

    return load_config


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
