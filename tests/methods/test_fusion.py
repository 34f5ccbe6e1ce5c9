"""Fusion as a whole: its loss and remedies against plain loops, conditions, reductions, pictures, refusals."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from multimodal_words import HEADS, other_contents, refused, words

from advml.compose import compose
from advml.nn.evaluation import measure, predict
from advml.nn.multimodal.modulation import coefficients, confidence
from advml.nn.multimodal.presence import draw_gone, without
from advml.runner.baselines import plan

SGD = ("precision=float64", "method.optimiser=sgd", "method.lr=0.1", "method.epochs=1")
MODELS = ("early_fusion", "late_fusion", "cross_attention", "bottleneck", "vision_language", "clip")


def batches(played):
    """Each training batch of the first epoch, as the runner's keys give them."""
    order = torch.randperm(len(played.view.train), generator=played.context.rng("shuffle", 0))
    return [played.view.train.batch(index) for index in order.split(16)]


def by_hand(played, update):
    """Plain SGD over the first epoch: `update(network, batch, number)` has put gradients there."""
    network = copy.deepcopy(played.method.network).train()
    optimiser = torch.optim.SGD(network.parameters(), 0.1)
    for number, batch in enumerate(batches(played)):
        optimiser.zero_grad()
        update(network, batch, number)
        optimiser.step()
    return dict(network.named_parameters())


def alike(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-9, atol=1e-12)


def joint(network, batch, weight=0.5):
    """Loss of the outputs and of each head, by the network's public ways only."""
    alone = network.unimodal(network.encode(batch.inputs))
    loss = F.cross_entropy(network(batch.inputs), batch.target)
    return loss + weight * sum(F.cross_entropy(own, batch.target) for own in alone.values()), alone


def test_the_loss_with_heads_is_the_sum(play):
    played = play(*words("fusion", "late_fusion", *SGD, *HEADS))
    expected = by_hand(played, lambda network, batch, _: joint(network, batch)[0].backward())
    alike(dict(played.go().method.network.named_parameters()), expected)


@pytest.mark.parametrize("model", ["late_fusion", "cross_attention"])
def test_modality_dropout_is_the_loop(play, model):
    played = play(*words("fusion", model, *SGD, "method.modality_dropout={image: 0.3, text: 0.6}"))
    rng, streams = played.context.rng, played.view.spec.streams

    def update(network, batch, number):
        gone = draw_gone({"image": 0.3, "text": 0.6}, len(batch.target), rng("modality_dropout", number), {})
        F.cross_entropy(network(without(batch.inputs, streams, gone)), batch.target).backward()

    expected = by_hand(played, update)
    alike(dict(played.go().method.network.named_parameters()), expected)


@pytest.mark.parametrize("kind", ["ogm", "ogm_ge"])
def test_modulation_is_the_loop(play, kind):
    said = ("method.modulation.kind=" + kind, "method.modulation.alpha=0.7", "model.fusion=logit_sum")
    played = play(*words("fusion", "late_fusion", *SGD, *said))
    rng, factors_seen = played.context.rng, []

    def update(network, batch, number):
        loss, alone = joint(network, batch, 0.0)
        loss.backward()
        factors = coefficients({name: confidence(own, batch.target) for name, own in alone.items()}, 0.7)
        factors_seen.append([float(factor) for factor in factors.values()])
        for name, factor in factors.items():
            for place, parameter in enumerate(network.tower(name).parameters()):
                if parameter.grad is None:
                    continue
                noise = 0
                if kind == "ogm_ge" and parameter.numel() > 1:
                    drawn = torch.randn(parameter.shape, generator=rng("modulation", number, name, place))
                    noise = drawn.double() * parameter.grad.std()
                parameter.grad = parameter.grad * factor + noise

    expected = by_hand(played, update)
    alike(dict(played.go().method.network.named_parameters()), expected)
    assert all(min(pair) < 1 == max(pair) for pair in factors_seen)


