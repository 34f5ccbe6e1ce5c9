"""Which networks each engine of the Fisher diagonal serves, and what it leaves alone."""


import pytest
import torch
from fisher_cases import KINDS, by_definition, close, examples, mlp, seeded
from torch import nn

from advml.contracts import Classes, Network, Spec, Split
from advml.models.cnn import Cnn, CnnSettings
from advml.models.conv4 import Conv4, Conv4Settings
from advml.nn import per_example
from advml.nn.fisher import fisher_diagonal


class Convolutional(Network):
    """A convolution with batch norm, then a linear head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.body = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(inplace=True), nn.Flatten())
        self.head = nn.Linear(12, 4)

    def features(self, inputs):
        return self.body(inputs["x"])


class Reused(Network):
    """A layer used `times` times."""

    def __init__(self, times):
        super().__init__()
        torch.manual_seed(4)
        self.times = times
        self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, 4)

    def features(self, inputs):
        hidden = inputs["x"]
        for _ in range(self.times):
            hidden = torch.tanh(self.layer(hidden))
        return hidden


class Sequence(Network):
    """A linear layer over a sequence: three-dimensional inputs share its weights."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.layer, self.head = nn.Linear(2, 5), nn.Linear(5, 4)

    def features(self, inputs):
        return torch.tanh(self.layer(inputs["x"].reshape(-1, 3, 2))).sum(1)


class Rows(Sequence):
    """The same, its parts brought into two dimensions: more rows than examples."""

    def features(self, inputs):
        return torch.tanh(self.layer(inputs["x"].reshape(-1, 2))).reshape(-1, 3, 5).sum(1)


class Elsewhere(Network):
    """A layer's parameters in other hands than the layer's."""

    def __init__(self, way):
        super().__init__()
        torch.manual_seed(4)
        self.way = way
        self.layer, self.head = nn.Linear(6, 6), nn.Linear(6, 4)

    def features(self, inputs):
        x, weight, bias = inputs["x"], self.layer.weight, self.layer.bias
        ways = {
            "function": lambda: nn.functional.linear(input=x, bias=bias, weight=weight),
            "without gradient": lambda: self.layer(x).detach() + x,
            "as well": lambda: self.layer(x) * weight.sum(),
            "product": lambda: x @ weight.T,
            "other bias": lambda: nn.functional.linear(x, weight, bias * 2),
            "no bias": lambda: nn.functional.linear(x, weight),
        }
        return torch.tanh(ways[self.way]())


