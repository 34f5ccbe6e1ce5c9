"""Continual methods: the reductions that must hold exactly, masks, the penalty."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from continual_words import METHODS, VIEWS, small
from sklearn.metrics import f1_score

from advml.data.plain import Plain
from advml.data.stream import Stream
from advml.data.union import Union
from advml.errors import ConfigError
from advml.nn.fisher import fisher_diagonal
from advml.nn.metrics import accuracy
from advml.nn.optimisers import make_optimiser
from advml.nn.training import train

# --- reductions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("anchor", ["online", "separate"])
def test_ewc_of_strength_zero_is_finetuning_bit_for_bit(play, same, view, anchor):
    ewc = play(*small("ewc", view, "method.strength=0", f"method.anchor={anchor}")).go()
    finetune = play(*small("finetune", view)).go()
    assert same(ewc.weights(), finetune.weights())
    assert [step["loss"] for step in ewc.steps] == [step["loss"] for step in finetune.steps]
    assert {step["penalty"] for step in ewc.steps} == {0.0}
    assert ewc.evaluate() == finetune.evaluate()
    assert not same(ewc.weights(), play(*small("ewc", view, f"method.anchor={anchor}")).go().weights())


@pytest.mark.parametrize("extra", [(), ("model.norm=batch",), ("method.optimiser=sgd", "method.weight_decay=0.01")])
def test_the_first_task_is_supervised_learning_bit_for_bit(play, same, extra):
    """Same examples, same order of indices: 4 epochs of 5 batches are 20 iterations."""
    cut = ("method.lr=0.01", "method.batch_size=64", *extra)
    finetune = play(*small("finetune", "permuted", *cut))
    task = finetune.view[0]
    batches = -(-len(task.train) // 64)
    finetune = play(*small("finetune", "permuted", *cut, f"method.iterations={4 * batches}", f"method.block={batches}"))
    finetune.to_end_of(0)

    view = Plain(task.train, task.valid, task.test, finetune.view.spec, {})
    supervised = play("method=supervised", "view=plain", "method.epochs=4", *cut, view=view)
    keyed = supervised.context.rng
    supervised.context.rng = lambda purpose, epoch: keyed(purpose, 0, epoch)  # shuffled as in task 0
    supervised.go()
    assert same(finetune.weights(), supervised.weights())
    assert [step["loss"] for step in finetune.steps] == [step["loss"] for step in supervised.steps]
    assert finetune.evaluate()["accuracy/task1"] == supervised.evaluate()["accuracy"]


@pytest.mark.parametrize("view", ["task", "class", "domain", "permuted"])
@pytest.mark.parametrize("fresh", ["true", "false"])
def test_joint_from_scratch_is_training_on_the_union(play, same, view, fresh):
    """After the last task: the same as initial weights and a new optimiser on all examples in the same order."""
    joint = play(*small("restart", view, f"method.fresh_optimiser={fresh}", "method.weight_decay=0.01")).go()
    stream, context, config = joint.view, joint.context, joint.context.settings
    last = len(stream) - 1
    union = Union([task.train for task in stream], [stream.mask(number, len(stream)) for number in range(len(stream))])
    network = context.build()

    def by_hand():
        per_epoch = -(-len(union) // config.batch_size)
        for iteration in range(config.iterations):
            epoch, place = divmod(iteration, per_epoch)
            order = torch.randperm(len(union), generator=context.rng("shuffle", last, epoch))
            yield union.batch(order[place * config.batch_size : (place + 1) * config.batch_size])

    train(
        network, by_hand(), joint.method.loss, make_optimiser(network.parameters(), config), settings=config,
        update=0, total=config.iterations, count=lambda **work: None,
    )  # fmt: skip
    assert same(joint.weights(), network.state_dict())
    assert not same(joint.weights(), play(*small("joint", view, "method.weight_decay=0.01")).go().weights())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("view", "fresh"), [("task", "false"), ("class", "true")])
def test_the_block_is_only_a_unit_of_recording(play, same, method, view, fresh):
    """Whatever is measured in between, even where decay, momentum, clipping and the penalty meet masked rows."""
    chosen = (f"method.fresh_optimiser={fresh}", "method.weight_decay=0.05", "method.clip_norm=0.5")
    schedule = ("method.schedule=cosine", "method.warmup=3", "method.optimiser=rmsprop", "method.momentum=0.9")
    coarse = play(*small(method, view, *chosen, *schedule, "method.block=20")).go()
    fine = play(*small(method, view, *chosen, *schedule, "method.block=3")).go()
    assert (len(coarse.steps), len(fine.steps)) == (3, 21)
    assert same(coarse.weights(), fine.weights())
    assert coarse.budget.counts == fine.budget.counts


def test_one_pass_over_each_task(play, same):
    """Online learning: every task lasts as long as its own examples, however many these are."""
    online = play(*small("finetune", "task", "method.iterations=null", "method.epochs=1", "method.block=4"))
    sizes = [len(task.train) for task in online.view]
    assert len(set(sizes)) > 1
    assert [phase.steps for phase in online.method.phases()] == [math.ceil(math.ceil(size / 16) / 4) for size in sizes]
    assert online.go().budget.counts["samples"] == sum(sizes)
    twice = play(*small("joint", "task", "method.iterations=null", "method.epochs=2", "method.block=4")).go()
    assert twice.budget.counts["updates"] == sum(2 * math.ceil(size / 16) for size in sizes)


@pytest.mark.parametrize("length", [("iterations=null", "epochs=null"), ("iterations=5", "epochs=1")])
def test_a_task_has_one_length(play, length):
    with pytest.raises(ConfigError, match=r"method\.iterations, method\.epochs: give one of the two"):
        play(*small("finetune", "task", *(f"method.{word}" for word in length)))


@pytest.mark.parametrize("method", ["finetune", "joint"])
@pytest.mark.parametrize(("fresh", "updates"), [("true", [20, 20, 20]), ("false", [20, 40, 60])])
def test_what_the_optimiser_remembers_of_earlier_tasks(play, method, fresh, updates):
    played = play(*small(method, "permuted", f"method.fresh_optimiser={fresh}"))
    assert [played.to_end_of(number).method.optimiser.updates[0] for number in range(3)] == updates
    assert set(played.method.optimiser.updates) == {updates[-1]}


# --- masks --------------------------------------------------------------------------------------------------------

STIRRED = [
    ("method.optimiser=sgd", "method.momentum=0.9", "method.weight_decay=0.1"),
    ("method.optimiser=adam", "method.weight_decay=0.1"),
    ("method.optimiser=adamw", "method.weight_decay=0.1"),
    ("method.optimiser=rmsprop", "method.momentum=0.9", "method.weight_decay=0.1"),
]


@pytest.mark.parametrize("stirred", STIRRED)
@pytest.mark.parametrize("method", ["finetune", "separate", "ewc"])
@pytest.mark.parametrize("view", ["task", "permuted task"])
def test_rows_of_other_heads_never_move(play, method, view, stirred):
    played = play(*small(method, view, *stirred, "method.fresh_optimiser=false"))
    for number, task in enumerate(played.view):
        before = {name: value.detach().clone() for name, value in played.head.named_parameters()}
        played.to_end_of(number)
        for name, value in played.head.named_parameters():
            assert torch.equal(value[~task.outputs], before[name][~task.outputs])
            assert bool((value[task.outputs] != before[name][task.outputs]).any(-1).all())


@pytest.mark.parametrize("stirred", STIRRED)
def test_rows_of_classes_to_come_never_move(play, stirred):
    played = play(*small("ewc", "class", *stirred, "method.fresh_optimiser=false"))
    initial = {name: value.detach().clone() for name, value in played.head.named_parameters()}
    for number in range(3):
        played.to_end_of(number)
        seen = played.view.mask(number, number + 1)
        for name, value in played.head.named_parameters():
            assert torch.equal(value[~seen], initial[name][~seen])
            assert bool((value[seen] != initial[name][seen]).any(-1).all())


@pytest.mark.parametrize(
    ("method", "words"),
    [
        ("joint", STIRRED[0]),
        ("joint", STIRRED[1]),
        ("replay", ("method.optimiser=adam", "method.weight_decay=0.1", "method.policy=reservoir")),
        ("replay", ("method.optimiser=adam", "method.weight_decay=0.1", "method.policy=balanced")),
        ("lwf", ("method.weight_decay=0.1",)),
        ("der", ("method.alpha=5", "method.recall=earlier")),  # later heads are not held to their untrained outputs
        ("generative_replay", ("method.optimiser=adamw", "method.weight_decay=0.1")),
    ],
)
def test_the_heads_of_all_tasks_so_far_learn_and_no_other(play, method, words):
    played = play(*small(method, "task", *words))
    for number in range(3):
        before = {name: value.detach().clone() for name, value in played.head.named_parameters()}
        played.to_end_of(number)
        seen = torch.stack([task.outputs for task in played.view.tasks[: number + 1]]).any(0)
        for name, value in played.head.named_parameters():
            assert torch.equal(value[~seen], before[name][~seen])
            assert bool((value[seen] != before[name][seen]).any(-1).all())


@pytest.mark.parametrize("view", VIEWS)
def test_evaluation_lets_the_right_outputs_compete(play, view):
    """By hand from the network's own outputs."""
    played = play(*small("finetune", view)).to_end_of(1)
    network = played.method.network.eval()
    found = played.evaluate()
    expected, pooled = {}, []
    for number, task in enumerate(played.view):
        logits = network(task.test.batch(slice(None)).inputs).detach()
        if view == "class":
            competing = torch.stack([t.outputs for t in played.view.tasks[: max(2, number + 1)]]).any(0)
        else:
            competing = task.outputs
        logits[:, ~competing] = -math.inf
        expected[f"accuracy/{task.name}"] = float(accuracy(logits, task.test.target))
        pooled.append((logits.softmax(1), task.test.target))
    seen = [expected["accuracy/task1"], expected["accuracy/task2"]]
    chances, truth = (torch.cat(parts).numpy() for parts in zip(*pooled[:2], strict=True))
    sure, chosen = chances.max(1), chances.argmax(1)
    bins = np.clip(np.ceil(sure * 15).astype(int) - 1, 0, 14)
    gaps = [abs((chosen == truth)[bins == one].sum() - sure[bins == one].sum()) for one in range(15)]
    macro = f1_score(truth, chosen, average="macro")
    expected |= {"average_accuracy": sum(seen) / 2, "macro_f1": macro, "ece": sum(gaps) / len(truth)}
    assert found == pytest.approx(expected, rel=1e-5)
    pooled = {"average_accuracy", "macro_f1", "ece"}
    assert set(played.evaluate("valid")) == pooled | {"accuracy/task1", "accuracy/task2"}