def test_modulation_ends_after_its_epochs(play, same):
    said = words("fusion", "late_fusion", "model.fusion=logit_sum", "method.epochs=3")
    ogm = "method.modulation.kind=ogm"
    plain, short, long = (play(*said, *more) for more in ((), (ogm, "method.modulation.epochs=1"), (ogm,)))
    for each in (plain, short, long):
        each.go(1)
    assert same(short.weights(), long.weights())
    assert not same(short.weights(), plain.weights())
    plain.method.load_state_dict(copy.deepcopy(short.method.state_dict()))
    for each in (plain, short, long):
        each.go(1)
    assert same(short.weights(), plain.weights())
    assert not same(short.weights(), long.weights())


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", ["image", "text"])
def test_what_is_always_dropped_changes_no_bit(play, same, model, name):
    """Training and every number of every condition, whatever stands in the modality that is always dropped."""
    said = words("fusion", model, f"method.modality_dropout={{{name}: 1.0}}", "method.epochs=1")
    played = play(*said)
    other = play(*said, view=other_contents(played.view, name))
    assert not torch.equal(played.view.test.inputs[name], other.view.test.inputs[name])
    played.go()
    other.go()
    assert same(played.weights(), other.weights())
    assert played.steps == other.steps
    found = played.evaluate()
    assert found == other.evaluate()
    assert found["accuracy"] == found[f"accuracy/without_{name}"] == found[f"accuracy/noisy_{name}"]
    assert play(*said[:-2], "method.epochs=1").go().steps != played.steps


def test_each_condition_is_the_split_under_it(play):
    played = play(*words("fusion", "late_fusion", *HEADS)).go()
    found = played.evaluate("valid")
    conditions = played.view.conditions("valid")
    names = {"without_image", "without_text", "noisy_image", "noisy_text"}
    assert set(conditions) - {"as_is"} == names
    for name in names:
        assert found[f"accuracy/{name}"] == float(measure(played.method.network, conditions[name])["accuracy"])
    network = played.method.network
    heads = network.unimodal(network.encode(played.view.valid.batch(slice(None)).inputs))
    for name, own in heads.items():
        accuracy = (own.argmax(1) == played.view.valid.target).double().mean()
        assert found[f"accuracy/{name}_head"] == pytest.approx(float(accuracy))
    assert not any("/" in name for name in played.evaluate("train"))


def test_a_split_without_a_match_has_no_gallery(play, monkeypatch):
    played = play(*words("fusion", "cross_attention", "method.gallery=6", "dataset.examples=200")).go(1)
    test = played.method.data.test
    monkeypatch.setattr(played.method.data, "test", replace(test, target=torch.zeros_like(test.target)))
    assert not [name for name in played.method.evaluate("test") if "recall" in name]
    assert [name for name in played.method.evaluate("valid") if "recall" in name]
    assert "retrieval" not in played.method.artifacts([])


def test_a_gallery_is_scored_pair_by_pair(play):
    played = play(*words("fusion", "cross_attention", "method.gallery=6", "dataset.examples=200")).go()
    part, scores, positives = played.method._gallery("test")
    assert len(part) == 6
    assert (part.target == 1).all()
    network = played.method.network.eval()
    for i in range(6):
        for j in range(6):
            picture, caption = (part.batch(slice(place, place + 1)).inputs for place in (i, j))
            mixed = {key: (caption if key.startswith("text") else picture)[key] for key in picture}
            with torch.no_grad():
                logits = network(mixed)[0]
            assert float(scores[i, j]) == pytest.approx(float(logits[1] - logits[0]), abs=1e-5)
            assert bool(positives[i, j]) == bool(part.meaning[i] == part.meaning[j])
    assert "recall_at_1/image_to_text" in played.evaluate("valid")
    assert "query: meaning" in played.method.artifacts([])["retrieval"].text


@pytest.mark.slow
def test_matching_is_learnt(play):
    """The shipped settings: more than each modality alone, which is chance, allows."""
    played = play("method=fusion").go()
    found = played.evaluate()
    assert found["accuracy"] > 0.7
    assert abs(found["accuracy/without_text"] - 0.5) < 0.1


def test_its_baselines_serve_data_that_lack_something():
    data = ("view.drop={text: 0.3}", "view.noise={image: 0.5}")
    planned = plan(compose(["method=fusion", *data])[0])
    assert set(planned) == {"first_alone", "second_alone", "product_of_experts"}
    assert all(tree["view"]["drop"] == {"text": 0.3} for tree in planned.values())


