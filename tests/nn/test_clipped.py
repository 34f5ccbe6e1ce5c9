"""Sums of clipped per-example gradients: both engines against the definition, whatever the layers and the batches."""

import math

import pytest
import torch
from fisher_cases import examples, mlp, seeded
from network_cases import CONVOLUTIONS, SUITED, UNSUITED, Convolutional, Images
from torch import nn

from advml.contracts import Batch, Classes, Real, Spec, Split
from advml.models.cnn import Cnn, CnnSettings
from advml.models.conv4 import Conv4, Conv4Settings
from advml.nn import clipped
from advml.nn.clipped import clipped_sums
from advml.nn.losses import cross_entropy, make_loss
from advml.nn.per_example import in_batches

ENGINES = ["loop", "closed", "auto"]


def sums(network, split, clip, engine="closed", loss=cross_entropy, batch_size=1000, index=None):
    batches, _ = in_batches(split, index, batch_size)
    return clipped_sums(network, batches, loss, clip, engine)


def by_definition(network, split, clip, loss=cross_entropy):
    """Each example's own backward pass; one vector of all its gradients; scaled to length C where it is longer."""
    parameters = {name: value for name, value in network.named_parameters() if value.requires_grad}
    total, norms, value = {name: torch.zeros_like(p) for name, p in parameters.items()}, [], 0.0
    for row in range(len(split)):
        batch = split.batch(slice(row, row + 1))
        one = loss(network(batch.inputs), batch)
        found = torch.autograd.grad(one, parameters.values(), materialize_grads=True)
        length = math.sqrt(sum(float((part**2).sum()) for part in found))
        for name, part in zip(parameters, found, strict=True):
            total[name] += part if length <= clip else part * (clip / length)
        norms.append(length)
        value += float(one.detach())
    return total, torch.tensor(norms, dtype=torch.float64), value


def assert_close(mine, expected, tolerance=1e-10):
    total, norms, value = expected
    assert mine.sums.keys() == total.keys()
    largest = max(float(values.abs().max()) for values in total.values())
    for name, values in total.items():
        torch.testing.assert_close(mine.sums[name].double(), values.double(), rtol=0, atol=tolerance * largest)
        assert not mine.sums[name].requires_grad
    torch.testing.assert_close(mine.norms.double(), norms, rtol=tolerance, atol=tolerance * float(norms.max()))
    assert float(mine.loss) == pytest.approx(value, rel=tolerance)


def shifted(network):
    """Scales other than 1, biases other than 0."""
    with torch.no_grad():
        for value in network.parameters():
            value += 0.1 * torch.randn(value.shape, generator=seeded(), dtype=value.dtype)
    return network


def median_norm(network, split, loss=cross_entropy):
    """A bound that some of the examples exceed and others do not."""
    return float(by_definition(network, split, math.inf, loss)[1].median())


IMAGE = Spec({"x": (1, 8, 8)}, Classes(4))
SHIPPED = {
    "conv4 pool": Conv4Settings(
        channels=6, groups=2, blocks=3, norm="group", downsample="pool", dropout=0.0, readout="flatten"
    ),
    "conv4 stride": Conv4Settings(
        channels=6, groups=2, blocks=2, norm="layer", downsample="stride", dropout=0.0, readout="mean"
    ),
    "cnn": CnnSettings(channels=(4, 6), kernel=5, hidden=8, norm="none", groups=1, dropout=0.0),
    "cnn group": CnnSettings(channels=(4, 6), kernel=3, hidden=8, norm="group", groups=2, dropout=0.0),
}


def shipped(name):
    settings = SHIPPED[name]
    torch.manual_seed(4)
    return shifted((Conv4 if isinstance(settings, Conv4Settings) else Cnn)(IMAGE, settings).double()).train()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("norm", ["none", "layer"])
@pytest.mark.parametrize("share", [0.3, 1.0, math.inf])
def test_fully_connected(engine, norm, share):
    network, split = shifted(mlp(norm=norm)).train(), examples()
    clip = share * median_norm(network, split)
    assert_close(sums(network, split, clip, engine), by_definition(network, split, clip))


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("engine", ["loop", "closed"])
def test_shipped_convolutional_networks(name, engine):
    network, split = shipped(name), examples(30, shape=(1, 8, 8))
    clip = median_norm(network, split)
    mine = sums(network, split, clip, engine, batch_size=7)
    assert 0.2 < float((mine.norms > clip).double().mean()) < 0.8
    assert_close(mine, by_definition(network, split, clip))


