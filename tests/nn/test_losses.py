"""Losses against torch's own on the slice of active classes, with their gradients; names that fit a target."""

import pytest
import torch
import torch.nn.functional as F

from advml.contracts import Batch, Classes, Nothing, Real
from advml.errors import ConfigError
from advml.nn.losses import cross_entropy, make_loss, masked, mean_of

ACTIVE = torch.tensor([0, 2, 3, 6])
MASK = torch.zeros(7, dtype=torch.bool).index_fill(0, ACTIVE, True)


def made(count=12, seed=0):
    """Logits [count, 7] with a gradient, and targets among the active classes."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4 * torch.randn(count, 7, generator=generator, dtype=torch.float64)
    return logits.requires_grad_(), ACTIVE[torch.randint(4, (count,), generator=generator)]


def gradient(value, logits):
    return torch.autograd.grad(value, logits)[0]


def test_masked_is_probability_zero():
    logits, _ = made()
    probability = masked(logits, MASK).softmax(1)
    assert torch.equal(probability[:, ~MASK], torch.zeros(12, 3, dtype=torch.float64))
    torch.testing.assert_close(probability[:, MASK], logits[:, MASK].softmax(1))
    assert masked(logits, None) is logits


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.6])
def test_cross_entropy_with_a_mask_is_that_of_the_slice(smoothing):
    logits, target = made()
    place = torch.searchsorted(ACTIVE, target)
    expected = F.cross_entropy(logits[:, ACTIVE], place, label_smoothing=smoothing)
    found = cross_entropy(logits, Batch({}, target, MASK), smoothing)
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=0)
    torch.testing.assert_close(gradient(found, logits), gradient(expected, logits), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_inactive_outputs_get_no_gradient(smoothing):
    logits, target = made()
    found = gradient(cross_entropy(logits, Batch({}, target, MASK), smoothing), logits)
    assert torch.equal(found[:, ~MASK], torch.zeros(12, 3, dtype=torch.float64))
    assert bool(found[:, MASK].abs().gt(0).all())


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_masks_of_single_examples(smoothing):
    """Each row under its own mask is the mean of rows under one mask each."""
    logits, target = made()
    masks = MASK.expand(12, -1).clone()
    masks[::2] = True
    found = cross_entropy(logits, Batch({}, target, masks), smoothing)
    rows = [
        cross_entropy(logits[i : i + 1], Batch({}, target[i : i + 1], masks[i]), smoothing) for i in range(12)
    ]  # fmt: skip
    torch.testing.assert_close(found, torch.stack(rows).mean(), rtol=1e-13, atol=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_without_a_mask_it_is_torchs_bit_for_bit(smoothing):
    logits, target = made()
    found = cross_entropy(logits, Batch({}, target), smoothing)
    assert torch.equal(found, F.cross_entropy(logits, target, label_smoothing=smoothing))


def test_a_masked_target_is_an_infinite_loss_not_a_silent_one():
    logits, _ = made()
    assert torch.isinf(cross_entropy(logits, Batch({}, torch.full((12,), 1), MASK)))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_low_precision_logits_are_measured_in_float32(smoothing):
    """bf16 keeps 3 digits; a loss of logits rounded to it must still be exact for these logits."""
    logits, target = made()
    coarse = logits.detach().bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = cross_entropy(coarse, Batch({}, target, MASK), smoothing)
    assert found.dtype == torch.float32
    exact = cross_entropy(coarse.double(), Batch({}, target, MASK), smoothing)
    torch.testing.assert_close(found.double(), exact, rtol=1e-6, atol=0)


# --- by name ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "formula"),
    [
        ("auto", lambda d: d.square().mean()),
        ("mse", lambda d: d.square().mean()),
        ("l1", lambda d: d.abs().mean()),
        ("huber", lambda d: torch.where(d.abs() < 1, d.square() / 2, d.abs() - 0.5).mean()),
    ],
)
@pytest.mark.parametrize("shape", [(1,), (), (2, 3)])
def test_losses_of_real_targets(name, formula, shape):
    """A network gives [B, outputs], whatever the shape of the target: [B, 1] against [B] must not pair all with all."""
    generator = torch.Generator().manual_seed(0)
    target = 2 * torch.randn(9, *shape, generator=generator, dtype=torch.float64)
    outputs = torch.randn(9, target[0].numel(), generator=generator, dtype=torch.float64)
    found = make_loss(name, Real(shape))(outputs, Batch({}, target))
    torch.testing.assert_close(found, formula(outputs.reshape(target.shape) - target))


def test_losses_of_classes():
    logits, target = made()
    batch = Batch({}, target, MASK)
    for name in ("auto", "cross_entropy"):
        assert torch.equal(make_loss(name, Classes(7))(logits, batch), cross_entropy(logits, batch))
    assert torch.equal(make_loss("auto", Classes(7), 0.2)(logits, batch), cross_entropy(logits, batch, 0.2))


@pytest.mark.parametrize(
    ("name", "target", "said"),
    [
        ("mse", Classes(3), "mse does not fit a target of classes"),
        ("l1", Classes(3), "l1 does not fit a target of classes"),
        ("huber", Classes(3), "huber does not fit a target of classes"),
        ("cross_entropy", Real((1,)), "cross_entropy does not fit a target of real numbers"),
    ],
)
def test_a_misfit_is_refused(name, target, said):
    with pytest.raises(ConfigError, match=said):
        make_loss(name, target)


def test_mean_of_weighs_by_size():
    values = [torch.tensor(1.0), torch.tensor(4.0)]
    assert float(mean_of(values, [3, 1])) == 1.75


def test_a_network_without_a_target_has_no_loss():
    with pytest.raises(ConfigError, match="does not fit"):
        make_loss("cross_entropy", Nothing())
