"""Networks of genotypes: published sizes, costs by hand, rebuilding, recipes, bad input."""

import json

import pytest
import torch
import torch.nn.functional as F

from advml.contracts import Classes, Nothing, Spec
from advml.errors import ConfigError
from advml.models.build import build, rebuild
from advml.models.genotype import build_genotype
from advml.nn.cells.counting import Cost, cost, count_parameters
from advml.nn.cells.genotype import PUBLISHED, Cell, Genotype
from advml.nn.cells.nasbench201 import from_number, from_string, multiply_adds, to_string
from advml.nn.cells.network import AuxiliaryHead, CellNetwork, NasBench201Network, drop_path
from advml.nn.cells.spaces import DartsCells, EnasMicro, NasBench201

CIFAR = Spec({"image": (3, 32, 32)}, Classes(10))
SMALL = {"channels": 4, "cells": 3}


def image(height, width=None):
    return Spec({"image": (1, height, width or height)}, Classes(10))


def described(make):
    """A network without numbers, and what it costs: its size is all that is asked."""
    with torch.device("meta"):
        return cost(make(), CIFAR)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("DARTS_V1", 3_169_414), ("DARTS_V2", 3_349_342), ("PC_DARTS", 3_634_678), ("P_DARTS", 3_433_798)],
)
def test_published_networks_have_their_sizes(name, parameters):
    # Published: 3.3 M for DARTS (the code's log says 3.349342 M for DARTS_V2), 3.6 M for PC-DARTS, 3.4 M for P-DARTS.
    with torch.device("meta"):
        assert count_parameters(CellNetwork(CIFAR, PUBLISHED[name], 36, 20, 2, True)) == parameters


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("|nor_conv_3x3~0|+|nor_conv_3x3~0|nor_conv_3x3~1|+|nor_conv_3x3~0|nor_conv_3x3~1|nor_conv_3x3~2|",
         Cost(1_531_546, 220_119_680)),
        ("|nor_conv_3x3~0|+|nor_conv_3x3~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_3x3~1|skip_connect~2|",
         Cost(802_426, 113_951_360)),
    ],
)  # fmt: skip
def test_networks_of_nas_bench_201_have_their_sizes(cell, expected):
    # The benchmark gives 1.531546 M and 220.12 M, 0.802426 M and 113.95 M for these.
    code = from_string(cell)
    genotype = NasBench201().genotype(code)
    assert described(lambda: NasBench201Network(CIFAR, genotype, 16, 5, 2)) == expected
    assert multiply_adds(code) == expected.multiply_adds


@pytest.mark.parametrize("place", [0, 7777, 15_624])
def test_the_closed_form_of_the_cost_is_what_is_counted(place):
    code = from_number(place)
    spec = Spec({"image": (3, 16, 16)}, Classes(120))
    with torch.device("meta"):
        counted = cost(NasBench201Network(spec, NasBench201().genotype(code), 8, 2, 2), spec)
    assert multiply_adds(code, channels=8, cells=2, side=16, classes=120) == counted.multiply_adds


def test_cost_by_hand(shipped):
    net = shipped("cnn", image(8), channels=[2, 3], kernel=3, hidden=5)
    assert cost(net, image(8)).multiply_adds == 64 * 9 * 2 + 16 * 9 * 2 * 3 + 12 * 5 + 5 * 10
    assert cost(net, image(8)).flops == 2 * cost(net, image(8)).multiply_adds
    assert count_parameters(net) == sum(parameter.numel() for parameter in net.parameters())


@pytest.mark.parametrize("space", [DartsCells(), EnasMicro(), NasBench201()], ids=lambda space: space.name)
def test_a_genotype_rebuilt_gives_the_same_logits(space, chosen, tmp_path):
    genotype = space.genotype(space.sample(torch.Generator().manual_seed(1)))
    (tmp_path / "artifacts").mkdir()
    path = tmp_path / "artifacts" / "genotype.json"
    path.write_text(json.dumps(space.to_dict(space.encode(genotype))))
    inputs = {"image": torch.randn(4, 1, 9, 7)}
    by_path = [build("genotype", chosen("genotype", path=str(p), **SMALL)[1], image(9, 7), 5) for p in (path, tmp_path)]
    found = build_genotype(genotype, image(9, 7), chosen("genotype", **SMALL)[1], 5)
    by_path[0].train()(inputs)  # running averages that are not the initial ones
    path.unlink()
    again = rebuild(by_path[0].recipe, by_path[0].state_dict())
    assert torch.equal(again(inputs), by_path[0].eval()(inputs))
    assert torch.equal(found(inputs), by_path[1](inputs))
    assert found.recipe == by_path[1].recipe == json.loads(json.dumps(found.recipe))
    assert torch.equal(again.head(again.features(inputs)), again(inputs))


def test_the_shipped_networks_serve_small_images(chosen):
    for name in ("genotype", "nasbench201"):
        cls, settings = chosen(name, channels=4)
        for height in (3, 8, 28):
            assert cls.check(image(height), settings) is None
            outputs = build(name, settings, image(height), 0)({"image": torch.randn(3, 1, height, height)})
            assert outputs.shape == (3, 10)
            assert outputs.std(0).min() > 0


