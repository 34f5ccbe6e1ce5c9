"""MAML and its kin: the gradient that is followed, what it reduces to, what is adapted, and what is kept."""

import copy

import pytest
import torch
import torch.nn.functional as F
from maml_cases import DIGITS, SINE

from advml.contracts import Batch
from advml.data.episodes import Tasks
from advml.methods.meta.common import parts, task_losses
from advml.methods.meta.maml import step_weights


def drawn(played, iteration=0):
    return played.view.draw(played.method.config.tasks, played.context.rng("tasks", iteration))


def meta_gradient(method, tasks):
    """As training takes it."""
    for parameter in method.learned():
        parameter.grad = None
    method.differentiate(tasks)
    return [parameter.grad.clone() for parameter in method.learned()]


def loss_of(outputs, target):
    return F.mse_loss(outputs, target) if target.is_floating_point() else F.cross_entropy(outputs, target)


def by_hand(network, tasks, rate, steps, second=True, scale=1.0, adapts=lambda name: True):
    """The meta-loss task by task: torch.func.functional_call on the network itself, batch norms by the batch."""
    total = 0.0
    for number in range(len(tasks.query.target)):
        support, query = ({name: x[number] for name, x in part.inputs.items()} for part in tasks)
        values = dict(network.named_parameters())
        for _ in range(steps):
            outputs = torch.func.functional_call(network, values, (support,))
            moving = [name for name in values if adapts(name)]
            gradients = torch.autograd.grad(
                scale * loss_of(outputs, tasks.support.target[number]), [values[n] for n in moving], create_graph=second
            )
            values = values | {n: values[n] - rate * g for n, g in zip(moving, gradients, strict=True)}
        outputs = torch.func.functional_call(network, values, (query,))
        total = total + loss_of(outputs, tasks.query.target[number]) / len(tasks.query.target)
    return total


# --- the gradient -------------------------------------------------------------------------------------------------

LEARNED = ["", "method.inner_rates=per_parameter", "method.inner_rates=per_step", "method.adapt=head",
           "method.multi_step=10", "method.inner_rates=per_step method.multi_step=10"]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "steps"), [(words, steps) for words in LEARNED for steps in (1, 3) if steps > 1 or "multi" not in words]
)
def test_the_meta_gradient_is_that_of_finite_differences(sine, words, steps):
    played = sine(f"method.steps={steps}", "method.inner_lr=0.1", *words.split())
    method, tasks = played.method, drawn(played)
    assert finite_difference_error(method, tasks) < 1e-7


@pytest.mark.parametrize("transductive", ["true", "false"])
@pytest.mark.parametrize("per_step", ["true", "false"])
@pytest.mark.parametrize("engine", ["loop", "batched", "vmap"])
def test_also_through_batch_norm(digits, transductive, per_step, engine):
    words = (f"method.transductive={transductive}", f"method.norm_per_step={per_step}", f"method.engine={engine}")
    played = digits("method.steps=2", "model.norm=batch", "view.shots=3", "method.inner_lr=0.1", *words)
    played.go(1)  # away from scale 1 and shift 0
    assert len(played.method.norms) == (2 if per_step == "true" else 0)
    assert finite_difference_error(played.method, drawn(played, 1)) < 1e-7


def finite_difference_error(method, tasks, step=1e-5):
    """Along random directions, the worst difference from the gradient's product with the direction; of fourth order."""
    torch.manual_seed(3)
    learned = method.learned()
    gradients = meta_gradient(method, tasks)
    assert all(gradient.abs().max() > 0 for gradient in gradients)
    worst = 0.0
    for parameter, gradient in zip(learned, gradients, strict=True):
        start, direction, found = parameter.detach().clone(), torch.randn_like(parameter), 0.0
        for steps, weight in ((1, 8), (-1, -8), (2, -1), (-2, 1)):
            with torch.no_grad():
                parameter.copy_(start + steps * step * direction)
            found += weight * method.loss(tasks).item() / (12 * step)
        with torch.no_grad():
            parameter.copy_(start)
        worst = max(worst, abs(found - float((gradient * direction).sum())))
    return worst


