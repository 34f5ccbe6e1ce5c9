"""Reptile as a whole: exact reductions, the inner optimiser's memory, evaluation by fine-tuning."""

import copy

import pytest
import torch
import torch.nn.functional as F
from meta_words import few_shot, refused

from advml.methods.meta.finetuning import moments

BEFORE_NORMS = ("body.0.bias", "body.4.bias")
PLAIN = ("method.inner_optimiser=sgd", "method.schedule=constant", "method.optimiser=sgd")


def start(play, *more, model="mlp"):
    words = ("method.iterations=4", "method.block=2", "method.tasks=3", "method.steps=3", "method.eval_steps=4")
    return play(*few_shot("reptile", model, *words, *more))


def support_loss(network, tasks, task, index=slice(None)):
    inputs = {name: values[task][index] for name, values in tasks.support.inputs.items()}
    return F.cross_entropy(network(inputs), tasks.support.target[task][index])


def close(one, other):
    """A bias before a batch norm has a gradient of rounding alone, of which Adam makes steps of 1e-11."""
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-10, atol=1e-9 if name in BEFORE_NORMS else 1e-12)


@pytest.mark.parametrize("engine", ["loop", "batched", "vmap"])
@pytest.mark.parametrize("model", ["mlp", "batch"])
def test_one_inner_step_of_sgd_is_sgd_on_the_mean_support_loss(play, model, engine):
    """Inner rate α and a plain outer step ε: φ_t = θ − α ∇L_t, so θ moves by −ε α times the mean gradient."""
    words = ("method.steps=1", "method.inner_batch_size=null", "method.inner_lr=0.3", "method.lr=0.7", *PLAIN)
    played = start(play, "precision=float64", f"method.engine={engine}", "view.shots=2", *words, model=model)
    network = copy.deepcopy(played.method.network).train()
    optimiser = torch.optim.SGD(network.parameters(), 0.3 * 0.7)
    for iteration in range(4):
        tasks = played.view.draw(3, played.context.rng("tasks", iteration))
        optimiser.zero_grad()
        (sum(support_loss(network, tasks, task) for task in range(3)) / 3).backward()
        optimiser.step()
    played.go()
    close(dict(played.method.network.named_parameters()), dict(network.named_parameters()))


@pytest.mark.parametrize("model", ["mlp", "conv4"])
@pytest.mark.parametrize("memory", ["kept", "fresh"])
def test_it_is_the_loop_of_the_paper(play, memory, model):
    """Algorithm 2 task by task with torch's Adam, mini-batches and linear annealing; kept moments as in their code."""
    words = ("method.tasks=2", "view.train_shots=4", "method.inner_batch_size=6", "method.steps=5", "method.lr=0.8")
    played = start(play, "precision=float64", f"method.inner_memory={memory}", *words, model=model)
    network = copy.deepcopy(played.method.network).train()
    inner = torch.optim.Adam(network.parameters(), 0.001, (0.0, 0.999))
    rng = played.context.rng
    for iteration in range(4):
        tasks = played.view.draw(2, rng("tasks", iteration))
        theta = [parameter.detach().clone() for parameter in network.parameters()]
        moved = [torch.zeros_like(value) for value in theta]
        for task in range(2):
            if memory == "fresh":
                inner = torch.optim.Adam(network.parameters(), 0.001, (0.0, 0.999))
            # 20 examples, 6 at a time: an epoch's fourth batch has two.
            epochs = [torch.randperm(20, generator=rng("order", iteration, epoch)) for epoch in range(2)]
            for index in [*epochs[0].split(6), *epochs[1].split(6)][:5]:
                inner.zero_grad()
                support_loss(network, tasks, task, index).backward()
                inner.step()
            with torch.no_grad():
                for parameter, start_, total in zip(network.parameters(), theta, moved, strict=True):
                    total += parameter - start_
                    parameter.copy_(start_)
        with torch.no_grad():
            for parameter, total in zip(network.parameters(), moved, strict=True):
                parameter.add_(0.8 * (1 - iteration / 4) * total / 2)
    played.go()
    close(dict(played.method.network.named_parameters()), dict(network.named_parameters()))


@pytest.mark.parametrize("model", ["mlp", "conv4"])
def test_engines_agree(play, model):
    engines = ("loop", "vmap", "batched") if model == "mlp" else ("loop", "vmap")
    words = ("precision=float64", "view.shots=2", "method.inner_memory=fresh")
    runs = [start(play, *words, f"method.engine={engine}", model=model).go() for engine in engines]
    for other in runs[1:]:
        close(dict(runs[0].method.network.named_parameters()), dict(other.method.network.named_parameters()))
        tasks = runs[0].view.fixed("test", 0, 3)
        torch.testing.assert_close(
            other.method.predictions(tasks), runs[0].method.predictions(tasks), rtol=1e-8, atol=1e-10
        )


