"""Memory aware synapses as a whole: the penalty, whose outputs count, the reductions."""

import math

import pytest
import torch
from continual_words import VIEWS, small

from advml.nn.sensitivity import sensitivity


@pytest.mark.parametrize("view", VIEWS)
def test_strength_zero_is_finetuning_bit_for_bit(play, same, view):
    more = ("model.norm=batch", "model.dropout=0.2")
    mas = play(*small("mas", view, "method.strength=0", *more)).go()
    finetune = play(*small("finetune", view, *more)).go()
    assert same(mas.weights(), finetune.weights())
    assert [step["loss"] for step in mas.steps] == [step["loss"] for step in finetune.steps]
    assert {step["penalty"] for step in mas.steps} == {0.0}
    assert not same(mas.weights(), play(*small("mas", view, *more)).go().weights())


@pytest.mark.parametrize("view", VIEWS)
def test_the_penalty_acts_from_the_second_task_on(play, view):
    played = play(*small("mas", view)).go()
    penalties = [step["penalty"] for step in played.steps]
    assert penalties[:3] == [0.0] * 3
    assert all(value > 0 for value in penalties[3:])
    assert all(math.isfinite(step["loss"]) for step in played.steps)


@pytest.mark.parametrize("view", ["task", "class", "permuted"])
def test_importance_is_summed_over_tasks_each_behind_its_own_mask(play, view):
    """And the penalty is λ Σ Ω (θ − θ*)², without a ½."""
    played = play(*small("mas", view, "method.strength=3", "precision=float64"))
    method, expected = played.method, None
    for number in range(2):
        played.to_end_of(number)
        mask = played.view.mask(number, number + 1)
        new = sensitivity(method.network, played.view[number].train, mask=mask, engine="loop")
        expected = new if expected is None else {name: expected[name] + value for name, value in new.items()}
        for name, value in method.anchor.importance.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-10, atol=1e-12)
    centre = {name: p.detach().clone() for name, p in method.network.named_parameters()}
    played.go()
    moved = [(expected[n] * (p.detach() - centre[n]) ** 2).sum() for n, p in method.network.named_parameters()]
    assert played.steps[-1]["penalty"] == pytest.approx(3 * float(torch.stack(moved).sum()), rel=1e-9)


@pytest.mark.parametrize("view", ["task", "class"])
def test_rows_of_tasks_to_come_are_not_important(play, view):
    played = play(*small("mas", view)).to_end_of(1)
    seen = torch.stack([task.outputs for task in played.view.tasks[:2]]).any(0)
    for name in ("head.weight", "head.bias"):
        importance = played.method.anchor.importance[name]
        assert not importance[~seen].any()
        assert bool(importance[seen].reshape(int(seen.sum()), -1).any(1).all())


def test_how_many_examples_are_taken_at_once_does_not_matter(play):
    coarse, fine = (
        play(*small("mas", "task", f"method.importance_batch_size={size}")).to_end_of(0).method.anchor.importance
        for size in (500, 7)
    )
    for name, value in coarse.items():
        torch.testing.assert_close(value, fine[name], rtol=1e-4, atol=1e-6 * float(value.max()))


def test_fewer_examples(play):
    """A keyed choice of the task's own examples, counted as the work that they are."""
    some = play(*small("mas", "task", "method.importance_examples=10")).to_end_of(0)
    train = some.view[0].train
    order = torch.randperm(len(train), generator=some.context.rng("importance examples", 0))
    expected = sensitivity(some.method.network, train, mask=some.view[0].outputs, index=order[:10])
    assert all(torch.equal(value, expected[name]) for name, value in some.method.anchor.importance.items())
    finetune = play(*small("finetune", "task")).to_end_of(0).budget.counts
    assert some.budget.counts["gradients"] == finetune["gradients"] + 10
    every = play(*small("mas", "task", "method.importance_examples=100000")).to_end_of(0)
    whole = play(*small("mas", "task")).to_end_of(0)
    assert all(torch.equal(v, whole.method.anchor.importance[n]) for n, v in every.method.anchor.importance.items())
    assert whole.budget.counts["samples"] == finetune["samples"] + len(train)


def test_the_other_norm(play, same):
    one, other = (play(*small("mas", "class", f"method.norm={norm}")).go() for norm in ("squared_l2", "l2"))
    assert not same(one.weights(), other.weights())
    assert other.steps[-1]["penalty"] > 0


def test_less_is_forgotten_than_by_finetuning(play):
    """On permuted digits, at the shipped settings."""
    more = ("view.tasks=3", "dataset.limit=800")
    mas = play("method=mas", *more).go().evaluate()["average_accuracy"]
    finetune = play("method=finetune", *more).go().evaluate()["average_accuracy"]
    assert mas > finetune + 0.02


@pytest.mark.parametrize(
    "model",
    [("model=cnn", "model.channels=[4, 6]", "model.hidden=8"), ("model=conv4", "model.channels=4", "model.blocks=2")],
)
def test_convolutions(play, model):
    few = ("dataset.limit=120", "view.tasks=2", "method.iterations=4", "method.block=2")
    played = play(*small("mas", "task", *few, *model)).go()
    assert all(math.isfinite(value) for step in played.steps for value in step.values())
    assert played.steps[-1]["penalty"] > 0
