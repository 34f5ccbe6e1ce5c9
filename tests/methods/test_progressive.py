"""Progressive networks: the paper's formula by hand, what is alive, what is frozen, how fast they grow."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from continual_words import small
from torch import nn

import advml
from advml.contracts import Classes, Network, Spec
from advml.data.plain import Plain
from advml.data.stream import Stream
from advml.errors import ConfigError
from advml.models.progressive import ProgressiveNetwork, layers_of
from advml.nn.optimisers import make_optimiser
from advml.nn.training import batches_of, minibatches, train
from advml.runner.checkpoint import copied

QUIET = ("device=cpu", "threads=1", "progress=off", "figures=false", "baselines=off")


def tiny(*more):
    return small("progressive", "task", "dataset.limit=200", "model.hidden=[12, 8]", *more)


def convolutional(*more):
    return small("progressive", "task", "dataset.limit=200", *more)


def state(played):
    return copied(played.method.network.state_dict())


def stirred(played, seed=0):
    """All columns and laterals there, with weights that nothing has trained towards anything; float64."""
    for _ in range(2):
        played.method._grow()
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in played.method.network.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng, dtype=parameter.dtype) * 0.4)
    return played.method.network.eval(), played.method.network.state_dict()


# --- the formula --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lateral", ["adapter", "linear", "none"])
@pytest.mark.parametrize("adapter", [6, "null"])
def test_three_columns_of_a_perceptron_by_hand(play, lateral, adapter):
    played = play(*tiny("precision=float64", f"method.lateral={lateral}", f"method.adapter={adapter}"))
    network, w = stirred(played)
    inputs = played.view[0].test.batch(slice(0, 11)).inputs
    x = inputs["image"].flatten(1)
    read = {1: [], 2: [], 3: []}  # what layers 1, 2 and the output read in each column
    for k in range(3):
        hidden = x
        for i, name in enumerate(("body.0", "body.2", "head"), start=1):
            read[i].append(hidden)
            z = hidden @ w[f"columns.{k}.{name}.weight"].T + w[f"columns.{k}.{name}.bias"]
            if i > 1 and k > 0 and lateral != "none":
                at = f"laterals.{k}.{i - 2}"
                if lateral == "linear":
                    z = z + torch.cat(read[i][:k], 1) @ w[f"{at}.u.weight"].T
                else:
                    below = torch.cat([w[f"{at}.alpha"][j] * read[i][j] for j in range(k)], 1)
                    narrow = torch.clamp(below @ w[f"{at}.v.weight"].T, min=0)
                    z = z + narrow @ w[f"{at}.u.weight"].T
                    assert narrow.shape[1] == min(hidden.shape[1], 6 if adapter == 6 else 99)
            hidden = torch.clamp(z, min=0) if name != "head" else z
        assert bool((hidden.std(0) > 0).all())
        found = network.task(inputs, k)
        torch.testing.assert_close(found, hidden, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(network(inputs)[:, played.view[k].outputs], hidden, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("readout", ["flatten", "mean"])
def test_two_columns_of_a_convolutional_network_by_hand(play, readout):
    """Strides are the layer's own; a head reads flattened maps, or their mean, of every column."""
    words = convolutional("precision=float64", "model=conv4_stride", "model.channels=8", "model.blocks=2",
                          "model.norm=none", f"model.readout={readout}", "method.adapter=3")  # fmt: skip
    played = play(*words)
    network, w = stirred(played)
    inputs = played.view[0].test.batch(slice(0, 5)).inputs
    read = [[], [], []]
    for k in range(3):
        hidden = inputs["image"]
        for i, name in enumerate(("body.0", "body.3")):
            read[i].append(hidden)
            z = F.conv2d(hidden, w[f"columns.{k}.{name}.weight"], w[f"columns.{k}.{name}.bias"], stride=2, padding=1)
            if i and k:
                at = f"laterals.{k}.{i - 1}"
                below = torch.cat([w[f"{at}.alpha"][j] * read[i][j] for j in range(k)], 1)
                narrow = torch.einsum("oc,bchw->bohw", w[f"{at}.v.weight"].flatten(1), below).clamp(min=0)
                assert narrow.shape[1] == 3
                z = z + F.conv2d(narrow, w[f"{at}.u.weight"], stride=2, padding=1)
            hidden = z.clamp(min=0)
        hidden = hidden.flatten(1) if readout == "flatten" else hidden.mean((2, 3))
        read[2].append(hidden)
        z = hidden @ w[f"columns.{k}.head.weight"].T + w[f"columns.{k}.head.bias"]
        if k:
            below = torch.cat([w[f"laterals.{k}.1.alpha"][j] * read[2][j] for j in range(k)], 1)
            z = z + (below @ w[f"laterals.{k}.1.v.weight"].T).clamp(min=0) @ w[f"laterals.{k}.1.u.weight"].T
        torch.testing.assert_close(network.task(inputs, k), z, rtol=1e-11, atol=1e-12)