@pytest.mark.parametrize("steps", [1, 2])
def test_the_first_order_is_another_gradient(sine, steps):
    both = [sine(f"method.steps={steps}", "method.inner_lr=0.1", f"method.order={order}") for order in (1, 2)]
    tasks = drawn(both[0])
    first, second = (meta_gradient(played.method, tasks) for played in both)
    assert both[0].method.loss(tasks).item() == both[1].method.loss(tasks).item()
    assert max(float((a - b).abs().max()) for a, b in zip(first, second, strict=True)) > 1e-3
    network = both[0].method.network
    expected = torch.autograd.grad(by_hand(network, tasks, 0.1, steps, second=False), list(network.parameters()))
    assert all(torch.allclose(a, b, atol=1e-12) for a, b in zip(first, expected, strict=True))


@pytest.mark.parametrize("words", ["", "method.inner_loss=per_shot view.shots=2", "method.adapt=head"])
@pytest.mark.parametrize("engine", ["loop", "batched", "vmap"])
def test_the_loss_and_its_gradient_by_hand(digits, words, engine):
    played = digits("method.steps=2", f"method.engine={engine}", "model.norm=batch", *words.split())
    network, tasks = played.method.network.train(), drawn(played)
    scale = 3.0 if "per_shot" in words else 1.0
    adapts = (lambda name: name.startswith("head")) if "head" in words else (lambda name: True)
    expected = by_hand(network, tasks, 0.4, 2, scale=scale, adapts=adapts)
    assert played.method.loss(tasks).item() == pytest.approx(expected.item(), abs=1e-12)
    wanted = torch.autograd.grad(expected, list(network.parameters()))
    for found, gradient in zip(meta_gradient(played.method, tasks), wanted, strict=True):
        assert torch.allclose(found, gradient, atol=1e-10)


UNROLLED = ["", "method.order=1", "method.steps=0", "method.steps=3", "method.inner_loss=per_shot view.shots=2",
            "model.activation=relu method.transductive=false"]  # fmt: skip
GRAPHED = ["model.norm=layer", "model.norm=batch", "model.dropout=0.1", "method.adapt=head", "method.engine=loop",
           "method.inner_rates=per_parameter", "method.multi_step=2 method.steps=2"]  # fmt: skip


@pytest.mark.parametrize("words", UNROLLED)
def test_without_a_graph_it_is_the_same_gradient(digits, words):
    method, tasks = (played := digits("method.steps=1", *words.split())).method, drawn(played)
    assert method.unrolled is not None
    loss = method.loss(tasks)
    loss.backward()
    wanted = [parameter.grad.clone() for parameter in method.learned()]
    assert method.differentiate(tasks).item() == pytest.approx(loss.item(), abs=1e-14)
    for parameter, gradient in zip(method.learned(), wanted, strict=True):  # it came on top
        assert torch.allclose(parameter.grad, 2 * gradient, rtol=0, atol=1e-14)


@pytest.mark.parametrize("words", GRAPHED)
def test_other_networks_and_settings_have_their_graph(digits, words):
    smooth = digits(*words.split())
    assert smooth.method.unrolled is None


