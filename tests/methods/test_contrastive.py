"""Contrastive learning: its update against a plain loop, the scale, retrieval, zero-shot classification."""

import copy
import math

import pytest
import torch
from multimodal_words import refused, words

from advml.contracts import Batch
from advml.nn.multimodal.losses import info_nce, sigmoid_loss

PAIRS = words("contrastive", "clip", data="shapes_captions_retrieve")


def embedded(network, inputs):
    return network.embed("image", inputs), network.embed("text", inputs)


@pytest.mark.parametrize("contrast", ["info_nce", "sigmoid"])
def test_it_is_the_loop(play, contrast):
    """Plain SGD with decay on all but the scale, which is clamped after each update."""
    said = ("precision=float64", "method.optimiser=sgd", "method.lr=0.5", "method.weight_decay=0.01")
    more = ("method.epochs=1", "method.max_scale=14.4", "method.bias=-3.0", "method.scale=14.0")
    played = play(*PAIRS, *said, *more, f"method.contrast={contrast}")
    network = copy.deepcopy(played.method.network).train()
    bias = torch.nn.Parameter(torch.tensor(-3.0, dtype=torch.float64))
    assert float(network.log_scale.detach().exp()) == pytest.approx(14.0)
    own = [network.log_scale] + ([bias] if contrast == "sigmoid" else [])
    others = [p for p in network.parameters() if p.requires_grad and p is not network.log_scale]
    optimiser = torch.optim.SGD([{"params": others, "weight_decay": 0.01}, {"params": own, "weight_decay": 0}], 0.5)
    order = torch.randperm(len(played.view.train), generator=played.context.rng("shuffle", 0))
    scales = []
    for index in order.split(16):
        batch = played.view.train.batch(index)
        one, other = embedded(network, batch.inputs)
        positives = batch.target[:, None] == batch.target[None, :]
        optimiser.zero_grad()
        if contrast == "info_nce":
            loss = info_nce(one, other, network.log_scale, positives)
        else:
            loss = sigmoid_loss(one, other, network.log_scale, bias, positives)
        loss.backward()
        optimiser.step()
        with torch.no_grad():
            network.log_scale.clamp_(max=math.log(14.4))
        scales.append(float(network.log_scale.detach().exp()))
    played.go()
    for (name, expected), found in zip(network.named_parameters(), played.method.network.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-11, msg=name)
    assert played.steps[0]["scale"] == pytest.approx(scales[-1])
    assert max(scales) <= 14.4 * (1 + 1e-12)
    if contrast == "sigmoid":
        torch.testing.assert_close(played.method.pairs.bias, bias)
        assert float(bias.detach()) != -3.0


@pytest.mark.parametrize("contrast", ["info_nce", "sigmoid"])
def test_under_bfloat16_the_loss_keeps_its_digits(play, contrast):
    """Outputs are rounded, once; their products are not."""
    method = play(*PAIRS, "precision=bf16", f"method.contrast={contrast}").method
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(16, 24, generator=generator).bfloat16()
    batch = Batch({}, torch.arange(16))
    one, other = outputs.double().chunk(2, 1)
    scale, positives = method.scale.detach().double(), torch.eye(16, dtype=torch.bool)
    if contrast == "info_nce":
        expected = info_nce(one, other, scale, positives)
    else:
        expected = sigmoid_loss(one, other, scale, torch.tensor(method.config.bias).double(), positives)
    with method.context.autocast():
        found = method._loss(outputs, batch).detach().double()
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)


def test_what_has_no_part_in_it_stays(play):
    played = play(*PAIRS, "method.weight_decay=0.1", "method.optimiser=adamw")
    before = played.weights()
    after = played.go().weights()
    unmoved = {name for name, value in after.items() if torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in unmoved} == {"head", "missing"}


