"""The distance to stored outputs, against a loop and against torch's own."""

import pytest
import torch
import torch.nn.functional as F

from advml.nn.matching import output_distance


def case(seed=0):
    generator = torch.Generator().manual_seed(seed)
    outputs, stored = torch.randn(2, 7, 5, generator=generator, dtype=torch.float64)
    active = torch.rand(7, 5, generator=generator) < 0.5
    active[:, 0] = True
    return outputs.requires_grad_(), stored, active


def test_all_active_is_the_mean_squared_error():
    outputs, stored, active = case()
    found = output_distance(outputs, stored, torch.ones_like(active))
    torch.testing.assert_close(found, F.mse_loss(outputs, stored))


@pytest.mark.parametrize("seed", range(5))
def test_only_active_outputs_count(seed):
    outputs, stored, active = case(seed)
    rows = []
    for row in range(7):
        chosen = active[row].nonzero().flatten().tolist()
        rows.append(sum((outputs[row, c] - stored[row, c]) ** 2 for c in chosen) / len(chosen))
    expected = sum(rows) / 7
    found = output_distance(outputs, stored, active)
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found, outputs)
    assert not gradient[~active].any()
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, outputs)[0])


def test_half_precision_outputs_are_compared_in_full():
    outputs, stored, active = case()
    half = outputs.detach().bfloat16()
    found = output_distance(half, stored.float(), active)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, output_distance(half.float(), stored.float(), active), rtol=0, atol=0)