def test_before_any_training_there_is_nothing_to_validate(play):
    played = play(*small("ewc", "task"))
    assert played.evaluate("valid") == {}
    assert set(played.evaluate("test")) == {"accuracy/task1", "accuracy/task2", "accuracy/task3"}


# --- elastic weight consolidation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("method", ["ewc", "separate"])
def test_the_penalty_acts_from_the_second_task_on(play, view, method):
    played = play(*small(method, view)).go()
    penalties = [step["penalty"] for step in played.steps]
    assert penalties[:3] == [0.0] * 3
    assert all(value > 0 for value in penalties[3:])
    assert all(math.isfinite(step["loss"]) for step in played.steps)


def test_a_stronger_penalty_moves_important_parameters_less(play):
    """At equal Fisher information after task 1, the distance that it weighs shrinks with the strength."""
    distances = []
    for strength in (0, 10, 1000):
        played = play(*small("ewc", "permuted", f"method.strength={strength}")).to_end_of(0)
        anchor = played.method.anchor
        fisher = {name: value.clone() for name, value in anchor.importance.items()}
        centre = {name: value.clone() for name, value in anchor.centre.items()}
        played.to_end_of(1)
        moved = [(fisher[n] * (p.detach() - centre[n]) ** 2).sum() for n, p in anchor.parameters.items()]
        distances.append(float(torch.stack(moved).sum()))
    assert distances[0] > 2 * distances[1] > 4 * distances[2] > 0


