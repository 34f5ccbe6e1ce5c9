import pytest
import torch
import torch.nn.functional as F

from advml.contracts import Classes, Spec


def size(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_has_the_parameters_of_the_paper(shipped):
    # McMahan et al. 2017, section 3: "1,663,370 total parameters".
    assert size(shipped("cnn", Spec({"image": (1, 28, 28)}, Classes(10)))) == 1_663_370


@pytest.mark.parametrize(("norm", "extra"), [("none", 0), ("batch", 192), ("group", 192), ("layer", 192)])
def test_norms_add_two_parameters_per_channel(shipped, norm, extra):
    assert size(shipped("cnn", Spec({"image": (1, 28, 28)}, Classes(10)), norm=norm)) == 1_663_370 + extra


def test_computes_what_the_paper_describes(shipped):
    net = shipped("cnn", Spec({"image": (1, 28, 28)}, Classes(10)))
    images = torch.randn(2, 1, 28, 28)
    (w1, b1, w2, b2, w3, b3) = net.body.parameters()
    maps = F.max_pool2d(F.relu(F.conv2d(images, w1, b1, padding=2)), 2)
    maps = F.max_pool2d(F.relu(F.conv2d(maps, w2, b2, padding=2)), 2)
    assert maps.shape == (2, 64, 7, 7)
    torch.testing.assert_close(net.features({"image": images}), F.relu(F.linear(maps.flatten(1), w3, b3)))


@pytest.mark.parametrize("height", [4, 5, 7, 8])
@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_serves_small_and_uneven_images(shipped, height, kernel):
    spec = Spec({"image": (3, height, 6)}, Classes(2))
    net = shipped("cnn", spec, channels=[4, 6], hidden=5, kernel=kernel, norm="group")
    assert net({"image": torch.randn(1, 3, height, 6)}).shape == (1, 2)


def test_refuses_images_that_cannot_be_halved_twice(chosen):
    cls, settings = chosen("cnn")
    for shape in ((1, 3, 28), (1, 28, 3)):
        need = cls.check(Spec({"image": shape}, Classes(2)), settings)
        assert need == "one image input [channels, height, width] of at least 4×4"
