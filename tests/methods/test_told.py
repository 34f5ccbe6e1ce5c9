"""Methods with weights of their own for each task: nothing is forgotten, to the last bit, and any task can be asked."""

import copy
import math

import pytest
import torch
from continual_words import TOLD, small
from torch.func import functional_call

import advml
from advml.errors import ConfigError
from advml.models.build import rebuild
from advml.nn.metrics import accuracy
from advml.runner.checkpoint import copied
from advml.runner.export import program
from advml.runner.trained import Trained

QUIET = ("device=cpu", "threads=1", "progress=off", "figures=false", "baselines=off")
MODELS = {
    "mlp": ("model.hidden=[12, 8]",),
    "mlp batch": ("model.hidden=[12, 8]", "model.norm=batch", "model.dropout=0.2"),
    "mlp layer": ("model.hidden=[8]", "model.norm=layer"),
    "cnn": ("model=cnn", "model.channels=[3, 4]", "model.hidden=8", "model.kernel=3", "model.norm=group"),
    "conv4 batch": ("model=conv4", "model.channels=4", "model.blocks=2", "model.dropout=0.2"),
    "conv4 stride": ("model=conv4_stride", "model.channels=4", "model.blocks=2"),
}
STIRRED = [
    ("method.optimiser=sgd", "method.momentum=0.9", "method.weight_decay=0.1"),
    ("method.optimiser=adam", "method.weight_decay=0.1"),
    ("method.optimiser=adamw", "method.weight_decay=0.1", "method.clip_norm=0.5"),
    ("method.optimiser=rmsprop", "method.momentum=0.9", "method.weight_decay=0.1"),
]
every_method = pytest.mark.parametrize("method", TOLD)


def state(played):
    return copied(played.method.result().state_dict())


def outputs_of(played, number):
    """Task `number`'s own outputs on its test examples, in evaluation mode."""
    task = played.view[number]
    network = played.method.network_for(number).eval()
    with torch.no_grad():
        return network(task.test.batch(slice(None)).inputs)[:, task.outputs]


# --- what was learned stays ---------------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("model", MODELS)
def test_outputs_of_earlier_tasks_never_change(play, method, model):
    played = play(*small(method, "task", "dataset.limit=200", *MODELS[model], "method.fresh_optimiser=false"))
    known = []
    for number in range(3):
        played.to_end_of(number)
        known.append(outputs_of(played, number))
        for earlier, before in enumerate(known):
            assert torch.equal(outputs_of(played, earlier), before)
        assert bool((known[number].std(0) > 0).all())  # they say something of the examples


@every_method
@pytest.mark.parametrize("stirred", STIRRED)
def test_whatever_the_optimiser(play, method, stirred):
    more = ("dataset.limit=200", *MODELS["mlp batch"], *stirred, "method.fresh_optimiser=false")
    played = play(*small(method, "permuted task", *more))
    known = [outputs_of(played.to_end_of(number), number) for number in range(3)]
    for number in range(3):
        assert torch.equal(outputs_of(played, number), known[number])


@every_method
@pytest.mark.parametrize("model", ["mlp batch", "conv4 batch"])
def test_forgetting_is_zero(inside, method, model):
    run = advml.run(*small(method, "task", "dataset.limit=200", *MODELS[model]), *QUIET)
    assert run.result["summary"]["test_forgetting"] == 0.0
    assert run.result["summary"]["test_backward_transfer"] == 0.0
    assert run.result["summary"]["test_average_accuracy"] == run.result["summary"]["test_learning_accuracy"]


@pytest.mark.parametrize(
    ("method", "more"), [("packnet", ()), ("progressive", ("method.iterations=100", "method.lr=0.005"))]
)
def test_it_learns_every_task(play, method, more):
    """Split digits; how well is for the benchmarks."""
    found = play(f"method={method}", "view.tasks=5", "dataset.limit=800", *more).go().evaluate()
    assert min(found[f"accuracy/task{number}"] for number in range(1, 6)) > 0.85
    assert found["average_accuracy"] > 0.93


# --- asked for a task ---------------------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize(("view", "model"), [("task", "conv4 batch"), ("permuted task", "mlp batch")])
def test_predicting_any_task_from_raw_inputs_after_loading(inside, play, method, view, model):
    words = small(method, view, "dataset.limit=200", *MODELS[model])
    run = advml.load(advml.run(*words, *QUIET).folder)
    played = play(*words).go()
    for number, task in enumerate(played.view):
        found = run.predict(task.test.inputs["image"], task=task.name)
        assert bool((found[:, ~task.outputs] == -math.inf).all())
        assert torch.equal(found[:, task.outputs], outputs_of(played, number))
        assert float(accuracy(found, task.test.target)) == run.result["metrics"]["test"][f"accuracy/{task.name}"]
    tasks = [run.predict(played.view[0].test.inputs["image"], task=task.name) for task in played.view]
    assert not torch.equal(tasks[0].argmax(1), tasks[1].argmax(1))
    with pytest.raises(ConfigError, match="name one with task=: task1, task2, task3"):
        run.predict(played.view[0].test.inputs["image"])


