"""Prototypical networks as a whole: reductions, batch norm, purity, refusals."""

import math

import pytest
import torch
from meta_words import few_shot, refused

from advml.methods.meta.metric import features_of


def start(play, *more, model="mlp"):
    return play(*few_shot("protonet", model, "method.iterations=6", "method.block=3", *more))


@pytest.mark.parametrize("model", ["mlp", "conv4"])
def test_of_one_shot_it_is_the_nearest_neighbour_in_the_embedding(play, model):
    played = start(play, "precision=float64", model=model).go()
    tasks = played.view.fixed("test", 0, 8)
    features = features_of(played.method.network, tasks, False)
    predicted = played.method.predictions(tasks)[0].argmax(2)
    for task in range(8):
        support, query = features[task, :5], features[task, 5:]
        nearest = torch.cdist(query, support).argmin(1)
        assert torch.equal(predicted[task], tasks.support.target[task][nearest])


def test_its_loss_is_the_cross_entropy_of_the_negative_squared_distances(play):
    """Task by task and query by query, as equations 1 and 2 say."""
    played = start(play, "precision=float64", "view.shots=3", "method.tasks=2")
    method, network = played.method, played.method.network
    tasks = played.view.draw(2, torch.Generator().manual_seed(1))
    total = 0.0
    for task in range(2):
        support = network.features({name: values[task] for name, values in tasks.support.inputs.items()})
        query = network.features({name: values[task] for name, values in tasks.query.inputs.items()})
        centres = [support[tasks.support.target[task] == way].mean(0) for way in range(5)]
        for row, label in zip(query, tasks.query.target[task].tolist(), strict=True):
            weights = [math.exp(-float((row - centre).detach().square().sum())) for centre in centres]
            total -= math.log(weights[label] / sum(weights)) / len(query) / 2
    assert float(method.loss(tasks).detach()) == pytest.approx(total, rel=1e-9)


