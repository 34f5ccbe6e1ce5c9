"""A network called with other values is one that has them, and has its own again afterwards."""

import copy

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from advml.nn.substitution import Substitution


class Tied(nn.Module):
    """Two names for one weight, running averages, a recurrent layer."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.second.weight = self.first.weight
        self.norm, self.cell = nn.BatchNorm1d(4), nn.LSTM(4, 4, batch_first=True)

    def forward(self, rows):
        return self.cell(self.norm(self.second(torch.tanh(self.first(rows)))).unsqueeze(1))[0].squeeze(1)


@pytest.fixture
def network():
    torch.manual_seed(1)
    return Tied().double()


@pytest.fixture
def rows():
    return torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def others(network):
    """Other values for all that it has, by the first of each name."""
    values = [*network.named_parameters(), *network.named_buffers()]
    return {name: value + 0.3 if value.is_floating_point() else value + 3 for name, value in values}


@pytest.mark.parametrize("training", [True, False])
def test_like_a_network_that_has_them(network, rows, training):
    network.train(training)
    values = others(network)
    twin = copy.deepcopy(network)
    twin.load_state_dict({**values, "second.weight": values["first.weight"]})
    expected = twin(rows)
    before = {name: (id(value), value.clone()) for name, value in network.state_dict(keep_vars=True).items()}
    assert torch.equal(Substitution(network)(values, rows), expected)
    for name, (identity, value) in before.items():
        now = network.state_dict(keep_vars=True)[name]
        assert (id(now), torch.equal(now, value)) == (identity, True), name
    for name, value in twin.state_dict().items():  # running averages move where they are
        assert torch.equal(values.get(name, values["first.weight"]), value), name


def test_like_functional_call_through_vmap_and_gradients(network, rows):
    mix = nn.Sequential(network.first, network.norm, network.second).eval()
    call = Substitution(mix)
    copies = {name: torch.stack([value, 2 * value]) for name, value in mix.named_parameters()}

    def slopes(run):
        return vmap(grad(lambda values: run(values).square().sum()))(copies)

    ours, theirs = slopes(lambda values: call(values, rows)), slopes(lambda v: functional_call(mix, dict(v), (rows,)))
    assert set(ours) == set(theirs) == set(copies)
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


def test_its_own_values_are_back_after_a_mistake(network):
    before = dict(network.named_parameters())
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        Substitution(network)(others(network), torch.zeros(5, 3, dtype=torch.float64))
    assert all(value is before[name] for name, value in network.named_parameters())
    with pytest.raises(KeyError, match="third"):
        Substitution(network)({"first.bias": before["first.bias"] + 1, "third": before["first.bias"]}, None)
    assert all(value is before[name] for name, value in network.named_parameters())
