"""The collapsed penalty against the sum over separate anchors, written out."""

import io

import pytest
import torch
from torch import nn

from advml.nn.anchor import Anchor

TASKS = 4


def network(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3)).to(dtype)


def a_fisher(model, task):
    """Importances of very different sizes, some of them zero."""
    generator = torch.Generator().manual_seed(100 + task)
    found = {}
    for name, parameter in model.named_parameters():
        values = torch.randn(parameter.shape, generator=generator, dtype=torch.float64).exp() * 10.0 ** (task - 2)
        values[torch.rand(parameter.shape, generator=generator) < 0.3] = 0.0
        found[name] = values.to(parameter.dtype)
    return found


def move(model, task):
    """As training would: elsewhere."""
    generator = torch.Generator().manual_seed(200 + task)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64).to(parameter)


def play(tasks=TASKS, dtype=torch.float64, **how):
    """(network, anchor, [(Fisher, parameters)]) after some tasks and a further move away from the last of them."""
    model = network(dtype=dtype)
    anchor, history = Anchor(model), []
    for task in range(tasks):
        move(model, task)
        fisher = a_fisher(model, task)
        history.append((fisher, {name: p.detach().clone() for name, p in model.named_parameters()}))
        anchor.consolidate(fisher, **how)
    move(model, 99)
    return model, anchor, history


def penalty(model, terms, strength):
    """strength / 2 · Σ over (weight, Fisher, centre) of weight · Σ F (θ − centre)², for autograd."""
    parts = [
        weight * (fisher[name] * (parameter - centre[name]) ** 2).sum()
        for weight, fisher, centre in terms
        for name, parameter in model.named_parameters()
    ]
    return 0.5 * strength * torch.stack(parts).sum()


def gradients(model, anchor, strength, start=0.0):
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, start)
    anchor.add_gradient(strength)
    return [parameter.grad for parameter in model.parameters()]


def agrees(model, anchor, terms, strength=7.0, rtol=1e-12):
    expected = penalty(model, terms, strength)
    torch.testing.assert_close(anchor.value(strength), expected.detach(), rtol=rtol, atol=0)
    slopes = torch.autograd.grad(expected, list(model.parameters()))
    for found, slope in zip(gradients(model, anchor, strength), slopes, strict=True):
        torch.testing.assert_close(found, slope, rtol=0, atol=rtol * float(slope.abs().max()))


# --- equal to what is written in the papers -----------------------------------------------------------------------


@pytest.mark.parametrize("tasks", range(1, 7))
def test_separate_anchors_collapse_exactly(tasks):
    model, anchor, history = play(tasks)
    agrees(model, anchor, [(1.0, fisher, centre) for fisher, centre in history])
    assert float(anchor.value(1.0)) > 0


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_separate_anchors_with_decay(decay):
    model, anchor, history = play(decay=decay)
    agrees(model, anchor, [(decay ** (TASKS - 1 - t), *term) for t, term in enumerate(history)])


@pytest.mark.parametrize("decay", [0.0, 0.5, 1.0])
def test_online_has_one_centre(decay):
    model, anchor, history = play(online=True, decay=decay)
    centre = history[-1][1]
    agrees(model, anchor, [(decay ** (TASKS - 1 - t), fisher, centre) for t, (fisher, _) in enumerate(history)])


def test_online_equals_separate_after_one_task_only():
    """Schwarz et al. 2018 move the centre of everything to the newest parameters: from two tasks on it matters."""
    for tasks, equal in ((1, True), (2, False), (3, False)):
        model, separate, _ = play(tasks)
        online = play(tasks, online=True)[1]
        online.parameters = separate.parameters  # the same place to look from
        assert torch.equal(separate.value(1.0), online.value(1.0)) is equal
        both = [[g.clone() for g in gradients(model, anchor, 1.0)] for anchor in (separate, online)]
        assert all(torch.equal(one, other) for one, other in zip(*both, strict=True)) is equal


