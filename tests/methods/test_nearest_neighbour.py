"""The nearest support example, in inputs or features, about a centre or not."""

import pytest
import torch
from meta_words import few_shot, refused


def start(play, *more, model="mlp"):
    return play(*few_shot("nearest_neighbour", model, "precision=float64", "view.shots=3", *more))


def rows_of(tasks, task):
    return (part.inputs["image"][task].flatten(1) for part in (tasks.support, tasks.query))


def test_in_the_inputs(play):
    played = start(play).go()
    tasks = played.view.fixed("test", 0, 8)
    predicted = played.method.predictions(tasks)
    assert predicted.shape == (1, 8, 20, 5)
    for task in range(8):
        support, query = rows_of(tasks, task)
        nearest = ((query.unsqueeze(1) - support) ** 2).sum(2).argmin(1)
        assert torch.equal(predicted[0, task].argmax(1), tasks.support.target[task][nearest])
    assert 0.5 < played.evaluate("test")["accuracy"] < 1


@pytest.mark.parametrize("model", ["mlp", "conv4", "group"])
def test_in_the_features_of_a_network_as_it_is(play, same, model):
    played = start(play, "method.space=features", model=model)
    before = played.weights()
    played.go()
    assert same(before, played.weights())
    tasks = played.view.fixed("test", 0, 4)
    predicted = played.method.predictions(tasks)[0].argmax(2)
    network = played.method.network.eval()
    for task in range(4):
        with torch.no_grad():
            support, query = (
                network.features({"image": part.inputs["image"][task]}) for part in (tasks.support, tasks.query)
            )
        nearest = torch.cdist(query, support).argmin(1)
        assert torch.equal(predicted[task], tasks.support.target[task][nearest])


def test_by_the_cosine_about_the_mean_of_training_tasks(play):
    played = start(play, "method.distance=cosine", "method.centre_tasks=23").go()
    drawn = [played.view.draw(count, played.context.rng("tasks", number)) for number, count in enumerate((10, 10, 3))]
    rows = torch.cat(
        [part.inputs["image"].flatten(2).flatten(0, 1) for tasks in drawn for part in (tasks.support, tasks.query)]
    )
    mean = rows.mean(0)
    torch.testing.assert_close(played.method.mean, mean, rtol=1e-10, atol=1e-12)
    tasks = played.view.fixed("test", 0, 4)
    predicted = played.method.predictions(tasks)[0].argmax(2)
    for task in range(4):
        support, query = ((part - mean) / (part - mean).norm(dim=1, keepdim=True) for part in rows_of(tasks, task))
        assert torch.equal(predicted[task], tasks.support.target[task][(query @ support.T).argmax(1)])
    assert [step["centre_tasks"] for step in played.steps] == [10, 20, 23]
    assert played.budget.counts == {"samples": 23 * 35}


def test_without_a_centre_there_is_one_step_and_nothing_to_do(play):
    played = start(play)
    assert [phase.steps for phase in played.method.phases()] == [1]
    before = played.evaluate("test")
    assert played.go().evaluate("test") == before
    assert played.budget.counts == {}
    assert played.method.result() is None


def test_transductive_only_where_features_are_normalised(play):
    words = ("method.transductive=true", "method.space=features")
    assert start(play, *words, model="conv4").method.summary([]) == {"transductive": True}
    assert start(play, *words, model="group").method.summary([]) == {"transductive": False}
    assert start(play, words[0], model="conv4").method.summary([]) == {"transductive": False}


class TestRefusals:
    def test_a_centre_that_changes_nothing(self, play):
        line = refused(play, *few_shot("nearest_neighbour", "mlp", "method.centre_tasks=10"))
        assert line == (
            "method.centre_tasks: euclidean distances are the same about any centre; "
            "use method.distance=cosine or method.centre_tasks=0"
        )

    def test_regression(self, play):
        line = refused(play, "method=nearest_neighbour", "dataset=sinusoid", "view=episodes_regression", "model=mlp")
        assert line.startswith("dataset=sinusoid: its target is real, but method=nearest_neighbour learns classes")
