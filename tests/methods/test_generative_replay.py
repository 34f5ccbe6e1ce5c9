"""Generative replay: reductions, what is replayed and how it is labelled, one update by hand, restoring."""

import copy
import math
from dataclasses import replace

import pytest
import torch
from continual_words import VIEWS, small

from advml.errors import ConfigError
from advml.nn.losses import cross_entropy
from advml.nn.replayed import split_rows
from advml.spec import Stream

UNIT = ("dataset.normalise=unit", "method.likelihood=bernoulli")
BOTH = ["generative_replay", "distilled_replay"]


def all_state(played):
    """Every tensor that the next step depends on, by name."""
    found = {}

    def walk(value, name):
        if isinstance(value, torch.Tensor):
            found[name] = value.clone()
        elif isinstance(value, dict):
            for key, inner in value.items():
                walk(inner, f"{name}.{key}")
        elif isinstance(value, list):
            for number, inner in enumerate(value):
                walk(inner, f"{name}.{number}")

    walk(played.method.state_dict(), "")
    return found


# --- reductions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "view"), [("distilled_replay", "task"), *(("generative_replay", v) for v in VIEWS)])
def test_strength_zero_is_finetuning_bit_for_bit(play, same, method, view):
    more = ("method.weight_decay=0.01", "model.norm=batch", "model.dropout=0.2")
    none = play(*small(method, view, "method.weighting=fixed", "method.strength=0", *more)).go()
    finetune = play(*small("finetune", view, *more)).go()
    assert same(none.weights(), finetune.weights())
    assert [step["loss"] for step in none.steps] == [step["loss"] for step in finetune.steps]
    assert none.evaluate() == finetune.evaluate()
    assert not same(none.weights(), play(*small(method, view, *more)).go().weights())


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("weighting", ["by_tasks", "fixed"])
def test_the_first_task_is_finetuning_bit_for_bit(play, same, view, weighting):
    replay = play(*small("generative_replay", view, f"method.weighting={weighting}")).to_end_of(0)
    finetune = play(*small("finetune", view)).to_end_of(0)
    assert same(replay.weights(), finetune.weights())
    assert [step["loss"] for step in replay.steps] == [step["loss"] for step in finetune.steps]
    assert not same(replay.go(1).weights(), finetune.go(1).weights())


