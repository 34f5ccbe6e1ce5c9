"""Copies of run folders, shared by the tests of `advml runs`."""

import shutil
from pathlib import Path

from advml.runner.folder import RunFolder


def copied(folder, *parts):
    """A copy of a run at another place, as another run."""
    place = Path(*parts)
    place.parent.mkdir(parents=True, exist_ok=True)
    aside = shutil.copytree(folder.path, folder.path.with_name("aside"))  # the place may lie inside the folder
    return RunFolder(aside.rename(place))
