"""Learning without forgetting as a whole: who teaches what, the loss of each weighting, the reductions."""

import math

import pytest
import torch
from continual_words import VIEWS, small

from advml.methods.continual import lwf
from advml.nn.distillation import distillation

DISTURBING = ("model.norm=batch", "model.dropout=0.2")


@pytest.mark.parametrize(("view", "weighting"), [*((view, "fixed") for view in VIEWS), ("class", "by_tasks")])
def test_strength_zero_is_finetuning_bit_for_bit(play, same, view, weighting):
    more = (*DISTURBING, "method.weight_decay=0.01")
    plain = play(*small("lwf", view, "method.strength=0", f"method.weighting={weighting}", *more)).go()
    finetune = play(*small("finetune", view, *more)).go()
    assert same(plain.weights(), finetune.weights())
    assert [step["loss"] for step in plain.steps] == [step["loss"] for step in finetune.steps]
    assert {step["distillation"] for step in plain.steps} == {0.0}
    assert plain.budget.counts == finetune.budget.counts
    assert not same(plain.weights(), play(*small("lwf", view, *more)).go().weights())


@pytest.mark.parametrize("view", ["domain", "class", "permuted"])
def test_a_teacher_without_influence_disturbs_nothing(play, same, monkeypatch, view):
    """It answers, but what it says is taken times 0: dropout's draws and the statistics stay fine-tuning's."""
    asked = []

    def ignored(student, teacher, heads, *rest):
        asked.append(teacher)
        return 0.0 * distillation(student, teacher, heads, *rest)

    monkeypatch.setattr(lwf, "distillation", ignored)
    quiet = play(*small("lwf", view, *DISTURBING)).go()
    finetune = play(*small("finetune", view, *DISTURBING)).go()
    assert len(asked) == 20 * (len(quiet.view) - 1)
    assert same(quiet.weights(), finetune.weights())
    assert [step["loss"] for step in quiet.steps] == [step["loss"] for step in finetune.steps]


@pytest.mark.parametrize("view", VIEWS)
def test_the_teacher_is_the_network_at_the_end_of_the_task_before(play, same, view):
    played = play(*small("lwf", view, *DISTURBING)).to_end_of(0)
    for number in range(1, len(played.view)):
        then = played.weights()
        assert same(then, played.method.teacher.state_dict())
        played.go(1)
        assert same(then, played.method.teacher.state_dict())  # and stays it, statistics included
        assert not same(then, played.weights())
        played.to_end_of(number)
    assert not any(p.requires_grad for p in played.method.teacher.parameters())
    assert not any(module.training for module in played.method.teacher.modules())
    assert all(p.requires_grad for p in played.method.network.parameters())


@pytest.mark.parametrize(
    ("view", "weighting", "new_classes"),
    [
        ("task", "fixed", "free"), ("task", "by_tasks", "free"), ("permuted", "fixed", "free"),
        ("permuted", "by_tasks", "zero"), ("class", "fixed", "free"), ("class", "by_tasks", "free"),
        ("class", "fixed", "zero"), ("class", "by_tasks", "zero"),
    ],
)  # fmt: skip
def test_the_loss_of_an_update_written_out(play, view, weighting, new_classes):
    """The first update of the third task, head by head with indices: loss and gradient."""
    words = (f"method.weighting={weighting}", f"method.new_classes={new_classes}", "method.strength=0.7")
    more = ("precision=float64", "method.temperature=3", "method.block=1", "method.optimiser=sgd", "method.lr=0.5")
    played = play(*small("lwf", view, *words, *more)).to_end_of(1)
    network, stream, temperature = played.method.network, played.view, 3.0
    train = stream[2].train
    index = torch.randperm(len(train), generator=played.context.rng("shuffle", 2, 0))[:16]
    batch = train.batch(index)
    outputs, answers = network(batch.inputs), network(batch.inputs).detach()  # it has not moved yet: teacher = student
    with torch.no_grad():  # so move it a little first, in the same way for the method and for the hand
        for p in network.parameters():
            p.mul_(1.1)
    outputs = network(batch.inputs)
    own = [task.outputs.nonzero().flatten().tolist() for task in stream]
    if view == "task":
        heads = competing = [own[0], own[1]]
    elif view == "class":
        heads = [own[0] + own[1]]
        competing = [own[0] + own[1] + own[2]] if new_classes == "zero" else heads
    else:
        heads = competing = [own[0]]
    each = []
    for old, every in zip(heads, competing, strict=True):
        p = (answers[:, old] / temperature).softmax(1)
        log_q = (outputs[:, every] / temperature).log_softmax(1)[:, : len(old)]
        each.append(9 * (p * (p.log() - log_q)).sum(1).mean())
    active = own[0] + own[1] + own[2] if view == "class" else own[2]
    relabelled = torch.tensor([active.index(int(label)) for label in batch.target])
    new = torch.nn.functional.cross_entropy(outputs[:, active], relabelled)
    expected = new + 0.7 * sum(each) if weighting == "fixed" else new / 3 + 0.7 * (1 - 1 / 3) * sum(each) / len(each)
    gradients = torch.autograd.grad(expected, list(network.parameters()))
    places = [p.detach().clone() for p in network.parameters()]
    played.go(1)
    assert played.steps[-1]["loss"] == pytest.approx(float(expected.detach()), rel=1e-9)
    distilled = float(sum(each).detach()) / (1 if weighting == "fixed" else len(each))
    assert played.steps[-1]["distillation"] == pytest.approx(distilled, rel=1e-9)
    for place, gradient, p in zip(places, gradients, network.parameters(), strict=True):
        torch.testing.assert_close(p.detach(), place - 0.5 * gradient, rtol=1e-9, atol=1e-12)


