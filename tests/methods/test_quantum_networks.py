"""A circuit under methods of other families: it learns, engines agree, and what must reduce to something else does."""

import copy

import pytest
import torch
from torch.func import functional_call

from advml.errors import ConfigError

SINE = (
    "dataset=sinusoid", "view=episodes_regression", "view.valid_tasks=4", "view.test_tasks=4", "method.block=4",
    "method.iterations=8", "method.tasks=3", "model=quantum", "model.qubits=2", "model.circuit=data_reuploading",
    "model.layers=2", "precision=float64",
)  # fmt: skip
FLOWERS = (
    "dataset=iris", "view=stream_class", "view.tasks=3", "method.iterations=6", "method.block=3",
    "method.batch_size=16", "model=quantum", "model.layers=2",
)  # fmt: skip


@pytest.mark.parametrize("order", [1, 2])
def test_maml_through_a_circuit_is_gradient_descent_written_out(play, order):
    """One meta-iteration of plain gradient descent, the adapted weights by functional_call, task by task."""
    words = ("method=maml", *SINE, f"method.order={order}", "method.optimiser=sgd", "method.lr=0.1",
             "method.inner_lr=0.3")  # fmt: skip
    played = play(*words)
    network = copy.deepcopy(played.method.network)
    tasks = played.view.draw(3, played.context.rng("tasks", 0))
    start = dict(network.named_parameters())
    losses = []
    for number in range(3):
        support = {name: value[number] for name, value in tasks.support.inputs.items()}
        query = {name: value[number] for name, value in tasks.query.inputs.items()}
        inner = (functional_call(network, start, (support,)) - tasks.support.target[number]).square().mean()
        moved = torch.autograd.grad(inner, list(start.values()), create_graph=order == 2)
        adapted = {name: value - 0.3 * step for (name, value), step in zip(start.items(), moved, strict=True)}
        losses.append((functional_call(network, adapted, (query,)) - tasks.query.target[number]).square().mean())
    slopes = torch.autograd.grad(sum(losses) / 3, list(start.values()))
    played.method.iterate(0)
    for (name, value), slope in zip(start.items(), slopes, strict=True):
        assert slope.abs().max() > 0, name
        assert torch.allclose(played.weights()[name], value - 0.1 * slope, atol=1e-10), name


def test_engines_of_maml_agree_on_a_circuit_and_it_learns(play):
    runs = [play("method=maml", *SINE, f"method.engine={engine}").go() for engine in ("loop", "vmap", "auto")]
    for run in runs[1:]:
        for name, value in run.weights().items():
            assert torch.allclose(value, runs[0].weights()[name], atol=1e-9), name
    fresh = play("method=maml", *SINE)
    assert all((value != fresh.weights()[name]).any() for name, value in runs[0].weights().items())


def test_ewc_on_a_circuit(play, same):
    finetune = play("method=finetune", *FLOWERS).go()
    assert same(play("method=ewc", *FLOWERS, "method.strength=0").go().weights(), finetune.weights())
    ewc = play("method=ewc", *FLOWERS, "method.strength=100").go()
    assert not same(ewc.weights(), finetune.weights())
    assert ewc.steps[-1]["penalty"] > 0


@pytest.mark.parametrize("model", ["dressed", "quanvolution"])
def test_presets_learn_digits(play, model):
    words = ("method=supervised", "dataset.limit=200", "dataset.normalise=unit", f"model={model}", "method.epochs=5",
             "method.lr=0.05")  # fmt: skip
    played = play(*words)
    before = played.evaluate("train")
    after = played.go().evaluate("train")
    assert after["loss"] < 0.7 * before["loss"]


OTHERS = {"model.shots": 20, "model.noise": 0.05, "model.device": "lightning.qubit"}


@pytest.mark.parametrize("key", OTHERS)
def test_circuits_that_vmap_cannot_go_through_are_looped_over(play, key):
    few = ("view.shots=3", "view.queries=3", "method.steps=1", "method.eval_steps=1", f"{key}={OTHERS[key]}")
    words = ("method=maml", *SINE, "view.valid_tasks=2", "view.test_tasks=2", "model.circuit=angle_ry",
             "model.layers=1", *few, "method.iterations=1", "method.block=1", "method.tasks=2")  # fmt: skip
    played = play(*words, "method.order=1")
    assert played.method.replicas.engine == "loop"
    fresh = copy.deepcopy(played.weights())
    assert all((value != fresh[name]).any() for name, value in played.go().weights().items())
    with pytest.raises(ConfigError, match=r"method\.engine: vmap does not serve circuits with shots.*use loop"):
        play(*words, "method.order=1", "method.engine=vmap")
    if key == "model.noise":  # by backpropagation still
        return
    with pytest.raises(ConfigError, match=r"method\.order=2: PennyLane differentiates this circuit once.*order=1"):
        play(*words, "method.order=2")


def test_an_exact_circuit_of_pennylane_is_vmapped(play):
    words = ("method=maml", *SINE, "method.iterations=1", "method.block=1", "model.engine=pennylane")
    runs = [play(*words, f"method.engine={engine}").go() for engine in ("loop", "vmap")]
    for name, value in runs[1].weights().items():
        assert torch.allclose(value, runs[0].weights()[name], atol=1e-9), name


def test_shots_of_a_client_do_not_follow_from_what_its_process_did_before(play):
    words = ("method=fedavg", "dataset=iris_angles", "dataset.limit=40", "view=clients", "view.clients=2",
             "method.rounds=1", "method.batch_size=4", "model=quantum", "model.layers=1", "model.shots=5")  # fmt: skip
    method = play(*words).method
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        found.append(method.local(0, [1], [1]).deltas)
    assert found[0]
    for name, rows in found[0].items():
        assert torch.equal(rows, found[1][name]), name
        assert rows.abs().max() > 0, name
