"""Networks and examples for the tests of the Fisher diagonal, and its definition, example by example."""

import torch

from advml.contracts import Classes, Spec, Split
from advml.models.mlp import Mlp, MlpSettings

KINDS = ["exact", "sample", "empirical"]


def mlp(hidden=(7, 5), inputs=6, classes=4, activation="relu", norm="none", dropout=0.0, dtype=torch.float64):
    torch.manual_seed(1)
    settings = MlpSettings(hidden=hidden, activation=activation, norm=norm, dropout=dropout)
    return Mlp(Spec({"x": (inputs,)}, Classes(classes)), settings).to(dtype)


def examples(count=40, shape=(6,), classes=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(count, *shape, generator=generator, dtype=dtype)
    return Split({"x": x}, torch.randint(classes, (count,), generator=generator))


def seeded(seed=5):
    return torch.Generator().manual_seed(seed)


def by_definition(network, split, kind, mask=None):
    """Example by example and class by class: differentiate log p itself, square, weight, average."""
    network.eval()
    total = {name: torch.zeros_like(value) for name, value in network.named_parameters()}
    for i in range(len(split)):
        logits = network(split.batch(slice(i, i + 1)).inputs)[0]
        active = [c for c in range(len(logits)) if mask is None or mask[c]]
        log_p = {c: logits[c] - torch.logsumexp(logits[active], 0) for c in active}
        for c in active if kind == "exact" else [int(split.target[i])]:
            weight = log_p[c].exp().item() if kind == "exact" else 1.0
            found = torch.autograd.grad(log_p[c], network.parameters(), retain_graph=True, materialize_grads=True)
            for sums, gradient in zip(total.values(), found, strict=True):
                sums += weight * gradient**2 / len(split)
    return total


def close(mine, expected, rtol=1e-12):
    """Equal to `rtol` of the largest entry of each parameter."""
    assert mine.keys() == expected.keys()
    for name, value in expected.items():
        assert mine[name].shape == value.shape
        assert not mine[name].requires_grad
        torch.testing.assert_close(mine[name], value, rtol=0, atol=rtol * float(value.abs().max()) + 1e-300)
