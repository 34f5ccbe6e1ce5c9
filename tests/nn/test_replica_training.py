"""Copies trained side by side are copies trained alone."""

import pytest
import torch
import torch.nn.functional as F

from advml.contracts import Batch, Classes, Spec
from advml.models.build import build
from advml.models.conv4 import Conv4Settings
from advml.models.mlp import MlpSettings
from advml.nn.optimisers import Adam, Sgd
from advml.nn.replica_training import start_from, train_copies
from advml.nn.replicas import make_replicas

SPEC = Spec({"image": (1, 6, 6)}, Classes(3))
COPIES, EXAMPLES, STEPS = 3, 7, 4
NETWORKS = {
    "mlp": ("mlp", MlpSettings(hidden=(5,), activation="tanh", norm="none", dropout=0.0)),
    "batch": ("mlp", MlpSettings(hidden=(5,), activation="tanh", norm="batch", dropout=0.0)),
    "conv4": (
        "conv4",
        Conv4Settings(channels=4, blocks=2, norm="batch", groups=1, downsample="pool", dropout=0.0, readout="flatten"),
    ),
}
ENGINES = [
    ("mlp", "loop"), ("mlp", "batched"), ("batch", "batched"), ("batch", "vmap"), ("conv4", "loop"), ("conv4", "vmap"),
]  # fmt: skip
OPTIMISERS = {
    "sgd": (lambda p: Sgd(p, 0.1), lambda p: torch.optim.SGD(p, 0.1)),
    "adam": (lambda p: Adam(p, 0.01, (0.0, 0.999)), lambda p: torch.optim.Adam(p, 0.01, (0.0, 0.999))),
}


def batches():
    generator = torch.Generator().manual_seed(3)
    for _ in range(STEPS):
        images = torch.randn(COPIES, EXAMPLES, 1, 6, 6, generator=generator, dtype=torch.float64)
        yield Batch({"image": images}, torch.randint(3, (COPIES, EXAMPLES), generator=generator))


def losses_of(outputs, target):
    return F.cross_entropy(outputs.flatten(0, 1), target.flatten(), reduction="none").view(target.shape).mean(1)


def alone(kind, make, copy):
    """One copy in an ordinary loop with torch's own optimiser; batch norm in training mode."""
    network = build(*NETWORKS[kind], SPEC, seed=1).double().train()
    optimiser, losses = make(network.parameters()), []
    for batch in batches():
        optimiser.zero_grad()
        loss = F.cross_entropy(network({"image": batch.inputs["image"][copy]}), batch.target[copy])
        loss.backward()
        optimiser.step()
        losses.append(loss.detach())
    return dict(network.named_parameters()), torch.stack(losses)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
@pytest.mark.parametrize(("kind", "engine"), ENGINES, ids=["-".join(pair) for pair in ENGINES])
def test_side_by_side_as_alone(kind, engine, optimiser):
    ours, theirs = OPTIMISERS[optimiser]
    network = build(*NETWORKS[kind], SPEC, seed=1).double()
    copies = start_from(dict(network.named_parameters()), COPIES)
    replicas = make_replicas(network, engine)
    losses = torch.stack(list(train_copies(replicas, copies, batches(), losses_of, ours(copies.values()))))
    assert losses.shape == (STEPS, COPIES)
    for copy in range(COPIES):
        expected, their_losses = alone(kind, theirs, copy)
        torch.testing.assert_close(losses[:, copy], their_losses, rtol=1e-9, atol=1e-10)
        for name, value in expected.items():
            torch.testing.assert_close(copies[name][copy], value, rtol=1e-8, atol=1e-9)


def test_nothing_flows_back_and_the_network_stays():
    network = build(*NETWORKS["mlp"], SPEC, seed=1).double()
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    copies = start_from(dict(network.named_parameters()), COPIES)
    for _ in train_copies(make_replicas(network), copies, batches(), losses_of, Sgd(copies.values(), 0.1)):
        pass
    assert all(value.grad is None for value in network.parameters())
    assert all(torch.equal(before[name], value) for name, value in network.named_parameters())
    assert not any(torch.equal(before[name], value[0]) for name, value in copies.items())


def test_it_trains_where_gradients_are_switched_off():
    network = build(*NETWORKS["mlp"], SPEC, seed=1).double()
    copies = start_from(dict(network.named_parameters()), COPIES)
    with torch.no_grad():
        found = list(train_copies(make_replicas(network), copies, batches(), losses_of, Sgd(copies.values(), 0.1)))
    assert len(found) == STEPS
    assert not torch.equal(copies["head.bias"][0], network.head.bias)