def test_float32_is_near():
    network, split = shipped("cnn group"), examples(30, shape=(1, 8, 8))
    clip = median_norm(network, split)
    single = Split({"x": split.inputs["x"].float()}, split.target)
    mine = sums(shipped("cnn group").float(), single, clip)
    assert mine.norms.dtype == torch.float32
    assert_close(mine, by_definition(network, split, clip), tolerance=1e-5)


@pytest.mark.parametrize("layers", [name for name in CONVOLUTIONS if "batch" not in name and name != "norm first"])
@pytest.mark.parametrize("chunk", [1, 400, 1 << 20])
def test_convolutions_and_norms(layers, chunk, monkeypatch):
    """By products and by Gram matrices: the layers have few and many places."""
    monkeypatch.setattr(clipped, "CHUNK", chunk)
    network, split = shifted(Images(CONVOLUTIONS[layers]).double()).train(), examples(13, shape=(2, 5, 6))
    clip = median_norm(network, split)
    assert_close(sums(network, split, clip, batch_size=5), by_definition(network, split, clip))


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("places", [1, 16])
def test_both_ways_to_the_norm_of_a_shared_weight_are_taken(groups, places):
    inputs = torch.randn(5, 12, places, 1, generator=seeded(), dtype=torch.float64)
    call = clipped._Shared(inputs, groups, lambda values: values.flatten(2))
    delta = torch.randn(5, 10, places, 1, generator=seeded(1), dtype=torch.float64)
    call.add(delta)
    rows = (delta.view(5, groups, -1, places) @ inputs.view(5, groups, -1, places).mT).flatten(1)
    torch.testing.assert_close(call.squares(True, False), rows.square().sum(1), rtol=1e-12, atol=0)
    assert (call.products is None) == (places == 1)
    weight, factors = torch.ones(10, 12 // groups, 1, dtype=torch.float64), torch.rand(5, dtype=torch.float64)
    call.collect(weight, None, factors)
    torch.testing.assert_close(weight.flatten() - 1, factors @ rows, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("network", [network for network in SUITED if "BatchNorm" not in str(network)])
def test_other_networks_that_the_closed_form_serves(network):
    network, split = network.double().train(), examples()
    clip = median_norm(network, split)
    assert_close(sums(network, split, clip), by_definition(network, split, clip))


@pytest.mark.parametrize("network", [network for network in UNSUITED if "BatchNorm" not in str(network)])
def test_other_networks_fall_back_to_the_loop(network):
    network, split = network.double().train(), examples(12)
    clip = median_norm(network, split)
    with pytest.raises(ValueError, match="engine closed needs"):
        sums(network, split, clip)
    assert_close(sums(network, split, clip, "auto"), by_definition(network, split, clip))


@pytest.mark.parametrize("engine", ENGINES)
def test_batch_norm_is_refused_in_training_mode_only(engine):
    split = examples(12, shape=(1, 4, 4))
    network = Convolutional().double()
    with pytest.raises(ValueError, match="batch norm in training mode mixes examples"):
        sums(network.train(), split, 1.0, engine)
    network.eval()
    assert_close(sums(network, split, 1.0, engine), by_definition(network, split, 1.0))


@pytest.mark.parametrize("loss", ["mse", "l1", "huber"])
def test_real_targets(loss):
    target = torch.randn(20, 2, generator=seeded(), dtype=torch.float64)
    network, split = mlp(classes=2), Split(examples(20).inputs, target)
    measure = make_loss(loss, Real((2,)))
    clip = median_norm(network, split, measure)
    for engine in ("loop", "closed"):
        assert_close(sums(network, split, clip, engine, measure), by_definition(network, split, clip, measure))


@pytest.mark.parametrize("mask", [torch.tensor([True, True, False, True]), "rows"])
def test_masked_outputs_and_label_smoothing(mask):
    split = examples(12)
    rows = torch.nn.functional.one_hot((split.target + 1) % 4, 4) == 0
    mask = rows if isinstance(mask, str) else mask
    keep = torch.arange(12) if mask.dim() == 2 else (split.target != 2).nonzero().flatten()
    split = split.take(keep)
    both = []
    for engine in ("loop", "closed"):
        whole = split.batch(slice(None))
        batches = lambda limit: [Batch(whole.inputs, whole.target, mask)]  # noqa: E731, B023
        both.append(clipped_sums(mlp(), batches, make_loss("auto", Classes(4), 0.1), 0.5, engine))
    assert_close(both[1], (both[0].sums, both[0].norms, float(both[0].loss)), 1e-12)


@pytest.mark.parametrize("clip", [0.5, 1.0, 2.0, 3.0])
def test_the_clip_bound_is_a_bound_on_the_2_norm(clip):
    """A published mistake: the bound passed as the order of the norm (`norm(clip)` in place of `norm() / clip`)."""
    network, split = shifted(mlp()), examples()
    scaled = Split({"x": split.inputs["x"] * 20}, split.target)
    for row in range(6):
        one = sums(network, scaled.take(torch.tensor([row])), clip)
        length = torch.cat([value.flatten() for value in one.sums.values()]).norm(2)
        assert float(length) == pytest.approx(min(clip, float(one.norms[0])), rel=1e-12)
        assert float(one.norms[0]) > clip or row


def test_all_parameters_are_clipped_together():
    """Clipping each parameter by itself would keep up to √P times the bound."""
    network, split = shifted(mlp()), examples(1)
    one = sums(network, split, 1e-3)
    assert float(torch.stack([value.norm() for value in one.sums.values()]).norm()) == pytest.approx(1e-3, rel=1e-12)
    assert all(float(value.norm()) < 1e-3 for value in one.sums.values())


def test_the_sum_of_all_examples_is_bounded_by_each_one():
    """Adding an example moves the sum by no more than the bound: what the noise is scaled to."""
    network, split = shipped("cnn"), examples(9, shape=(1, 8, 8))
    clip = median_norm(network, split) / 2
    all_, fewer = sums(network, split, clip).sums, sums(network, split, clip, index=torch.arange(8)).sums
    moved = torch.cat([(all_[name] - fewer[name]).flatten() for name in all_]).norm()
    assert float(moved) <= clip * (1 + 1e-12)


@pytest.mark.parametrize("engine", ENGINES)
def test_no_example_at_all(engine):
    mine = sums(mlp(), examples(), 1.0, engine, index=torch.zeros(0, dtype=torch.int64))
    assert mine.norms.shape == (0,)
    assert float(mine.loss) == 0
    assert all(not value.any() for value in mine.sums.values())


@pytest.mark.parametrize("batch_size", [1, 3, 40])
def test_how_examples_are_divided_changes_nothing(batch_size):
    network, split = shifted(mlp()), examples()
    whole = sums(network, split, 0.5)
    mine = sums(network, split, 0.5, batch_size=batch_size)
    assert_close(mine, (whole.sums, whole.norms, float(whole.loss)), 1e-13)


@pytest.mark.parametrize("engine", ["loop", "closed"])
def test_frozen_parameters_count_for_nothing(engine):
    network, split = mlp(), examples()
    network.body[0].weight.requires_grad_(False)
    network.body[2].requires_grad_(False)
    mine = sums(network, split, 0.1, engine)
    assert list(mine.sums) == ["body.0.bias", "head.weight", "head.bias"]
    assert_close(mine, by_definition(network, split, 0.1))


@pytest.mark.parametrize("engine", ["loop", "closed"])
def test_network_is_left_as_it_was(engine):
    network, split = mlp(dropout=0.5).train(), examples(8)
    nn.functional.cross_entropy(network(split.batch(slice(None)).inputs), split.target).backward()
    before = [(value.clone(), value.grad.clone()) for value in network.parameters()]
    sums(network, split, 1.0, engine)
    assert network.training
    for value, (old, gradient) in zip(network.parameters(), before, strict=True):
        assert torch.equal(value, old)
        assert torch.equal(value.grad, gradient)


@pytest.mark.parametrize("engine", ["loop", "closed"])
@pytest.mark.parametrize("bad", [[1], [0, 2, 3], [0, 1, 2, 3, 4, 5]])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_an_example_whose_gradient_is_no_number_counts_as_zeros(engine, bad, value):
    """A NaN in the sum would tell that it was there."""
    split = examples(6)
    spoilt = {name: values.float().clone() for name, values in split.inputs.items()}
    for values in spoilt.values():
        values[bad] = value
    spoilt = Split(spoilt, split.target)
    network = mlp().float()
    found = sums(network, spoilt, 0.5, engine)
    rest = torch.tensor([row for row in range(6) if row not in bad], dtype=torch.int64)
    kept = sums(network, spoilt, 0.5, "loop", index=rest)
    for name, expected in kept.sums.items():
        torch.testing.assert_close(found.sums[name], expected, rtol=0, atol=1e-6)
