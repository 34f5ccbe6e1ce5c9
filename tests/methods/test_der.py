"""Dark experience replay: exact reductions, the method written out by hand, which logits are kept and compared."""

import pytest
import torch
import torch.nn.functional as F
from continual_words import VIEWS, small

from advml.nn.memory import draw_distinct

STIRRED = ("method.optimiser=adamw", "method.weight_decay=0.1", "method.fresh_optimiser=false")


@pytest.mark.parametrize(
    ("view", "nothing"), [(view, ("alpha=0", "beta=0")) for view in VIEWS] + [("task", ("capacity=0",))]
)
def test_without_memory_or_weights_it_is_finetuning_bit_for_bit(play, same, view, nothing):
    der = play(*small("der_pp", view, *(f"method.{word}" for word in nothing), *STIRRED)).go()
    finetune = play(*small("finetune", view, *STIRRED)).go()
    assert same(der.weights(), finetune.weights())
    assert [step["loss"] for step in der.steps] == [step["loss"] for step in finetune.steps]
    assert der.evaluate() == finetune.evaluate()
    assert der.budget.counts == finetune.budget.counts


@pytest.mark.parametrize("view", ["task", "class", "rotated"])
def test_without_logits_it_is_experience_replay_bit_for_bit(play, same, view):
    chosen = ("method.beta=0.7", "method.offer=first", "model.norm=batch", *STIRRED)
    der = play(*small("der_pp", view, "method.alpha=0", *chosen)).go()
    replay = play(*small("replay", view, "method.weight=0.7", "model.norm=batch", *STIRRED)).go()
    assert same(der.weights(), replay.weights())
    assert der.budget.counts == replay.budget.counts
    with_logits = play(*small("der_pp", view, *chosen)).go()
    assert not same(with_logits.weights(), replay.weights())


@pytest.mark.parametrize("view", ["task", "class"])
def test_the_first_task_is_finetuning_where_only_earlier_tasks_are_recalled(play, same, view):
    der, finetune = play(*small("der_pp", view, "method.recall=earlier")), play(*small("finetune", view))
    assert same(der.to_end_of(0).weights(), finetune.to_end_of(0).weights())
    assert not same(der.to_end_of(1).weights(), finetune.to_end_of(1).weights())


@pytest.mark.parametrize(
    ("view", "beta", "offer"),
    [("task", 0.3, "first"), ("class", 0.3, "every"), ("permuted", 0.0, "every")],
)
def test_the_method_written_out(play, view, beta, offer):
    """A plain loop over lists of examples and of their logits, in float64, with plain gradient descent."""
    sgd = ("method.optimiser=sgd", "method.lr=0.1", "precision=float64", "method.alpha=0.8", f"method.beta={beta}")
    kind = ("method.capacity=30", "method.memory_batch_size=9", f"method.offer={offer}")
    played = play(*small("der", view, *sgd, *kind))
    stream, rng, network = played.view, played.context.rng, played.context.build()
    kept, seen = [], 0  # (task, example, logits) of each slot

    def logits(number, example):
        return network(stream[number].train.batch(torch.tensor([example])).inputs)[0]

    def entropy(examples, begun):
        total = 0.0
        for number, example in examples:
            target = int(stream[number].train.target[example])
            active = stream.mask(number, begun)
            total = total - F.log_softmax(logits(number, example)[active], 0)[active[:target].sum()]
        return total / len(examples)

    def recalled(name, phase, iteration):
        return [kept[slot] for slot in draw_distinct(len(kept), 9, rng(f"memory {name}", phase, iteration)).tolist()]

    for phase, task in enumerate(stream):
        per_epoch = -(-len(task.train) // 16)
        for iteration in range(20):
            epoch, place = divmod(iteration, per_epoch)
            order = torch.randperm(len(task.train), generator=rng("shuffle", phase, epoch)).tolist()
            current = [(phase, example) for example in order[place * 16 : place * 16 + 16]]
            with torch.no_grad():
                now = [logits(*one) for one in current]
            network.zero_grad()
            value = entropy(current, phase + 1)
            if kept:
                dark = recalled("logits", phase, iteration)
                parts = [
                    ((logits(number, example) - z)[stream.mask(number, phase + 1)] ** 2).mean()
                    for number, example, z in dark
                ]
                value = value + 0.8 * sum(parts) / len(parts)
            if kept and beta:
                again = [one[:2] for one in recalled("replay", phase, iteration)]
                value = value + beta * entropy(again, phase + 1)
            value.backward()
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter -= 0.1 * parameter.grad
            if epoch == 0 or offer == "every":
                draws = torch.rand(len(current), dtype=torch.float64, generator=rng("memory offer", phase, iteration))
                for one, z, u in zip(current, now, draws.tolist(), strict=True):
                    entry = (*one, z)
                    if len(kept) < 30:
                        kept.append(entry)
                    elif (slot := int(u * (seen + 1))) < 30:
                        kept[slot] = entry
                    seen += 1
    played.go()
    for name, value in played.weights().items():
        torch.testing.assert_close(value, network.state_dict()[name], rtol=1e-8, atol=1e-11)
    memory = played.method.kept
    assert memory.task.tolist() == [entry[0] for entry in kept]
    stored = torch.stack([entry[2] for entry in kept])
    torch.testing.assert_close(memory.extras["logits"], stored, rtol=1e-8, atol=1e-11)


def test_what_is_counted_and_what_is_held(play):
    """Of 20 updates all but the very first draw twice 8 examples; each kept example has as many logits as outputs."""
    cut = ("dataset.limit=800", "method.memory_batch_size=8", "method.capacity=50")
    played = play(*small("der_pp", "permuted", *cut)).to_end_of(0)
    samples = 20 * 16 + 19 * 16
    assert played.budget.counts == {"samples": samples, "updates": 20, "gradients": samples}
    row = sum(values[0].numel() * values.element_size() for values in played.view[0].train.inputs.values())
    assert played.steps[-1]["memory_bytes"] == 50 * (row + 16 + 10 * 4)


@pytest.mark.parametrize("method", ["der", "der_pp"])
def test_it_forgets_less_than_finetuning(play, method):
    """At the shipped settings; by how much is for the benchmarks."""
    more = ("view.tasks=3", "dataset.limit=600", "method.iterations=100")
    der = play(f"method={method}", *more).go().evaluate()["average_accuracy"]
    finetune = play("method=finetune", *more).go().evaluate()["average_accuracy"]
    assert der > finetune + 0.05


@pytest.mark.slow
def test_logits_alone_tell_classes_of_different_tasks_apart(play):
    """DER knows no old class by its label: what later classes were not, when an example was stored, must do."""
    more = ("view=stream_class", "view.tasks=5", "dataset.limit=900", "method.iterations=100")
    der = play("method=der", "method.capacity=200", *more).go().evaluate()["average_accuracy"]
    finetune = play("method=finetune", *more).go().evaluate()["average_accuracy"]
    assert der > finetune + 0.2