@pytest.mark.parametrize("memory", ["kept", "fresh"])
def test_the_block_size_changes_nothing(play, same, memory):
    one, other = (start(play, f"method.inner_memory={memory}", f"method.block={block}").go() for block in (1, 4))
    assert same(one.weights(), other.weights())


def test_what_is_kept_matters_and_is_part_of_the_state(play, same):
    kept, fresh = (start(play, f"method.inner_memory={memory}").go() for memory in ("kept", "fresh"))
    assert not same(kept.weights(), fresh.weights())
    assert kept.method.state_dict()["inner"]["updates"][0] == 4 * 3 * 3
    assert "inner" not in fresh.method.state_dict()
    rest, half = start(play, "method.inner_memory=kept"), start(play, "method.inner_memory=kept").go(1)
    rest.method.load_state_dict(half.method.state_dict())
    rest.steps = list(half.steps)
    assert same(rest.go().weights(), kept.weights())


@pytest.mark.parametrize("memory", ["kept", "fresh"])
@pytest.mark.parametrize("transductive", ["true", "false"])
def test_evaluation_is_fine_tuning_task_by_task(play, memory, transductive):
    words = (f"method.inner_memory={memory}", f"method.transductive={transductive}", "method.eval_batch_size=null")
    played = start(play, "precision=float64", *words, "view.shots=2", "method.eval_steps=3", model="conv4").go()
    tasks = played.view.fixed("test", 0, 2)
    found = played.method.predictions(tasks)
    assert found.shape == (4, 2, 20, 5)
    for task in range(2):
        network = copy.deepcopy(played.method.network).train()
        inner = torch.optim.Adam(network.parameters(), 0.001, (0.0, 0.999))
        if memory == "kept":
            slots = played.method.inner.state_dict()
            for number, parameter in enumerate(network.parameters()):
                inner.state[parameter] = {
                    "step": torch.tensor(float(slots["updates"][number])),
                    "exp_avg": slots["slots"]["mean"][number][0].clone(),
                    "exp_avg_sq": slots["slots"]["square"][number][0].clone(),
                }
        for step in range(4):
            with torch.no_grad():
                outputs = queried(network, tasks, task, transductive == "true")
            torch.testing.assert_close(found[step, task], outputs, rtol=1e-8, atol=1e-10)
            inner.zero_grad()
            support_loss(network, tasks, task).backward()
            inner.step()


def queried(network, tasks, task, transductive):
    """Normalised by the query set, or one query layer by layer by what the support set gives."""
    support, query = tasks.support.inputs["image"][task], tasks.query.inputs["image"][task]
    if transductive:
        return network({"image": query})
    values = torch.cat([support, query])
    for module in network.body:
        if isinstance(module, torch.nn.BatchNorm2d):
            mean, variance = (f((0, 2, 3), keepdim=True) for f in (values[:10].mean, partial_variance(values[:10])))
            normal = (values - mean) / (variance + module.eps).sqrt()
            values = normal * module.weight.view(1, -1, 1, 1) + module.bias.view(1, -1, 1, 1)
        else:
            values = module(values)
    return network.head(values.flatten(1))[10:]


def partial_variance(values):
    return lambda axes, keepdim: values.var(axes, unbiased=False, keepdim=keepdim)


def test_measuring_changes_nothing(play, same):
    played = start(play, model="conv4").go(1)
    before, memory = played.weights(), [tensor.clone() for tensor in played.method.inner.slots["square"]]
    first = played.evaluate("test")
    assert played.evaluate("test") == first
    assert same(before, played.weights())
    assert all(map(torch.equal, memory, played.method.inner.slots["square"]))


def test_at_first_it_knows_nothing_and_learning_helps(play):
    words = ("view.test_tasks=60", "view.shots=5", "view.queries=8", "method.iterations=150", "method.block=150")
    played = play(*few_shot("reptile", "mlp", *words, "model.hidden=[64]", "method.eval_steps=5", "method.tasks=2"))
    before = played.evaluate("test")
    assert abs(before["accuracy/step0"] - 0.2) < 0.05
    after = played.go().evaluate("test")
    assert abs(after["accuracy/step0"] - 0.2) < 0.05  # label maps are random: no start knows them
    assert after["accuracy"] > before["accuracy"] + 0.05