def test_single_modalities_and_other_networks(play):
    for said in (
        ("dataset=shapes_captions", "dataset.examples=80", "view.use=[image]", "model=cnn"),
        ("dataset=shapes_captions", "dataset.examples=80", "view.use=[1]", "model=late_fusion"),
        ("dataset=digits", "dataset.limit=100", "model=mlp"),
        ("dataset=iris", "model=linear"),
        ("dataset=diabetes", "dataset.limit=100", "model=mlp"),
    ):
        played = play("method=fusion", *said, "method.epochs=1", "method.modality_dropout=0.3").go()
        found = played.evaluate()
        assert not any("without" in name for name in found)
        made = played.method.artifacts([{"split": "test", **found}])
        assert "robustness" in made
        assert ("confusion_matrix" in made) == ("accuracy" in found)


def test_pictures_tell_what_was_measured(play):
    played = play(*words("fusion", "cross_attention", "method.pictures=2")).go()
    found = played.evaluate()
    of_best = {"split": "test", "state": "best", **found, "accuracy": 2.0}  # other pictures show the last state
    made = played.method.artifacts([{"split": "valid"}, {"split": "test", **found}, of_best])
    bars = dict(line.split() for line in made["robustness"].text.splitlines()[1:])
    assert bars["as_is"] == f"{found['accuracy']:.4f}"
    assert bars["without_text"] == f"{found['accuracy/without_text']:.4f}"
    assert bars["chance"] == "0.5000"
    network = played.method.network.eval()
    inputs = played.view.test.batch(slice(0, 2)).inputs
    weights = network.attention(inputs)["image→text"].mean(1)[0]
    lines = made["attention"].text.splitlines()
    rows = [line.split() for line in lines[lines.index("  image→text") + 1 :][: len(weights)]]
    words_there = int(inputs["text_mask"][0].sum())
    for row, expected in zip(rows, weights.tolist(), strict=True):
        assert row[: words_there + 1] == [f"{value:.3f}" for value in expected[: words_there + 1]]
        assert set(row[words_there + 1 :]) <= {"-"}
    vocabulary = played.view.describe()["vocabulary"]
    spoken = [vocabulary[token] for token in played.view.test.inputs["text"][0].tolist() if token]
    assert f"  text: {' '.join(spoken)}" in lines
    predicted = predict(network, played.view.test).argmax(1)
    assert f"true {int(played.view.test.target[0])}, said {int(predicted[0])}" in lines[0]
    for drawing in (made["robustness"], made["attention"]):
        drawing.figure()


def test_early_stopping_watches_validation(play):
    played = play(*words("fusion", "late_fusion", "method.epochs=40", "method.patience=2", "method.lr=0.02")).go()
    assert played.ended
    assert len(played.steps) < 40


class TestRefusals:
    @pytest.mark.parametrize(
        ("more", "line"),
        [
            (("method.unimodal_weight=0.1",),
             "method.unimodal_weight: the model has no head for each modality; use one that has, with "
             "model.unimodal_heads=true"),
            (("method.modulation.kind=ogm",),
             "method.modulation.kind: the model has no head for each modality; use one that has, with "
             "model.unimodal_heads=true"),
            (("model.unimodal_heads=true",),
             "model.unimodal_heads: nothing trains them; set method.unimodal_weight above 0, or use false"),
            (("method.modality_dropout=1.0",),
             "method.modality_dropout: 1 for every modality leaves nothing; use less for one of them"),
            (("method.modality_dropout={sound: 0.5}",),
             "method.modality_dropout.sound: no modality; there are image, text"),
            (("view.use=[image]", "model=late_fusion", "method.gallery=3"),
             "method.gallery: needs two modalities and two classes, the second a match; use 0"),
            (("method.patience=2", "dataset.valid=0"),
             "method.patience: needs validation examples; set dataset.valid above 0"),
            (("method.loss=mse",), "method.loss: mse does not fit a target of classes; use method.loss=auto"),
        ],
    )  # fmt: skip
    def test_one_line(self, play, more, line):
        model = [] if any(word.startswith("model=") for word in more) else ["model=late_fusion"]
        assert refused(play, "method=fusion", "dataset.examples=80", *model, *more) == line

    def test_another_view(self, play):
        line = refused(play, "method=fusion", "view=plain")
        assert line.startswith("view=plain: method=fusion reads a modalities view, not plain")