# --- laterals are alive -------------------------------------------------------------------------------------------

MODELS = {
    "mlp": ("model.hidden=[12, 8]", "model.norm=batch"),
    "cnn": ("model=cnn", "model.channels=[3, 4]", "model.hidden=8", "model.kernel=3"),
    "conv4": ("model=conv4", "model.channels=4", "model.blocks=2"),
}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("lateral", ["adapter", "linear"])
def test_each_lateral_alone_carries_what_an_old_column_computes(play, model, lateral):
    """Column 1 is perturbed; of the laterals of column 2 only one is not cut. The output's own is one of them."""
    played = play(*convolutional(*MODELS[model], f"method.lateral={lateral}")).to_end_of(1)
    network = played.method.network.eval()
    inputs = played.view[1].test.batch(slice(None)).inputs
    whole = state(played)
    laterals = len(network.laterals[1])
    assert laterals == len(network.layers) - 1 >= 2
    for kept in (None, *range(laterals)):
        network.load_state_dict(whole)
        with torch.no_grad():
            for number, one in enumerate(network.laterals[1]):
                if number != kept:
                    one.u.weight.zero_()
            before = network.task(inputs, 1)
            network.columns[0].get_submodule(network.layers[0]).weight.mul_(1.5)
            assert torch.equal(network.task(inputs, 1), before) == (kept is None)


def test_each_earlier_column_counts_and_no_later_one(play):
    played = play(*tiny()).go()
    network = played.method.network.eval()
    inputs = played.view[2].test.batch(slice(None)).inputs
    with torch.no_grad():
        for changed in range(3):
            before = [network.task(inputs, number) for number in range(3)]
            network.columns[changed].body[0].weight.mul_(1.5)
            after = [network.task(inputs, number) for number in range(3)]
            same = [torch.equal(old, new) for old, new in zip(before, after, strict=True)]
            assert same == [number < changed for number in range(3)]


def test_everything_of_the_newest_column_learns_and_nothing_else(play):
    """Its laterals to the last scale; of earlier columns not even the running averages move."""
    more = ("model.norm=batch", "method.optimiser=adamw", "method.weight_decay=0.1", "method.fresh_optimiser=false")
    played = play(*tiny(*more))
    for number in range(3):
        (played.to_end_of(number - 1) if number else played).go(1)  # the column is there
        before = state(played)
        played.to_end_of(number)
        for name, value in state(played).items():
            if int(name.split(".")[1]) == number:
                assert bool((value != before[name]).any()), name
            else:
                assert torch.equal(value, before[name]), name
        if number:
            assert all(bool((lateral.alpha != 0.1).all()) for lateral in played.method.network.laterals[number])
    assert {name.split(".")[-1] for name in state(played)} > {"alpha", "weight", "bias", "running_mean"}


def test_scales_are_learned_by_their_gradient(play):
    """Which is that of finite differences; without decay nothing else could move them."""
    played = play(*tiny("precision=float64")).to_end_of(1)
    network, batch = played.method.network, played.view[1].train.batch(slice(0, 16))
    for lateral in network.laterals[1]:
        assert bool((lateral.alpha != 0.1).all())

        def loss():
            return played.method.loss(network(batch.inputs), batch._replace(mask=played.view[1].outputs))

        (found,) = torch.autograd.grad(loss(), lateral.alpha)
        with torch.no_grad():
            lateral.alpha.add_(1e-6)
            above = loss()
            lateral.alpha.sub_(2e-6)
            expected = (above - loss()) / 2e-6
            lateral.alpha.add_(1e-6)
        assert float(found) != 0
        assert float(found) == pytest.approx(float(expected), rel=1e-4, abs=1e-8)


