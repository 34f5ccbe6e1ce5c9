"""Two small zips in a data folder, and the data set that reads them."""

import pytest
from omniglot_cases import MADE, entries, zip_of

from advml.data import omniglot
from advml.data.omniglot import Omniglot, OmniglotSettings


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(omniglot, "CHARACTERS", {folder: len(characters) for folder, characters in MADE.items()})


@pytest.fixture
def data_dir(few, tmp_path):
    folder = tmp_path / "omniglot" / "python"
    folder.mkdir(parents=True)
    for name in MADE:
        (folder / f"{name}.zip").write_bytes(zip_of(entries(name)))
    return tmp_path


@pytest.fixture
def made(split_values):
    def make(size=28):
        return Omniglot(OmniglotSettings(**split_values, size=size))

    return make
