"""Losses of single examples of copies side by side, and their derivatives that are written down."""

import pytest
import torch
import torch.nn.functional as F

from advml.contracts import Classes, Real
from advml.nn.example_losses import example_losses, losses_and_slopes


def test_losses_of_real_targets():
    outputs, target = torch.randn(2, 3, 4), torch.randn(2, 3, 2, 2)
    for name, function in (("mse", F.mse_loss), ("l1", F.l1_loss), ("huber", F.huber_loss)):
        each = example_losses(name, Real((2, 2)))(outputs, target)
        assert each.shape == (2, 3)
        torch.testing.assert_close(each.mean(), function(outputs, target.flatten(2)))
    column = example_losses("auto", Real(()))(outputs[..., :1], target[..., 0, 0])
    torch.testing.assert_close(column, (outputs[..., 0] - target[..., 0, 0]).square())


def test_smoothed_labels():
    outputs, target = torch.randn(2, 3, 4), torch.randint(4, (2, 3))
    each = example_losses("auto", Classes(4), 0.1)(outputs, target)
    torch.testing.assert_close(each[1].mean(), F.cross_entropy(outputs[1], target[1], label_smoothing=0.1))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_slopes_are_those_of_differentiation(smoothing, scale):
    """Also where the network is sure, and probabilities are zero and one."""
    generator = torch.Generator().manual_seed(0)
    outputs = (scale * torch.randn(3, 5, 4, generator=generator, dtype=torch.float64)).requires_grad_()
    target = torch.randint(4, (3, 5), generator=generator)
    losses = example_losses("cross_entropy", Classes(4), smoothing)
    expected = losses(outputs, target)
    each, slopes = losses_and_slopes(losses, outputs.detach(), target)
    assert not each.requires_grad
    torch.testing.assert_close(each, expected.detach(), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(slopes, torch.autograd.grad(expected.sum(), outputs)[0], rtol=1e-13, atol=1e-13)


def test_slopes_of_real_targets():
    outputs, target = torch.randn(2, 3, 1, dtype=torch.float64), torch.randn(2, 3, dtype=torch.float64)
    each, slopes = losses_and_slopes(example_losses("auto", Real(())), outputs, target)
    torch.testing.assert_close(each, (outputs[..., 0] - target).square())
    torch.testing.assert_close(slopes[..., 0], 2 * (outputs[..., 0] - target))
    assert not outputs.requires_grad


def test_slopes_keep_the_type_of_outputs():
    outputs, target = torch.randn(2, 3, 4).bfloat16(), torch.randint(4, (2, 3))
    each, slopes = losses_and_slopes(example_losses("auto", Classes(4)), outputs, target)
    assert (each.dtype, slopes.dtype) == (torch.float32, torch.bfloat16)
