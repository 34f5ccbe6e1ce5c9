"""Many copies of a network at once: all engines against separate networks, in values and two orders of derivatives."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from advml.contracts import Classes, Network, Spec
from advml.models.conv4 import Conv4, Conv4Settings
from advml.models.mlp import Linear, LinearSettings, Mlp, MlpSettings
from advml.nn.replicas import Batched, Replicas, Unsuited, expand, has_batch_norm, make_replicas

COPIES, EXAMPLES, CLASSES = 3, 6, 4
ROW, IMAGE = Spec({"x": (5,)}, Classes(CLASSES)), Spec({"x": (2, 8, 8)}, Classes(CLASSES))


def known(network, spec):
    network.recipe = {"spec": spec.to_dict()}
    return network.double()


def mlp(norm="none", dropout=0.0):
    settings = MlpSettings(hidden=(7, 6), activation="tanh", norm=norm, dropout=dropout)
    return known(Mlp(ROW, settings), ROW)


def conv4(norm, downsample="stride"):
    settings = Conv4Settings(
        channels=4, blocks=2, norm=norm, groups=2, downsample=downsample, dropout=0.0, readout="flatten"
    )
    return known(Conv4(IMAGE, settings), IMAGE)


NETWORKS = {
    "linear": (lambda: known(Linear(ROW, LinearSettings()), ROW), ROW, ["batched", "vmap"]),
    "mlp": (mlp, ROW, ["batched", "vmap"]),
    "mlp layer norm": (lambda: mlp("layer"), ROW, ["batched", "vmap"]),
    "mlp batch norm": (lambda: mlp("batch"), ROW, ["batched", "vmap"]),
    "conv4": (lambda: conv4("none"), IMAGE, ["vmap", "auto"]),
    "conv4 batch norm": (lambda: conv4("batch"), IMAGE, ["vmap", "auto"]),
    "conv4 batch norm, pooled": (lambda: conv4("batch", "pool"), IMAGE, ["vmap"]),
    "conv4 batch norm, channels last": (
        lambda: conv4("batch").to(memory_format=torch.channels_last),
        IMAGE,
        ["vmap", "auto"],
    ),
    "conv4 group norm": (lambda: conv4("group"), IMAGE, ["vmap"]),
    "conv4 group norm, channels last": (
        lambda: conv4("group", "pool").to(memory_format=torch.channels_last),
        IMAGE,
        ["vmap", "auto"],
    ),
}
EVERY = [(name, engine) for name, (_, _, engines) in NETWORKS.items() for engine in ["loop", *engines]]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def given(name):
    """A network, values for each copy's parameters, examples and targets for each copy."""
    make, spec, _ = NETWORKS[name]
    network = make()
    parameters = {
        key: (value + 0.1 * torch.randn_like(value)).detach().requires_grad_()
        for key, value in expand(network, COPIES).items()
    }
    shape = (COPIES, EXAMPLES, *spec.inputs["x"])
    return network, parameters, torch.randn(shape).double(), torch.randint(CLASSES, (COPIES, EXAMPLES))


def separate(network, parameters, inputs, targets):
    """By torch's own modules, network by network: outputs, gradients g of the loss, gradients of Σ sin(g)."""
    found = []
    for number in range(COPIES):
        alone = copy.deepcopy(network).train()  # batch norms use the batch
        for name, value in alone.named_parameters():
            value.data.copy_(parameters[name][number])
        outputs = alone({"x": inputs[number]})
        first = torch.autograd.grad(
            F.cross_entropy(outputs, targets[number]), list(alone.parameters()), create_graph=True
        )
        second = torch.autograd.grad(sum(g.sin().sum() for g in first), list(alone.parameters()))
        found.append((outputs, first, second))
    outputs, firsts, seconds = zip(*found, strict=True)
    return torch.stack(outputs), *([torch.stack(each) for each in zip(*of, strict=True)] for of in (firsts, seconds))


@pytest.mark.parametrize(("name", "engine"), EVERY, ids=["-".join(pair) for pair in EVERY])
def test_values_gradients_and_second_derivatives(name, engine):
    network, parameters, inputs, targets = given(name)
    outputs = make_replicas(network, engine).outputs(parameters, {"x": inputs})
    losses = F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none").view(COPIES, -1).mean(1)
    first = torch.autograd.grad(losses.sum(), list(parameters.values()), create_graph=True)
    second = torch.autograd.grad(sum(g.sin().sum() for g in first), list(parameters.values()), materialize_grads=True)
    expected = separate(network, parameters, inputs, targets)
    assert (outputs - expected[0]).abs().max() < 1e-10
    for found, wanted in zip([*first, *second], [*expected[1], *expected[2]], strict=True):
        assert (found - wanted).abs().max() < 1e-10
    assert max(float(g.abs().max()) for g in second) > 1e-4