# --- growth -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lateral", ["adapter", "linear", "none"])
def test_parameters_of_a_perceptron(play, lateral):
    """Widths 64, 12, 8 and the outputs of the task; adapters of at most 10."""
    played = play(*tiny(f"method.lateral={lateral}", "method.adapter=10")).go()
    expected = []
    for k, outputs in enumerate((4, 3, 3)):
        column = 64 * 12 + 12 + 12 * 8 + 8 + 8 * outputs + outputs
        between = {"none": 0, "linear": k * (12 * 8 + 8 * outputs), "adapter": 0}[lateral]
        if lateral == "adapter" and k:
            between = (k + k * 12 * 10 + 10 * 8) + (k + k * 8 * 8 + 8 * outputs)
        expected.append(column + between + (expected[-1] if expected else 0))
    found = [step["memory_parameters"] for step in played.steps if "memory_parameters" in step]
    assert found == expected
    assert sum(value.numel() for value in state(played).values()) == expected[-1]


def test_parameters_of_a_convolutional_network(play):
    """Blocks of 4 channels on 8×8 images, halved twice: the head reads 4 · 2 · 2; adapters of 3, 3 by 3 kernels."""
    words = convolutional("model=conv4", "model.channels=4", "model.blocks=2", "method.adapter=3")
    played = play(*words).go()
    total = 0
    for k, outputs in enumerate((4, 3, 3)):
        total += (1 * 9 + 1) * 4 + 8 + (4 * 9 + 1) * 4 + 8 + (16 + 1) * outputs
        total += ((k + k * 4 * 3 + 3 * 4 * 9) + (k + k * 16 * 3 + 3 * outputs)) if k else 0
    assert sum(parameter.numel() for parameter in played.method.network.parameters()) == total


def test_columns_come_with_their_tasks(play):
    played = play(*tiny())
    found = []
    for _ in played.plan:
        found.append(len(played.method.network.columns))
        played.go(1)
    assert found == [1, 1, 1, 1, 2, 2, 2, 3, 3]
    assert len(played.method.network.columns) == 3


def test_a_task_without_a_column_has_outputs_of_zero(play):
    """Every output is as likely; nothing is created for the sake of an evaluation."""
    played = play(*tiny()).to_end_of(0)
    task = played.view[2]
    found = played.method.network_for(2)(task.test.batch(slice(None)).inputs)
    assert found.shape == (len(task.test), 10)
    assert not found.any()
    first = task.outputs.nonzero()[0, 0]
    assert played.evaluate()["accuracy/task3"] == pytest.approx(float((task.test.target == first).double().mean()))


# --- reductions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["mlp", "conv4"])
def test_without_laterals_columns_are_networks_of_their_own(play, model):
    """Each is the chosen model, with the outputs of its task, trained on that task alone."""
    sgd = ("method.optimiser=sgd", "method.lr=0.1", "method.momentum=0.9")  # Adam would magnify rounding without end
    played = play(*convolutional(*MODELS[model], "method.lateral=none", "precision=float64", *sgd)).go()
    stream, config = played.view, played.context.settings
    for number, task in enumerate(stream):
        alone = played.context.build(
            replace(stream.spec, target=Classes(int(task.outputs.sum()))), f"column {number + 1}" if number else "model"
        )
        indices = minibatches(
            len(task.train), 16, 0, 20, lambda epoch, number=number: played.context.rng("shuffle", number, epoch)
        )
        places = torch.where(task.outputs, task.outputs.cumsum(0) - 1, -1)
        local = replace(task.train, target=places[task.train.target])
        train(
            alone, batches_of(local, indices), played.method.loss, make_optimiser(alone.parameters(), config),
            settings=config, update=0, total=20, count=lambda **work: None,
        )  # fmt: skip
        column = played.method.network.columns[number].state_dict()
        assert column.keys() == alone.state_dict().keys()
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(column[name], value, rtol=1e-9, atol=1e-12)
    assert not any(name.startswith("laterals") for name in state(played))


@pytest.mark.parametrize("model", [("model.norm=batch", "model.dropout=0.2"), MODELS["conv4"]])
@pytest.mark.parametrize("lateral", ["adapter", "none"])
def test_one_task_is_finetuning_and_supervised_learning_bit_for_bit(play, same, model, lateral):
    """A stream of one task that has all outputs."""
    cut = ("dataset.limit=200", "method.lr=0.01", "method.batch_size=16", *model)
    whole = play("method=supervised", "view=plain", *cut).view
    batches = math.ceil(len(whole.train) / 16)
    task = replace(
        play(*small("finetune", "permuted")).view[0], train=whole.train, valid=whole.valid, test=whole.test
    )  # fmt: skip
    stream = Stream((task,), "task", whole.spec, {})
    length = (f"method.iterations={2 * batches}", f"method.block={batches}")
    column = play("method=progressive", f"method.lateral={lateral}", *cut, *length, view=stream).go()
    finetune = play("method=finetune", "view=stream", *cut, *length, view=stream).go()
    assert same(column.method.network.columns[0].state_dict(), finetune.weights())
    assert [step["loss"] for step in column.steps] == [step["loss"] for step in finetune.steps]
    assert column.evaluate() == finetune.evaluate()

    view = Plain(whole.train, whole.valid, whole.test, whole.spec, {})
    supervised = play("method=supervised", "view=plain", "method.epochs=2", *cut, view=view)
    keyed = supervised.context.rng
    supervised.context.rng = lambda purpose, epoch: keyed(purpose, 0, epoch)  # shuffled as in task 0
    assert same(column.method.network.columns[0].state_dict(), supervised.go().weights())