def test_recall_and_zero_shot_by_hand(play):
    played = play(*PAIRS, "dataset.examples=300").go()
    network, test = played.method.network.eval(), played.view.test
    with torch.no_grad():
        one, other = embedded(network, test.batch(slice(None)).inputs)
    target, found = test.target.tolist(), played.evaluate()
    scores = (one @ other.T).tolist()
    assert len(set(target)) < len(target)  # meanings repeat
    for direction, table in (("image_to_text", scores), ("text_to_image", list(map(list, zip(*scores, strict=True))))):
        for k in (1, 5, 10):
            hits = 0
            for place, row in enumerate(table):
                ranked = sorted(range(len(row)), key=lambda j: -row[j])[:k]
                hits += any(target[j] == target[place] for j in ranked)
            assert found[f"recall_at_{k}/{direction}"] == pytest.approx(hits / len(table))
    mean = (found["recall_at_5/image_to_text"] + found["recall_at_5/text_to_image"]) / 2
    assert found["recall_at_5"] == pytest.approx(mean)
    with torch.no_grad():
        classes = network.embed("text", played.view.prompts)
    said = (one @ classes.T).argmax(1)
    assert classes.shape[0] == 128
    assert found["zero_shot_accuracy"] == pytest.approx(float((said == test.target).double().mean()))


def test_a_smaller_gallery_is_easier(play):
    played = play(*PAIRS, "dataset.examples=300", "method.gallery=10").go()
    assert len(played.method._asked("test")) == 10
    assert played.evaluate()["recall_at_10"] == 1.0
    assert play(*PAIRS, "dataset.examples=300").go().evaluate()["recall_at_10"] < 1.0


def test_pairs_are_found_after_a_while(play):
    said = ("dataset.examples=1200", "dataset.pixel_noise=0.0", "dataset.lost_words=0.0", "method.lr=0.003")
    played = play("method=contrastive", *said, "method.epochs=6")
    before = played.evaluate("valid")["recall_at_10"]
    found = played.go().evaluate("valid")
    assert found["recall_at_10"] > before + 0.2
    assert played.evaluate("train") == {}


def test_pairs_that_lack_a_half_are_left_out(play):
    played = play(*PAIRS, "view.drop={image: 0.25}")
    kept = played.view.train.inputs["image_present"]
    assert len(played.method.training) == int(kept.sum()) < len(kept)
    assert torch.equal(played.method.training.target, played.view.train.target[kept])


def test_the_picture_tells_what_was_found(play):
    played = play(*PAIRS, "method.pictures=3").go()
    drawing = played.method.artifacts([])["retrieval"]
    lines = drawing.text.splitlines()
    scores, positives = played.method._scores("test")
    target = played.view.test.target
    for query in range(3):
        head, *rows = lines[query * 6 : query * 6 + 6]
        assert head.startswith(f"query: meaning {int(target[query])} | ")
        for row, place in zip(rows, scores.T[query].argsort(descending=True).tolist(), strict=False):
            assert row.split()[:3] == ["+" if positives.T[query][place] else "-", "meaning", str(int(target[place]))]
    drawing.figure()


def test_a_restored_run_goes_on_alike(play, same):
    said = (*PAIRS, "method.contrast=sigmoid", "method.epochs=3")
    whole, half, rest = play(*said).go(), play(*said).go(1), play(*said)
    rest.method.load_state_dict(copy.deepcopy(half.method.state_dict()))
    rest.steps = list(half.steps)
    assert same(rest.go().weights(), whole.weights())
    assert torch.equal(rest.method.pairs.bias, whole.method.pairs.bias)


class TestRefusals:
    def test_one_modality(self, play):
        line = refused(play, "method=contrastive", "view.use=[image]", "model=late_fusion")
        assert line == "view: contrastive learning needs two modalities; use another data set or view.use=null"

    def test_data_in_which_half_the_pairs_do_not_match(self, play):
        line = refused(play, "method=contrastive", "dataset=shapes_captions", "dataset.task=matches")
        assert line == "dataset.task: asks which pairs match, so half of them do not; use a task where all do"

    def test_a_model_without_embeddings(self, play):
        line = refused(play, "method=contrastive", "model=early_fusion")
        assert line == "model: embeds no modality by itself; use model=clip"

    def test_heads_that_nothing_trains(self, play):
        line = refused(play, *PAIRS, "model.unimodal_heads=true")
        assert line == "model.unimodal_heads: nothing trains them; use false"

    def test_no_pair_left(self, play):
        line = refused(play, *PAIRS, "view.drop={image: 0.5, text: 0.5}")
        assert line == "view.drop: no training example has both modalities; use smaller shares"
