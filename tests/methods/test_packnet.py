"""PackNet: whose each weight is, what is pruned and when, and what can no longer move."""

import math

import pytest
import torch
import torch.nn.functional as F
from continual_words import small

from advml.errors import ConfigError
from advml.models.packed import FREE
from advml.nn.pruning import magnitude_mask

SIZES = {"body.0.weight": (12, 64), "body.2.weight": (8, 12)}


def tiny(*more):
    return small("packnet", "task", "dataset.limit=200", "model.hidden=[12, 8]", *more)


def owners(played):
    return {name: owner.clone() for name, owner in played.method.packed.owners().items()}


def shares(size, fraction, tasks):
    """How many weights of a layer each task keeps, and how many are free at the end."""
    kept, free = [], size
    for _ in range(tasks):
        given_up = math.floor(fraction * free)
        kept.append(free - given_up)
        free = given_up
    return kept, free


@pytest.mark.parametrize("fraction", [0.5, 0.75, 0.9])
def test_how_many_weights_each_task_keeps(play, fraction):
    played = play(*tiny(f"method.prune_fraction={fraction}"))
    assert {name: tuple(owner.shape) for name, owner in owners(played).items()} == SIZES
    for number in range(3):
        played.to_end_of(number)
        expected = {name: shares(math.prod(size), fraction, number + 1) for name, size in SIZES.items()}
        for name, owner in owners(played).items():
            kept, free = expected[name]
            assert [int((owner == task).sum()) for task in range(number + 1)] == kept
            assert int((owner == FREE).sum()) == free
        assert played.steps[-1]["free"] == sum(free for _, free in expected.values())
    assert [("free" in step) for step in played.steps] == [False, False, True] * 3


