"""Normalisations against numpy in float64; orders and turns against what they must do; states through a file."""

import io
import math

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from advml.data import prepare
from advml.data.prepare import Affine, Reorder, Rotate, fit, restore

CPU = torch.device("cpu")


def images(count=50, channels=3, height=5, width=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, channels, height, width), generator=generator, dtype=torch.uint8)


def features(count=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scales = torch.tensor([1.0, 1e-3, 1e4, 7.0], dtype=torch.float64)
    return torch.randn(count, 4, generator=generator, dtype=torch.float64) * scales + 3 * scales


def through_a_file(step):
    buffer = io.BytesIO()
    torch.save(step.state(), buffer)
    buffer.seek(0)
    return restore(torch.load(buffer, weights_only=True))


# --- fit ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("at_once", [2**18, 1000, 1])
def test_standard_images_by_channel_equal_numpy(at_once, monkeypatch):
    monkeypatch.setattr(prepare, "AT_ONCE", at_once)
    stored = images()
    exact = stored.numpy().astype(np.float64)
    mean, deviation = (getattr(exact, name)(axis=(0, 2, 3), keepdims=True) for name in ("mean", "std"))
    affine = fit(stored, "standard", 255)
    assert affine.factor.shape == (1, 3, 1, 1)
    np.testing.assert_allclose(affine(stored).numpy(), (exact - mean) / deviation, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("at_once", [2**18, 10])
def test_standard_features_equal_numpy(at_once, monkeypatch):
    monkeypatch.setattr(prepare, "AT_ONCE", at_once)
    stored = features()
    exact = stored.numpy()
    affine = fit(stored, "standard", None)
    np.testing.assert_allclose(affine.factor.numpy()[0], 1 / exact.std(0), rtol=1e-13)
    np.testing.assert_allclose(affine(stored).numpy(), (exact - exact.mean(0)) / exact.std(0), rtol=1e-12, atol=1e-13)


def test_standard_of_a_large_mean_keeps_its_digits():
    """Two passes: a mean of squares minus a square of means would lose them all."""
    stored = features() + 1e7 * torch.tensor([1.0, 1e-3, 1e4, 7.0])
    exact = stored.numpy()
    np.testing.assert_allclose(fit(stored, "standard", None).factor.numpy()[0], 1 / exact.std(0), rtol=1e-9)


def test_fit_never_holds_all_values_in_float64(monkeypatch):
    """CIFAR-10 in float64 would take over a gigabyte."""

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            made = func(*args, **(kwargs or {}))
            if isinstance(made, torch.Tensor) and made.dtype in (torch.float64, torch.float32):
                self.numel = max(self.numel, made.numel())
            return made

    monkeypatch.setattr(prepare, "AT_ONCE", 1000)
    stored = images(200)
    for kind, scale in (("standard", 255), ("unit", 255), ("unit", None), ("none", None)):
        with Largest() as largest:
            fit(stored, kind, scale)
        assert largest.numel <= 1000


def test_unit_by_the_known_scale():
    affine = fit(images(), "unit", 255)
    torch.testing.assert_close(affine(images()), images().double() / 255, rtol=1e-15, atol=0)


def test_unit_by_the_training_extremes():
    stored = features()
    exact = stored.numpy()
    expected = (exact - exact.min(0)) / (exact.max(0) - exact.min(0))
    found = fit(stored, "unit", None)(stored)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-12, atol=1e-12)
    by_channel = fit(images(), "unit", None)
    assert by_channel.factor.shape == (1, 3, 1, 1)


@pytest.mark.parametrize("scale", [255, None])
def test_none_keeps_the_stored_numbers(scale):
    assert torch.equal(fit(images(), "none", scale)(images()), images().double())


@pytest.mark.parametrize("kind", ["standard", "unit"])
@pytest.mark.parametrize("value", [0.1, 0.0, 1e6, -7.3])
def test_a_constant_feature_is_only_centred(kind, value):
    """The deviation of 0.1, 0.1, … is not 0 but 1e-17 in floating point: dividing by it would blow up other values."""
    stored = features(7)
    stored[:, 2] = value
    affine = fit(stored, kind, None)
    assert torch.equal(affine(stored)[:, 2], torch.zeros(7, dtype=torch.float64))
    other = stored.clone()
    other[:, 2] += 0.5
    torch.testing.assert_close(affine(other)[:, 2], torch.full((7,), 0.5, dtype=torch.float64))


def test_a_constant_channel_is_only_centred():
    stored = images()
    stored[:, 1] = 77
    ready = fit(stored, "standard", 255)(stored)
    assert torch.equal(ready[:, 1], torch.zeros_like(ready[:, 1]))
    assert ready[:, 0].std() > 0.9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_affine_gives_the_type_of_its_constants(dtype):
    affine = fit(images(), "standard", 255).to(CPU, dtype)
    assert affine(images()).dtype == dtype


def test_affine_state_round_trip():
    affine = fit(features(), "standard", None)
    again = through_a_file(affine)
    assert isinstance(again, Affine)
    assert torch.equal(again(features()), affine(features()))


# --- Reorder ------------------------------------------------------------------------------------------------------


def test_reorder_moves_every_element_once():
    stored = images()
    order = torch.randperm(3 * 5 * 7, generator=torch.Generator().manual_seed(1))
    moved = Reorder(order)(stored)
    assert moved.shape == stored.shape
    assert not torch.equal(moved, stored)
    expected = np.stack([example.ravel()[order.numpy()].reshape(3, 5, 7) for example in stored.numpy()])
    assert np.array_equal(moved.numpy(), expected)
    assert torch.equal(Reorder(order.argsort())(moved), stored)


def test_reorder_state_round_trip():
    order = torch.randperm(4, generator=torch.Generator().manual_seed(1))
    again = through_a_file(Reorder(order))
    assert torch.equal(again(features()), features()[:, order])
    assert torch.equal(again.to(CPU, torch.float32)(features()), features()[:, order])


# --- Rotate -------------------------------------------------------------------------------------------------------


def turned(stored, degrees):
    return Rotate(degrees).to(CPU, torch.float64)(stored)


@pytest.mark.parametrize("quarters", [0, 1, 2, 3, 4])
def test_quarter_turns_of_squares_are_exact(quarters):
    """Counter-clockwise, as torch.rot90 over (height, width)."""
    stored = images(10, 2, 8, 8)
    expected = torch.rot90(stored, quarters, (2, 3)).double()
    torch.testing.assert_close(turned(stored, 90.0 * quarters), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("height", "width"), [(7, 11), (12, 5)])
def test_half_a_turn_of_any_shape_is_exact(height, width):
    stored = images(10, 1, height, width)
    torch.testing.assert_close(turned(stored, 180.0), stored.flip(2, 3).double(), rtol=0, atol=1e-9)


def blob(row, column, height=61, width=91, size=4.0):
    """A smooth spot at a pixel, [1, 1, height, width]."""
    rows, columns = torch.arange(height).double(), torch.arange(width).double()
    spot = torch.exp(-((rows[:, None] - row) ** 2 + (columns[None] - column) ** 2) / (2 * size**2))
    return spot[None, None]


def centre_of(image):
    rows, columns = torch.arange(image.shape[2]).double(), torch.arange(image.shape[3]).double()
    total = image.sum()
    return float((image[0, 0].sum(1) * rows).sum() / total), float((image[0, 0].sum(0) * columns).sum() / total)


@pytest.mark.parametrize("degrees", [20.0, 45.0, 90.0, 130.0, 200.0, 300.0])
def test_a_spot_goes_where_geometry_says(degrees):
    """Pixels are square, whatever the shape of the image: 15 right and 5 up of the centre turns on a circle."""
    found = centre_of(turned(blob(30 - 5, 45 + 15), degrees))
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    right, up = 15 * cos - 5 * sin, 15 * sin + 5 * cos
    assert found == pytest.approx((30 - up, 45 + right), abs=0.05)


@pytest.mark.parametrize(("height", "width"), [(61, 91), (91, 61), (64, 64)])
def test_turning_back_is_almost_the_identity(height, width):
    image = blob(height / 2 + 4, width / 2 - 6, height, width)
    back = turned(turned(image, 37.0), -37.0)
    assert float((back - image).abs().max()) < 0.03
    assert float((turned(image, 37.0) - image).abs().max()) > 0.3


def test_corners_that_turn_in_are_zero():
    ready = turned(torch.full((1, 1, 20, 20), 200, dtype=torch.uint8), 45.0)
    assert ready[0, 0, 0, 0] == ready[0, 0, -1, 0] == ready[0, 0, 0, -1] == 0
    assert ready[0, 0, 10, 10] == pytest.approx(200.0)


def test_rotate_state_round_trip():
    again = through_a_file(Rotate(33.0)).to(CPU, torch.float64)
    assert torch.equal(again(images()), turned(images(), 33.0))
    assert Rotate(33.0)(images()).dtype == torch.float32


def test_unknown_states_are_not_guessed():
    with pytest.raises((KeyError, ValueError)):
        restore({"kind": "sharpen"})