class InPlace(Network):
    """Activations that overwrite the outputs of the layers before them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(4)
        self.body = nn.Sequential(nn.Linear(6, 8), nn.ReLU(inplace=True), nn.Linear(8, 8))
        self.head = nn.Linear(8, 4)

    def features(self, inputs):
        return torch.tanh(self.body(inputs["x"]).mul_(3))


class Wrapped(Network):
    """`body` on the 6 inputs as an image [1, 2, 3], then a linear head."""

    def __init__(self, *body):
        super().__init__()
        self.body = nn.Sequential(*body, nn.Flatten())
        self.head = nn.Linear(self.body(torch.zeros(2, 1, 2, 3)).shape[1], 4)

    def features(self, inputs):
        return self.body(inputs["x"].reshape(-1, 1, 2, 3))


def wrapped(*makers):
    torch.manual_seed(4)
    return Wrapped(*(make() for make in makers))


UNSUITED = [Reused(2), Rows()]
UNSUITED += [Elsewhere(way) for way in ("as well", "product", "other bias", "no bias")]
UNSUITED += [wrapped(lambda: nn.Conv2d(1, 3, 3, padding="same"))]
UNSUITED += [wrapped(lambda: nn.BatchNorm2d(1, track_running_stats=False))]
UNSUITED += [wrapped(lambda: nn.Conv2d(1, 3, 1), lambda: nn.PReLU())]
SUITED = [InPlace(), Reused(0), Elsewhere("function"), Elsewhere("without gradient"), Sequence()]
SUITED += [mlp(norm="layer"), mlp(norm="batch")]


@pytest.mark.parametrize("network", UNSUITED)
@pytest.mark.parametrize("kind", ["exact", "empirical"])
def test_other_networks_fall_back_to_the_loop(network, kind):
    network, split = network.double(), examples(12)
    with pytest.raises(ValueError, match="engine closed needs"):
        fisher_diagonal(network, split, kind=kind, engine="closed")
    close(fisher_diagonal(network, split, kind=kind), by_definition(network, split, kind))


CONVOLUTIONS = {
    "stride and padding": [lambda: nn.Conv2d(2, 6, 3, stride=2, padding=1)],
    "groups": [lambda: nn.Conv2d(2, 6, (2, 3), groups=2, bias=False), nn.ReLU, lambda: nn.Conv2d(6, 6, 2, groups=6)],
    "dilation": [lambda: nn.Conv2d(2, 3, 2, dilation=2), lambda: nn.ReLU(inplace=True), lambda: nn.Conv2d(3, 5, 2)],
    "reflected": [lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), nn.Tanh],
    "batch norm": [lambda: nn.Conv2d(2, 4, 3), lambda: nn.BatchNorm2d(4), nn.ReLU, lambda: nn.Conv2d(4, 3, 2)],
    "group norm": [lambda: nn.Conv2d(2, 4, 3), lambda: nn.GroupNorm(2, 4), lambda: nn.ReLU(inplace=True)],
    "layer norm": [lambda: nn.Conv2d(2, 4, 3), lambda: nn.LayerNorm((4, 3, 4)), lambda: nn.LayerNorm(4)],
    "norm first": [lambda: nn.BatchNorm2d(2), lambda: nn.Conv2d(2, 4, 3)],
}


class Images(Network):
    """Layers on images [2, 5, 6], a pool and a linear head."""

    def __init__(self, makers):
        super().__init__()
        torch.manual_seed(4)
        self.body = nn.Sequential(*(make() for make in makers), nn.AvgPool2d(2), nn.Flatten())
        self.head = nn.Linear(self.body(torch.randn(9, 2, 5, 6)).shape[1], 4)  # moves running statistics as well

    def features(self, inputs):
        return self.body(inputs["x"])


@pytest.mark.parametrize("layers", CONVOLUTIONS)
@pytest.mark.parametrize("kind", ["exact", "empirical"])
def test_convolutions_and_norms(layers, kind):
    """Against the definition, by plain autograd; some chunks of examples are not full."""
    network, split = Images(CONVOLUTIONS[layers]).double(), examples(13, shape=(2, 5, 6))
    with torch.no_grad():
        for value in network.parameters():
            value += 0.1 * torch.randn(value.shape, generator=seeded(), dtype=value.dtype)  # scales other than 1
    mine = fisher_diagonal(network, split, kind=kind, engine="closed", batch_size=5)
    close(mine, by_definition(network, split, kind))
    assert all(float(value.max()) > 0 for value in mine.values())


@pytest.mark.parametrize("chunk", [1, 200, 1 << 20])
def test_convolutions_do_not_depend_on_chunk_or_batch_size(chunk, monkeypatch):
    monkeypatch.setattr(per_example, "CHUNK", chunk)
    network, split = Images(CONVOLUTIONS["groups"]).double(), examples(120, shape=(2, 5, 6))
    one, some, all_ = (fisher_diagonal(network, split, engine="closed", batch_size=size) for size in (1, 32, 500))
    close(some, one)
    close(all_, one)


def conv4(**more):
    return Conv4Settings(channels=6, groups=2, **more)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "model",
    [
        conv4(blocks=3, norm="batch", downsample="pool", dropout=0.2, readout="flatten"),
        conv4(blocks=2, norm="group", downsample="stride", dropout=0.0, readout="mean"),
        conv4(blocks=2, norm="none", downsample="pool", dropout=0.0, readout="flatten"),
        CnnSettings(channels=(4, 6), kernel=3, hidden=8, norm="none", groups=1, dropout=0.0),
    ],
)
def test_shipped_convolutional_networks(kind, model):
    """float32 within 1e-5 of the largest entry of the loop."""
    spec = Spec({"x": (1, 8, 8)}, Classes(4))
    torch.manual_seed(4)
    network = (Conv4 if isinstance(model, Conv4Settings) else Cnn)(spec, model)
    split = examples(60, shape=(1, 8, 8), dtype=torch.float32)
    both = [
        fisher_diagonal(network, split, kind=kind, engine=engine, generator=seeded()) for engine in ("closed", "loop")
    ]
    close(*both, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_convolutional_network_with_batch_norm(kind):
    network, split = Convolutional().double(), examples(12, shape=(1, 4, 4))
    network.train()
    network(split.batch(slice(None)).inputs)  # running statistics other than 0 and 1
    buffers = {name: value.clone() for name, value in network.named_buffers()}
    mine = fisher_diagonal(network, split, kind=kind, generator=seeded())
    assert all(torch.equal(value, buffers[name]) for name, value in network.named_buffers())
    assert network.training
    if kind != "sample":
        close(mine, by_definition(network, split, kind))


@pytest.mark.parametrize("network", UNSUITED)
def test_falling_back_draws_what_the_loop_draws(network):
    network, split = network.double(), examples(12)
    mine = fisher_diagonal(network, split, kind="sample", generator=seeded())
    close(mine, fisher_diagonal(network, split, kind="sample", engine="loop", generator=seeded()), rtol=0)


@pytest.mark.parametrize("network", SUITED)
@pytest.mark.parametrize("kind", ["exact", "empirical"])
def test_other_networks_that_the_closed_form_serves(network, kind):
    network, split = network.double(), examples()
    mine = fisher_diagonal(network, split, kind=kind, engine="closed")
    close(mine, by_definition(network, split, kind))


def test_closed_form_refuses_mixed_precision():
    network, split = mlp(dtype=torch.float32), examples(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        with pytest.raises(ValueError, match="autocast"):
            fisher_diagonal(network, split, engine="closed")
        assert fisher_diagonal(network, split).keys() == dict(network.named_parameters()).keys()


@pytest.mark.parametrize("engine", ["loop", "closed"])
def test_frozen_parameters_are_left_out(engine):
    network, split = mlp(), examples()
    everything = fisher_diagonal(network, split)
    network.body[0].weight.requires_grad_(False)
    network.body[2].requires_grad_(False)
    some = fisher_diagonal(network, split, engine=engine)
    assert list(some) == ["body.0.bias", "head.weight", "head.bias"]
    close(some, {name: everything[name] for name in some})


@pytest.mark.parametrize("kind", [*KINDS, "batched"])
@pytest.mark.parametrize("engine", ["loop", "closed"])
def test_network_is_left_as_it_was(kind, engine):
    network, split = mlp(dropout=0.5), examples(8)
    network.train()
    network.body[2].eval()
    nn.functional.cross_entropy(network(split.batch(slice(None)).inputs), split.target).backward()
    gradients = [value.grad.clone() for value in network.parameters()]
    modes = [module.training for module in network.modules()]
    with torch.no_grad():
        mine = fisher_diagonal(network, split, kind=kind, engine=engine, generator=seeded())
    network.eval()
    close(mine, fisher_diagonal(network, split, kind=kind, engine=engine, generator=seeded()), rtol=0)
    for value, before in zip(network.parameters(), gradients, strict=True):
        assert torch.equal(value.grad, before)
    assert modes.count(False) == 1


def test_modes_are_restored_after_a_failure():
    network, split = mlp(dropout=0.5), examples(8)
    network.train()
    network.body[2].eval()
    with pytest.raises(RuntimeError):
        fisher_diagonal(network, Split({"x": split.inputs["x"][:, :3]}, split.target))
    assert [module.training for module in network.modules()].count(False) == 1
    assert not network.body[2].training
    network(split.batch(slice(None)).inputs).sum().backward()  # layers are differentiated as ever
    assert all(value.grad is not None for value in network.parameters())


def test_examples_of_masked_classes_are_refused():
    network, split = mlp(), examples()
    mask = torch.tensor([True, False, True, True])
    for kind in ("empirical", "batched"):
        with pytest.raises(ValueError, match="active classes only"):
            fisher_diagonal(network, split, kind=kind, mask=mask)
    assert fisher_diagonal(network, split, kind="exact", mask=mask)


def test_confident_networks_give_finite_numbers():
    network, split = mlp(dtype=torch.float32), examples(dtype=torch.float32)
    with torch.no_grad():
        network.head.weight *= 1e4
    for kind in KINDS:
        for value in fisher_diagonal(network, split, kind=kind, generator=seeded()).values():
            assert value.isfinite().all()
