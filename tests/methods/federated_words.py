"""Small federated runs, and an ordinary loop to compare them with."""

import copy

import pytest
import torch
import torch.nn.functional as F

from advml.errors import ConfigError
from advml.nn.aggregation import cohort
from advml.nn.local_training import batch_sizes

SMALL = ("dataset.limit=300", "precision=float64", "method.rounds=3", "method.fraction=0.5", "method.epochs=2",
         "method.batch_size=7")  # fmt: skip
QUANTITY = ("view.partition=quantity", "view.least=3")


def federated(play, method, *words, model="mlp", view="clients", clients=5):
    sizes = ("model.hidden=[8]",) if model.startswith("mlp") else ()
    choices = (f"method={method}", "dataset=digits", f"view={view}", f"model={model}", f"view.clients={clients}")
    return play(*choices, *SMALL, *sizes, *words)


def batches_of(played, round, client):
    """The indices of a client's batches in a round, drawn as the specification says."""
    config, owned = played.context.settings, played.view.owned[client]
    generator = played.context.rng("order", round, client)
    sizes = batch_sizes(len(owned), config.batch_size, not played.method.normed)
    orders = [owned[torch.randperm(len(owned), generator=generator)] for _ in range(config.epochs)]
    return [batch for order in orders for batch in order.split(sizes)]


def train_alone(played, start, round, client, change=None):
    """A client in an ordinary loop with torch's own optimiser; `change` adds to the gradients of a model."""
    model = copy.deepcopy(start).train()
    optimiser = torch.optim.SGD(model.parameters(), played.context.settings.lr)
    steps = batches_of(played, round, client)
    for index in steps:
        inputs, target, _ = played.view.train.batch(index)
        optimiser.zero_grad()
        F.cross_entropy(model(inputs), target).backward()
        if change is not None:
            change(model)
        optimiser.step()
    return model.state_dict(), len(steps)


def drawn(played, round):
    return cohort(len(played.view), played.context.settings.fraction, played.context.rng("cohort", round))


def average(states, weights):
    """Σ p_k w_k over state dicts; of integers the largest."""
    found = {}
    for name in states[0]:
        values = [state[name] for state in states]
        if values[0].is_floating_point():
            found[name] = sum(weight * value for weight, value in zip(weights, values, strict=True))
        else:
            found[name] = torch.stack(values).amax(0)
    return found


def close(one, other, rtol=1e-10, atol=1e-11):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=rtol, atol=atol, msg=lambda text, name=name: name + text)


def refused(play, *words, **more):
    with pytest.raises(ConfigError) as caught:
        federated(play, *words, **more)
    return str(caught.value)
