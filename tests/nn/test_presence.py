"""Taking modalities away: who loses what, and what is left."""

import pytest
import torch

from advml.contracts import Stream
from advml.nn.multimodal.presence import draw_gone, without

STREAMS = {"image": Stream("image", None, "image_present"), "text": Stream("tokens", "text_mask", "text_present")}


def inputs():
    return {
        "image": torch.randn(4, 1, 2, 2),
        "text": torch.tensor([[3, 1], [2, 0], [1, 1], [5, 4]]),
        "text_mask": torch.tensor([[1, 1], [1, 0], [1, 1], [1, 1]]).bool(),
        "image_present": torch.tensor([1, 1, 0, 1]).bool(),
        "text_present": torch.ones(4).bool(),
    }


def test_contents_mask_and_presence_go_and_nothing_else():
    before, rows = inputs(), torch.tensor([1, 0, 0, 1]).bool()
    after = without(before, STREAMS, {"text": rows})
    for place in range(4):
        for key in ("text", "text_mask", "text_present"):
            expected = torch.zeros_like(before[key][place]) if rows[place] else before[key][place]
            assert torch.equal(after[key][place], expected)
    assert all(torch.equal(before[key], inputs_) for key, inputs_ in after.items() if key.startswith("image"))
    assert before["text"][0].tolist() == [3, 1]


def test_what_is_never_missing_cannot_be_taken():
    with pytest.raises(ValueError, match="image is never missing"):
        without(inputs(), {"image": Stream("image")}, {"image": torch.ones(4).bool()})


def drawn(rates, count=20000, present=None):
    return draw_gone(rates, count, torch.Generator().manual_seed(3), present or {})


def test_shares_and_somebody_always_stays():
    gone = drawn({"image": 0.3, "text": 0.5})
    assert not (gone["image"] & gone["text"]).any()
    # Both fall with 0.15; then either is spared, evenly.
    assert float(gone["image"].double().mean()) == pytest.approx(0.3 - 0.075, abs=0.01)
    assert float(gone["text"].double().mean()) == pytest.approx(0.5 - 0.075, abs=0.01)


def test_always_and_never():
    gone = drawn({"image": 1.0, "text": 0.4})
    assert gone["image"].all()
    assert not gone["text"].any()
    assert set(drawn({"image": 1.0, "text": 0.0})) == {"image"}
    assert drawn({"image": 0.0, "text": 0.0}) == {}
    three = drawn({"a": 0.9, "b": 0.9, "c": 0.9})
    counts = torch.stack(list(three.values())).sum(0)
    assert counts.max() == 2
    spared = [float((~three[name] & (counts == 2)).double().mean()) for name in three]
    assert max(spared) - min(spared) < 0.02


def lacking(share, seed):
    return torch.rand(20000, generator=torch.Generator().manual_seed(seed)) >= share


@pytest.mark.parametrize("rates", [{"image": 0.5, "text": 0.5}, {"image": 0.5, "text": 0.0}])
def test_the_only_one_that_the_data_have_stays(rates):
    """And what has both loses what it loses where nothing is missing, bit for bit."""
    image = lacking(0.3, 1)
    text = lacking(0.3, 2) | ~image
    gone = drawn(rates, present={"image": image, "text": text})
    left = (image & ~gone["image"]) | (text & ~gone.get("text", torch.tensor(False)))
    assert left.all()
    both, whole = image & text, drawn(rates)
    assert (~both).sum() > 5000
    assert all(torch.equal(gone[name][both], whole[name][both]) for name in gone)


def test_what_is_always_taken_away_is_not_spared():
    image = lacking(0.3, 1)
    gone = drawn({"image": 1.0, "text": 0.4}, present={"image": image, "text": torch.ones(20000).bool()})
    assert gone["image"].all()
    assert not gone["text"].any()
    gone = drawn({"image": 1.0, "text": 0.4}, present={"image": torch.ones(20000).bool(), "text": image})
    assert gone["image"].all()
    assert not gone["text"][image].any()
