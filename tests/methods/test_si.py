"""Synaptic intelligence as a whole: what is gathered along the way, the penalty, the reductions."""

import math

import pytest
import torch
from continual_words import VIEWS, small

EACH = [*(("si", view) for view in VIEWS), ("si total", "task"), ("si total", "permuted")]


@pytest.mark.parametrize(("method", "view"), EACH)
def test_strength_zero_is_finetuning_bit_for_bit(play, same, method, view):
    more = ("method.clip_norm=0.5", "method.weight_decay=0.01")
    si = play(*small(method, view, "method.strength=0", *more)).go()
    finetune = play(*small("finetune", view, *more)).go()
    assert same(si.weights(), finetune.weights())
    assert [step["loss"] for step in si.steps] == [step["loss"] for step in finetune.steps]
    assert {step["penalty"] for step in si.steps} == {0.0}
    assert not same(si.weights(), play(*small(method, view, *more)).go().weights())


@pytest.mark.parametrize(("method", "view"), EACH)
def test_the_penalty_acts_from_the_second_task_on(play, view, method):
    played = play(*small(method, view)).go()
    penalties = [step["penalty"] for step in played.steps]
    assert penalties[:3] == [0.0] * 3
    assert all(value > 0 for value in penalties[3:])
    assert all(math.isfinite(step["loss"]) for step in played.steps)


def watched(played):
    """(gradients of the loss, of the loss and the penalty, places before, places after with rows put back)."""
    method, notes = played.method, []
    parameters = dict(method.network.named_parameters())

    def copies(of):
        return {name: of(p).detach().clone().double() for name, p in parameters.items()}

    add, step = method.anchor.add_gradient, method.optimiser.step

    def adding(strength):
        notes.append({"task": copies(lambda p: p.grad), "place": copies(lambda p: p)})
        add(strength)
        notes[-1]["total"] = copies(lambda p: p.grad)

    def stepping():
        if len(notes) > 1:
            notes[-2]["next"] = notes[-1]["place"]  # where the next update begins: rows are back by then
        step()

    method.anchor.add_gradient, method.optimiser.step = adding, stepping
    return notes, copies


@pytest.mark.parametrize("kind", ["task", "total"])
@pytest.mark.parametrize("view", ["task", "class", "permuted"])
def test_importance_is_the_plain_sum_over_complete_updates(play, view, kind):
    """Recomputed from notes of every update, rows of inactive outputs included, for two tasks in turn."""
    more = ("method.clip_norm=0.5", "method.weight_decay=0.05", "method.optimiser=sgd", "method.momentum=0.9")
    words = (*more, "precision=float64", "method.fresh_optimiser=false", f"method.gradient={kind}")
    played = play(*small("si", view, *words, "method.clamp=false", "method.xi=0.01", "method.iterations=9"))
    notes, copies = watched(played)
    expected = {name: torch.zeros_like(value) for name, value in copies(lambda p: p).items()}
    for number in range(2):
        notes.clear()
        begin = copies(lambda p: p)
        played.to_end_of(number)
        end = copies(lambda p: p)
        notes[-1]["next"] = end
        for name in expected:
            omega = sum(-note[kind][name] * (note["next"][name] - note["place"][name]) for note in notes)
            expected[name] += omega / ((end[name] - begin[name]) ** 2 + 0.01)
        for name, value in played.method.anchor.importance.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-12)
    differ = [not torch.equal(note["task"][name], note["total"][name]) for note in notes[1:] for name in expected]
    assert any(differ)


def test_the_penalty_has_no_half(play):
    """c Σ Ω (θ − θ*)² as a value, and twice c Ω (θ − θ*) as a gradient."""
    played = play(*small("si", "permuted", "method.strength=7", "precision=float64")).to_end_of(0)
    method = played.method
    omega = {name: value.clone() for name, value in method.anchor.importance.items()}
    centre = {name: p.detach().clone() for name, p in method.network.named_parameters()}
    played.to_end_of(1)
    # The second task's importance has been added by now: begin again from there, one block further.
    expected = 7 * sum((omega[n] * (p.detach() - centre[n]) ** 2).sum() for n, p in method.network.named_parameters())
    assert played.steps[-1]["penalty"] == pytest.approx(float(expected), rel=1e-9)
    notes, _ = watched(played)
    omega = {name: value.clone() for name, value in method.anchor.importance.items()}
    centre = {name: p.detach().clone() for name, p in method.network.named_parameters()}
    played.go(1)
    assert len(notes) > 1
    for note in notes:
        for name, place in note["place"].items():
            pull = note["total"][name] - note["task"][name]
            torch.testing.assert_close(pull, 2 * 7 * omega[name] * (place - centre[name]), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("view", ["task", "class"])
def test_rows_of_tasks_to_come_are_not_important(play, view):
    stirred = ("method.optimiser=sgd", "method.momentum=0.9", "method.weight_decay=0.1", "method.fresh_optimiser=false")
    played = play(*small("si total", view, *stirred)).to_end_of(1)
    seen = torch.stack([task.outputs for task in played.view.tasks[:2]]).any(0)
    for name in ("head.weight", "head.bias"):
        importance = played.method.anchor.importance[name]
        assert not importance[~seen].any()
        assert bool(importance[seen].reshape(int(seen.sum()), -1).any(1).all())


def test_clamping_keeps_importance_from_becoming_negative(play):
    """Strong decay carries parameters uphill."""
    words = ("method.weight_decay=0.5", "method.optimiser=sgd", "method.momentum=0.9")
    free, clamped = (
        play(*small("si", "permuted", *words, f"method.clamp={clamp}")).to_end_of(0).method.anchor.importance
        for clamp in ("false", "true")
    )
    assert any(bool((value < 0).any()) for value in free.values())
    assert all(torch.equal(clamped[name], value.clamp_min(0)) for name, value in free.items())


def test_less_is_forgotten_than_by_finetuning(play):
    """On permuted digits, at the shipped settings."""
    more = ("view.tasks=3", "dataset.limit=800")
    si = play("method=si", *more).go().evaluate()["average_accuracy"]
    finetune = play("method=finetune", *more).go().evaluate()["average_accuracy"]
    assert si > finetune + 0.02


@pytest.mark.parametrize(
    "model",
    [
        ("model=cnn", "model.channels=[4, 6]", "model.hidden=8"),
        ("model=mlp", "model.norm=batch", "model.dropout=0.2"),
    ],
)
def test_other_models(play, model):
    few = ("dataset.limit=120", "view.tasks=2", "method.iterations=4", "method.block=2")
    played = play(*small("si", "task", *few, *model)).go()
    assert all(math.isfinite(value) for step in played.steps for value in step.values())
    assert played.steps[-1]["penalty"] > 0
