"""All engines against the definition, example by example."""

import pytest
import torch
from fisher_cases import close, examples, mlp
from torch import nn

from advml.contracts import Classes, Network, Spec
from advml.models.cnn import Cnn, CnnSettings
from advml.nn.per_example import Unsuited
from advml.nn.sensitivity import direction, sensitivity

MASK = torch.tensor([True, False, True, True])


def by_definition(network, split, norm="squared_l2", mask=None):
    """|∂ norm(active outputs) / ∂θ| of each example, averaged; the norm is differentiated by autograd."""
    network.eval()
    total = {name: torch.zeros_like(value) for name, value in network.named_parameters()}
    for row in range(len(split)):
        outputs = network(split.batch(slice(row, row + 1)).inputs)[0]
        active = outputs if mask is None else outputs[mask]
        score = (active * active).sum() if norm == "squared_l2" else (active * active).sum().sqrt()
        found = torch.autograd.grad(score, network.parameters(), materialize_grads=True)
        for sums, gradient in zip(total.values(), found, strict=True):
            sums += gradient.abs() / len(split)
    return total


@pytest.mark.parametrize("engine", ["auto", "loop", "closed"])
@pytest.mark.parametrize("norm", ["squared_l2", "l2"])
@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "masked"])
def test_every_engine_is_the_definition(engine, norm, mask):
    network, split = mlp(), examples()
    found = sensitivity(network, split, norm=norm, mask=mask, engine=engine)
    close(found, by_definition(network, split, norm, mask))
    assert all(bool(value.any()) for value in found.values())


@pytest.mark.parametrize("engine", ["loop", "closed"])
def test_linear_layers_with_dropout_and_others_between(engine):
    """Dropout is off; the layer norm has nothing to learn."""
    network, split = mlp(activation="tanh", dropout=0.5), examples()
    between = nn.LayerNorm(5, elementwise_affine=False).double()
    network.body = nn.Sequential(*network.body, between, nn.ReLU(inplace=True))
    network.train()
    found = sensitivity(network, split, engine=engine)
    assert all(module.training for module in network.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in network.parameters())
    close(found, by_definition(network, split))


@pytest.mark.parametrize("engine", ["loop", "closed"])
def test_what_follows_a_layer_may_work_in_place(engine):
    network, split = mlp(activation="tanh"), examples()
    for number, module in enumerate(network.body):
        if isinstance(module, nn.Tanh):
            network.body[number] = nn.ReLU(inplace=True)
    assert sum(isinstance(module, nn.ReLU) for module in network.body) == 2
    close(sensitivity(network, split, engine=engine), by_definition(mlp(activation="relu"), split))


@pytest.mark.parametrize("engine", ["auto", "loop", "closed"])
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_convolutions_and_batch_norm(engine, norm):
    network = cnn(norm)
    split = examples(count=9, shape=(1, 8, 8))
    found = sensitivity(network, split, mask=MASK, engine=engine)
    close(found, by_definition(network, split, mask=MASK))


def cnn(norm):
    torch.manual_seed(4)
    settings = CnnSettings(channels=(2, 3), hidden=6, kernel=3, norm=norm, groups=1, dropout=0.5)
    network = Cnn(Spec({"x": (1, 8, 8)}, Classes(4)), settings).double()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):  # statistics that matter
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    return network


@pytest.mark.parametrize("engine", ["loop", "closed"])
def test_the_batch_size_has_no_influence(engine):
    network, split = mlp(), examples()
    whole = sensitivity(network, split, engine=engine)
    for size in (1, 7, 32):
        close(sensitivity(network, split, engine=engine, batch_size=size), whole)


def test_gradients_do_not_cancel():
    """Of two opposite examples the mean gradient is 0, the sensitivity is not."""
    network, split = mlp(hidden=(), inputs=2, classes=2), examples(count=2, shape=(2,), classes=2)
    with torch.no_grad():
        network.head.weight.copy_(torch.eye(2))
        network.head.bias.zero_()
    split.inputs["x"][:] = torch.tensor([[1.0, 2.0], [-1.0, -2.0]])
    found = sensitivity(network, split)
    # ∂(z₁² + z₂²) = 2 z aᵀ with z = a; of the bias 2 z.
    assert found["head.weight"].tolist() == [[2.0, 4.0], [4.0, 8.0]]
    assert found["head.bias"].tolist() == [2.0, 4.0]


def test_chosen_examples():
    network, split = mlp(), examples()
    index = torch.tensor([3, 17, 5])
    close(sensitivity(network, split, index=index), by_definition(network, split.take(index)))
    with pytest.raises(ValueError, match="at least one example"):
        sensitivity(network, split, index=index[:0])


def test_frozen_parameters_are_left_out():
    network, split = mlp(), examples()
    whole = sensitivity(network, split)
    first = next(iter(whole))
    dict(network.named_parameters())[first].requires_grad_(False)
    for engine in ("loop", "closed"):
        found = sensitivity(network, split, engine=engine)
        assert set(found) == set(whole) - {first}
        close(found, {name: value for name, value in whole.items() if name != first})


class Tied(Network):
    """A weight used a second time, not through its layer."""

    def __init__(self, again):
        super().__init__()
        torch.manual_seed(6)
        self.layer, self.head, self.again = nn.Linear(6, 6), nn.Linear(6, 4), again
        self.double()

    def forward(self, inputs):
        hidden = torch.tanh(self.layer(inputs["x"]))
        hidden = self.layer(hidden) if self.again == "call" else hidden @ self.layer.weight
        return self.head(hidden)


@pytest.mark.parametrize("again", ["call", "weight"])
def test_shared_weights_are_left_to_the_loop(again):
    network, split = Tied(again), examples()
    with pytest.raises(Unsuited, match="engine closed needs"):
        sensitivity(network, split, engine="closed")
    close(sensitivity(network, split), by_definition(network, split))


def test_the_gradient_of_the_norm():
    outputs = torch.tensor([[3.0, 4.0, 9.0], [0.0, 0.0, 5.0]])
    mask = torch.tensor([True, True, False])
    assert direction(outputs, "squared_l2", mask).tolist() == [[6.0, 8.0, 0.0], [0.0, 0.0, 0.0]]
    torch.testing.assert_close(direction(outputs, "l2", mask), torch.tensor([[0.6, 0.8, 0.0], [0.0, 0.0, 0.0]]))
