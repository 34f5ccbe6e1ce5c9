"""Pretraining on all training classes, then a new head or all weights for each task."""

import copy

import pytest
import torch
import torch.nn.functional as F
from meta_words import few_shot, refused

from advml.methods.meta.metric import features_of
from advml.models.mlp import Mlp


def start(play, *more, model="mlp"):
    words = ("method.iterations=6", "method.block=3", "method.eval_steps=4", "method.batch_size=16")
    return play(*few_shot("pretrain_finetune", model, *words, *more))


def test_it_is_ordinary_training_on_all_training_classes(play):
    """Five digits in four quarter turns: twenty classes, in shuffled epochs."""
    played = start(play, "precision=float64")
    base, network = played.view.base, copy.deepcopy(played.method.network)
    assert network.head.out_features == 20 == len(base.drawn.label.unique())
    optimiser = torch.optim.Adam(network.parameters(), 0.001)
    order = torch.randperm(len(base), generator=played.context.rng("shuffle", 0))
    for index in order.split(16)[:6]:
        optimiser.zero_grad()
        batch = base.batch(index, torch.Generator())
        F.cross_entropy(network(batch.inputs), batch.target).backward()
        optimiser.step()
    played.go()
    for name, value in network.state_dict().items():
        torch.testing.assert_close(played.weights()[name], value, rtol=1e-10, atol=1e-12)
    assert played.budget.counts == {"samples": 96, "updates": 6, "gradients": 96}


@pytest.mark.parametrize("model", ["mlp", "conv4"])
@pytest.mark.parametrize("transductive", ["true", "false"])
def test_a_new_head_is_trained_on_features_as_they_are(play, model, transductive):
    words = ("precision=float64", "view.shots=2", f"method.transductive={transductive}", "method.inner_optimiser=sgd")
    played = start(play, *words, "method.inner_lr=0.1", model=model).go()
    tasks = played.view.fixed("test", 0, 2)
    found = played.method.predictions(tasks)
    assert found.shape == (5, 2, 20, 5)
    features = features_of(played.method.network, tasks, transductive == "true")
    for task in range(2):
        head = copy.deepcopy(played.method.beginner.head)
        optimiser = torch.optim.SGD(head.parameters(), 0.1)
        for step in range(5):
            torch.testing.assert_close(found[step, task], head(features[task, 10:]).detach(), rtol=1e-9, atol=1e-12)
            optimiser.zero_grad()
            F.cross_entropy(head(features[task, :10]), tasks.support.target[task]).backward()
            optimiser.step()


def test_all_weights_are_trained_with_a_new_head(play):
    words = ("precision=float64", "view.shots=2", "method.adapt=all", "method.transductive=true")
    played = start(play, *words, "method.inner_betas=[0.9, 0.99]", model="conv4").go()
    tasks = played.view.fixed("test", 0, 2)
    found = played.method.predictions(tasks)
    for task in range(2):
        network = copy.deepcopy(played.method.network).train()
        network.head = copy.deepcopy(played.method.beginner.head)
        optimiser = torch.optim.Adam(network.parameters(), 0.01, (0.9, 0.99))
        for step in range(5):
            with torch.no_grad():
                outputs = network({"image": tasks.query.inputs["image"][task]})
            torch.testing.assert_close(found[step, task], outputs, rtol=1e-7, atol=1e-8)
            optimiser.zero_grad()
            outputs = network({"image": tasks.support.inputs["image"][task]})
            F.cross_entropy(outputs, tasks.support.target[task]).backward()
            optimiser.step()


@pytest.mark.parametrize("adapt", ["head", "all"])
@pytest.mark.parametrize("model", ["mlp", "batch", "conv4", "group", "cnn", "linear"])
def test_every_kind_of_network(play, same, adapt, model):
    played = start(play, f"method.adapt={adapt}", "view.shots=2", "method.eval_steps=20", model=model).go()
    before = played.weights()
    found = played.evaluate("test")
    assert played.evaluate("test") == found
    assert same(before, played.weights())
    assert found["accuracy"] == found["accuracy/step20"] > found["accuracy/step0"]


def test_the_block_size_changes_nothing(play, same):
    one, other = (start(play, f"method.block={block}", model="conv4").go() for block in (1, 6))
    assert same(one.weights(), other.weights())


def test_at_first_it_knows_nothing(play):
    """The head is new: 60 tasks of 40 query examples, of which a fifth is right by chance."""
    found = start(play, "view.test_tasks=60", "view.queries=8").go().evaluate("test")
    assert abs(found["accuracy/step0"] - 0.2) < 0.05


def test_regression_is_refused(play):
    line = refused(play, "method=pretrain_finetune", "dataset=sinusoid", "view=episodes_regression", "model=mlp")
    assert line == (
        "dataset=sinusoid: its target is real, but method=pretrain_finetune learns classes (advml list datasets)"
    )


def test_a_view_without_common_classes_is_refused(play, monkeypatch):
    from advml.data.episodes import Episodes

    monkeypatch.setattr(Episodes, "base", None)
    line = refused(play, *few_shot("pretrain_finetune"))
    assert line == "view: its tasks are of no common set of classes to learn at once; try dataset=omniglot"


def test_a_loss_that_does_not_fit_is_refused(play):
    line = refused(play, *few_shot("pretrain_finetune", "mlp", "method.loss=mse"))
    assert line == "method.loss: mse does not fit a target of classes; use method.loss=auto"


def test_a_model_that_cannot_tell_all_training_classes_apart_is_refused(play):
    """Five classes of a task are few enough for it, the twenty of training are not."""
    words = few_shot("pretrain_finetune", "linear", "model=quantum", "model.qubits=5", "model.layers=1")
    line = refused(play, *words, "model.front=linear", "model.readout=scaled")
    assert line.startswith("model=quantum: needs ")
    assert line.endswith("this method has a network of 20 outputs")


def test_the_head_of_an_earlier_run_is_no_new_head(play, monkeypatch):
    """A network that comes with a trained head for as many classes as a task has."""
    trained = torch.randn(5, 16)

    class Trained(Mlp):
        def __init__(self, spec, settings):
            super().__init__(spec, settings)
            if spec.outputs == 5:
                with torch.no_grad():
                    self.head.weight.copy_(trained)

    monkeypatch.setattr("advml.models.mlp.Mlp", Trained)
    line = refused(play, *few_shot("pretrain_finetune"))
    assert line == "model.head: every task would begin with the head that the run ended with; use new"
