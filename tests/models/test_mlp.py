import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advml.contracts import Classes, Nothing, Real, Spec

MNIST = Spec({"image": (1, 28, 28)}, Classes(10))


def size(network):
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("file", "changes", "expected"),
    [
        ("mlp_2nn", {}, 199_210),  # McMahan et al. 2017, section 3
        ("mlp_400", {}, 478_410),
        ("mlp_1000", {}, 1_796_010),
        ("mlp_2nn", {"norm": "batch"}, 199_210 + 800),
        ("mlp_2nn", {"norm": "layer"}, 199_210 + 800),
        ("mlp", {"hidden": []}, 7_850),
        ("linear", {}, 7_850),
    ],
)
def test_parameter_counts(shipped, file, changes, expected):
    assert size(shipped(file, MNIST, **changes)) == expected


def test_linear_is_one_affine_map(shipped):
    net, images = shipped("linear", MNIST), torch.randn(3, 1, 28, 28)
    expected = images.reshape(3, 784) @ net.head.weight.T + net.head.bias
    torch.testing.assert_close(net({"image": images}), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("activation", "function"),
    [("relu", F.relu), ("tanh", torch.tanh), ("softplus", F.softplus), ("gelu", F.gelu)],
)
def test_mlp_alternates_affine_maps_and_activations(shipped, activation, function):
    net = shipped("mlp", Spec({"x": (4,)}, Classes(2)), hidden=[5, 6], activation=activation)
    w1, b1, w2, b2 = net.body.parameters()
    x = torch.randn(3, 4)
    hidden = function(function(x @ w1.T + b1) @ w2.T + b2)
    torch.testing.assert_close(net.features({"x": x}), hidden)
    torch.testing.assert_close(net({"x": x}), hidden @ net.head.weight.T + net.head.bias)


@pytest.mark.parametrize(("norm", "axes"), [("batch", 0), ("layer", 1)])
def test_norms_standardise_between_affine_map_and_activation(shipped, norm, axes):
    net = shipped("mlp", Spec({"x": (4,)}, Classes(2)), hidden=[64], norm=norm).double()
    x = torch.randn(50, 4, dtype=torch.float64)
    affine, middle, activation = net.body
    hidden = affine(x)
    centred = hidden - hidden.mean(axes, keepdim=True)
    expected = centred / (centred.square().mean(axes, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(middle(hidden), expected)
    torch.testing.assert_close(net.features({"x": x}), activation(expected))


def test_dropout_acts_in_training_only(shipped):
    net = shipped("mlp", MNIST, hidden=[1000], dropout=0.75)
    inputs = {"image": torch.randn(2, 1, 28, 28)}
    assert not torch.equal(net(inputs), net(inputs))
    affine = next(module for module in net.body if isinstance(module, nn.Linear))
    whole, thinned = F.relu(affine(inputs["image"].flatten(1))), net.features(inputs)
    kept = thinned != 0
    torch.testing.assert_close(thinned[kept], 4 * whole[kept])
    assert 0.15 < kept[whole > 0].double().mean() < 0.35
    net.eval()
    torch.testing.assert_close(net.features(inputs), whole)


@pytest.mark.parametrize("file", ["linear", "mlp"])
def test_several_inputs_are_joined_in_the_order_of_the_spec(shipped, file):
    net = shipped(file, Spec({"image": (1, 2, 3), "features": (4,)}, Classes(3)))
    image, features = torch.randn(5, 1, 2, 3), torch.randn(5, 4)
    joined = shipped(file, Spec({"row": (10,)}, Classes(3)))
    joined.load_state_dict(net.state_dict())
    row = torch.cat([image.reshape(5, 6), features], 1)
    assert torch.equal(net({"image": image, "features": features}), joined({"row": row}))


@pytest.mark.parametrize("file", ["linear", "mlp"])
@pytest.mark.parametrize(("shape", "outputs"), [((), 1), ((1,), 1), ((2, 3), 6)])
def test_real_targets(shipped, file, shape, outputs):
    net = shipped(file, Spec({"x": (4,)}, Real(shape)))
    assert net({"x": torch.randn(7, 4)}).shape == (7, outputs)


@pytest.mark.parametrize("file", ["linear", "mlp"])
def test_specs_that_do_not_fit(chosen, file):
    cls, settings = chosen(file)
    for spec in (Spec({}, Classes(2)), Spec({"x": (4,)}, Nothing()), Spec({}, Nothing())):
        assert cls.check(spec, settings) == "a data set with inputs and a target"
