"""Which networks each engine of the Fisher diagonal serves, and what it leaves alone."""

import pytest
import torch
from fisher_cases import KINDS, by_definition, close, examples, mlp, seeded
from network_cases import CONVOLUTIONS, SUITED, UNSUITED, Convolutional, Images, PlacesFirst, Sequence
from torch import nn

from advml.contracts import Classes, Spec, Split
from advml.models.cnn import Cnn, CnnSettings
from advml.models.conv4 import Conv4, Conv4Settings
from advml.nn import per_example
from advml.nn.fisher import fisher_diagonal


@pytest.mark.parametrize("network", UNSUITED)
@pytest.mark.parametrize("kind", ["exact", "empirical"])
def test_other_networks_fall_back_to_the_loop(network, kind):
    network, split = network.double(), examples(12)
    with pytest.raises(ValueError, match="engine closed needs"):
        fisher_diagonal(network, split, kind=kind, engine="closed")
    close(fisher_diagonal(network, split, kind=kind), by_definition(network, split, kind))


@pytest.mark.parametrize("count", [3, 5])
def test_places_are_no_examples_though_there_be_as_many(count):
    network, split = PlacesFirst().double(), examples(count)
    with pytest.raises(ValueError, match="on one row for each example"):
        fisher_diagonal(network, split, kind="empirical", engine="closed")
    served = Sequence().double()
    for one, engine in ((network, "auto"), (served, "closed")):
        close(fisher_diagonal(one, split, kind="empirical", engine=engine), by_definition(one, split, "empirical"))


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