@pytest.mark.parametrize("iterations", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_the_first_iterations_of_a_loop_over_tasks(play, iterations):
    """Meta-iterations of Adam on sine waves with the shipped network, against tasks one by one: ≤ 1e-9."""
    words = (
        f"method.iterations={iterations}",
        "method.block=200",
        "method.steps=1",
        "method.inner_lr=0.01",
        "model=mlp_40",
    )
    played = play("method=maml", *SINE, *words)
    network = copy.deepcopy(played.method.network)
    optimiser = torch.optim.Adam(network.parameters(), lr=0.001)
    for iteration in range(iterations):
        optimiser.zero_grad()
        by_hand(network, drawn(played, iteration), 0.01, 1).backward()
        optimiser.step()
    played.go()
    moved = [(a - b).abs().max() for a, b in
             zip(network.parameters(), played.method.network.parameters(), strict=True)]  # fmt: skip
    assert max(moved) < 1e-9


def test_engines_train_alike(digits):
    """Also where several tasks are differentiated at once, or one after another."""
    runs = [digits("method.steps=2", "model.norm=batch", f"method.engine={engine}").go() for engine in
            ("loop", "batched", "vmap")]  # fmt: skip
    assert [run.method.at_once for run in runs] == [1, None, 8]
    for run in runs[1:]:
        for name, value in run.weights().items():
            assert torch.allclose(value.double(), runs[0].weights()[name].double(), atol=1e-10), name


@pytest.mark.slow  # half a minute of compiling
@pytest.mark.parametrize("words", ["", "method.inner_rates=per_parameter method.first_order=2 model.norm=layer"])
def test_compiled_it_is_the_same(sine, words):
    runs = [sine(f"method.compile={compiled}", "method.steps=2", *words.split()).go() for compiled in ("true", "false")]
    assert runs[0].method.compiled is not None
    for (name, value), other in zip(runs[0].weights().items(), runs[1].weights().values(), strict=True):
        assert torch.allclose(value, other, atol=1e-12), name
    for step, other in zip(runs[0].steps, runs[1].steps, strict=True):
        assert step["loss"] == pytest.approx(other["loss"], abs=1e-12)


def test_the_size_of_a_block_changes_nothing(digits, same):
    runs = [digits(f"method.block={block}", "method.steps=1").go() for block in (1, 2, 4)]
    assert same(runs[0].weights(), runs[1].weights())
    assert same(runs[0].weights(), runs[2].weights())


# --- what it reduces to -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", ["method.steps=0", "method.steps=1 method.inner_lr=0",
                                   "method.steps=3 method.inner_lr=0 method.order=1"])  # fmt: skip
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_without_adaptation_it_is_a_step_on_the_mean_query_loss(digits, words, norm):
    played = digits(*words.split(), f"model.norm={norm}", "method.optimiser=sgd", "method.lr=0.3")
    tasks, network = drawn(played), copy.deepcopy(played.method.network).train()
    losses = [F.cross_entropy(network({"image": x}), y)
              for x, y in zip(tasks.query.inputs["image"], tasks.query.target, strict=True)]  # fmt: skip
    gradients = torch.autograd.grad(sum(losses) / len(losses), list(network.parameters()))
    expected = [value - 0.3 * gradient for value, gradient in zip(network.parameters(), gradients, strict=True)]
    played.method.iterate(0)
    for found, wanted in zip(played.method.network.parameters(), expected, strict=True):
        assert torch.allclose(found, wanted, atol=1e-13)


def test_linear_regression_multiplies_by_i_minus_alpha_h(play):
    """One task, one step, squared error: ∇ = (I − α H_support) · (the first-order gradient), H = 2/n Σ x̃ x̃ᵀ."""
    words = (*SINE, "model=linear", "method.inner_lr=0.02", "method.tasks=1")
    both = [play("method=maml", *words, f"method.order={order}") for order in (1, 2)]
    tasks = drawn(both[0])
    first, second = (torch.cat([g.flatten() for g in meta_gradient(played.method, tasks)]) for played in both)
    x = tasks.support.inputs["x"][0]
    extended = torch.cat([x, torch.ones_like(x)], 1)
    hessian = 2 / len(x) * extended.T @ extended
    assert torch.allclose(second, (torch.eye(2) - 0.02 * hessian) @ first, atol=1e-12)
    assert not torch.allclose(second, first, atol=1e-3)


# --- what is adapted ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "inside"), [("anil", {"head.weight", "head.bias"}), ("maml", None)])
def test_who_adapts(digits, method, inside):
    learner = (played := digits("method.steps=2", method=method)).method
    start, *_, end = learner.adaptation(learner.start(), drawn(played).support, 2, second=False, dropout=False)
    moved = {name for name in start if not torch.equal(start[name], end[name])}
    assert moved == (inside or set(start))
    # The body learns nevertheless, through the outer loop.
    before = played.weights()
    played.go(1)
    assert all(not torch.equal(before[name], value) for name, value in played.weights().items())


def test_every_task_adapts_by_itself(digits):
    learner = (played := digits()).method
    tasks = drawn(played)
    together = learner.predictions(tasks)
    for number, alone in enumerate(parts(tasks, 1)):
        assert torch.allclose(learner.predictions(alone)[:, 0], together[:, number], atol=1e-12)
    assert together.shape == (4, 3, 12, 3)
    assert not torch.allclose(together[0], together[1])


@pytest.mark.parametrize(("words", "independent"), [("method.transductive=true", False),
                                                    ("method.transductive=false", True),
                                                    ("model.norm=layer", True)])  # fmt: skip
