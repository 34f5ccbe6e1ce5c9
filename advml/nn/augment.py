"""Random changes of image batches [B, C, H, W], drawn on the CPU: one number or pair for each image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cutout(images: Tensor, size: int, rng: torch.Generator) -> Tensor:
    """Zero a square of `size` × `size` pixels around a centre drawn evenly (DeVries and Taylor 2017).

    The part of it that lies outside the image is cut off, as theirs. After normalisation zero is the mean.
    """
    batch, _, height, width = images.shape
    centres = torch.rand((2, batch, 1), generator=rng)
    rows, columns = (
        _covered((centre * side).floor(), side, size) for centre, side in zip(centres, (height, width), strict=True)
    )
    hidden = (rows.unsqueeze(2) & columns.unsqueeze(1)).to(images.device)
    return images.masked_fill(hidden.unsqueeze(1), 0.0)


def _covered(centre: Tensor, side: int, size: int) -> Tensor:
    """Which of `side` places the square covers, bool [B, side]: from centre − size // 2 on, `size` of them."""
    start = centre - size // 2
    places = torch.arange(side)
    return (places >= start) & (places < start + size)


def crop_and_flip(images: Tensor, padding: int, rng: torch.Generator) -> Tensor:
    """Pad with zeros, take a window of the old size at a place drawn evenly, mirror half of the images."""
    batch, _, height, width = images.shape
    shifts = torch.randint(2 * padding + 1, (2, batch, 1), generator=rng)
    mirrored = torch.rand((batch, 1), generator=rng) < 0.5
    rows = shifts[0] + torch.arange(height)
    columns = shifts[1] + torch.where(mirrored, torch.arange(width - 1, -1, -1), torch.arange(width))
    padded = F.pad(images, (padding,) * 4)
    of = torch.arange(batch).view(-1, 1, 1).to(images.device)
    picked = padded.movedim(1, 3)[of, rows.unsqueeze(2).to(images.device), columns.unsqueeze(1).to(images.device)]
    return picked.movedim(3, 1).contiguous()