def test_the_steps_after_which_it_is_asked(play):
    assert moments(4) == [0, 1, 2, 3, 4]
    assert moments(35) == [*range(11), 20, 30, 35]
    played = start(play, "method.eval_steps=23").go()
    found = played.evaluate("test")
    steps = [int(name.partition("step")[2]) for name in found if name.startswith("accuracy/step")]
    assert steps == [*range(11), 20, 23]
    assert found["accuracy"] == found["accuracy/step23"]
    record = {"split": "test", "state": "last", **found}
    curve = played.method.artifacts([record])["adaptation"]
    assert list(curve.x) == steps
    assert curve.lines["mean"][-1] == found["accuracy"]


def test_regression(play):
    words = ("method=reptile", "dataset=sinusoid", "view=episodes_regression", "model=mlp_40", "view.test_tasks=20")
    more = ("method.iterations=300", "method.block=300", "method.eval_steps=10", "method.inner_lr=0.02", *PLAIN[:1])
    played = play(*words, *more, "method.inner_batch_size=null")
    before = played.evaluate("test")["mse"]
    found = played.go().evaluate("test")
    assert found["mse"] < before
    assert played.method.objective.mode == "min"
    assert "fit1" in played.method.artifacts([])


def test_gradients_are_counted(play):
    """5 classes of 4 examples in batches of 6, 6, 6, 2, 6."""
    words = ("view.train_shots=4", "method.inner_batch_size=6", "method.steps=5", "method.tasks=2")
    played = start(play, *words, "method.iterations=1", "method.block=1").go()
    assert played.budget.counts == {"samples": 2 * 26, "updates": 1, "gradients": 2 * 26}


@pytest.mark.parametrize("model", ["mlp", "batch", "conv4", "group", "cnn", "linear"])
def test_every_kind_of_network(play, model):
    played = start(play, "view.shots=3", "method.eval_steps=10", "method.inner_lr=0.01", model=model).go()
    found = played.evaluate("test")
    assert found["accuracy"] > found["accuracy/step0"]


@pytest.mark.parametrize("memory", ["kept", "fresh"])
def test_evaluation_tasks_do_not_know_what_is_measured_beside_them(play, memory):
    words = ("view.shots=3", "method.eval_batch_size=4", f"method.inner_memory={memory}", "precision=float64")
    played = start(play, *words, "view.train_shots=2").go()
    whole = played.method.predictions(played.view.fixed("test", 0, 8))
    few = [played.method.predictions(played.view.fixed("test", *part)) for part in ((0, 3), (3, 8))]
    torch.testing.assert_close(torch.cat(few, 1), whole, rtol=1e-9, atol=1e-12)


class TestRefusals:
    def test_more_classes_in_training(self, play):
        line = refused(play, *few_shot("reptile", "mlp", "view.train_ways=10"))
        assert line == "view.train_ways: this method has an output for each class of a task; use null"

    def test_an_engine_that_does_not_serve_the_model(self, play):
        line = refused(play, *few_shot("reptile", "conv4", "method.engine=batched"))
        assert line.startswith("method.engine: batched serves chains")

    @pytest.mark.parametrize(("key", "size"), [("inner_batch_size", 4), ("eval_batch_size", 1)])
    @pytest.mark.parametrize(("model", "more"), [("batch", ()), ("conv4", ("model.blocks=4",))])
    def test_one_example_alone_before_a_batch_norm(self, play, key, size, model, more):
        """Over images of 1 × 1, like the last ones of four blocks, a batch norm has as little to go by."""
        line = refused(play, *few_shot("reptile", model, f"method.{key}={size}", *more))
        assert line == (
            f"method.{key}: leaves one of 5 support examples alone, of which a batch norm has no statistics; "
            f"use method.{key}=null, or model.norm=layer"
        )

    def test_one_larger_image_alone_has_statistics(self, play):
        start(play, "method.inner_batch_size=4", "method.eval_batch_size=1", model="conv4").go()

    @pytest.mark.parametrize("method", ["reptile", "maml"])
    def test_a_single_query_example_before_a_batch_norm(self, play, method):
        """Normalised by itself it would be the same number whatever it was."""
        words = ("dataset=sinusoid", "view=episodes_regression", "view.queries=1", "model=mlp", "model.norm=batch")
        line = refused(play, *words, f"method={method}")
        assert line.startswith("view.queries: a batch norm has no statistics of one example; use more, method.transduc")
        play(*words, f"method={method}", "method.transductive=false")

    def test_a_single_example_before_a_batch_norm(self, play):
        words = ("dataset=sinusoid", "view=episodes_regression", "view.shots=1", "model=mlp", "model.norm=batch")
        line = refused(play, "method=reptile", *words)
        assert "use view.shots of at least 2, or model.norm=layer" in line