@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize(("name", "engine"), EVERY, ids=["-".join(pair) for pair in EVERY])
def test_gradients_at_values_in_common(name, engine, second):
    """Those of separate copies of the one network, for some parameters or all; of second order in the one network."""
    network, _, inputs, targets = given(name)
    values = {key: value.detach().clone().requires_grad_() for key, value in network.named_parameters()}
    expected = separate(network, expand(values, COPIES), inputs, targets)

    def loss(outputs):
        return F.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="sum") / EXAMPLES

    replicas, last = make_replicas(network, engine), [key for key in values if key.startswith("head.")]
    for names in (list(values), last[::-1]):
        first = replicas.gradients_at(values, names, {"x": inputs}, loss, second=second, dropout=False)
        for found, key in zip(first, names, strict=True):
            assert (found - expected[1][list(values).index(key)]).abs().max() < 1e-10
            assert found.requires_grad == second
        if second and len(names) == len(values):
            curved = sum(g.sin().sum() for g in first)
            outer = torch.autograd.grad(curved, list(values.values()), materialize_grads=True)
            for found, wanted in zip(outer, expected[2], strict=True):
                assert (found - wanted.sum(0)).abs().max() < 1e-10


BATCH_NORMS = [(name, engine) for name, engine in EVERY if "batch norm" in name]


@pytest.mark.parametrize(("name", "engine"), BATCH_NORMS, ids=["-".join(pair) for pair in BATCH_NORMS])
def test_statistics_of_a_reference(name, engine):
    """Against torch's batch norm in evaluation mode, its averages set by hand to the reference's statistics."""
    network, parameters, inputs, _ = given(name)
    reference = 1 + 2 * torch.randn(COPIES, 9, *inputs.shape[2:]).double()
    replicas = make_replicas(network, engine)
    outputs = replicas.outputs(parameters, {"x": inputs}, {"x": reference})
    for number in range(COPIES):
        alone = copy.deepcopy(network)
        for key, value in alone.named_parameters():
            value.data.copy_(parameters[key][number])
        norms = [module for module in alone.modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)]
        for norm in norms:  # in order: what a norm sees depends on those before it
            norm.register_forward_pre_hook(lambda module, seen: keep_statistics(module, seen[0], 9))
        together = torch.cat([reference[number], inputs[number]])
        assert torch.allclose(alone.eval()({"x": together})[9:], outputs[number], atol=1e-10, rtol=0)
    # An example's neighbours are of no matter, and the next call without a reference knows nothing of it.
    one = replicas.outputs(parameters, {"x": inputs[:, :1]}, {"x": reference})
    assert torch.allclose(one, outputs[:, :1], atol=1e-12)
    assert torch.allclose(
        replicas.outputs(parameters, {"x": inputs}), Replicas(network).outputs(parameters, {"x": inputs}), atol=1e-12
    )


def keep_statistics(norm, values, first):
    axes = (0, *range(2, values.dim()))
    norm.running_mean.copy_(values[:first].mean(axes).detach())
    norm.running_var.copy_(values[:first].var(axes, correction=0).detach())


@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_flow_back_to_the_one_network(name):
    """Copies that are the network itself: the sum over copies of their gradients is its own."""
    network, _, inputs, _ = given(name)
    replicas = make_replicas(network)
    replicas.outputs(expand(network, COPIES), {"x": inputs}).square().sum().backward()
    found = [parameter.grad.clone() for parameter in network.parameters()]
    alone = copy.deepcopy(network).train()
    alone.zero_grad()
    sum(alone({"x": inputs[number]}).square().sum() for number in range(COPIES)).backward()
    for gradient, parameter in zip(found, alone.parameters(), strict=True):
        assert torch.allclose(gradient, parameter.grad, atol=1e-10)


@pytest.mark.parametrize("engine", ["loop", "batched", "vmap"])
def test_the_network_is_left_alone(engine):
    network = mlp("batch").train()
    before = copy.deepcopy(network.state_dict())
    replicas = make_replicas(network, engine)
    replicas.outputs(expand(network, 2), {"x": torch.randn(2, 6, 5).double()}, dropout=True)
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert all(module.training for module in network.modules())
    assert isinstance(network.body[1], nn.BatchNorm1d)


@pytest.mark.parametrize("engine", ["loop", "batched", "vmap"])
def test_dropout_only_where_asked_and_different_for_each_copy(engine):
    network = mlp(dropout=0.5)
    replicas, inputs = make_replicas(network, engine), {"x": torch.randn(1, 6, 5).double().expand(8, 6, 5)}
    calm = replicas.outputs(expand(network, 8), inputs)
    assert torch.allclose(calm, network.eval()({"x": inputs["x"][0]}).expand_as(calm), atol=1e-12)
    dropped = replicas.outputs(expand(network, 8), inputs, dropout=True)
    assert all(not torch.allclose(dropped[0], other) for other in dropped[1:])
    assert torch.equal(replicas.outputs(expand(network, 8), inputs), calm)


