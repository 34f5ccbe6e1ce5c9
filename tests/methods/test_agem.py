"""A-GEM: exact reductions, the method written out by hand, and that it uses the memory that it was given."""

import pytest
import torch
import torch.nn.functional as F
from continual_words import VIEWS, small

from advml.nn.memory import draw_distinct


@pytest.mark.parametrize("view", VIEWS)
def test_without_memory_it_is_finetuning_bit_for_bit(play, same, view):
    more = ("method.optimiser=adamw", "method.weight_decay=0.1", "method.fresh_optimiser=false")
    agem = play(*small("agem", view, "method.capacity=0", *more)).go()
    finetune = play(*small("finetune", view, *more)).go()
    assert same(agem.weights(), finetune.weights())
    assert [step["loss"] for step in agem.steps] == [step["loss"] for step in finetune.steps]
    assert {step["projected"] for step in agem.steps} == {0.0}
    assert agem.budget.counts == finetune.budget.counts
    assert not same(agem.weights(), play(*small("agem", view, *more)).go().weights())


@pytest.mark.parametrize("view", ["task", "class", "permuted"])
def test_the_first_task_is_finetuning_bit_for_bit(play, same, view):
    agem, finetune = play(*small("agem", view)), play(*small("finetune", view))
    assert same(agem.to_end_of(0).weights(), finetune.to_end_of(0).weights())
    assert {step["projected"] for step in agem.steps} == {0.0}
    agem.to_end_of(1)
    shares = [step["projected"] for step in agem.steps[3:]]
    assert all(0 <= share <= 1 for share in shares)
    assert sum(shares) > 0
    assert not same(agem.weights(), finetune.to_end_of(1).weights())


@pytest.mark.parametrize("view", ["class", "permuted task"])
def test_the_method_written_out(play, view):
    """Plain gradient descent in float64 with one flat gradient and numbers compared in Python."""
    sgd = ("method.optimiser=sgd", "method.lr=0.1", "precision=float64", "method.policy=reservoir", "method.block=20")
    played = play(*small("agem", view, *sgd, "method.capacity=60", "method.memory_batch_size=25"))
    stream, rng, network = played.view, played.context.rng, played.context.build()
    parameters = list(network.parameters())
    kept, seen, projected = [], 0, []

    def gradient(examples, begun):
        total = 0.0
        for number, example in examples:
            batch = stream[number].train.batch(torch.tensor([example]))
            active = stream.mask(number, begun)
            place = active[: batch.target].sum().reshape(1)
            total = total + F.cross_entropy(network(batch.inputs)[:, active], place)
        found = torch.autograd.grad(total / len(examples), parameters)
        return torch.cat([one.flatten() for one in found])

    for phase, task in enumerate(stream):
        needed = 0
        per_epoch = -(-len(task.train) // 16)
        for iteration in range(20):
            epoch, place = divmod(iteration, per_epoch)
            order = torch.randperm(len(task.train), generator=rng("shuffle", phase, epoch)).tolist()
            current = [(phase, example) for example in order[place * 16 : place * 16 + 16]]
            among = [one for one in kept if one[0] < phase]
            g = gradient(current, phase + 1)
            if among:
                again = draw_distinct(len(among), 25, rng("memory reference", phase, iteration)).tolist()
                reference = gradient([among[slot] for slot in again], phase + 1)
                if float(g @ reference) < 0:
                    g = g - float(g @ reference) / float(reference @ reference) * reference
                    needed += 1
            with torch.no_grad():
                for parameter, part in zip(parameters, g.split([p.numel() for p in parameters]), strict=True):
                    parameter -= 0.1 * part.reshape(parameter.shape)
            if epoch == 0:
                draws = torch.rand(len(current), dtype=torch.float64, generator=rng("memory offer", phase, iteration))
                for one, u in zip(current, draws.tolist(), strict=True):
                    if len(kept) < 60:
                        kept.append(one)
                    elif (slot := int(u * (seen + 1))) < 60:
                        kept[slot] = one
                    seen += 1
        projected.append(needed / 20)
    played.go()
    assert [step["projected"] for step in played.steps] == pytest.approx(projected)
    assert sum(projected) > 0
    for name, value in played.weights().items():
        torch.testing.assert_close(value, network.state_dict()[name], rtol=1e-9, atol=1e-12)


def test_the_whole_memory_takes_part(play):
    """Not only its first or newest examples: within 20 updates, of which each draws a third, all are drawn."""
    played = play(*small("agem", "task", "method.capacity=30", "method.memory_batch_size=10")).to_end_of(0)
    memory = played.method.kept
    assert (len(memory), set(memory.task.tolist())) == (30, {0})
    first = {bytes(row.numpy()) for row in memory.inputs["image"].flatten(1)}
    assert len(first) == 30
    drawn = set()
    draw = memory.draw

    def spy(*arguments):
        slots = draw(*arguments)
        drawn.update(slots.tolist())
        assert len(slots) == min(10, int((memory.task == 0).sum()))
        assert (memory.task[slots] == 0).all()
        return slots

    memory.draw = spy
    memory.offer = lambda *arguments, **more: None  # so that it stays as it is
    played.to_end_of(1)
    assert drawn == set(range(30))


def test_every_task_has_its_share(play):
    """As much for each earlier task, by the policy that is shipped."""
    played = play(*small("agem", "permuted", "method.capacity=60")).go()
    assert played.method.kept.task.bincount().tolist() == [20, 20, 20]
    assert played.method.kept.target.bincount(minlength=10).tolist() == [6] * 10


def test_projection_forgets_less_than_finetuning(play):
    """At the shipped settings; by how much is for the benchmarks."""
    more = ("view.tasks=3", "dataset.limit=600", "method.iterations=100")
    agem = play("method=agem", *more).go().evaluate()["average_accuracy"]
    finetune = play("method=finetune", *more).go().evaluate()["average_accuracy"]
    assert agem > finetune + 0.02


def test_what_is_counted(play):
    played = play(*small("agem", "permuted", "method.memory_batch_size=8")).to_end_of(1)
    batch = [min(16, len(task.train) - 16 * (i % -(-len(task.train) // 16))) for task in played.view.tasks[:2]
             for i in range(20)]  # fmt: skip
    samples = sum(batch) + 20 * 8
    assert played.budget.counts == {"samples": samples, "updates": 40, "gradients": samples}
