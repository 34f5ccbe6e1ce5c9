"""Experience replay: exact reductions, the whole method written out by hand, what is kept and who learns."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from continual_words import VIEWS, small

from advml.errors import ConfigError
from advml.nn.memory import draw_distinct
from advml.nn.optimisers import make_optimiser
from advml.nn.training import train


@pytest.mark.parametrize(("view", "nothing"), [(view, "weight=0") for view in VIEWS] + [("task", "capacity=0")])
def test_without_memory_or_weight_it_is_finetuning_bit_for_bit(play, same, view, nothing):
    more = ("method.optimiser=adamw", "method.weight_decay=0.1", "method.fresh_optimiser=false")
    replay = play(*small("replay", view, f"method.{nothing}", *more)).go()
    finetune = play(*small("finetune", view, *more)).go()
    assert same(replay.weights(), finetune.weights())
    assert [step["loss"] for step in replay.steps] == [step["loss"] for step in finetune.steps]
    assert replay.evaluate() == finetune.evaluate()
    assert replay.budget.counts == finetune.budget.counts
    assert not same(replay.weights(), play(*small("replay", view, *more)).go().weights())


@pytest.mark.parametrize("view", ["task", "class", "permuted"])
def test_the_first_task_is_finetuning_where_only_earlier_tasks_are_recalled(play, same, view):
    replay, finetune = play(*small("replay", view, "method.recall=earlier")), play(*small("finetune", view))
    assert same(replay.to_end_of(0).weights(), finetune.to_end_of(0).weights())
    assert not same(replay.to_end_of(1).weights(), finetune.to_end_of(1).weights())
    every = play(*small("replay", view)).to_end_of(0)
    finetune = play(*small("finetune", view)).to_end_of(0)
    assert not same(every.weights(), finetune.weights())


@pytest.mark.parametrize(
    ("view", "recall"), [("task", "all"), ("class", "earlier"), ("permuted", "all"), ("rotated", "earlier")]
)
def test_the_method_written_out(play, view, recall):
    """A plain loop over a list of (task, number of the example), in float64, with plain gradient descent."""
    sgd = ("method.optimiser=sgd", "method.lr=0.1", "precision=float64", "method.weight=0.7", f"method.recall={recall}")
    played = play(*small("replay", view, *sgd, "method.capacity=30"))
    stream, rng, network = played.view, played.context.rng, played.context.build()
    kept, seen = [], 0

    def loss_of(examples, begun):
        total = 0.0
        for number, example in examples:
            batch = stream[number].train.batch(torch.tensor([example]))
            active = stream.mask(number, begun)
            target = active[: batch.target].sum().reshape(1)  # its place among the active outputs
            total = total + F.cross_entropy(network(batch.inputs)[:, active], target)
        return total / len(examples)

    for phase, task in enumerate(stream):
        per_epoch = -(-len(task.train) // 16)
        for iteration in range(20):
            epoch, place = divmod(iteration, per_epoch)
            order = torch.randperm(len(task.train), generator=rng("shuffle", phase, epoch)).tolist()
            current = [(phase, example) for example in order[place * 16 : place * 16 + 16]]
            among = [one for one in kept if recall == "all" or one[0] < phase]
            network.zero_grad()
            value = loss_of(current, phase + 1)
            if among:
                again = draw_distinct(len(among), 32, rng("memory replay", phase, iteration)).tolist()
                value = value + 0.7 * loss_of([among[slot] for slot in again], phase + 1)
            value.backward()
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter -= 0.1 * parameter.grad
            if epoch == 0:
                draws = torch.rand(len(current), dtype=torch.float64, generator=rng("memory offer", phase, iteration))
                for one, u in zip(current, draws.tolist(), strict=True):
                    if len(kept) < 30:
                        kept.append(one)
                    elif (slot := int(u * (seen + 1))) < 30:
                        kept[slot] = one
                    seen += 1
    played.go()
    for name, value in played.weights().items():
        torch.testing.assert_close(value, network.state_dict()[name], rtol=1e-9, atol=1e-12)
    memory = played.method.kept
    assert memory.task.tolist() == [number for number, _ in kept]
    for slot, (number, example) in enumerate(kept):
        assert torch.equal(memory.inputs["image"][slot], stream[number].train.inputs["image"][example])
    assert memory.seen == seen


@pytest.mark.parametrize("policy", ["reservoir", "balanced"])
def test_every_example_is_offered_once_however_often_it_is_trained_on(play, policy):
    long = ("method.iterations=null", "method.epochs=3", "dataset.limit=100")
    played = play(*small("replay", "task", *long, "method.capacity=1000", f"method.policy={policy}")).go()
    sizes = [len(task.train) for task in played.view]
    memory = played.method.kept
    assert memory.seen == len(memory) == sum(sizes)
    assert memory.task.bincount().tolist() == sizes
    stored = Counter(bytes(row.numpy()) for row in memory.inputs["image"].flatten(1))
    given = Counter(bytes(row.numpy()) for task in played.view for row in task.train.inputs["image"].flatten(1))
    assert stored == given


@pytest.mark.parametrize(
    ("view", "policy"),
    [("task", "reservoir"), ("class", "balanced"), ("domain", "reservoir"), ("permuted", "balanced"),
     ("rotated", "reservoir")],
)  # fmt: skip
def test_training_from_scratch_on_a_complete_buffer_is_joint_training(play, same, view, policy):
    """Bit for bit, in the same order of indices, once the buffer is sorted as the joint method has its examples."""
    long = ("method.iterations=20", "dataset.limit=150", "model.norm=batch")
    played = play(*small("replay", view, *long, "method.capacity=1000", f"method.policy={policy}")).go()
    joint = play(*small("restart", view, *long)).go()
    stream, context, memory = played.view, played.context, played.method.kept
    config, last = context.settings, len(stream) - 1
    sizes = [len(task.train) for task in stream]
    starts = [sum(sizes[:number]) for number in range(len(sizes))]
    # In order of arrival, which is that of each task's first epoch.
    arrived = [torch.randperm(size, generator=context.rng("shuffle", number, 0)) for number, size in enumerate(sizes)]
    slot_of = torch.cat([start + order.argsort() for start, order in zip(starts, arrived, strict=True)])
    assert len(memory) == len(slot_of)
    masks = torch.stack([stream.mask(number, len(stream)) for number in range(len(stream))])
    network = context.build()

    def by_hand():
        per_epoch = -(-len(memory) // config.batch_size)
        for iteration in range(config.iterations):
            epoch, place = divmod(iteration, per_epoch)
            order = torch.randperm(len(memory), generator=context.rng("shuffle", last, epoch))
            slots = slot_of[order[place * config.batch_size : (place + 1) * config.batch_size]]
            yield memory.recall(slots, [task.train for task in stream], masks).batch

    train(
        network, by_hand(), joint.method.loss, make_optimiser(network.parameters(), config), settings=config,
        update=0, total=config.iterations, count=lambda **work: None,
    )  # fmt: skip
    assert same(joint.weights(), network.state_dict())


def test_what_is_counted_and_what_is_held(play):
    """20 updates of 16 and, except for the very first, of 8 out of the memory."""
    cut = ("dataset.limit=800", "method.memory_batch_size=8", "method.capacity=50")
    played = play(*small("replay", "permuted", *cut)).to_end_of(0)
    samples = 20 * 16 + 19 * 8
    assert played.budget.counts == {"samples": samples, "updates": 20, "gradients": samples}
    held = played.steps[-1]
    row = sum(values[0].numel() * values.element_size() for values in played.view[0].train.inputs.values())
    assert (held["memory_examples"], held["memory_bytes"]) == (50, 50 * (row + 16))


@pytest.mark.parametrize("view", ["stream_permuted", "stream_class"])
def test_replay_forgets_less_than_finetuning(play, view):
    """At the shipped settings; by how much is for the benchmarks."""
    more = (f"view={view}", "view.tasks=3", "dataset.limit=600", "method.iterations=80")
    replay = play("method=replay", *more).go().evaluate()["average_accuracy"]
    finetune = play("method=finetune", *more).go().evaluate()["average_accuracy"]
    assert replay > finetune + 0.05


@pytest.mark.parametrize("one", ["capacity=1", "memory_batch_size=1"])
@pytest.mark.parametrize("method", ["replay", "agem", "der"])
def test_a_batch_norm_needs_two_remembered_examples(play, method, one):
    with pytest.raises(ConfigError, match=r"method\.capacity, .*: a batch norm cannot learn from one remembered"):
        play(*small(method, "task", f"method.{one}", "model.norm=batch")).go()
    play(*small(method, "task", f"method.{one}")).go()


@pytest.mark.parametrize("method", ["balanced", "agem", "der_pp"])
@pytest.mark.parametrize(
    "model",
    [
        ("model=linear",),
        ("model=mlp", "model.norm=layer", "model.dropout=0.3"),
        ("model=cnn", "model.channels=[4, 6]", "model.hidden=8", "model.kernel=3"),
        ("model=conv4", "model.channels=4", "model.blocks=2"),
    ],
)
def test_models(play, method, model):
    few = ("dataset.limit=120", "view.tasks=2", "method.iterations=4", "method.block=2")
    played = play(*small(method, "task", *few, *model))
    before = played.weights()
    played.go()
    after = played.weights()
    assert all(not torch.equal(after[name], before[name]) for name in after)
    assert all(value.isfinite().all() for value in after.values())


@pytest.mark.parametrize("method", ["replay", "agem", "der", "der_pp"])
@pytest.mark.parametrize("words", [
    ("method.fresh_optimiser=true", "method.weight_decay=0.1"),
    ("method.fresh_optimiser=false", "method.weight_decay=0.0"),
])  # fmt: skip
def test_rows_of_the_head_learn_only_from_examples_of_their_task(play, method, words, monkeypatch):
    """A memory of one example: rows of tasks that nothing is drawn of stay, whatever the optimiser remembers."""
    run = play(*small(method, "task", f"method={method}", *words, "method.capacity=1", "view.tasks=5"))
    tasks, head, kept = run.method.stream.tasks, run.method.network.head, run.method.kept
    recall, drawn, stayed = kept.recall, set(), 0

    def noted(slots, *more):
        drawn.update(kept.task[slots].tolist())
        return recall(slots, *more)

    monkeypatch.setattr(kept, "recall", noted)
    for phase in range(5):
        before = {name: value.detach().clone() for name, value in head.named_parameters()}
        drawn.clear()
        run.to_end_of(phase)
        for number, task in enumerate(tasks):
            moved = any(bool((value - before[name])[task.outputs].any()) for name, value in head.named_parameters())
            assert moved == (number in drawn | {phase}), (phase, number)
            stayed += not moved
    assert stayed > 10  # all that come later, and some of those before