def test_answers_to_new_inputs_are_kept(play):
    """The stronger, the nearer to the teacher at the end of the second task, on inputs of that task."""
    apart = []
    for strength in (0, 0.1, 1):
        played = play(*small("lwf", "task", f"method.strength={strength}", "method.iterations=60"))
        played.to_end_of(0)
        inputs = played.view[1].test.batch(slice(None)).inputs
        head = played.view[0].outputs.unsqueeze(0)
        before = played.method.network.eval()(inputs).detach()
        played.to_end_of(1)
        apart.append(float(distillation(played.method.network.eval()(inputs).detach(), before, head, 2.0)))
    assert apart[0] > apart[1] > apart[2] > 0


def test_less_is_forgotten_than_by_finetuning_in_the_task_scenario(play):
    """What the method was made for."""
    more = ("view.tasks=5", "method.iterations=60")
    found, finetune = (
        play(*small(method, "task", *more)).go().evaluate()["average_accuracy"] for method in ("lwf", "finetune")
    )
    assert found > finetune + 0.01


def test_the_class_scenario_needs_a_teacher_that_denies_new_classes(play):
    more = ("view.tasks=2", "method.iterations=100", "method.lr=0.002")
    free, zero = (
        play(*small("lwf", "class", f"method.new_classes={word}", *more)).go().evaluate()["accuracy/task1"]
        for word in ("free", "zero")
    )
    assert zero > free + 0.2


def test_the_work_and_the_memory_of_the_teacher_are_counted(play):
    played = play(*small("lwf", "permuted", "model.norm=batch"))
    played.to_end_of(0)
    finetune = play(*small("finetune", "permuted", "model.norm=batch")).go().budget.counts
    tensors, examples = played.method.memory()
    assert (sum(t.numel() for t in tensors), examples) == (
        sum(t.numel() for t in played.method.network.state_dict().values()), 0,
    )  # fmt: skip
    played.go()
    counts = played.budget.counts
    assert counts["gradients"] == finetune["gradients"]
    first = finetune["samples"] // 3  # all tasks are of one size here
    assert counts["samples"] == finetune["samples"] + 2 * first


def test_a_first_task_has_no_teacher(play, same):
    one = play(*small("lwf", "task")).to_end_of(0)
    assert same(one.weights(), play(*small("finetune", "task")).to_end_of(0).weights())
    assert [step["distillation"] for step in one.steps] == [0.0] * 3


@pytest.mark.parametrize(
    "model",
    [("model=cnn", "model.channels=[4, 6]", "model.hidden=8"), ("model=conv4", "model.channels=4", "model.blocks=2")],
)
def test_convolutions(play, model):
    few = ("dataset.limit=120", "view.tasks=2", "method.iterations=4", "method.block=2")
    played = play(*small("lwf", "task", *few, *model)).go()
    assert all(math.isfinite(value) for step in played.steps for value in step.values())
    assert played.steps[-1]["distillation"] > 0
