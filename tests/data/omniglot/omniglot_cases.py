"""A small Omniglot of made drawings: two characters in either zip, and what spoils a zip."""

import io
import zipfile

import numpy as np
from PIL import Image

from advml.data.omniglot import DRAWERS

MADE = {"images_background": [("Zulu", 1), ("Greek", 2)], "images_evaluation": [("Alpha", 1), ("Alpha", 2)]}
NAMES = ("Greek/character02", "Zulu/character01", "Alpha/character01", "Alpha/character02")


def picture(*seed):
    """A black drawing on white paper, and its ink as bool [105, 105]."""
    ink = np.random.default_rng(seed).random((105, 105)) < 0.1
    stream = io.BytesIO()
    Image.fromarray(~ink).save(stream, "PNG")
    return stream.getvalue(), ink


PICTURES = {
    (folder, alphabet, number, drawer): picture(len(alphabet), number, drawer)
    for folder, characters in MADE.items()
    for alphabet, number in characters
    for drawer in range(1, DRAWERS + 1)
}


def entries(folder):
    """Name in the zip → content, in an order that nothing relies on."""
    made = {
        f"{folder}/{alphabet}/character{number:02}/{900 - number:04}_{drawer:02}.png": content
        for (where, alphabet, number, drawer), (content, _) in PICTURES.items()
        if where == folder
    }
    return dict(sorted(made.items(), key=lambda item: item[0][::-1])) | {f"{folder}/.DS_Store": b"junk"}


def zip_of(contents):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in contents.items():
            archive.writestr(name, content)
    return stream.getvalue()


def spoil(data_dir, change):
    contents = entries("images_background")
    name = "images_background/Zulu/character01/0899_07.png"
    assert name in contents
    change(contents, name)
    (data_dir / "omniglot" / "python" / "images_background.zip").write_bytes(zip_of(contents))