def test_weights_at_the_beginning_depend_on_the_seed_and_the_column_alone(play, same):
    one = play(*tiny()).to_end_of(1).go(1)
    other = play(*tiny("method.lr=0.5", "method.optimiser=sgd"))
    for _ in range(2):
        other.method._grow()
    torch.manual_seed(99)
    fresh = play(*tiny())
    random = torch.get_rng_state()
    for _ in range(2):
        fresh.method._grow()
    assert torch.equal(torch.get_rng_state(), random)
    assert same(state(fresh), state(other))
    weights = state(fresh)
    assert not torch.equal(weights["columns.0.body.0.weight"], weights["columns.1.body.0.weight"])
    assert not torch.equal(weights["laterals.1.0.v.weight"], weights["laterals.2.0.v.weight"][:, :12])
    assert not same(weights, state(one))
    for name, value in weights.items():
        if name.endswith(("u.weight", "v.weight")):
            bound = value[0].numel() ** -0.5
            assert 0.8 * bound < float(value.abs().max()) <= bound
        if name.endswith("alpha"):
            assert bool((value == 0.1).all())


# --- networks that it cannot connect ------------------------------------------------------------------------------


class Odd(Network):
    """Layers that are used in another order than they are defined, and perhaps more than once, or never."""

    def __init__(self, kind):
        super().__init__()
        self.head, self.second, self.first = nn.Linear(4, 2), nn.Linear(4, 4), nn.Linear(3, 4)
        self.kind, self.recipe = kind, {"name": "odd", "settings": {}, "spec": Spec({"x": (3,)}, Classes(2)).to_dict()}
        if kind == "other":
            self.table = nn.Embedding(3, 4)

    def features(self, inputs):
        hidden = self.first(inputs["x"]).relu()
        for _ in range({"twice": 2, "never": 0}.get(self.kind, 1)):
            hidden = self.second(hidden).relu()
        return hidden


def test_layers_in_the_order_of_their_use():
    odd = Odd("good")
    assert layers_of(odd) == ("first", "second", "head")
    assert odd.training
    assert not any(module._forward_hooks for module in odd.modules())


@pytest.mark.parametrize(
    ("kind", "said"),
    [("twice", "second is used 2 times"), ("never", "second is used 0 times"), ("other", r"table \(Embedding\)")],
)
def test_other_networks_are_refused(kind, said):
    network = ProgressiveNetwork(Spec({"x": (3,)}, Classes(2)), "adapter", 4)
    with pytest.raises(ConfigError, match=rf"model=odd: .*{said}.*; use model=mlp, cnn or conv4"):
        network.add(Odd(kind), [0, 1], torch.Generator())


def test_a_single_layer_has_no_laterals(play):
    with pytest.raises(ConfigError, match=r"model=linear: has one layer only.*method\.lateral=none"):
        play(*small("progressive", "task", "model=linear"))
    assert play(*small("progressive", "task", "model=linear", "method.lateral=none")).go().ended is False


def test_columns_that_begin_as_the_network_of_a_run(inside, play):
    """With a head of their own; one that is kept has the outputs of another problem."""
    run = advml.run("method.epochs=1", "dataset.limit=200", "model.hidden=[12, 8]", *QUIET)
    words = small("progressive", "task", "dataset.limit=200", "model=run", f"model.path={run.folder}")
    played = play(*words)
    start = run.network("last").state_dict()
    assert torch.equal(played.method.network.columns[0].body[0].weight, start["body.0.weight"])
    played.go()
    assert len(played.method.network.columns) == 3
    with pytest.raises(
        ConfigError, match=r"10 outputs to keep the head of the run .*use model\.head=new.*a network of 4 outputs"
    ):
        play(*words, "model.head=keep")


def test_no_hook_is_left_behind(play):
    played = play(*tiny()).go()
    played.evaluate()
    assert not any(module._forward_hooks for module in played.method.network.modules())