def test_transductive_means_that_query_examples_see_each_other(digits, words, independent):
    played = digits("model.norm=batch", *words.split())
    tasks = drawn(played)
    whole = played.method.predictions(tasks)
    query = Batch({"image": tasks.query.inputs["image"][:, :5]}, tasks.query.target[:, :5])
    few = tasks._replace(query=query)
    assert torch.allclose(played.method.predictions(few), whole[:, :, :5], atol=1e-10) is independent
    assert bool(played.method.summary([])["transductive"]) is not independent


def test_nothing_is_kept_of_what_batch_norms_saw(digits, same):
    played = digits("model.norm=batch", "method.steps=2")
    before = {name: value for name, value in played.weights().items() if "running" in name or "num" in name}
    played.go()
    played.evaluate()
    assert before
    assert same(before, {name: played.weights()[name] for name in before})


def test_rates_are_learned_from_where_they_begin(sine):
    whole = sine("method.steps=2", "method.inner_lr=0.05", method="metasgd")
    network = dict(whole.method.network.named_parameters())
    assert {name: rate.shape for name, rate in whole.method.rates.items()} == {n: p.shape for n, p in network.items()}
    layers = sine("method.inner_lr=0.05", method="maml_pp")
    assert {rate.shape for rate in layers.method.rates.values()} == {(5,)}
    fixed = sine("method.steps=2", "method.inner_lr=0.05")
    assert fixed.method.rates == {}
    tasks = drawn(whole)
    assert whole.method.loss(tasks).item() == pytest.approx(fixed.method.loss(tasks).item(), abs=1e-13)
    for played in (whole, layers):
        assert all((rate == 0.05).all() for rate in played.method.rates.values())
        played.go(1)
        assert all((rate != 0.05).all() for rate in played.method.rates.values())


def test_beyond_the_trained_steps_the_last_rate_goes_on(sine):
    played = sine("method.steps=2", "method.eval_steps=4", "method.inner_rates=per_step", "method.inner_lr=0.05")
    with torch.no_grad():
        for rate in played.method.rates.values():
            rate.copy_(torch.tensor([0.0, 0.03]))
    rows, plain = (
        run.method.predictions(drawn(played)) for run in (played, sine("method.eval_steps=3", "method.inner_lr=0.03"))
    )
    assert torch.allclose(rows[1:], plain, atol=1e-12)
    assert torch.equal(rows[0], rows[1])


def test_weights_of_the_steps():
    assert step_weights(0, 0.0) == [1.0]
    assert step_weights(1, 0.0) == [0.0, 1.0]
    assert step_weights(4, 0.0) == [0.0, 0.25, 0.25, 0.25, 0.25]
    assert step_weights(4, 0.5) == [0.0, 0.125, 0.125, 0.125, 0.625]
    assert step_weights(4, 1.0) == step_weights(4, 7.0) == [0.0, 0.0, 0.0, 0.0, 1.0]


def test_orders_and_weights_change_with_the_iteration(sine):
    played = sine("method.steps=2", "method.first_order=3", "method.multi_step=4", "method.inner_lr=0.1")
    tasks, method = drawn(played), played.method
    losses, gradients = [], []
    for method.iteration in (0, 2, 3, 4):
        losses.append(method.loss(tasks).item())
        gradients.append(method.gradients_of(tasks))
    outputs = list(method.predictions(tasks)[1:3])
    after = [float(task_losses(row, tasks.query.target).mean()) for row in outputs]
    assert losses[0] == pytest.approx(sum(after) / 2, abs=1e-12)
    assert losses[1] == pytest.approx(0.25 * after[0] + 0.75 * after[1], abs=1e-12)
    assert losses[3] == pytest.approx(after[1], abs=1e-12)
    assert gradients == [4 * (2 * 10 + 2 * 10)] * 3 + [4 * (2 * 10 + 10)]
    method.iteration = 2
    first = meta_gradient(played.method, tasks)
    method.iteration = 3
    weights, method.weights = method.weights, lambda: step_weights(2, 0.5)
    second = meta_gradient(played.method, tasks)
    assert weights() != method.weights()
    assert not torch.allclose(first[0], second[0], atol=1e-4)