def test_an_update_is_one_step_of_adam_on_that_loss(play):
    played = start(play, "precision=float64", "method.block=1", "method.iterations=2")
    other = start(play, "precision=float64", "method.block=1", "method.iterations=2")
    method = other.method
    optimiser = torch.optim.Adam(method.learned(), 0.001)
    for iteration in range(2):
        tasks = other.view.draw(1, other.context.rng("tasks", iteration))
        optimiser.zero_grad()
        method.loss(tasks).backward()
        optimiser.step()
    for name, value in played.go().weights().items():
        torch.testing.assert_close(value, method.network.state_dict()[name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("model", ["mlp", "batch", "conv4", "group", "cnn"])
def test_it_learns_with_every_kind_of_network(play, model):
    more = ("view.shots=2", "method.iterations=40", "method.block=20", "method.lr=0.01", "method.tasks=2")
    played = start(play, *more, model=model).go()
    assert played.steps[-1]["loss"] < played.steps[0]["loss"]
    assert 0.2 < played.evaluate("test")["accuracy"] <= 1


def test_the_block_size_changes_nothing(play, same):
    one, other = (start(play, f"method.block={block}", model="conv4").go() for block in (2, 6))
    assert same(one.weights(), other.weights())


def test_where_all_features_are_equal_no_class_is_nearer(play):
    played = start(play, "precision=float64")
    with torch.no_grad():
        for parameter in played.method.learned():
            parameter.zero_()
    assert played.evaluate("test")["loss"] == pytest.approx(math.log(5), rel=1e-6)


def test_the_head_is_neither_asked_nor_moved(play):
    played = start(play)
    before = {name: value.clone() for name, value in played.head.state_dict().items()}
    played.go()
    assert all(torch.equal(before[name], value) for name, value in played.head.state_dict().items())
    with torch.no_grad():
        first = played.evaluate("test")
        played.head.weight.normal_()
        assert played.evaluate("test") == first


def test_it_may_be_trained_on_more_classes_than_it_is_tested_on(play):
    played = start(play, "view.train_ways=12", "view.train_shots=2", "view.train_queries=3")
    tasks = played.view.draw(1, torch.Generator().manual_seed(0))
    assert (tasks.support.target.shape, tasks.query.target.shape) == ((1, 24), (1, 36))
    played.go()
    assert played.method.predictions(played.view.fixed("test", 0, 3)).shape == (1, 3, 20, 5)


class TestBatchNorm:
    def test_by_running_averages_queries_do_not_see_each_other(self, play):
        played = start(play, "precision=float64", "method.transductive=false", model="conv4").go()
        self.compare(played, alike=True)
        assert played.method.summary([]) == {"transductive": False}

    def test_transductive_ones_do(self, play):
        played = start(play, "precision=float64", "method.transductive=true", model="conv4").go()
        self.compare(played, alike=False)
        assert played.method.summary([]) == {"transductive": True}

    def compare(self, played, alike):
        tasks = played.view.fixed("test", 0, 2)
        few = tasks._replace(
            query=tasks.query._replace(
                inputs={name: values[:, :3] for name, values in tasks.query.inputs.items()},
                target=tasks.query.target[:, :3],
            )
        )
        whole, part = played.method.predictions(tasks)[:, :, :3], played.method.predictions(few)
        assert torch.allclose(whole, part, rtol=1e-9, atol=1e-9) == alike

    def test_without_batch_norm_nothing_is_transductive(self, play):
        played = start(play, "method.transductive=true", model="group")
        assert played.method.summary([]) == {"transductive": False}

    @pytest.mark.parametrize("transductive", ["true", "false"])
    def test_measuring_leaves_the_running_averages(self, play, same, transductive):
        played = start(play, f"method.transductive={transductive}", model="conv4").go(1)
        before = played.weights()
        first = played.evaluate("valid")
        assert same(before, played.weights())
        assert played.evaluate("valid") == first

    def test_training_moves_them(self, play):
        played = start(play, model="conv4")
        before = played.weights()["body.1.running_mean"]
        assert not torch.equal(played.go(1).weights()["body.1.running_mean"], before)


def test_evaluation_tasks_are_the_same_every_time(play):
    accuracies = [start(play).evaluate("test")["accuracy"] for _ in range(2)]
    assert accuracies[0] == accuracies[1]


def test_the_interval_is_that_of_the_mean_over_tasks(play):
    played = start(play).go()
    tasks = played.view.fixed("test", 0, 8)
    right = (played.method.predictions(tasks)[0].argmax(2) == tasks.query.target).double().mean(1)
    found = played.evaluate("test")
    assert found["accuracy"] == pytest.approx(float(right.mean()))
    assert found["accuracy_ci"] == pytest.approx(1.96 * float(right.std()) / math.sqrt(8), rel=1e-5)
    assert "accuracy/step0" not in found


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_the_scale_sharpens_but_changes_no_prediction(play, distance):
    outputs = []
    for scale in ("1.0", "4.0"):
        played = start(play, f"method.distance={distance}", f"method.scale={scale}", "precision=float64")
        outputs.append(played.method.predictions(played.view.fixed("test", 0, 4)))
    torch.testing.assert_close(outputs[1], 4 * outputs[0])


class TestRefusals:
    def test_a_model_without_features_to_learn(self, play):
        line = refused(play, *few_shot("protonet", "linear"))
        assert line == "model=linear: has nothing to learn before its head; use model=mlp or model=conv4"

    def test_regression(self, play):
        line = refused(play, "method=protonet", "dataset=sinusoid", "view=episodes_regression", "model=mlp")
        assert line == (
            "dataset=sinusoid: its target is real, but method=protonet learns classes (advml list datasets)"
        )

    def test_a_plain_view(self, play):
        assert "reads an episodes view" in refused(play, "method=protonet", "view=plain")

    def test_half_precision(self, play):
        line = refused(play, *few_shot("protonet", "mlp", "precision=bf16"))
        assert line.startswith("precision=bf16: method=protonet does not support it")
