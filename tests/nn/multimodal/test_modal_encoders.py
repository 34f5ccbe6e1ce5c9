import math

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, linear

from advml.contracts import Classes, Spec, Stream
from advml.nn.multimodal.encoders import Convolutions, Frames, Patches, Tower, TowerSettings, Words, streams_of

CONFIG = TowerSettings(
    width=8, heads=2, hidden=12, depth=1, image="patches", patch=2, frames=2, dropout=0.0, unimodal_heads=False
)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def test_patches_are_a_convolution_whose_stride_is_its_side():
    layer, image = Patches((3, 6, 4), 8, 2), torch.randn(5, 3, 6, 4)
    expected = conv2d(image, layer.affine.weight.view(8, 3, 2, 2), layer.affine.bias, stride=2)
    tokens, mask = layer(image, None)
    torch.testing.assert_close(tokens, expected.flatten(2).transpose(1, 2))
    assert (layer.grid, layer.length, mask) == ((3, 2), 6, None)


def test_patches_that_do_not_fit_are_filled_up_by_zeros():
    layer, image = Patches((1, 5, 7), 8, 4), torch.randn(2, 1, 5, 7)
    filled = torch.zeros(2, 1, 8, 8)
    filled[:, :, :5, :7] = image
    expected = conv2d(filled, layer.affine.weight.view(8, 1, 4, 4), layer.affine.bias, stride=4)
    torch.testing.assert_close(layer(image, None)[0], expected.flatten(2).transpose(1, 2))
    assert layer.grid == (2, 2)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 16, 16), (1, 9, 5), (1, 1, 1)])
def test_convolutions_give_as_many_tokens_as_they_say(shape):
    layer = Convolutions(shape, 8)
    tokens, _ = layer(torch.randn(2, *shape), None)
    assert tokens.shape == (2, layer.length, 8)
    assert layer.length == math.prod(layer.grid)


@pytest.mark.parametrize("together", [1, 2, 3, 10])
def test_frames_are_joined_in_order(together):
    layer, frames = Frames((7, 3), 8, together), torch.randn(4, 7, 3)
    mask = torch.arange(7) < torch.tensor([[7], [1], [4], [0]])
    tokens, real = layer(frames, mask)
    assert layer.length == math.ceil(7 / together)
    for place in range(layer.length):
        rows = torch.zeros(4, together, 3)
        within = (frames * mask.unsqueeze(-1))[:, place * together : (place + 1) * together]
        rows[:, : within.shape[1]] = within
        torch.testing.assert_close(tokens[:, place], linear(rows.flatten(1), layer.affine.weight, layer.affine.bias))
        assert torch.equal(real[:, place], mask[:, place * together : (place + 1) * together].any(1))
    assert layer(frames, None)[1] is None


def test_words_are_looked_up_and_padding_is_not():
    layer, mask = Words((3,), 8, 5), torch.tensor([[True, True, False]])
    tokens, real = layer(torch.tensor([[4.0, 1.0, 1e9]]), mask)  # no word has that number
    assert torch.equal(tokens[0, :2], layer.vectors.weight[[4, 1]])
    assert torch.equal(real, mask)


class TestTower:
    @pytest.mark.parametrize(
        ("kind", "shape", "count"), [("image", (1, 4, 4), 4), ("frames", (5, 3), 3), ("tokens", (6,), 6)]
    )
    def test_puts_a_modality_token_in_front(self, kind, shape, count):
        tower = Tower(Stream(kind), shape, 9, CONFIG)
        values = torch.randint(9, (2, *shape)) if kind == "tokens" else torch.randn(2, *shape)
        tokens, mask = tower(values, None)
        assert tokens.shape == (2, count + 1, 8)
        assert mask is None
        assert tower.grid == ((2, 2) if kind == "image" else None)

    def test_adds_positions_and_what_marks_the_modality(self):
        tower = Tower(Stream("frames"), (6, 3), 0, CONFIG, depth=0)
        frames = torch.randn(2, 6, 3)
        tokens, _ = tower(frames, None)
        content = tower.embedding(frames, None)[0]
        torch.testing.assert_close(tokens[:, 1:], content + tower.position + tower.modality)
        torch.testing.assert_close(tokens[:, 0], (tower.token + tower.modality).expand(2, -1))
        assert isinstance(tower.norm, nn.Identity)
        assert tower.pooled(tokens, None).equal(tokens.mean(1))

    def test_the_order_of_frames_matters(self):
        tower = Tower(Stream("frames"), (6, 3), 0, CONFIG)
        nn.init.normal_(tower.position)
        frames = torch.randn(2, 6, 3)
        one, two = (tower.pooled(*tower(values, None)) for values in (frames, frames.roll(2, 1)))
        assert not torch.allclose(one, two, atol=1e-3)

    def test_nothing_but_padding_leaves_the_modality_token(self):
        tower = Tower(Stream("frames", mask="m"), (6, 3), 0, CONFIG)
        tokens, mask = tower(torch.full((1, 6, 3), float("nan")), torch.zeros(1, 6, dtype=torch.bool))
        assert mask.tolist() == [[True, False, False, False]]
        torch.testing.assert_close(tower.pooled(tokens, mask), tower.norm(tokens[:, 0]))
        assert tower.pooled(tokens, mask).isfinite().all()


def test_streams_are_those_of_the_spec_or_what_inputs_look_like():
    named = {"image": Stream("image", present="there")}
    assert streams_of(Spec({"image": (1, 4, 4), "there": ()}, Classes(2), streams=named)) == named
    spec = Spec({"a": (1, 4, 4), "b": (5, 3), "c": (6,)}, Classes(2), tokens={"c": 9})
    assert streams_of(spec) == {"a": Stream("image"), "b": Stream("frames"), "c": Stream("tokens")}
    assert streams_of(Spec({"features": (13,)}, Classes(2))) == {}
    assert streams_of(Spec({"a": (1, 4, 4), "features": (13,)}, Classes(2))) == {}
    assert streams_of(Spec({"text": (3, 4)}, Classes(2), tokens={"text": 9})) == {}


@pytest.mark.parametrize(("change", "word"), [({"heads": 3}, "heads"), ({"width": 7, "heads": 7}, "width")])
def test_widths_that_do_not_divide_are_refused(change, word):
    values = vars(CONFIG) | {"image": "convolution"} | change
    with pytest.raises(ValueError, match=f"^{word}:"):
        TowerSettings(**values)