def test_half_of_each_at_the_second_task_is_the_sum_of_both_at_half_the_rate(play):
    """Plain gradient descent: (L + L′) / 2 with lr is L + L′ with lr / 2."""
    more = ("method.optimiser=sgd", "precision=float64", "view.tasks=2")
    halves = play(*small("generative_replay", "class", *more)).to_end_of(0)
    sums = play(*small("generative_replay", "class", *more, "method.weighting=fixed")).to_end_of(0)
    config = sums.method.config
    object.__setattr__(config, "lr", config.lr / 2)  # only now: until here both were the same
    halves.go(), sums.go()
    for name, value in halves.weights().items():
        torch.testing.assert_close(value, sums.weights()[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("method", BOTH)
def test_the_generator_has_its_own_numbers(play, same, method):
    """The block, what is measured in between and a restart change neither network nor generator: every tensor."""
    more = ("method.fresh_optimiser=false", "method.schedule=cosine", "method.clip_norm=0.5", "model.dropout=0.0")
    coarse = play(*small(method, "task", *more, "method.block=20")).go()
    fine = play(*small(method, "task", *more, "method.block=3"))
    while len(fine.steps) < len(fine.plan):
        again = play(*small(method, "task", *more, "method.block=3"))
        again.method.load_state_dict(copy.deepcopy(fine.method.state_dict()))
        again.steps, again.budget.counts = list(fine.steps), dict(fine.budget.counts)
        assert same(all_state(again), all_state(fine))
        again.go(1).evaluate()
        fine = again
    assert same(all_state(coarse), all_state(fine))
    assert coarse.budget.counts == fine.budget.counts
    assert any(name.startswith(".previous.1") for name in all_state(coarse))


# --- one update by hand -------------------------------------------------------------------------------------------


def by_hand(played, iteration, index):
    """Losses of network and generator at one iteration, from the definition: one replayed input at a time."""
    method, phase = played.method, played.plan[len(played.steps)][0]
    config, stream = method.config, played.view
    rng = played.context.rng("replay", phase, iteration)
    z = torch.randn(len(index), config.latent, generator=rng).double()
    noise = torch.randn(2 * len(index), config.latent, generator=rng).double()
    generator, solver = method.previous
    own = stream[phase].train.batch(index)
    mask = stream.mask(phase, phase + 1)
    current = cross_entropy(method.network(own.inputs), own._replace(mask=mask))
    bounds = [method.generator(own.inputs["image"].flatten(1), noise[: len(index)]).mean()]
    rows = generator.expected(z).detach()
    bounds.append(method.generator(rows, noise[len(index) :]).mean())
    losses = []
    for row in rows:
        made_up = split_rows(row[None], stream.spec.inputs)
        old, new = solver(made_up)[0].detach(), method.network(made_up)[0]
        if stream.scenario == "task":
            heads = [(task.outputs, task.outputs) for task in stream.tasks[:phase]]
        elif stream.scenario == "class":
            heads = [(stream.mask(0, phase), stream.mask(0, phase + 1))]
        else:
            heads = [(stream[0].outputs, stream[0].outputs)]
        each = []
        for known, active in heads:
            before, now = known.nonzero().flatten(), active.nonzero().flatten()
            if config.targets == "hard":
                best = before[old[before].argmax()]
                each.append(new[now].logsumexp(0) - new[best])
            else:
                p = (old[before] / config.temperature).softmax(0)
                log_q = new[before] / config.temperature - (new[now] / config.temperature).logsumexp(0)
                each.append(-(config.temperature**2) * (p * log_q).sum())
        losses.append(torch.stack(each).mean())
    share = 1 / (phase + 1)
    again = torch.stack(losses).mean()
    return share * current + (1 - share) * again, share * bounds[0] + (1 - share) * bounds[1]


@pytest.mark.parametrize("view", ["task", "class", "domain", "permuted", "permuted task"])
@pytest.mark.parametrize("method", BOTH)
@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_one_update_by_hand(play, view, method, likelihood):
    """Values of both losses and, under plain gradient descent, the parameters after them, at the last task."""
    more = ("precision=float64", "method.optimiser=sgd", "method.block=1", "method.generator_lr=0.0001")
    more += ("dataset.normalise=unit", f"method.likelihood={likelihood}")
    played = play(*small(method, view, *more))
    last = len(played.view) - 1
    played.to_end_of(last - 1).go(1)
    config, iteration = played.method.config, 1
    order = torch.randperm(len(played.view[last].train), generator=played.context.rng("shuffle", last, 0))
    index = order[config.batch_size : 2 * config.batch_size]
    solver_loss, generator_loss = by_hand(played, iteration, index)
    expected = []
    for module, loss, lr in (
        (played.method.network, solver_loss, config.lr), (played.method.generator, generator_loss, 0.0001)
    ):  # fmt: skip
        gradients = torch.autograd.grad(loss, list(module.parameters()))
        expected.append([p.detach() - lr * g for p, g in zip(module.parameters(), gradients, strict=True)])
    played.go(1)
    assert played.steps[-1]["loss"] == pytest.approx(solver_loss.item(), rel=1e-9)
    assert played.steps[-1]["generator_loss"] == pytest.approx(generator_loss.item(), rel=1e-9)
    for module, values in zip((played.method.network, played.method.generator), expected, strict=True):
        for parameter, value in zip(module.parameters(), values, strict=True):
            torch.testing.assert_close(parameter.detach(), value, rtol=1e-8, atol=1e-11)


# --- what is replayed ---------------------------------------------------------------------------------------------


def test_what_is_replayed_stays_as_it_was_for_the_whole_task(play, same):
    played = play(*small("generative_replay", "class")).to_end_of(0)
    generator, solver = copy.deepcopy(played.method.generator), played.weights()
    for _ in range(3):
        played.go(1)
        frozen, answering = played.method.previous
        if len(played.steps) < 6:
            assert same(frozen.state_dict(), generator.state_dict())
            assert same(answering.state_dict(), solver)
            assert not same(played.weights(), solver)
    assert not same(frozen.state_dict(), generator.state_dict())
    assert same(answering.state_dict(), played.weights())
    assert not any(parameter.requires_grad for module in played.method.previous for parameter in module.parameters())
    assert not any(module.training for one in played.method.previous for module in one.modules())


def test_replay_holds_on_to_earlier_classes(play):
    """Split digits, class-incremental, where fine-tuning keeps the newest classes only."""
    chosen = ("view=stream_class", "view.tasks=3", "dataset.limit=900", "method.iterations=200")
    replay = play("method=generative_replay", *chosen).go().evaluate()
    finetune = play("method=finetune", *chosen).go().evaluate()
    assert finetune["accuracy/task1"] < 0.2
    assert replay["accuracy/task1"] > 0.5
    assert replay["average_accuracy"] > finetune["average_accuracy"] + 0.2


def test_the_work_counted(play):
    """Of each replayed example: labelled, learnt by the network, learnt by the generator; of each own one: twice."""
    played = play(*small("generative_replay", "permuted"))
    batches = 20 * 16  # of 16, except the last of an epoch
    played.to_end_of(0)
    own = played.budget.counts["samples"] // 2
    assert 0.8 * batches < own <= batches
    assert played.budget.counts == {"samples": 2 * own, "updates": 40, "gradients": 2 * own}
    played.to_end_of(1)
    assert played.budget.counts == {"samples": 7 * own, "updates": 80, "gradients": 6 * own}


def test_the_memory_does_not_grow_with_the_tasks(play):
    played = play(*small("generative_replay", "permuted")).go()
    held = [step["memory_bytes"] for step in played.steps if "memory_bytes" in step]
    assert len(held) == 3
    sizes = [sum(p.numel() for p in module.parameters()) for module in (played.method.generator, played.method.network)]
    assert held == [4 * (2 * sizes[0] + sizes[1])] * 3
    assert {step["memory_examples"] for step in played.steps if "memory_bytes" in step} == {0}
    none = play(*small("generative_replay", "permuted", "method.weighting=fixed", "method.strength=0")).to_end_of(1)
    assert none.steps[-1]["memory_bytes"] == 4 * sizes[0]


# --- settings, and every combination ------------------------------------------------------------------------------


@pytest.mark.parametrize("view", ["permuted", "rotated", "class"])
def test_a_bernoulli_likelihood_needs_inputs_in_its_range(play, view):
    with pytest.raises(ConfigError, match=r"method\.likelihood=bernoulli: .*within \[0, 1\].* use dataset\.normalise="):
        play(*small("generative_replay", view, "method.likelihood=bernoulli"))
    played = play(*small("generative_replay", view, *UNIT)).go()
    assert all(math.isfinite(value) for step in played.steps for value in step.values())


def test_inputs_that_say_what_is_there_are_not_made_up(play):
    played = play(*small("generative_replay", "class"))
    spec = played.context.data.spec
    played.context.data.spec = replace(
        spec, inputs={**spec.inputs, "there": (8,)}, streams={"image": Stream("frames", "there")}
    )
    with pytest.raises(ConfigError, match=r"^method=generative_replay: .* there says which .* use another method"):
        played.method.setup(played.context)


def test_the_generators_own_learning_rate(play, same):
    same_rate = play(*small("generative_replay", "class", "method.generator_lr=0.01")).to_end_of(0)
    usual = play(*small("generative_replay", "class", "method.generator_lr=null")).to_end_of(0)
    other = play(*small("generative_replay", "class", "method.generator_lr=0.001")).to_end_of(0)
    assert same(all_state(same_rate), all_state(usual))
    assert not same(other.method.generator.state_dict(), usual.method.generator.state_dict())
    assert same(other.weights(), usual.weights())


@pytest.mark.parametrize("fresh", ["true", "false"])
def test_what_the_generators_optimiser_remembers(play, fresh):
    played = play(*small("generative_replay", "permuted", f"method.fresh_optimiser={fresh}")).go()
    assert set(played.method.generator_optimiser.updates) == {20 if fresh == "true" else 60}


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize(
    "model",
    [
        ("model=mlp", "model.norm=batch", "model.dropout=0.3"),
        ("model=cnn", "model.channels=[4, 6]", "model.hidden=8", "model.kernel=3"),
        ("model=conv4", "model.channels=4", "model.blocks=2"),
    ],
)
def test_models(play, model, precision):
    few = ("dataset.limit=120", "view.tasks=2", "method.iterations=4", "method.block=2", f"precision={precision}")
    played = play(*small("generative_replay", "task", *few, *model))
    before = all_state(played)
    played.go()
    assert all(math.isfinite(value) for step in played.steps for value in step.values())
    after = all_state(played)
    assert not [name for name, value in before.items() if torch.equal(value, after[name]) and value.numel() > 1]
    assert all(value.dtype != torch.bfloat16 for value in after.values())


def test_the_generator_starts_alike_whatever_was_drawn_before(play, same):
    one = play(*small("generative_replay", "permuted"))
    torch.rand(7)
    other = play(*small("generative_replay", "class", "model.hidden=[3]"))
    assert same(one.method.generator.state_dict(), other.method.generator.state_dict())
