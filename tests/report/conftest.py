"""Fixtures for reports: a folder to put runs made by hand into."""

import pytest
from fake_runs import make_run


@pytest.fixture
def sweep(tmp_path):
    """sweep(name, seed=1, …): a run folder below `sweep.path`; see fake_runs.make_run."""

    def add(name, **given):
        return make_run(add.path / name, **given)

    add.path = tmp_path / "sweep"
    add.path.mkdir()
    return add
