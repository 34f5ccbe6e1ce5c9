import pytest
import torch
import torch.nn.functional as F

from advml.contracts import Classes, Spec
from advml.models.conv4 import block_sizes


def image(channels, height, width=None, classes=5):
    return Spec({"image": (channels, height, width or height)}, Classes(classes))


def size(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_sizes_of_the_published_networks(shipped):
    # One block is 9·64·inputs + 64 and 128 for its norm: 768 + 3·37,056 from one channel, 1,920 + 3·37,056 from three.
    omniglot, imagenet = shipped("conv4", image(1, 28)), shipped("conv4", image(3, 84))
    assert (size(omniglot.body), omniglot.head.in_features) == (111_936, 64)
    assert (size(imagenet.body), imagenet.head.in_features) == (113_088, 1600)
    maml = shipped("conv4_stride", image(1, 28))
    assert (size(maml), maml.head.in_features) == (111_936 + 5 * 65, 64)


@pytest.mark.parametrize(
    ("downsample", "height", "width", "expected"),
    [
        ("pool", 28, 28, [(28, 28), (14, 14), (7, 7), (3, 3), (1, 1)]),
        ("pool", 8, 8, [(8, 8), (4, 4), (2, 2), (1, 1), (1, 1)]),
        ("pool", 8, 2, [(8, 2), (4, 1), (4, 1), (4, 1), (4, 1)]),
        ("pool", 1, 1, [(1, 1)] * 5),
        ("stride", 28, 28, [(28, 28), (14, 14), (7, 7), (4, 4), (2, 2)]),
        ("stride", 8, 8, [(8, 8), (4, 4), (2, 2), (1, 1), (1, 1)]),
        ("stride", 5, 3, [(5, 3), (3, 2), (2, 1), (2, 1), (2, 1)]),
    ],
)
def test_blocks_halve_only_while_both_sides_are_at_least_two(shipped, chosen, downsample, height, width, expected):
    _, settings = chosen("conv4", downsample=downsample)
    assert block_sizes(height, width, settings) == expected
    # What is announced is what happens.
    for blocks in range(1, 5):
        net = shipped("conv4", image(2, height, width), channels=3, blocks=blocks, downsample=downsample)
        assert net.body(torch.randn(2, 2, height, width)).shape[2:] == expected[blocks]


@pytest.mark.parametrize("height", [8, 28])
@pytest.mark.parametrize("readout", ["flatten", "mean"])
@pytest.mark.parametrize("downsample", ["pool", "stride"])
@pytest.mark.parametrize("norm", ["none", "batch", "group", "layer"])
def test_digits_and_mnist(shipped, height, readout, downsample, norm):
    net = shipped("conv4", image(1, height, classes=10), channels=16, norm=norm, downsample=downsample, readout=readout)
    outputs = net({"image": torch.randn(3, 1, height, height)})
    assert outputs.shape == (3, 10)
    assert outputs.std(0).min() > 0
    left = 2 if (downsample, height) == ("stride", 28) else 1
    assert net.head.in_features == (16 if readout == "mean" else 16 * left**2)


def blocks(net):
    """The convolutions' weights and biases in order."""
    return [(module.weight, module.bias) for module in net.body if isinstance(module, torch.nn.Conv2d)]


def test_pool_computes_convolution_norm_relu_maximum(shipped):
    net = shipped("conv4", image(1, 28), channels=8)
    maps = images = torch.randn(4, 1, 28, 28)
    for weight, bias in blocks(net):
        maps = F.conv2d(maps, weight, bias, padding=1)
        maps = F.max_pool2d(F.relu(F.batch_norm(maps, None, None, training=True)), 2)
    torch.testing.assert_close(net.features({"image": images}), maps.flatten(1), rtol=1e-4, atol=1e-5)


def test_stride_computes_strided_convolution_norm_relu_and_the_mean(shipped):
    net = shipped("conv4_stride", image(1, 28), channels=8)
    maps = images = torch.randn(4, 1, 28, 28)
    for weight, bias in blocks(net):
        maps = F.relu(F.batch_norm(F.conv2d(maps, weight, bias, stride=2, padding=1), None, None, training=True))
    assert maps.shape == (4, 8, 2, 2)
    torch.testing.assert_close(net.features({"image": images}), maps.mean((2, 3)), rtol=1e-4, atol=1e-5)


def test_a_norm_over_single_values_is_refused(shipped, chosen):
    # 8 channels in 8 groups on a 1×1 image: every value would be its own mean.
    cls, settings = chosen("conv4", channels=8, norm="group")
    assert "group" in cls.check(image(1, 8), settings)
    assert cls.check(image(1, 28), settings) is None
    assert cls.check(image(1, 8), chosen("conv4", channels=8, norm="group", groups=4)[1]) is None
    assert cls.check(image(1, 1), chosen("conv4", channels=1, norm="layer")[1]) is not None
    # Pooling comes after the norm, a stride before it.
    for downsample, served in (("pool", True), ("stride", False)):
        _, settings = chosen("conv4", channels=8, norm="group", blocks=3, downsample=downsample)
        assert (cls.check(image(1, 8), settings) is None) == served
    net = shipped("conv4", image(1, 8), channels=8, norm="group", blocks=3)
    assert net({"image": torch.randn(1, 1, 8, 8)}).shape == (1, 5)