# --- the rest -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "passes"),  # of the support set through the network, in a meta-iteration of two steps
    [
        ("", 2),
        ("model.norm=batch", 2),
        ("method.transductive=false", 2),
        ("model.norm=batch method.transductive=false", 3),
        ("model.norm=batch method.transductive=false method.multi_step=9", 4),
    ],
)
def test_work_is_counted(digits, words, passes):
    """As often as the first layer sees an example."""
    played = digits("method.steps=2", "view.shots=2", "method.engine=loop", *words.split())
    seen = []
    first = next(module for module in played.method.replicas.network.modules() if isinstance(module, torch.nn.Linear))
    first.register_forward_hook(lambda module, given, got: seen.append(len(given[0])))
    played.method.iterate(0)
    played.method.iterate(1)
    queries = 2 * 12 if "multi_step" in words else 12
    assert played.budget.counts["updates"] == 2
    assert played.budget.counts["gradients"] == 2 * 3 * (passes * 6 + queries) == sum(seen)
    assert played.budget.counts["samples"] == played.budget.counts["gradients"]  # each pass counted


def test_state_holds_rates_and_norms(digits, same):
    words = ("method.steps=2", "method.inner_rates=per_step", "method.norm_per_step=true", "model.norm=batch")
    played = digits(*words).go(1)
    state = copy.deepcopy(played.method.state_dict())
    again = digits(*words)
    again.method.load_state_dict(state)
    played.method.iterate(2)
    again.method.iterate(2)
    for key in ("network", "rates", "norms"):
        assert state[key]
        assert same(played.method.state_dict()[key], again.method.state_dict()[key])
        assert not same(played.method.state_dict()[key], state[key])


def test_convolutions_with_batch_norm(play):
    words = ("model=conv4_stride", "model.channels=4", "model.blocks=2", "method.iterations=1", "view.train_queries=1")
    runs = [play("method=maml", *DIGITS, *words, f"method.engine={engine}") for engine in ("auto", "loop")]
    assert [(run.method.replicas.engine, run.method.at_once) for run in runs] == [("mixed", 8), ("loop", 1)]
    tasks = drawn(runs[0])
    for one, other in zip(*(meta_gradient(run.method, tasks) for run in runs), strict=True):
        assert torch.allclose(one, other, atol=1e-10)


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("downsample", ["pool", "stride"])
@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_through_convolutions_too_it_is_that_of_a_loop_and_of_finite_differences(play, norm, downsample, engine):
    """Rectifiers and maxima have kinks: a difference so small that none lies in between, and a tolerance to it."""
    small = (
        "model=conv4",
        "model.channels=3",
        "model.blocks=2",
        f"model.norm={norm}",
        f"model.downsample={downsample}",
    )
    words = ("method.steps=2", "method.inner_lr=0.1", "view.shots=2", f"method.engine={engine}")
    played = play("method=maml", *DIGITS, *small, *words)
    network, tasks = played.method.network.train(), drawn(played)
    found = meta_gradient(played.method, tasks)
    expected = torch.autograd.grad(by_hand(network, tasks, 0.1, 2), list(network.parameters()))
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one, other, atol=1e-10)
    direction = [torch.randn(g.shape, dtype=g.dtype, generator=torch.Generator().manual_seed(1)) for g in found]
    ends = []
    for side in (1e-7, -1e-7):
        moved = copy.deepcopy(network)
        with torch.no_grad():
            for parameter, along in zip(moved.parameters(), direction, strict=True):
                parameter.add_(side * along)
        ends.append(by_hand(moved, tasks, 0.1, 2).item())
    slope = sum(float((g * along).sum()) for g, along in zip(found, direction, strict=True))
    assert slope == pytest.approx((ends[0] - ends[1]) / 2e-7, rel=1e-5, abs=1e-7)


def test_tasks_in_parts(digits):
    tasks = drawn(digits())
    together = [torch.cat([getattr(few, side).target for few in parts(tasks, 2)]) for side in Tasks._fields]
    assert torch.equal(together[0], tasks.support.target)
    assert torch.equal(together[1], tasks.query.target)
    assert [len(few.query.target) for few in parts(tasks, 2)] == [2, 1]


def test_attention_is_differentiated_twice_where_it_would_be_fused(play, monkeypatch):
    """Torch's fused kernels have no second derivative; long sequences would take them."""
    said = ("method=maml", *DIGITS, "model=early_fusion", "method.inner_lr=0.1")
    short = play(*said)
    monkeypatch.setattr("advml.nn.multimodal.attention.SMALL", 0)
    long = play(*said)
    for one, other in zip(
        meta_gradient(short.method, drawn(short)), meta_gradient(long.method, drawn(long)), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)