def test_ewc_forgets_less_than_finetuning(play):
    """On permuted digits, at the shipped settings; by how much is for the benchmarks."""
    more = ("view.tasks=3", "dataset.limit=800")
    ewc = play("method=ewc", *more).go().evaluate()["average_accuracy"]
    finetune = play("method=finetune", *more).go().evaluate()["average_accuracy"]
    assert ewc > finetune + 0.02


def test_class_incremental_ewc_forgets_all_the_same(play):
    """About 1 / tasks is what the method can do here (van de Ven and Tolias 2019): the newest classes win."""
    played = play("method=ewc", "view=stream_class", "view.tasks=5", "dataset.limit=800").go()
    found = played.evaluate()
    assert found["accuracy/task5"] > 0.8
    assert found["average_accuracy"] < 0.45


@pytest.mark.parametrize("kind", ["batched", "sample", "empirical"])
@pytest.mark.parametrize("view", ["task", "class"])
def test_other_kinds_of_fisher_information(play, same, kind, view):
    chosen = play(*small("ewc", view, f"method.fisher={kind}", "method.fisher_batch_size=32")).go()
    again = play(*small("ewc", view, f"method.fisher={kind}", "method.fisher_batch_size=32")).go()
    assert chosen.steps == again.steps
    assert all(step["penalty"] > 0 for step in chosen.steps[3:])
    assert not same(chosen.weights(), play(*small("ewc", view)).go().weights())