@every_method
@pytest.mark.parametrize("model", ["mlp batch", "conv4 batch"])
def test_rebuilt_copied_and_called_with_other_weights(play, method, model):
    played = play(*small(method, "task", "dataset.limit=200", *MODELS[model])).go()
    network = played.method.result().eval()
    inputs = played.view[1].test.batch(slice(0, 7)).inputs
    with torch.no_grad():
        expected = network(inputs)
        assert torch.equal(rebuild(network.recipe, network.state_dict())(inputs), expected)
        twin = copy.deepcopy(network)
        for parameter in network.parameters():
            parameter.add_(0.1)
        assert torch.equal(twin(inputs), expected)
        assert not torch.equal(network(inputs), expected)
        assert torch.equal(functional_call(network, twin.state_dict(), (inputs,)), expected)
    for number in range(3):
        assert torch.equal(twin.of(number)(inputs)[:, twin.places(number)], expected[:, twin.places(number)])


@every_method
@pytest.mark.parametrize("model", ["mlp batch", "conv4 batch"])
def test_a_program_gives_the_outputs_of_all_tasks(play, method, model):
    played = play(*small(method, "task", "dataset.limit=200", *MODELS[model])).go()
    network = played.method.result().eval()
    _, difference = program(Trained(network, {}))
    assert difference < 1e-6


@every_method
def test_going_on_from_such_a_run(inside, play, method):
    """As a network that computes each output in its task's way."""
    run = advml.run(*small(method, "task", "dataset.limit=200", *MODELS["mlp"]), *QUIET)
    words = ("method=supervised", "view=plain", "dataset.limit=200", "model=run", f"model.path={run.folder}")
    start = play(*words).method.network
    inputs = play(*words).view.test.batch(slice(0, 9)).inputs
    with torch.no_grad():
        assert torch.equal(start.eval()(inputs), run.model(inputs))
    with pytest.raises(ConfigError, match="only a linear head can be replaced"):
        play(*words, "model.head=new")
    for other in ("finetune", "packnet"):  # what would a task's own outputs and frozen weights be there?
        with pytest.raises(ConfigError, match=r"^model\.path: .* a way of its own for each task; use another run"):
            play(*small(other, "task", "dataset.limit=200", "model=run", f"model.path={run.folder}"))


@every_method
def test_one_pass_is_what_the_flops_are_of(inside, method):
    """Not one for each task; of columns, each of which costs more than the one before, there is no estimate."""
    more = ("dataset.limit=200", "model.hidden=[12]", "baselines=off")
    run = advml.run(*small(method, "task", *more), *QUIET)
    plain = advml.run(*small("finetune", "task", *more), *QUIET)
    estimate = run.result["budget"]["flops_estimate"]
    assert estimate == (plain.result["budget"]["flops_estimate"] if method == "packnet" else None)


# --- as every method ----------------------------------------------------------------------------------------------


@every_method
@pytest.mark.parametrize("view", ["class", "domain", "permuted", "rotated"])
def test_the_task_must_be_told(inside, method, view):
    wrong = rf"^view\.scenario=\w+: method={method} serves the scenario task only; use view\.scenario=task$"
    with pytest.raises(ConfigError, match=wrong):
        advml.run(*small(method, view), *QUIET)


@every_method
@pytest.mark.parametrize("fresh", ["true", "false"])
def test_the_block_is_only_a_unit_of_recording(play, same, method, fresh):
    chosen = (f"method.fresh_optimiser={fresh}", "method.weight_decay=0.05", "method.clip_norm=0.5")
    schedule = ("method.schedule=cosine", "method.warmup=3", "method.optimiser=rmsprop", "method.momentum=0.9")
    coarse, middle, fine = (
        play(*small(method, "task", "model.norm=batch", *chosen, *schedule, f"method.block={size}")).go()
        for size in (20, 7, 1)
    )
    assert (len(coarse.steps), len(fine.steps)) == (3, 60)
    assert same(state(coarse), state(fine))
    assert same(state(coarse), state(middle))
    assert coarse.budget.counts == fine.budget.counts


@every_method
@pytest.mark.parametrize(("precision", "model"), [("float64", "conv4 batch"), ("bf16", "conv4 batch"), ("bf16", "mlp")])
def test_precisions(play, method, precision, model):
    played = play(*small(method, "task", "dataset.limit=200", *MODELS[model], f"precision={precision}"))
    known = [outputs_of(played.to_end_of(number), number) for number in range(3)]
    floating = {value.dtype for value in state(played).values() if value.is_floating_point()}
    assert floating == {torch.float64 if precision == "float64" else torch.float32}
    assert all(math.isfinite(value) for step in played.steps for value in step.values())
    assert all(torch.equal(outputs_of(played, number), known[number]) for number in range(3))
    assert 0.3 <= played.evaluate()["average_accuracy"] <= 1


@every_method
def test_the_budget_of_finetuning(play, method):
    assert play(*small(method, "task")).go().budget.counts == play(*small("finetune", "task")).go().budget.counts
