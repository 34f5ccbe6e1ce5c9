"""Matching networks as a whole: what they predict, full context, state."""

import pytest
import torch
from meta_words import few_shot, refused

from advml.methods.meta.metric import features_of


def start(play, *more, model="mlp"):
    return play(*few_shot("matching", model, "method.iterations=6", "method.block=3", *more))


def test_of_one_shot_it_is_the_nearest_neighbour_by_the_cosine(play):
    played = start(play, "precision=float64").go()
    tasks = played.view.fixed("test", 0, 8)
    features = features_of(played.method.network, tasks, False)
    features = features / features.norm(dim=2, keepdim=True)
    nearest = (features[:, 5:] @ features[:, :5].mT).argmax(2)
    predicted = played.method.predictions(tasks)[0].argmax(2)
    assert torch.equal(predicted, tasks.support.target.gather(1, nearest))


def test_of_several_shots_a_class_has_the_attention_of_all_its_examples(play):
    """With equal embeddings of all queries but for one support example more: probabilities are sums, not maxima."""
    played = start(play, "precision=float64", "view.shots=3", "method.scale=5.0").go()
    tasks = played.view.fixed("test", 0, 2)
    features = features_of(played.method.network, tasks, False)
    features = features / features.norm(dim=2, keepdim=True)
    attention = (5 * features[:, 15:] @ features[:, :15].mT).softmax(2)
    expected = torch.stack([(attention * (tasks.support.target == way).unsqueeze(1)).sum(2) for way in range(5)], dim=2)
    torch.testing.assert_close(played.method.predictions(tasks)[0].exp(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("model", "full"),
    [("mlp", "true"), ("mlp", "false"), ("batch", "true"), ("conv4", "false"), ("group", "true"), ("cnn", "false")],
)
def test_it_learns_with_every_kind_of_network(play, model, full):
    more = ("view.shots=2", "method.iterations=60", "method.block=30", "method.lr=0.01", "method.tasks=2")
    played = start(play, *more, f"method.full_context={full}", model=model).go()
    assert played.steps[-1]["loss"] < played.steps[0]["loss"]


class TestFullContext:
    def test_of_inputs_with_masks_too(self, play):
        """Of captions a mask says which words are there: no probe by zeros would do."""
        words = ("dataset=shapes_captions", "dataset.task=retrieve", "dataset.examples=2000", "view=episodes",
                 "view.rotations=none", "view.valid_classes=20", "view.test_classes=20", "view.queries=2",
                 "view.valid_tasks=2", "view.test_tasks=2", "model=late_fusion", "method.iterations=1")  # fmt: skip
        played = play("method=matching", *words, "method.full_context=true").go()
        assert played.steps[-1]["loss"] > 0

    def start(self, play, *more):
        return start(play, "method.full_context=true", "method.reads=2", *more)

    def test_its_weights_move_and_are_part_of_the_state(self, play):
        played = self.start(play)
        before = {name: value.clone() for name, value in played.method.state_dict()["full_context"].items()}
        after = played.go().method.state_dict()["full_context"]
        assert before
        assert not any(torch.equal(before[name], after[name]) for name in before)

    def test_without_weights_it_is_as_without_context(self, play):
        with_context, plain = self.start(play, "precision=float64"), start(play, "precision=float64")
        for parameter in with_context.method.full_context.parameters():
            torch.nn.init.zeros_(parameter)
        tasks = plain.view.fixed("test", 0, 4)
        torch.testing.assert_close(with_context.method.predictions(tasks), plain.method.predictions(tasks))

    def test_a_fresh_object_goes_on_from_its_state(self, play, same):
        whole = self.start(play).go()
        half = self.start(play).go(1)
        rest = self.start(play)
        rest.method.load_state_dict(half.method.state_dict())
        rest.steps = list(half.steps)
        rest.go()
        assert same(whole.weights(), rest.weights())
        assert same(whole.method.state_dict()["full_context"], rest.method.state_dict()["full_context"])

    def test_the_block_size_changes_nothing(self, play, same):
        one, other = (self.start(play, f"method.block={block}").go() for block in (1, 6))
        assert same(one.weights(), other.weights())
        assert same(one.method.state_dict()["full_context"], other.method.state_dict()["full_context"])

    def test_another_seed_has_other_weights(self, play):
        one, other = (self.start(play, f"seed={seed}").method.full_context.query_lstm.weight_hh for seed in (0, 1))
        assert not torch.equal(one, other)


def test_regression_is_refused(play):
    line = refused(play, "method=matching", "dataset=sinusoid", "view=episodes_regression", "model=mlp")
    assert line == "dataset=sinusoid: its target is real, but method=matching learns classes (advml list datasets)"
