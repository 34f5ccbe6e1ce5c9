"""One picture file as colours in bytes, whatever camera or program wrote it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from advml.errors import ConfigError

# How pictures are decoded: part of the key of what is kept decoded. What changes a pixel has to change this text.
MANNER = "lanczos, turned by exif, 16 bits by 257"
_ENDLESS = {"I": "32-bit integers", "F": "real numbers"}


def read(path: Path, size: int) -> Tensor:
    """A picture as it is to be seen, uint8 [3, size, size]: the whole of it, resized by Lanczos' filter.

    Raises ConfigError, for the caller to say which picture it is, where the numbers in it are no brightness; and
    whatever Pillow raises where the file is no picture.
    """
    with Image.open(path) as opened:
        turned = ImageOps.exif_transpose(opened)
        # Of a PNG no channel has more than 16 bits; Pillow 10 calls its 16 bits I all the same.
        wide = turned.mode.startswith("I;16") or (turned.mode == "I" and opened.format == "PNG")
    picture = _in_bytes(turned) if wide else turned
    if picture.mode in _ENDLESS:
        said = f"is of {_ENDLESS[picture.mode]} (mode {picture.mode}), which do not say how bright white is"
        raise ConfigError(f"{said}; save it with 8 or 16 bits")
    pixels = np.array(picture.convert("RGB").resize((size, size), Image.Resampling.LANCZOS))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _in_bytes(picture: Image.Image) -> Image.Image:
    """Grey of 16 bits in 8. Pillow's own conversion would cut it off at 255, so that nearly all is white."""
    grey = (np.asarray(picture).astype(np.uint32) + 128) // 257  # to the nearest: 65,535 becomes 255
    return Image.fromarray(grey.astype(np.uint8))