def test_until_it_is_pruned_the_first_task_is_finetuning(play, same):
    """Bit for bit; without retraining, what is kept at the end is what sorting by magnitude keeps."""
    more = ("model.norm=batch", "method.weight_decay=0.05", "method.optimiser=sgd", "method.momentum=0.9")
    packed = play(*tiny("method.retrain=0", *more)).to_end_of(0)
    plain = play(*small("finetune", "task", "dataset.limit=200", "model.hidden=[12, 8]", *more)).to_end_of(0)
    assert [step["loss"] for step in packed.steps] == [step["loss"] for step in plain.steps]
    weights, owner = plain.weights(), owners(packed)
    for name in owner:
        size = weights[name].abs().flatten().sort().values[weights[name].numel() // 2]
        assert torch.equal(owner[name] == 0, weights[name].abs() >= size)
        weights[name] = weights[name] * (owner[name] == 0)
    assert same(packed.weights(), weights)


@pytest.mark.parametrize("block", [1, 3, 20])
@pytest.mark.parametrize(("retrain", "trained"), [(0.25, 15), (0.33, 13), (0.99, 1), (0.5, 10)])
def test_pruning_happens_once_where_retraining_begins(play, retrain, trained, block):
    """The iterations of a task are the same in all: those of `retrain` come last."""
    played = play(*tiny(f"method.retrain={retrain}", f"method.block={block}"))
    pruned, prune = [], played.method._prune
    played.method._prune = lambda number: (pruned.append((number, moved())), prune(number))

    def moved():
        return played.method.optimiser.updates[0]

    played.go()
    assert pruned == [(number, trained) for number in range(3)]
    assert played.budget.counts["updates"] == 60


def test_retraining_moves_what_is_kept_and_nothing_else(play):
    """Two blocks of training, then one of retraining for each task."""
    more = ("method.iterations=24", "method.retrain=0.34", "method.optimiser=sgd", "method.momentum=0.9",
            "method.weight_decay=0.1", "method.fresh_optimiser=false")  # fmt: skip
    played = play(*tiny(*more))
    for number in range(3):
        played.go(2)
        before, owner = played.weights(), owners(played)
        assert all(bool((value == FREE).any()) for value in owner.values())
        played.go(1)
        assert all(torch.equal(value, owner[name]) for name, value in owners(played).items())
        after = played.weights()
        for name in owner:
            mine = owner[name] == number
            assert torch.equal(after[name][~mine], before[name][~mine])
            assert not after[name][owner[name] == FREE].any()
            assert float((after[name][mine] != before[name][mine]).double().mean()) > 0.5


@pytest.mark.parametrize(
    "model", [("model.norm=batch",), ("model.norm=layer",), ("model=conv4", "model.channels=4", "model.blocks=2")]
)
def test_what_each_task_may_move(play, model):
    """Task 1 everything but other heads; later tasks the weights that were free, and their own rows of the head."""
    words = small("packnet", "task", "dataset.limit=200", *model, "method.weight_decay=0.1", "method.optimiser=adamw")
    played = play(*words).to_end_of(0)
    for number in (1, 2):
        before, owner = played.weights(), owners(played)
        played.to_end_of(number)
        outputs = played.view[number].outputs
        for name, value in played.weights().items():
            if name in owner:
                taken = owner[name] < number
                assert torch.equal(value[taken], before[name][taken])
                assert bool((value[~taken] != 0).any())
            elif name.startswith("head."):
                assert torch.equal(value[~outputs], before[name][~outputs])
                assert not torch.equal(value[outputs], before[name][outputs])
            else:  # biases, norms, running averages
                assert torch.equal(value, before[name])
    assert any(name not in owner and not name.startswith("head.") for name in played.weights())


def test_a_task_uses_the_weights_of_tasks_up_to_it_and_no_others(play):
    played = play(*tiny()).go()
    inputs = played.view[0].test.batch(slice(None)).inputs

    @torch.no_grad()
    def answers():
        return [played.method.network_for(number).eval()(inputs) for number in range(3)]

    for task in (0, 1, 2, FREE):
        before = answers()
        with torch.no_grad():
            for name, weight in played.method.packed.weights().items():
                weight.add_(played.method.packed.owners()[name] == task)
        changed = [not torch.equal(old, new) for old, new in zip(before, answers(), strict=True)]
        assert changed == [task <= number for number in range(3)]


def test_by_hand(play):
    """Two layers of weights, three tasks, plain gradient descent, in float64 and without any of the machinery."""
    fraction, lr = 0.6, 0.2
    played = play(
        *tiny("precision=float64", "method.optimiser=sgd", f"method.lr={lr}", f"method.prune_fraction={fraction}",
              "method.retrain=0.3", "method.clip_norm=0.7")
    )  # fmt: skip
    theta = {name: value.clone() for name, value in played.weights().items()}
    owner = {name: torch.zeros(size, dtype=torch.int64) for name, size in SIZES.items()}
    for number, task in enumerate(played.view):
        for one in owner.values():
            one[one == -1] = number
        per_epoch = math.ceil(len(task.train) / 16)
        for iteration in range(20):
            order = torch.randperm(
                len(task.train), generator=played.context.rng("shuffle", number, iteration // per_epoch)
            )
            place = iteration % per_epoch
            batch = task.train.batch(order[place * 16 : place * 16 + 16])
            leaves = {name: value.clone().requires_grad_() for name, value in theta.items()}
            hidden = batch.inputs["image"].flatten(1)
            for layer in (0, 2):
                hidden = F.relu(F.linear(hidden, leaves[f"body.{layer}.weight"], leaves[f"body.{layer}.bias"]))
            logits = F.linear(hidden, leaves["head.weight"], leaves["head.bias"])
            logits = logits[:, task.outputs]
            target = (task.outputs.cumsum(0) - 1)[batch.target]
            gradients = dict(
                zip(leaves, torch.autograd.grad(F.cross_entropy(logits, target), leaves.values()), strict=True)
            )
            for name in owner:
                gradients[name] = gradients[name] * (owner[name] == number)
            if number:
                del gradients["body.0.bias"], gradients["body.2.bias"]
            norm = math.sqrt(sum(float((gradient**2).sum()) for gradient in gradients.values()))
            for name, gradient in gradients.items():
                theta[name] = theta[name] - lr * gradient * min(1.0, 0.7 / (norm + 1e-6))
            if iteration == 13:
                for name in owner:
                    kept = magnitude_mask(theta[name], owner[name] == number, fraction)
                    lost = (owner[name] == number) & ~kept
                    owner[name][lost] = -1
                    theta[name][lost] = 0
        played.to_end_of(number)
        for name, found in owners(played).items():
            assert torch.equal(found.long(), torch.where(owner[name] == -1, FREE, owner[name]))
        for name, value in played.weights().items():
            torch.testing.assert_close(value, theta[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("fraction", "tasks", "task"), [(0.0, 2, "task2 of 2"), (0.01, 3, "task3 of 3"), (0.05, 5, "task4 of 5")]
)
def test_refused_before_training_where_weights_will_run_out(play, fraction, tasks, task):
    words = tiny(f"method.prune_fraction={fraction}", f"view.tasks={tasks}")
    with pytest.raises(ConfigError, match=rf"method\.prune_fraction={fraction}: no weight is free any more for {task}"):
        play(*words)


def test_a_network_without_hidden_layers_is_refused(play):
    with pytest.raises(ConfigError, match=r"model=linear: has no layer before its head .*; use model=mlp"):
        play(*small("packnet", "task", "model=linear"))


def test_the_memory_is_two_bytes_a_weight(play):
    played = play(*tiny()).to_end_of(0)
    assert played.steps[-1]["memory_bytes"] == 2 * sum(math.prod(size) for size in SIZES.values())
    assert played.steps[-1]["memory_examples"] == 0
    assert played.steps[-1]["memory_parameters"] == sum(value.numel() for value in played.weights().values())