def test_the_penalty_is_zero_at_its_only_centre_and_pulls_back_from_elsewhere():
    model, anchor, history = play(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(history[0][1][name])
    assert float(anchor.value(5.0)) == 0.0
    assert all(not gradient.any() for gradient in gradients(model, anchor, 5.0))
    move(model, 1)
    before = float(anchor.value(5.0))
    with torch.no_grad():
        for parameter, gradient in zip(model.parameters(), gradients(model, anchor, 5.0), strict=True):
            parameter -= 1e-3 * gradient
    assert 0 < float(anchor.value(5.0)) < before


def test_float32_stays_near_at_a_large_strength():
    """Kept relative to the newest centre, nearly equal numbers never meet a large A."""
    model, anchor, history = play(6, dtype=torch.float32)
    exact = network()
    with torch.no_grad():
        for mine, theirs in zip(exact.parameters(), model.parameters(), strict=True):
            mine.copy_(theirs.double())
    terms = [(1.0, *({n: v.double() for n, v in values.items()} for values in term)) for term in history]
    expected = penalty(exact, terms, 1e9)
    torch.testing.assert_close(anchor.value(1e9).double(), expected.detach(), rtol=1e-5, atol=0)
    for found, slope in zip(
        gradients(model, anchor, 1e9), torch.autograd.grad(expected, list(exact.parameters())), strict=True
    ):
        torch.testing.assert_close(found.double(), slope, rtol=0, atol=1e-5 * float(slope.abs().max()))


def test_the_smallest_importances_are_harmless():
    """Where a network is saturated the Fisher diagonal has numbers near the smallest that float32 knows."""
    model = network(dtype=torch.float32)
    anchor = Anchor(model)
    for size in (1e-45, 0.0, 3e-45, 1e-38, 1e-45):
        anchor.consolidate({name: torch.full_like(p, size) for name, p in model.named_parameters()})
        move(model, 1)
    for parameter, found in zip(model.parameters(), gradients(model, anchor, 1e9), strict=True):
        assert torch.isfinite(found).all()
        assert float(found.abs().max()) < 1e-28 * float(parameter.detach().abs().max() + 3)
    assert 0 <= float(anchor.value(1e9)) < 1e-25


# --- in a loop ----------------------------------------------------------------------------------------------------


def test_the_gradient_is_added_to_what_is_there():
    model, anchor, _ = play()
    alone = [gradient.clone() for gradient in gradients(model, anchor, 3.0)]
    added = gradients(model, anchor, 3.0, start=2.0)
    for one, other in zip(alone, added, strict=True):
        torch.testing.assert_close(other, one + 2.0)


def test_zero_strength_adds_nothing_bit_for_bit():
    model, anchor, _ = play()
    for gradient in gradients(model, anchor, 0.0, start=-0.0):
        assert torch.equal(torch.signbit(gradient), torch.ones_like(gradient, dtype=torch.bool))
    assert float(anchor.value(0.0)) == 0.0


def test_before_the_first_task_there_is_no_penalty():
    model = network()
    anchor = Anchor(model)
    move(model, 0)
    assert float(anchor.value(1e9)) == 0.0
    for gradient in gradients(model, anchor, 1e9, start=-0.0):
        assert torch.equal(torch.signbit(gradient), torch.ones_like(gradient, dtype=torch.bool))


def test_parameters_without_a_gradient_are_left_alone():
    model, anchor, _ = play()
    gradients(model, anchor, 1.0)
    model[0].weight.grad = None
    anchor.add_gradient(1.0)
    assert model[0].weight.grad is None
    for parameter in model.parameters():
        parameter.grad = None
    anchor.add_gradient(1.0)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_frozen_parameters_are_not_anchored():
    model = network()
    model[0].weight.requires_grad_(False)
    anchor = Anchor(model)
    assert "0.weight" not in anchor.parameters
    fisher = a_fisher(model, 0)
    del fisher["0.weight"]
    anchor.consolidate(fisher)
    move(model, 0)
    assert float(anchor.value(1.0)) > 0


def test_consolidating_keeps_no_reference_to_what_it_was_given():
    _, anchor, history = play(1)
    fisher = history[0][0]
    before = float(anchor.value(1.0))
    for values in fisher.values():
        values.zero_()
    assert float(anchor.value(1.0)) == before


# --- state --------------------------------------------------------------------------------------------------------


def through_a_file(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


@pytest.mark.parametrize("how", [{}, {"online": True, "decay": 0.9}])
def test_state_round_trip(how):
    model, anchor, _ = play(**how)
    again = Anchor(model)
    again.load_state_dict(through_a_file(anchor.state_dict()))
    for _ in range(2):
        assert torch.equal(again.value(2.0), anchor.value(2.0))
        both = [[g.clone() for g in gradients(model, one, 2.0)] for one in (anchor, again)]
        assert all(torch.equal(one, other) for one, other in zip(*both, strict=True))
        anchor.consolidate(a_fisher(model, 9), **how)
        again.consolidate(a_fisher(model, 9), **how)
        move(model, 9)


def test_an_empty_state_stays_empty():
    model = network()
    again = Anchor(model)
    again.load_state_dict(through_a_file(Anchor(model).state_dict()))
    assert again.empty
    move(model, 0)
    assert float(again.value(1.0)) == 0.0


def test_size_does_not_grow_with_the_tasks():
    def size(tasks):
        state = play(tasks)[1].state_dict()
        return sum(v.numel() for kind in state.values() if isinstance(kind, dict) for v in kind.values())

    assert size(1) == size(6)