class Sum(Network):
    """A layer whose input is added to its output: no chain."""

    def __init__(self, recipe):
        super().__init__()
        self.hidden, self.head, self.recipe = nn.Linear(5, 5), nn.Linear(5, CLASSES), recipe

    def features(self, inputs):
        (x,) = inputs.values()
        return x + self.hidden(x)


class Scaled(Sum):
    """A chain but for the last word."""

    def features(self, inputs):
        return self.hidden(*inputs.values())

    def forward(self, inputs):
        return 2 * super().forward(inputs)


class Loose(Scaled):
    """A parameter of no layer."""

    def __init__(self, recipe):
        super().__init__(recipe)
        self.shift = nn.Parameter(torch.zeros(CLASSES))

    forward = Network.forward


class Twice(Scaled):
    """A layer that is used twice."""

    def features(self, inputs):
        return self.hidden(self.hidden(*inputs.values()))

    forward = Network.forward


class Once(Twice):
    """A chain."""

    def features(self, inputs):
        return self.hidden(*inputs.values())


class Turned(Twice):
    """The inputs in another order."""

    def features(self, inputs):
        return self.hidden(next(iter(inputs.values())).flip(1))


class Cut(Twice):
    """The inputs within bounds."""

    def features(self, inputs):
        return self.hidden(next(iter(inputs.values())).clamp(0, 1))


class Overwritten(Twice):
    """Something between two layers that works in place."""

    def features(self, inputs):
        return self.hidden(*inputs.values()).relu_()


@pytest.mark.parametrize("cls", [Sum, Scaled, Loose, Twice, Turned, Cut, Overwritten])
def test_what_is_no_chain_is_refused_and_served_otherwise(cls):
    network = cls({"spec": ROW.to_dict()})
    with pytest.raises(Unsuited, match=r"^engine: batched serves"):
        make_replicas(network, "batched")
    assert not isinstance(make_replicas(network), Batched)
    with pytest.raises(Unsuited):
        make_replicas(conv4("none"), "batched")


@pytest.mark.parametrize("activation", [nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SiLU])
def test_activations_in_place_do_not_spoil_the_gradients(activation):
    network = Once({"spec": ROW.to_dict()}).double()
    layers = nn.Linear(5, 6), activation(inplace=True), nn.Linear(6, 5), activation(inplace=True)
    network.hidden = nn.Sequential(*layers).double()
    inputs, values = {"x": torch.randn(3, 6, 5).double()}, dict(network.named_parameters())
    found = [
        make_replicas(network, engine).gradients_at(
            values, list(values), inputs, lambda outputs: outputs.square().sum(), False, False
        )
        for engine in ("batched", "loop")
    ]
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert layers[1].inplace  # the network itself is left as it is


def test_two_inputs_are_joined_in_their_order():
    spec = Spec({"a": (2,), "b": (3, 1)}, Classes(CLASSES))
    network = known(Mlp(spec, MlpSettings(hidden=(7,), activation="relu", norm="none", dropout=0.0)), spec)
    inputs = {"a": torch.randn(2, 6, 2).double(), "b": torch.randn(2, 6, 3, 1).double()}
    found = make_replicas(network, "batched").outputs(expand(network, 2), inputs)
    for number in range(2):
        alone = network({name: values[number] for name, values in inputs.items()})
        assert torch.allclose(found[number], alone, atol=1e-12)


def test_auto_chooses_by_network_and_size(monkeypatch):
    assert isinstance(make_replicas(mlp("layer")), Batched)
    network, asked = conv4("batch"), []
    assert [make_replicas(network, examples=sizes).at_once for sizes in ([5, 5], [5, 75], [25, 25], [5, 25], [])] == [
        8, 8, 1, 8, 1,
    ]  # fmt: skip
    replicas = make_replicas(network, examples=[5, 25])
    monkeypatch.setattr(replicas.vmapped, "computed", lambda parameters, inputs: asked.append(len(inputs["x"])))
    for copies, examples in ((3, 6), (3, 25), (1, 6)):
        replicas.outputs(expand(network, copies), {"x": torch.randn(copies, examples, 2, 8, 8).double()})
    assert asked == [3]


def test_has_batch_norm():
    assert has_batch_norm(mlp("batch"))
    assert has_batch_norm(conv4("batch"))
    assert not has_batch_norm(conv4("group"))


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_filters_lie_as_the_networks_do(layout):
    """Also where the copies' values, side by side, lie otherwise."""
    network = conv4("none").to(memory_format=layout)
    replicas = Replicas(network)
    seen = []

    def note(module, given, maps):
        seen.append((module.weight.stride(), maps.stride()))

    for module in replicas.network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(note)
    values = {name: torch.stack([value.detach()] * 2).contiguous() for name, value in network.named_parameters()}
    replicas.outputs(values, {"x": torch.randn(2, EXAMPLES, 2, 8, 8, dtype=torch.float64)})
    assert len(seen) == 4
    last = layout == torch.channels_last
    assert all((weight[1] == 1) == (maps[1] == 1) == last for weight, maps in seen)