@pytest.mark.parametrize("kind", ["exact", "sample", "empirical"])
def test_how_many_examples_the_fisher_takes_at_once_does_not_matter(play, kind):
    coarse, fine = (
        play(*small("ewc", "task", f"method.fisher={kind}", f"method.fisher_batch_size={size}")).to_end_of(0)
        for size in (500, 7)
    )
    for name, value in coarse.method.anchor.importance.items():
        other = fine.method.anchor.importance[name]
        torch.testing.assert_close(value, other, rtol=1e-4, atol=1e-6 * float(value.max()))


def test_fewer_examples_for_the_fisher(play):
    """A keyed choice of the task's own examples."""
    some = play(*small("ewc", "task", "method.fisher_examples=10")).to_end_of(0)
    order = torch.randperm(len(some.view[0].train), generator=some.context.rng("importance examples", 0))
    expected = fisher_diagonal(
        some.method.network, some.view[0].train, mask=some.view[0].outputs, index=order[:10]
    )  # fmt: skip
    for name, value in some.method.anchor.importance.items():
        assert torch.equal(value, expected[name])
    every = play(*small("ewc", "task", "method.fisher_examples=100000")).to_end_of(0)
    whole = play(*small("ewc", "task")).to_end_of(0)
    assert all(torch.equal(v, whole.method.anchor.importance[n]) for n, v in every.method.anchor.importance.items())


@pytest.mark.parametrize("view", ["task", "class"])
def test_heads_of_tasks_to_come_carry_no_penalty(play, view):
    played = play(*small("ewc", view)).to_end_of(1)
    seen = torch.stack([task.outputs for task in played.view.tasks[:2]]).any(0)
    for name in ("head.weight", "head.bias"):
        importance = played.method.anchor.importance[name]
        assert not importance[~seen].any()
        assert bool(importance[seen].reshape(int(seen.sum()), -1).any(1).all())


# --- every combination runs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["finetune", "ewc", "joint"])
@pytest.mark.parametrize(
    "model",
    [
        ("model=mlp", "model.norm=batch"),
        ("model=mlp", "model.norm=layer", "model.dropout=0.3"),
        ("model=linear",),
        ("model=cnn", "model.channels=[4, 6]", "model.hidden=8", "model.kernel=3"),
        ("model=conv4", "model.channels=4", "model.blocks=2"),
    ],
)
def test_models(play, method, model):
    few = ("dataset.limit=120", "view.tasks=2", "method.iterations=4", "method.block=2")
    played = play(*small(method, "task", *few, *model))
    before = played.weights()
    played.go()
    assert all(math.isfinite(value) for step in played.steps for value in step.values())
    after = played.weights()
    assert all(not torch.equal(after[name], before[name]) for name in after)
    assert all(value.isfinite().all() for value in after.values())


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("precision", ["float64", "bf16"])
def test_precisions(play, method, precision):
    played = play(*small(method, "rotated", f"precision={precision}")).go()
    weights = played.weights()
    assert {value.dtype for value in weights.values()} == {torch.float64 if precision == "float64" else torch.float32}
    assert all(math.isfinite(value) for step in played.steps for value in step.values())
    assert 0 <= played.evaluate()["average_accuracy"] <= 1


def test_the_loss_must_fit(play):
    with pytest.raises(ConfigError, match=r"method\.loss: mse does not fit a target of classes; use method\.loss=auto"):
        play(*small("ewc", "task", "method.loss=mse"))


def test_label_smoothing_runs_under_masks(play, same):
    smooth = play(*small("finetune", "class", "method.label_smoothing=0.1")).go()
    assert not same(smooth.weights(), play(*small("finetune", "class")).go().weights())
    assert all(math.isfinite(step["loss"]) for step in smooth.steps)


def test_a_task_without_training_examples_is_refused(play):
    played = play(*small("finetune", "task"))
    stream = played.view
    nobody = replace(stream[1], train=stream[1].train.take(torch.empty(0, dtype=torch.int64)))
    holed = Stream((stream[0], nobody, stream[2]), stream.scenario, stream.spec, stream.record)
    with pytest.raises(ConfigError, match=r"no training example for the task of classes 4/5/6"):
        play(*small("finetune", "task"), view=holed)
