import pytest
import torch
from torch import nn

from advml.models.norm import group_count, norm2d

MAPS = 3 + 2 * torch.randn(5, 6, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(
    ("channels", "groups", "expected"), [(64, 8, 8), (12, 8, 6), (6, 8, 6), (13, 8, 1), (9, 8, 3), (1, 8, 1), (6, 4, 3)]
)
def test_groups_are_the_largest_divisor_not_above_the_limit(channels, groups, expected):
    assert group_count(channels, groups) == expected
    assert norm2d("group", channels, groups).num_groups == expected


def standardised(maps, axes):
    centred = maps - maps.mean(axes, keepdim=True)
    return centred / (centred.square().mean(axes, keepdim=True) + 1e-5).sqrt()


def test_each_norm_standardises_over_its_own_axes():
    grouped = MAPS.reshape(5, 3, 2, 3, 4)
    expected = {
        "none": MAPS,
        "batch": standardised(MAPS, (0, 2, 3)),
        "layer": standardised(MAPS, (1, 2, 3)),
        "group": standardised(grouped, (2, 3, 4)).reshape(MAPS.shape),
    }
    for kind, maps in expected.items():
        torch.testing.assert_close(norm2d(kind, 6, 4).double()(MAPS), maps, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["batch", "group", "layer"])
def test_the_affine_map_is_per_channel(kind):
    norm: nn.Module = norm2d(kind, 6, 4).double()
    plain = norm(MAPS)
    with torch.no_grad():
        norm.weight.copy_(torch.arange(1, 7))
        norm.bias.copy_(torch.arange(6))
    scale, shift = torch.arange(1, 7).reshape(6, 1, 1), torch.arange(6).reshape(6, 1, 1)
    torch.testing.assert_close(norm(MAPS), plain * scale + shift, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", ["none", "group", "layer"])
def test_all_but_batch_norm_treat_examples_apart(kind):
    norm = norm2d(kind, 6, 4).double()
    torch.testing.assert_close(norm(MAPS)[2:3], norm(MAPS[2:3]), rtol=0, atol=1e-14)
