"""Features of tasks side by side, and batch norms that use the examples at hand."""

import pytest
import torch
from torch import nn

from advml.contracts import Classes, Network, Spec
from advml.nn.embedding import embed, own_statistics
from advml.nn.evaluation import BATCH, evaluating


class Small(Network):
    """Two inputs, a batch norm, a dropout."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(5, 4)
        self.norm, self.dropout = nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.head = nn.Linear(4, 3)

    def features(self, inputs):
        return self.dropout(self.norm(self.body(torch.cat([inputs["a"], inputs["b"].flatten(1)], 1))))


SPEC = Spec({"a": (3,), "b": (2, 1)}, Classes(3))


@pytest.fixture
def network():
    torch.manual_seed(1)
    network = Small().double()
    with torch.no_grad():
        network.norm.running_mean.normal_()
        network.norm.running_var.uniform_(0.5, 2)
        network.norm.weight.normal_()
    return network


def examples(tasks, each):
    generator = torch.Generator().manual_seed(tasks * each)
    return {
        name: torch.randn(tasks, each, *shape, generator=generator, dtype=torch.float64)
        for name, shape in SPEC.inputs.items()
    }


def kept(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def test_in_a_row_each_example_is_by_itself(network):
    inputs = examples(3, 4)
    with evaluating(network):
        found = embed(network, inputs, apart=False)
        for task in range(3):
            for number in range(4):
                one = {name: values[task, number : number + 1] for name, values in inputs.items()}
                torch.testing.assert_close(found[task, number], network.features(one)[0], rtol=1e-12, atol=1e-12)


def test_more_than_fit_at_once(network):
    inputs = examples(2, BATCH // 2 + 3)
    with evaluating(network):
        assert embed(network, inputs, apart=False).shape == (2, BATCH // 2 + 3, 4)
        torch.testing.assert_close(embed(network, inputs, apart=False), embed(network, inputs, apart=True))


def test_apart_each_task_has_its_own_statistics(network):
    inputs = examples(3, 6)
    with evaluating(network), own_statistics(network):
        found = embed(network, inputs, apart=True)
    rows = torch.cat([inputs["a"], inputs["b"].flatten(2)], 2) @ network.body.weight.T + network.body.bias
    for task in range(3):
        mean, variance = rows[task].mean(0), rows[task].var(0, unbiased=False)
        expected = (rows[task] - mean) / (variance + network.norm.eps).sqrt() * network.norm.weight + network.norm.bias
        torch.testing.assert_close(found[task], expected.detach(), rtol=1e-10, atol=1e-12)


def test_own_statistics_leave_the_network_as_it_was(network):
    before = kept(network)
    network.train()
    network.norm.eval()
    with own_statistics(network):
        network.features({name: values[0] for name, values in examples(1, 6).items()})
    assert [network.training, network.norm.training, network.norm.track_running_stats] == [True, False, True]
    after = kept(network)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_training_moves_the_running_averages(network):
    """Once for each task."""
    before = kept(network)
    network.train()
    embed(network, examples(3, 6), apart=True)
    assert int(network.norm.num_batches_tracked) == int(before["norm.num_batches_tracked"]) + 3
    assert not torch.equal(network.norm.running_mean, before["norm.running_mean"])
