"""The gradient through gradient descent on a chain, written out: against torch's graph and finite differences."""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advml.contracts import Batch
from advml.nn.chain_unrolled import Unrolled, layers_of

COPIES, SUPPORT, QUERY = 4, 5, 3
BENDS = [nn.ReLU(), nn.Tanh(), nn.Softplus(beta=2), nn.GELU(), nn.GELU(approximate="tanh"), nn.Sigmoid(), nn.SiLU(),
         nn.ELU(), nn.LeakyReLU(0.2)]  # fmt: skip


def chain(bend, outputs, bias=True):
    torch.manual_seed(0)
    layers = [nn.Linear(3, 6, bias=bias), bend, nn.Linear(6, 5), nn.Identity(), deepcopy(bend),
              nn.Linear(5, outputs, bias=bias)]  # fmt: skip
    return nn.Sequential(*layers).double()


def named(network):
    return [(name, module) for name, module in network.named_modules() if name]


def batch(examples, outputs, classes, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(COPIES, examples, 3, dtype=torch.float64, generator=generator)
    if classes:
        target = torch.randint(outputs, (COPIES, examples), generator=generator)
    else:
        target = torch.randn(COPIES, examples, outputs, dtype=torch.float64, generator=generator)
    return Batch({"a": rows[..., :2].reshape(COPIES, examples, 1, 2), "b": rows[..., 2]}, target)


def halves(outputs, classes):
    return batch(SUPPORT, outputs, classes, 1), batch(QUERY, outputs, classes, 2)


def loss_of(outputs, target):
    return F.mse_loss(outputs, target) if target.is_floating_point() else F.cross_entropy(outputs, target)


def rows_of(part, copy):
    return torch.cat([part.inputs["a"][copy].flatten(1), part.inputs["b"][copy].unsqueeze(1)], 1)


def by_graph(network, support, query, steps, rate, second):
    """Copy by copy, by torch.func and a graph."""
    total = 0.0
    for copy in range(COPIES):
        values = dict(network.named_parameters())
        for _ in range(steps):
            found = rate * loss_of(
                torch.func.functional_call(network, values, rows_of(support, copy)), support.target[copy]
            )
            gradients = torch.autograd.grad(found, list(values.values()), create_graph=second)
            values = {name: value - g for (name, value), g in zip(values.items(), gradients, strict=True)}
        outputs = torch.func.functional_call(network, values, rows_of(query, copy))
        total = total + loss_of(outputs, query.target[copy]) / COPIES
    return total


def check(network, outputs, classes, steps, second=True):
    support, query = halves(outputs, classes)
    start = dict(network.named_parameters())
    loss, found = Unrolled(layers_of(named(network))).gradient(start, support, query, steps, 0.3, second)
    wanted = by_graph(network, support, query, steps, 0.3, second)
    assert loss.item() == pytest.approx(wanted.item(), abs=1e-14)
    assert found.keys() == start.keys()
    for name, gradient in zip(start, torch.autograd.grad(wanted, list(start.values())), strict=True):
        assert float((found[name] - gradient).abs().max()) < 1e-13 * max(1.0, float(gradient.abs().max())), name


@pytest.mark.parametrize("bend", BENDS, ids=repr)
@pytest.mark.parametrize("steps", [0, 1, 3])
@pytest.mark.parametrize(("outputs", "classes"), [(1, False), (2, False), (4, True)])
def test_it_is_that_of_the_graph(bend, steps, outputs, classes):
    check(chain(bend, outputs), outputs, classes, steps)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("classes", [False, True])
def test_of_the_first_order(steps, classes):
    check(chain(nn.Tanh(), 3), 3, classes, steps, second=False)


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_single_map_and_maps_without_shifts(steps):
    torch.manual_seed(0)
    check(nn.Sequential(nn.Linear(3, 2)).double(), 2, False, steps)
    check(chain(nn.Softplus(), 3, bias=False), 3, True, steps)


def test_it_is_that_of_finite_differences():
    """Nothing of torch's own differentiation: central differences of the loss that the forward passes give."""
    network = chain(nn.Tanh(), 3)
    support, query = halves(3, True)
    start = {name: value.detach().clone() for name, value in network.named_parameters()}
    unrolled = Unrolled(layers_of(named(network)))
    _, found = unrolled.gradient(start, support, query, 2, 0.3, True)
    for name, gradient in found.items():
        direction = torch.randn(gradient.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4))
        ends = [
            unrolled.gradient({**start, name: start[name] + side * 1e-5 * direction}, support, query, 2, 0.3, True)[0]
            for side in (1, -1)
        ]
        slope = float(ends[0] - ends[1]) / 2e-5
        assert slope == pytest.approx(float((gradient * direction).sum()), abs=1e-9), name


def test_what_it_serves():
    linear, relu = nn.Linear(2, 2), nn.ReLU()
    assert [layer.weight for layer in layers_of([("a", linear), ("b", relu), ("c", linear)])] == [
        "a.weight",
        "c.weight",
    ]
    assert layers_of([("a", linear), ("b", nn.Dropout(0.0)), ("c", nn.Identity()), ("d", relu)])[0].bend is relu
    for module in (nn.LayerNorm(2), nn.BatchNorm1d(2), nn.Dropout(0.1), nn.Softmax(1)):
        assert layers_of([("a", linear), ("b", module), ("c", linear)]) is None
    assert layers_of([("a", linear), ("b", relu), ("c", relu)]) is None
    assert layers_of([("a", relu), ("b", linear)]) is None
