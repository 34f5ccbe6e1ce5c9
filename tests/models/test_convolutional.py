"""What both convolutional networks promise: torch.func, copies, files, determinism."""

import copy
import io

import pytest
import torch
import torch.nn.functional as F
from torch.func import functional_call, grad, stack_module_state, vmap

from advml.contracts import Classes, Nothing, Real, Spec

FILES = ["cnn", "conv4", "conv4_stride"]
SMALL = {"cnn": {"channels": [4, 6], "hidden": 7}, "conv4": {"channels": 6}, "conv4_stride": {"channels": 6}}
SPEC = Spec({"image": (2, 9, 8)}, Classes(3))


@pytest.fixture
def network(shipped):
    def build(file, norm="none", seed=0, **changes):
        torch.manual_seed(seed)
        return shipped(file, SPEC, norm=norm, groups=3, **SMALL[file], **changes).double()

    return build


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(5, 2, 9, 8, generator=generator, dtype=torch.float64)
    return {"image": images}, torch.randint(3, (5,), generator=generator)


@pytest.mark.parametrize("norm", ["none", "batch", "group", "layer"])
@pytest.mark.parametrize("file", FILES)
def test_forward_is_head_after_features(network, batch, file, norm):
    net, (inputs, _) = network(file, norm), batch
    outputs, features = net(inputs), net.features(inputs)
    assert outputs.shape == (5, 3)
    assert features.shape == (5, net.head.in_features)
    torch.testing.assert_close(outputs, features @ net.head.weight.T + net.head.bias, rtol=0, atol=1e-12)


@pytest.mark.parametrize("norm", ["none", "batch", "group", "layer"])
@pytest.mark.parametrize("file", FILES)
def test_functional_call_uses_the_given_parameters(network, batch, file, norm):
    net, other, (inputs, _) = network(file, norm, seed=0), network(file, norm, seed=1), batch
    ours = functional_call(net, dict(other.named_parameters()) | dict(other.named_buffers()), (inputs,))
    assert not torch.allclose(ours, net(inputs))
    assert torch.equal(ours, other(inputs))


@pytest.mark.parametrize("norm", ["none", "group", "layer"])
@pytest.mark.parametrize("file", FILES)
def test_per_example_gradients_are_those_of_a_loop(network, batch, file, norm):
    net, (inputs, target) = network(file, norm), batch
    parameters = {name: value.detach() for name, value in net.named_parameters()}

    def loss(parameters, image, label):
        outputs = functional_call(net, parameters, ({"image": image.unsqueeze(0)},))
        return F.cross_entropy(outputs, label.unsqueeze(0))

    each = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, inputs["image"], target)
    for example in range(5):
        one = {"image": inputs["image"][example : example + 1]}
        alone = torch.autograd.grad(F.cross_entropy(net(one), target[example : example + 1]), list(net.parameters()))
        for name, expected in zip(parameters, alone, strict=True):
            torch.testing.assert_close(each[name][example], expected, rtol=1e-10, atol=1e-12)
    assert all(gradient.abs().sum() > 0 for name, gradient in each.items() if "head" in name)


@pytest.mark.parametrize("norm", ["none", "batch", "group", "layer"])
@pytest.mark.parametrize("file", FILES)
def test_many_copies_at_once_are_those_of_a_loop(network, batch, file, norm):
    networks, (inputs, _) = [network(file, norm, seed) for seed in range(3)], batch
    parameters, buffers = stack_module_state(networks)
    together = vmap(lambda p, b: functional_call(networks[0], (p, b), (inputs,)))(parameters, buffers)
    for outputs, net in zip(together, networks, strict=True):
        torch.testing.assert_close(outputs, net(inputs), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("norm", ["none", "batch", "group", "layer"])
@pytest.mark.parametrize("file", FILES)
def test_a_deep_copy_is_equal_and_apart(network, batch, file, norm):
    net, (inputs, _) = network(file, norm), batch
    twin = copy.deepcopy(net)
    assert torch.equal(twin(inputs), net(inputs))
    with torch.no_grad():
        twin.body[0].weight.zero_()
    assert net.body[0].weight.abs().sum() > 0


@pytest.mark.parametrize("norm", ["none", "batch", "group", "layer"])
@pytest.mark.parametrize("file", FILES)
def test_weights_survive_a_file(network, batch, file, norm):
    net, other, (inputs, _) = network(file, norm, seed=0), network(file, norm, seed=1), batch
    net(inputs)  # running averages of batch norm leave their start
    stored = io.BytesIO()
    torch.save(net.state_dict(), stored)
    stored.seek(0)
    other.load_state_dict(torch.load(stored, weights_only=True))
    assert torch.equal(other.eval()(inputs), net.eval()(inputs))


@pytest.mark.parametrize("file", FILES)
def test_dropout_acts_in_training_only(network, batch, file):
    net, same, (inputs, _) = network(file, dropout=0.5), network(file), batch
    assert not torch.equal(net(inputs), net(inputs))
    same.load_state_dict(dict(zip(same.state_dict(), net.state_dict().values(), strict=True)))
    assert torch.equal(net.eval()(inputs), same(inputs))


@pytest.mark.parametrize("file", FILES)
def test_trains_where_only_deterministic_operations_are_allowed(network, batch, file):
    net, (inputs, target) = network(file, "batch"), batch
    torch.use_deterministic_algorithms(True)
    try:
        F.cross_entropy(net(inputs), target).backward()
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.head.parameters())


@pytest.mark.parametrize("file", FILES)
def test_specs_that_do_not_fit(chosen, file):
    cls, settings = chosen(file)
    image = (1, 28, 28)
    for inputs in ({"features": (784,)}, {"left": image, "right": image}, {"video": (4, *image)}, {}):
        assert cls.check(Spec(inputs, Classes(10)), settings).startswith("one image input [channels, height, width]")
    assert "target" in cls.check(Spec({"image": image}, Nothing()), settings)


@pytest.mark.parametrize("file", FILES)
def test_real_targets_and_any_input_name(shipped, file):
    net = shipped(file, Spec({"scan": (3, 8, 12)}, Real((2, 2))), **SMALL[file])
    assert net({"scan": torch.randn(6, 3, 8, 12)}).shape == (6, 4)
