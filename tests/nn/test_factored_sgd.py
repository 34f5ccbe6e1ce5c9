"""Large linear layers moved by the factors of their gradients come where differentiation alone takes them."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from advml.contracts import Batch, Classes, Network, Spec
from advml.models.build import build
from advml.models.cnn import CnnSettings
from advml.nn import factored_sgd
from advml.nn.example_losses import example_losses
from advml.nn.factored_sgd import FactoredSgd
from advml.nn.local_training import LocalTraining, Pull, local_replicas
from advml.nn.optimisers import OptimiserSettings

SPEC = Spec({"image": (1, 8, 8)}, Classes(3))
PLAIN = OptimiserSettings(
    optimiser="sgd", lr=0.1, momentum=0.0, nesterov=False, betas=(0.9, 0.999), weight_decay=0.0, schedule="constant",
    warmup=0, step_every=1, step_factor=0.1, clip_norm=None,
)  # fmt: skip
LOSSES = example_losses("auto", SPEC.target)


class Tied(Network):
    """A layer called twice, once for rows in three dimensions, whose weight is also read by itself."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Linear(64, 64)
        self.head = nn.Linear(64, 3)

    def features(self, inputs):
        rows = inputs["image"].flatten(1)
        twice = self.mix(torch.tanh(self.mix(rows)))
        return torch.tanh(twice + self.mix(rows.unsqueeze(1)).squeeze(1) + (rows.square() @ self.mix.weight).sin())


def cnn(**words):
    chosen = {"channels": (2, 3), "hidden": 8, "kernel": 3, "norm": "none", "groups": 1, "dropout": 0.0} | words
    return build("cnn", CnnSettings(**chosen), SPEC, seed=1).double()


def batches(count):
    generator = torch.Generator().manual_seed(3)
    made = []
    for _ in range(count):
        images = torch.randn(1, 5, 1, 8, 8, generator=generator, dtype=torch.float64)
        made.append(Batch({"image": images}, torch.randint(3, (1, 5), generator=generator)))
    return made


def by_autograd(network, weight, lr, strength, offset):
    """An ordinary loop over the same batches; `weight` [1, 5] of the examples, or None."""
    network.train()
    for batch in batches(4):
        losses = F.cross_entropy(network({"image": batch.inputs["image"][0]}), batch.target[0], reduction="none")
        loss = losses.mean() if weight is None else (losses * weight[0]).sum()
        gradients = torch.autograd.grad(loss, list(network.parameters()))
        with torch.no_grad():
            for (name, value), gradient in zip(network.named_parameters(), gradients, strict=True):
                pull = 0.0 if offset is None else offset[name][0]
                value -= lr * (gradient + strength * value + pull)
    return dict(network.named_parameters())


@pytest.fixture
def all_large(monkeypatch):
    monkeypatch.setattr(factored_sgd, "LARGE", 1)


@pytest.mark.parametrize("weight", [None, torch.tensor([[0.5, 0.2, 0.2, 0.1, 0.0]], dtype=torch.float64)])
@pytest.mark.parametrize(("strength", "pulled"), [(0.0, False), (0.3, False), (0.3, True)])
@pytest.mark.parametrize(
    "make", [cnn, lambda: cnn(norm="group"), lambda: Tied().double()], ids=["cnn", "group", "tied"]
)
def test_the_same_as_differentiation_alone(all_large, make, strength, pulled, weight):
    torch.manual_seed(0)
    network = make()
    shifts = {name: torch.full_like(value, 0.01)[None] for name, value in network.named_parameters()}
    offset = shifts if pulled else None
    expected = by_autograd(copy.deepcopy(network), weight, 0.1, strength, offset)
    replicas = local_replicas(network, "loop")
    values = {name: value.detach().clone()[None] for name, value in network.named_parameters()}
    mover = FactoredSgd(replicas, values, list(values), LOSSES, 0.1, strength, offset)
    for batch in batches(4):
        mover.step(batch, weight)
    for name, value in expected.items():
        torch.testing.assert_close(values[name][0], value, rtol=1e-10, atol=1e-12)


def test_no_gradient_as_large_as_a_large_weight_is_made(monkeypatch):
    """In float32 and at the sizes of the federated learning paper's network: of 1,605,632 numbers of a weight."""
    network = build("cnn", CnnSettings(channels=(32, 64), hidden=512, kernel=5, norm="none", groups=8, dropout=0.0),
                    Spec({"image": (1, 28, 28)}, Classes(10)), seed=0)  # fmt: skip
    sizes = []
    plain = torch.autograd.grad

    def noticed(*args, **words):
        found = plain(*args, **words)
        sizes.extend(0 if gradient is None else gradient.numel() for gradient in found)
        return found

    monkeypatch.setattr(torch.autograd, "grad", noticed)
    plan = LocalTraining(local_replicas(network, "auto"), LOSSES, PLAIN)
    values = {name: value.detach().clone()[None] for name, value in network.named_parameters()}
    largest = max(values, key=lambda name: values[name].numel())
    before = values[largest].clone()
    images, labels = torch.randn(4, 1, 28, 28), torch.randint(10, (4,))
    plan.train(values, list(values), [[torch.arange(4)]],
               lambda index: Batch({"image": images[index]}, labels[index]), 0.1)  # fmt: skip
    assert 0 < max(sizes) < factored_sgd.LARGE
    assert not torch.equal(values[largest], before)


@pytest.mark.parametrize(
    ("words", "engine", "copies", "factored"),
    [({}, "loop", 1, True), ({}, "auto", 1, True), ({"weight_decay": 0.1}, "loop", 1, True), ({}, "loop", 2, False),
     ({}, "vmap", 1, False), ({"momentum": 0.9}, "loop", 1, False), ({"clip_norm": 1.0}, "loop", 1, False),
     ({"optimiser": "adam"}, "loop", 1, False)],
)  # fmt: skip
def test_when_it_is_chosen(all_large, words, engine, copies, factored):
    network = cnn()
    plan = LocalTraining(local_replicas(network, engine), LOSSES, OptimiserSettings(**{**vars(PLAIN), **words}))
    values = {name: value.detach().repeat(copies, *[1] * value.dim()) for name, value in network.named_parameters()}
    assert isinstance(plan._mover(values, list(values), 0.1, Pull()), FactoredSgd) is factored


def test_small_layers_are_left_to_autograd():
    network = cnn()
    assert not FactoredSgd.serves(local_replicas(network, "loop"), 1)