def test_a_cell_can_be_named_by_number(chosen):
    code = from_number(4321)
    nets = [build("nasbench201", chosen("nasbench201", cell=cell)[1], image(8), 1) for cell in (4321, to_string(code))]
    inputs = {"image": torch.randn(2, 1, 8, 8)}
    assert torch.equal(nets[0](inputs), nets[1](inputs))
    assert nets[0].recipe["settings"]["cell"] == 4321


def test_the_auxiliary_head_is_the_authors_on_their_size_and_fits_others(chosen):
    head = AuxiliaryHead(6, (8, 8), 10)
    assert (head[1].kernel_size, head[1].stride, head[5].kernel_size) == ((5, 5), (3, 3), (2, 2))
    for size in ((1, 1), (2, 3), (4, 7), (14, 5), (56, 56)):
        assert AuxiliaryHead(6, size, 10)(torch.randn(2, 6, *size)).shape == (2, 10)
    net = build("genotype", chosen("genotype", auxiliary=True, **SMALL)[1], image(8), 0)
    inputs = {"image": torch.randn(4, 1, 8, 8)}
    logits, second = net.with_auxiliary(inputs)
    assert logits.shape == second.shape == (4, 10)
    every, auxiliary = (sum(p.numel() for p in module.parameters()) for module in (net, net.auxiliary))
    assert count_parameters(net) == every - auxiliary
    plain = build("genotype", chosen("genotype", **SMALL)[1], image(8), 0)
    assert plain.with_auxiliary(inputs)[1] is None
    assert count_parameters(plain) == count_parameters(net)


def test_drop_path_zeroes_whole_examples_and_keeps_the_mean(chosen):
    maps = torch.ones(4000, 2, 1, 1)
    dropped = drop_path(maps, 0.25)
    kept = dropped[:, 0, 0, 0] > 0
    assert torch.equal(dropped[:, 0], dropped[:, 1])
    torch.testing.assert_close(dropped[kept], maps[kept] / 0.75)
    assert abs(kept.float().mean() - 0.75) < 0.03
    net = build("genotype", chosen("genotype", drop_path=0.5, **SMALL)[1], image(8), 0)
    inputs = {"image": torch.randn(16, 1, 8, 8)}
    torch.manual_seed(1)
    assert not torch.equal(net(inputs), net(inputs))
    net.drop_path = 0.0
    assert torch.equal(net(inputs), net(inputs))
    # Skips are never dropped.
    cell = Cell.of([("skip_connect", 0), ("skip_connect", 1)])
    skips = Genotype("darts_cells", cell, cell)
    net = build_genotype(skips, image(8), chosen("genotype", drop_path=0.5, cells=1, reductions=0)[1], 0)
    assert torch.equal(net(inputs), net(inputs))


def test_a_derived_cell_is_the_sum_of_its_edges(chosen):
    net = build("genotype", chosen("genotype", channels=4, cells=1, reductions=0)[1], image(8), 0)
    (cell,) = net.cells
    x = net.stem(torch.randn(3, 1, 8, 8))
    states = [F.batch_norm(F.conv2d(F.relu(x), fit[1].weight), None, None, training=True) for fit in cell.preprocess]
    operations = iter(cell.operations)
    for (_, one), (_, two) in PUBLISHED["DARTS_V2"].normal.nodes:
        states.append(next(operations)(states[one]) + next(operations)(states[two]))
    torch.testing.assert_close(cell(x, x, 0.0), torch.cat(states[2:], 1), rtol=1e-4, atol=1e-5)


def test_bad_input_is_one_line(chosen, tmp_path):
    (tmp_path / "old.json").write_text(json.dumps(PUBLISHED["DARTS_V1"].to_dict() | {"version": 0}))
    for changes, said in (
        ({"path": str(tmp_path / "old.json")}, "version 0, but this advml reads version 1"),
        ({"path": str(tmp_path)}, "genotype.json: cannot be read"),
        ({"published": "DARTS_V3"}, "model.published=DARTS_V3: no published genotype"),
        ({"published": None}, "model.path=FILE"),
        ({"genotype": {"format": "x"}}, "model.genotype: is no genotype"),
    ):
        cls, settings = chosen("genotype", **changes)
        with pytest.raises(ConfigError) as caught:
            cls.check(image(8), settings)
        assert said in str(caught.value)
        assert "\n" not in str(caught.value)
    for name in ("genotype", "nasbench201", "darts_cells", "enas_micro"):
        cls, settings = chosen(name)
        assert "one image of at least 3×3 for its 2 reductions" in cls.check(image(2, 8), settings)
        assert "one image input" in cls.check(Spec({"features": (4,)}, Classes(2)), settings)
        assert "a target" in cls.check(Spec({"image": (1, 8, 8)}, Nothing()), settings)
        with pytest.raises(ConfigError, match=f"model={name}: needs one image of at least"):
            cls.make(image(2, 8), settings)
    cls, settings = chosen("nasbench201", cell="|nor_conv_9x9~0|")
    with pytest.raises(ConfigError, match="unknown operation nor_conv_9x9"):
        cls.check(image(8), settings)
