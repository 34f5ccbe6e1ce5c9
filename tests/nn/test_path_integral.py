"""The path integral against a plain loop, and against what it must add up to."""

import pytest
import torch
from torch import nn

from advml.nn.optimisers import Adam, Sgd
from advml.nn.path_integral import PathIntegral, at_least_zero, importance


def network():
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double()


@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_omega_is_the_plain_sum(optimiser):
    """One parameter after another; clipping, momentum, weight decay and a penalty act between note and update."""
    model = network()
    path = PathIntegral(model)
    rule = (
        Sgd(model.parameters(), 0.1, 0.9, weight_decay=0.1)
        if optimiser == "sgd"
        else Adam(model.parameters(), 0.01, weight_decay=0.1)
    )
    expected = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    generator = torch.Generator().manual_seed(0)
    for _ in range(7):
        inputs = torch.randn(6, 5, generator=generator, dtype=torch.float64)
        rule.zero_grad()
        model(inputs).pow(3).mean().backward()
        gradient = {name: p.grad.clone() for name, p in model.named_parameters()}
        place = {name: p.detach().clone() for name, p in model.named_parameters()}
        path.before()
        for p in model.parameters():
            p.grad += 0.5 * p.detach()  # a penalty
        nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        rule.step()
        path.after()
        for name, p in model.named_parameters():
            for k in range(p.numel()):
                step = p.detach().view(-1)[k] - place[name].view(-1)[k]
                expected[name].view(-1)[k] -= gradient[name].view(-1)[k] * step
    for name, value in path.omega.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-12, atol=1e-15)
        assert value.abs().max() > 0


def test_over_small_steps_omega_adds_up_to_the_decrease_of_the_loss():
    """L = ½ (θ − m)ᵀ H (θ − m), gradient descent: the error of the sum falls with the step."""
    generator = torch.Generator().manual_seed(1)
    root = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    hessian, target = root @ root.T / 6, torch.randn(6, generator=generator, dtype=torch.float64)
    errors = []
    for steps in (200, 2000):
        model = nn.ParameterDict({"place": nn.Parameter(torch.zeros(6, dtype=torch.float64))})
        path, rule = PathIntegral(model), Sgd(model.parameters(), 2.0 / steps)

        def loss(model=model):
            away = model["place"] - target
            return 0.5 * away @ hessian @ away

        begin = float(loss().detach())
        for _ in range(steps):
            rule.zero_grad()
            loss().backward()
            path.before()
            rule.step()
            path.after()
        decrease = begin - float(loss().detach())
        errors.append(abs(float(path.omega["place"].sum()) / decrease - 1))
    assert errors[0] < 0.02
    assert errors[1] == pytest.approx(errors[0] / 10, rel=0.1)


def test_finishing_a_task():
    model = network()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    path = PathIntegral(model)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p += 0.5
            path.omega[name] += 3.0
    found = path.finish(start, 0.25)
    for value in found.values():
        torch.testing.assert_close(value, torch.full_like(value, 3.0 / (0.25 + 0.25)))
    assert all(not value.any() for value in path.omega.values())


def test_importance_by_hand():
    omega, moved = torch.tensor([1.0, -1.0, 2.0]), torch.tensor([0.0, 1.0, -3.0])
    assert importance(omega, moved, 1.0).tolist() == pytest.approx([1.0, -0.5, 0.2])


def test_a_sum_of_importances_is_kept_from_becoming_negative():
    total, new = torch.tensor([1.0, 1.0, 0.0, 0.3]), torch.tensor([2.0, -3.0, -1.0, -0.1])
    assert (total + at_least_zero(new, total)).tolist() == pytest.approx([3.0, 0.0, 0.0, 0.2])
    assert (total + at_least_zero(new, total)).min() == 0


def test_parameters_without_a_gradient():
    """Frozen ones are left out; unused ones carry nothing."""
    model = network()
    model[0].bias.requires_grad_(False)
    path = PathIntegral(model)
    assert set(path.omega) == {"0.weight", "2.weight", "2.bias"}
    rule = Sgd([p for p in model.parameters() if p.requires_grad], 0.1)
    model[0](torch.ones(2, 5, dtype=torch.float64)).square().sum().backward()  # the second layer is not used
    path.before()
    rule.step()
    path.after()
    assert path.omega["0.weight"].min() > 0
    assert not path.omega["2.weight"].any()
    path.load({name: torch.full_like(value, 2.0) for name, value in path.omega.items()})
    assert all(bool((value == 2).all()) for value in path.omega.values())
