"""The product of experts: each expert is a unimodal run, together they are Bayes' rule."""

import pytest
import torch
from multimodal_words import PLAIN, refused, words

from advml.contracts import Classes, Spec, Stream
from advml.data.modalities import seen_spec
from advml.models.build import from_recipe
from advml.models.experts import parts

PRODUCT = words("product_of_experts", "late_fusion")


def weights_of(played, name):
    return {key: value.clone() for key, value in played.method.network.expert(name).state_dict().items()}


@pytest.mark.parametrize("name", ["image", "text"])
@pytest.mark.parametrize("data", [(), ("view.drop={image: 0.3, text: 0.2}", "view.noise={image: 0.5, text: 0.1}")])
def test_an_expert_is_the_unimodal_run(play, same, name, data):
    """Bit for bit what plain supervised learning trains on that modality alone."""
    product = play(*PRODUCT, *data).go()
    alone = play(*words("supervised", "late_fusion", "view=modalities", f"view.use=[{name}]", *data)).go()
    assert same(weights_of(product, name), alone.weights())
    assert [step[f"loss/{name}"] for step in product.steps] == [step["loss"] for step in alone.steps]
    assert product.evaluate()[f"accuracy/{name}_alone"] == alone.evaluate()["accuracy"]


def test_the_parts_are_what_the_view_gives():
    streams = {"image": Stream("image"), "sound": Stream("frames", "sound_mask")}
    spec = Spec({"image": (3, 4, 4), "sound": (5, 2), "sound_mask": (5,)}, Classes(3), streams=streams)
    assert parts(seen_spec(spec, None)) == {name: seen_spec(spec, (name,)) for name in ("image", "sound")}


def test_it_is_the_rule_of_bayes(play):
    played = play(*PRODUCT, "precision=float64", "dataset.task=retrieve").go()
    network, test = played.method.network.eval(), played.view.test
    counts = torch.bincount(played.view.train.target, minlength=128) + 1.0
    prior = (counts / counts.sum()).log().double()
    inputs = test.batch(slice(None)).inputs
    with torch.no_grad():
        logs = [
            network.expert("image")({"image": inputs["image"]}).log_softmax(1),
            network.expert("text")({key: inputs[key] for key in ("text", "text_mask")}).log_softmax(1),
        ]
        total = logs[0] + logs[1] - prior
        torch.testing.assert_close(network(inputs), total - total.logsumexp(1, keepdim=True), rtol=1e-5, atol=1e-6)
        for missing, kept in (("image", logs[1]), ("text", logs[0])):
            lacking = played.view.conditions("test")[f"without_{missing}"].batch(slice(None)).inputs
            torch.testing.assert_close(network(lacking), kept, rtol=1e-5, atol=1e-6)
    found = played.evaluate()
    assert found["accuracy/without_image"] == found["accuracy/text_alone"]
    assert found["accuracy/without_text"] == found["accuracy/image_alone"]


def test_experts_learn_from_those_that_have_the_modality(play):
    played = play(*PRODUCT, "view.drop={text: 0.5}")
    present = played.view.train.inputs["text_present"]
    own = played.method.training["text"]
    assert len(own) == int(present.sum()) < len(played.view.train) == len(played.method.training["image"])
    assert torch.equal(own.target, played.view.train.target[present])
    assert set(own.inputs) == {"text", "text_mask"}
    assert played.go().evaluate()["accuracy"] >= 0


def test_another_model_for_one_modality(play):
    small = "method.models={image: {name: mlp, hidden: [5], activation: relu, norm: none, dropout: 0.0}}"
    played = play(*PRODUCT, small)
    recipes = played.method.network.recipe["settings"]["experts"]
    assert (recipes["image"]["name"], recipes["text"]["name"]) == ("mlp", "late_fusion")
    first, again = (weights_of(play(*PRODUCT, small, f"seed={seed}"), "image") for seed in (0, 1))
    assert not torch.equal(first["body.0.weight"], again["body.0.weight"])
    played.go()
    rebuilt = from_recipe(played.method.network.recipe)
    rebuilt.load_state_dict(played.method.network.state_dict())
    inputs = played.view.test.batch(slice(0, 5)).inputs
    with torch.no_grad():
        assert torch.equal(rebuilt.eval()(inputs), played.method.network.eval()(inputs))


def test_one_input_is_one_expert(play, same):
    said = ("dataset=iris", "model=mlp", "method.epochs=3", *PLAIN)
    product = play("method=product_of_experts", *said).go()
    alone = play("method=supervised", *said).go()
    assert same(weights_of(product, "features"), alone.weights())
    assert product.evaluate()["accuracy"] == alone.evaluate()["accuracy"]


def test_each_expert_stops_by_itself(play, same):
    said = ("method.epochs=30", "method.patience=2", "method.lr=0.02")
    played = play(*PRODUCT, *said).go()
    counts = {name: sum(f"loss/{name}" in step for step in played.steps) for name in ("image", "text")}
    assert played.ended
    assert max(counts.values()) == len(played.steps) < 30
    for name, count in counts.items():
        alone = play(*words("supervised", "late_fusion", "view=modalities", f"view.use=[{name}]", *said)).go()
        assert len(alone.steps) == count
        assert same(alone.weights(), weights_of(played, name))


class TestRefusals:
    def test_a_model_for_nothing(self, play):
        line = refused(play, "method=product_of_experts", "method.models={sound: {name: mlp}}")
        assert line == "method.models.sound: no modality; there are image, text"

    def test_a_model_that_needs_two(self, play):
        line = refused(play, "method=product_of_experts", "model=cross_attention")
        assert line.startswith("model: cannot serve image alone (")
        assert line.endswith("); use model=late_fusion")

    def test_a_pair_of_towers(self, play):
        line = refused(play, "method=product_of_experts", "model=clip")
        assert line.startswith("model: cannot serve image alone (model=clip: needs 2 modalities")
        assert line.endswith("); use model=late_fusion")

    def test_a_modality_that_nothing_has(self, play):
        line = refused(play, *PRODUCT, "view.drop={text: 0.99999}")
        assert line == "view.drop.text: no training example has text; use a smaller share"

    def test_a_class_that_nothing_has(self, play):
        said = words("product_of_experts", "late_fusion", "method.prior_smoothing=0.0", data="shapes_captions_retrieve")
        line = refused(play, *said)
        assert line.startswith("method.prior_smoothing=0: train lacks class ")
        assert line.endswith("; use a number above 0")
        play(*PRODUCT, "method.prior_smoothing=0.0")  # both classes are there

    def test_a_model_without_its_keys(self, play):
        line = refused(play, "method=product_of_experts", "method.models={image: {name: linear, width: 3}}")
        assert line.startswith("method.models.image.width: unknown key")

    def test_real_targets(self, play):
        line = refused(play, "method=product_of_experts", "dataset=diabetes", "model=mlp")
        assert line.startswith("dataset=diabetes: its target is real, but method=product_of_experts learns classes")


def test_filters_of_a_named_model_lie_in_memory_as_those_of_any_other(play):
    cnn = "{name: cnn, channels: [4, 4], hidden: 8, kernel: 3, norm: none, groups: 1, dropout: 0.0}"
    method = play(*PRODUCT, f"method.models={{image: {cnn}}}").method
    method.context.device = torch.device("meta")  # as on a GPU
    network = method._built("image", parts(method.data.spec)["image"])
    filters = [p for p in network.parameters() if p.dim() == 4]
    assert [p.stride() for p in filters] == [torch.empty(p.shape).stride() for p in filters] != []
