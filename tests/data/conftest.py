"""Sources for data sets, made files of their kinds, and the folder of real files where there is one."""

import os
from pathlib import Path

import pytest

from advml.data.source import Source

CHECKOUT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """No test reads or writes the cache, or the data folder, of the person who runs it."""
    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    monkeypatch.delenv("ADVML_DATA", raising=False)
    return cache


@pytest.fixture(scope="session")
def real_data():
    """`real_data(part)`: a folder of real files, like "mnist". A test that asks for one carries the marker `real_data`.

    Where it is absent the test is skipped, or fails if ADVML_REQUIRE_REAL_DATA=1 says that it must be there.
    """
    named = os.environ.get("ADVML_TEST_DATA")
    root = Path(named) if named else CHECKOUT.parent / "shared" / "data"

    def find(part):
        if (root / part).is_dir():
            return root / part
        reason = f"no real data in {root / part} (ADVML_TEST_DATA names another folder for {part})"
        if os.environ.get("ADVML_REQUIRE_REAL_DATA") == "1":
            pytest.fail(reason)
        pytest.skip(reason)

    return find


@pytest.fixture
def make_source():
    """A source that collects its notes and refuses to be asked for randomness: reading files needs none."""

    def make(data_dir, download=False):
        def no_rng(*key):
            raise AssertionError("a data set that is read from files drew a random number")

        notes = []
        source = Source(no_rng, Path(data_dir), download, notes.append)
        return source, notes

    return make


@pytest.fixture
def split_values():
    """The keys that all these data sets share."""
    return {"valid": 0.1, "test": 0.2, "limit": None, "split_seed": None, "normalise": "standard",
            "pca": None, "keep_classes": None}  # fmt: skip
