"""The fused supernet gives what the plain one gives: loss, all gradients, running statistics."""

import pytest
import torch
import torch.nn.functional as F
from cell_cases import batch, supernet

from advml.nn.cells import fused

CASES = {
    "all operations": {},
    "affine": {"affine": True},
    "partial": {"partial": 4, "channels": 8},
    "auxiliary": {"auxiliary_skip": True},
    "odd sides": {"shape": (1, 7, 9)},
    "no reduction": {"reductions": 0, "cells": 1},
    "few operations": {"operations": ("none", "skip_connect", "sep_conv_5x5"), "nodes": 4},
    "none alone": {"operations": ("none",)},
    "enas": {"space": "enas_micro"},
    "enas with one operation": {"space": "enas_micro", "nodes": 3, "operations": ("sep_conv_3x3",)},
}


def trained(net, shape):
    """Loss, gradients and state after two batches; and the logits of evaluation."""
    inputs, target = batch(shape)
    net(inputs)
    loss = F.cross_entropy(net(inputs), target)
    named = dict(net.named_parameters())
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    return loss.detach(), dict(zip(named, found, strict=True)), state, net.eval()(inputs).detach()


def assert_equal(plain, other, tolerance=1e-12):
    (loss, gradients, state, logits), (loss2, gradients2, state2, logits2) = plain, other
    torch.testing.assert_close(loss2, loss, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(logits2, logits, rtol=tolerance, atol=tolerance)
    assert {name: one is None for name, one in gradients.items()} == {
        name: one is None for name, one in gradients2.items()
    }
    for name, one in gradients.items():
        if one is not None:
            assert (gradients2[name] - one).abs().max() <= tolerance * max(1, one.abs().max()), name
    assert state.keys() == state2.keys()
    for name, one in state.items():
        torch.testing.assert_close(state2[name], one, rtol=tolerance, atol=tolerance, msg=name)


@pytest.mark.parametrize("dense", [fused.DENSE_UP_TO, 0], ids=["dense", "depthwise"])
@pytest.mark.parametrize("case", CASES)
def test_loss_gradients_and_statistics_are_equal(case, dense, monkeypatch):
    monkeypatch.setattr(fused, "DENSE_UP_TO", dense)
    calls = []
    counted = lambda *given: calls.append(1) or fused.fused_cell(*given)  # noqa: E731
    monkeypatch.setattr("advml.nn.cells.supernet.fused_cell", counted)
    values = {"space": "darts_cells", "shape": (2, 8, 8)} | CASES[case]
    nets = [supernet(**values, engine=engine) for engine in ("plain", "fused")]
    nets[1].load_state_dict(nets[0].state_dict())
    results = [trained(net, values["shape"]) for net in nets]
    assert calls  # the second network did take the other way
    assert_equal(*results)


def test_the_second_order_of_differences_is_equal():
    """∇²α,w L v of both engines, the quantity of DARTS' second order, by one central difference in float64."""
    nets = [supernet(nodes=2, engine=engine) for engine in ("plain", "fused")]
    nets[1].load_state_dict(nets[0].state_dict())
    inputs, target = batch()
    products = []
    for net in nets:
        weights = [p for p in net.weights() if p.requires_grad]
        v = torch.autograd.grad(F.cross_entropy(net(inputs), target), weights)
        sides = []
        for sign in (1, -1):
            with torch.no_grad():
                for weight, one in zip(weights, v, strict=True):
                    weight.add_(one, alpha=sign * 1e-3)
            sides.append(torch.autograd.grad(F.cross_entropy(net(inputs), target), net.architecture()))
            with torch.no_grad():
                for weight, one in zip(weights, v, strict=True):
                    weight.sub_(one, alpha=sign * 1e-3)
        products.append([(one - two) / 2e-3 for one, two in zip(*sides, strict=True)])
    for one, two in zip(*products, strict=True):
        torch.testing.assert_close(two, one, rtol=1e-10, atol=1e-10)


def test_a_single_architecture_takes_the_sparing_way():
    nets = [supernet(nodes=3, engine=engine) for engine in ("plain", "fused")]
    nets[1].load_state_dict(nets[0].state_dict())
    inputs, _ = batch()
    one, two = (net(inputs, *net.selection(nets[0].derive())) for net in nets)
    torch.testing.assert_close(two, one, rtol=1e-12, atol=1e-12)


def test_only_what_is_asked_for_is_differentiated():
    net = supernet(nodes=2, engine="fused")
    inputs, target = batch()
    gradients = torch.autograd.grad(F.cross_entropy(net(inputs), target), net.architecture())
    assert all(bool(one.any()) for one in gradients)
    assert all(parameter.grad is None for parameter in net.parameters())
