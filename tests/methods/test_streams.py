"""Continual methods on blurry streams, on streams of data sets, and on streams of many tasks."""

import pytest
import torch
from continual_words import small

BLURRY = ("class", "view.blurry=0.3")
STREAMS = {
    "blurry": BLURRY,
    "blurry domain": ("domain", "view.blurry=0.3"),
    "groups": ("task", "dataset=series", "view.tasks_by=groups", "view.tasks=null"),
    "groups domain": ("domain", "dataset=series", "view.tasks_by=groups", "view.tasks=null"),
    "blurry groups": ("class", "dataset=series", "view.tasks_by=groups", "view.tasks=null", "view.blurry=0.2"),
}
every_stream = pytest.mark.parametrize("words", STREAMS.values(), ids=STREAMS)


@every_stream
def test_ewc_of_strength_zero_is_finetuning_bit_for_bit(play, same, words):
    ewc = play(*small("ewc", *words, "method.strength=0")).go()
    finetune = play(*small("finetune", *words)).go()
    assert same(ewc.weights(), finetune.weights())
    assert ewc.evaluate() == finetune.evaluate()
    assert not same(ewc.weights(), play(*small("ewc", *words)).go().weights())


@every_stream
def test_the_size_of_blocks_changes_nothing(play, same, words):
    coarse, fine = (play(*small("ewc", *words, f"method.block={size}")).go() for size in (20, 3))
    assert same(coarse.weights(), fine.weights())


def test_blur_of_zero_is_the_sharp_stream_bit_for_bit(play, same):
    shares = ((), ("view.blurry=0.0",), BLURRY[1:])
    sharp, zero, blurry = (play(*small("finetune", "class", *words)).go() for words in shares)
    assert same(sharp.weights(), zero.weights())
    assert sharp.steps == zero.steps
    assert not same(sharp.weights(), blurry.weights())


@pytest.mark.parametrize("words", [("class",), BLURRY], ids=["sharp", "blurry"])
def test_outputs_learn_as_soon_as_an_example_of_theirs_is_there(play, words):
    """Three tasks: 0 to 3, 4 to 6, 7 to 9. Of a blurry stream the first task has examples of all of them."""
    made = play(*small("finetune", *words))
    before = made.head.weight.detach().clone()
    made.to_end_of(0)
    moved = (made.head.weight != before).any(1)
    present = torch.zeros(10, dtype=torch.bool)
    present[made.view[0].train.target] = True
    assert torch.equal(moved, present)
    assert int(present.sum()) == (10 if words == BLURRY else 4)


def test_joint_training_at_the_end_has_the_same_examples_however_blurry(play):
    made = [play(*small("joint", *words)).go() for words in (("class",), BLURRY)]
    held = [torch.cat([part.target for part in one.method.union.splits]).bincount() for one in made]
    assert torch.equal(*held)


@pytest.mark.parametrize(
    ("view", "tasks", "outputs"),
    [("permuted", 100, 10), ("permuted task", 100, 1000), ("class", 10, 10), ("task", 5, 10), ("domain", 5, 2)],
)
def test_many_tasks(play, view, tasks, outputs):
    words = (f"view.tasks={tasks}", "dataset.limit=100", "method.iterations=1", "model.hidden=[8]")
    made = play(*small("ewc", view, *words)).go()
    assert len(made.view) == len(made.steps) == made.method.begun == tasks
    assert made.head.weight.shape == (outputs, 8)
    measured = made.evaluate()
    assert {f"accuracy/task{number + 1}" for number in range(tasks)} <= set(measured)
    assert all(torch.isfinite(torch.tensor(list(step.values()))).all() for step in made.steps)
