"""Cutout, shifts and mirror images."""

import torch

from advml.nn.augment import crop_and_flip, cutout


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_cutout_hides_one_square_of_each_image():
    images = torch.ones(500, 2, 9, 12)
    hidden = cutout(images, 4, rng()) == 0
    assert torch.equal(hidden[:, 0], hidden[:, 1])
    rows, columns = hidden[:, 0].any(2).sum(1), hidden[:, 0].any(1).sum(1)
    assert torch.equal(hidden[:, 0].flatten(1).sum(1), rows * columns)
    assert {int(n) for n in rows} == {2, 3, 4} == {int(n) for n in columns}  # cut off at the border
    assert (hidden.float().mean((0, 1)) > 0).all()  # every pixel is hidden sometimes
    assert images.min() == 1


def test_a_crop_is_a_window_of_the_padded_image_maybe_mirrored():
    images = torch.arange(1.0, 2 * 3 * 5 * 4 + 1).view(2, 3, 5, 4).repeat(100, 1, 1, 1)
    found, seen = crop_and_flip(images, 2, rng()), set()
    padded = torch.nn.functional.pad(images, (2, 2, 2, 2))
    for image, original in zip(found, padded, strict=True):
        windows = {
            (row, column, flip): (window.flip(2) if flip else window)
            for row in range(5) for column in range(5) for flip in (False, True)
            for window in [original[:, row : row + 5, column : column + 4]]
        }  # fmt: skip
        fitting = [key for key, window in windows.items() if torch.equal(window, image)]
        assert len(fitting) == 1
        seen.add(fitting[0])
    assert len(seen) > 40


def test_no_padding_only_mirrors():
    images = torch.rand(64, 1, 3, 3)
    found = crop_and_flip(images, 0, rng())
    mirrored = (found == images.flip(3)).flatten(1).all(1)
    assert ((found == images).flatten(1).all(1) ^ mirrored).all()
    assert 16 < mirrored.sum() < 48
