"""Attention and blocks against loops in float64 and against torch's own layers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advml.nn.multimodal.attention import Attention, attend, joined, masked_mean
from advml.nn.multimodal.blocks import BottleneckBlock, CrossBlock, SelfBlock

WIDTH, HEADS, HIDDEN = 8, 2, 12
MASK = torch.tensor([[True, True, False, True, False], [True, False, False, False, False], [True] * 5])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def double(module):
    """In float64, with every parameter away from its special initial value."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.5)
    return module.double()


def attention_by_loops(layer, x, context, mask):
    """Vaswani et al. 2017, equation 1, for one query of one head of one example at a time; padding is left out."""
    size = WIDTH // HEADS
    key_weight, value_weight = layer.key_value.weight.chunk(2)
    key_bias, value_bias = layer.key_value.bias.chunk(2)
    result = torch.zeros_like(x)
    for b in range(len(x)):
        real = [t for t in range(context.shape[1]) if mask is None or mask[b, t]]
        for t in range(x.shape[1]):
            heads = []
            for h in range(HEADS):
                rows = slice(h * size, (h + 1) * size)
                q = layer.query.weight[rows] @ x[b, t] + layer.query.bias[rows]
                scores = [q @ (key_weight[rows] @ context[b, s] + key_bias[rows]) / size**0.5 for s in real]
                shares = torch.stack(scores).exp() / torch.stack(scores).exp().sum()
                values = [value_weight[rows] @ context[b, s] + value_bias[rows] for s in real]
                heads.append(sum(share * value for share, value in zip(shares, values, strict=True)))
            result[b, t] = layer.out.weight @ torch.cat(heads) + layer.out.bias
    return result


def norm(layer, x):
    mean, variance = x.mean(-1, keepdim=True), x.var(-1, unbiased=False, keepdim=True)
    return (x - mean) / (variance + layer.eps).sqrt() * layer.weight + layer.bias


def half_by_hand(half, x, context, mask, attention=attention_by_loops):
    x = x + attention(half.attention, norm(half.norm, x), context, mask)
    first, _, _, second = half.feed
    hidden = norm(half.norm_feed, x) @ first.weight.T + first.bias
    return x + F.gelu(hidden) @ second.weight.T + second.bias


class TestAttention:
    @pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "padded"])
    def test_is_the_equation(self, mask):
        layer = double(Attention(WIDTH, HEADS))
        x, context = torch.randn(3, 4, WIDTH).double(), torch.randn(3, 5, WIDTH).double()
        torch.testing.assert_close(layer(x, context, mask), attention_by_loops(layer, x, context, mask))

    @pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "padded"])
    @pytest.mark.parametrize(("small", "gradients"), [(10_000, True), (0, True), (10_000, False)])
    def test_is_the_same_whichever_way_is_faster(self, mask, small, gradients, monkeypatch):
        monkeypatch.setattr("advml.nn.multimodal.attention.SMALL", small)
        fused = []
        kernel = F.scaled_dot_product_attention
        monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: fused.append(1) or kernel(*a, **k))
        q, k, v = (torch.randn(3, HEADS, n, 4, dtype=torch.float64, requires_grad=gradients) for n in (4, 5, 5))
        scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / 2
        if mask is not None:
            scores = torch.where(mask[:, None, None, :], scores, -torch.inf)
        expected = torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v)
        with torch.set_grad_enabled(gradients):
            found = attend(q, k, v, mask)
        torch.testing.assert_close(found, expected)
        assert len(fused) == (small == 0 or not gradients)
        if gradients:
            direction = torch.randn_like(expected)
            ours, theirs = (torch.autograd.grad(x, (q, k, v), direction) for x in (found, expected))
            torch.testing.assert_close(ours, theirs)

    @pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "padded"])
    def test_can_be_differentiated_twice_where_it_is_small(self, mask):
        given = tuple(torch.randn(3, 1, n, 2, dtype=torch.float64, requires_grad=True) for n in (2, 5, 5))
        assert torch.autograd.gradgradcheck(lambda q, k, v: attend(q, k, v, mask), given)

    @pytest.mark.parametrize("mask", [None, MASK], ids=["whole", "padded"])
    def test_is_what_torch_does(self, mask):
        layer, theirs = double(Attention(WIDTH, HEADS)), nn.MultiheadAttention(WIDTH, HEADS, batch_first=True).double()
        theirs.load_state_dict(
            {
                "in_proj_weight": torch.cat([layer.query.weight, layer.key_value.weight]),
                "in_proj_bias": torch.cat([layer.query.bias, layer.key_value.bias]),
                "out_proj.weight": layer.out.weight,
                "out_proj.bias": layer.out.bias,
            }
        )
        x, context = torch.randn(3, 4, WIDTH).double(), torch.randn(3, 5, WIDTH).double()
        padding = None if mask is None else ~mask
        output, weights = theirs(x, context, context, key_padding_mask=padding, average_attn_weights=False)
        torch.testing.assert_close(layer(x, context, mask), output)
        torch.testing.assert_close(layer.weights(x, context, mask), weights)

    def test_weights_are_shares_and_none_is_for_padding(self):
        layer = Attention(WIDTH, HEADS)
        weights = layer.weights(torch.randn(3, 4, WIDTH), torch.randn(3, 5, WIDTH), MASK)
        assert weights.shape == (3, HEADS, 4, 5)
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, HEADS, 4))
        assert (weights.movedim(-1, 1)[~MASK] == 0).all()
        assert (weights.movedim(-1, 1)[MASK] > 0).all()

    def test_heads_divide_the_width(self):
        with pytest.raises(ValueError, match="do not divide"):
            Attention(8, 3)


def test_a_self_block_is_torchs_pre_norm_encoder_layer():
    block = double(SelfBlock(WIDTH, HEADS, HIDDEN))
    theirs = nn.TransformerEncoderLayer(
        WIDTH, HEADS, HIDDEN, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
    ).double()
    part = block.part
    theirs.load_state_dict(
        {
            "self_attn.in_proj_weight": torch.cat([part.attention.query.weight, part.attention.key_value.weight]),
            "self_attn.in_proj_bias": torch.cat([part.attention.query.bias, part.attention.key_value.bias]),
            "self_attn.out_proj.weight": part.attention.out.weight,
            "self_attn.out_proj.bias": part.attention.out.bias,
            "linear1.weight": part.feed[0].weight,
            "linear1.bias": part.feed[0].bias,
            "linear2.weight": part.feed[3].weight,
            "linear2.bias": part.feed[3].bias,
            "norm1.weight": part.norm.weight,
            "norm1.bias": part.norm.bias,
            "norm2.weight": part.norm_feed.weight,
            "norm2.bias": part.norm_feed.bias,
        }
    )
    x = torch.randn(3, 5, WIDTH).double()
    torch.testing.assert_close(block(x, MASK)[MASK], theirs(x, src_key_padding_mask=~MASK)[MASK])
    torch.testing.assert_close(block(x, None), theirs(x))


class TestCross:
    def made(self):
        block = double(CrossBlock(("a", "b"), WIDTH, HEADS, HIDDEN))
        streams = {"a": torch.randn(3, 4, WIDTH).double(), "b": torch.randn(3, 5, WIDTH).double()}
        return block, streams, {"a": None, "b": MASK}

    def test_both_directions_read_what_came_in(self):
        block, streams, masks = self.made()
        a, b = block.halves["a"], block.halves["b"]
        x, y = streams["a"], streams["b"]
        found = block(streams, masks)
        torch.testing.assert_close(found["a"], half_by_hand(a, x, norm(b.norm, y), MASK))
        torch.testing.assert_close(found["b"], half_by_hand(b, y, norm(a.norm, x), None))
        in_turn = half_by_hand(b, y, norm(a.norm, found["a"]), None)  # what it must not be
        assert (found["b"] - in_turn).abs().max() > 1e-2

    def test_each_direction_has_parameters_of_its_own(self):
        block, streams, masks = self.made()
        one, other = ({id(p) for p in block.halves[name].parameters()} for name in "ab")
        assert not one & other
        assert len(one) == len(other) == 14
        assert {id(p) for p in block.parameters()} == one | other
        before = block(streams, masks)
        with torch.no_grad():
            for name, parameter in block.halves["a"].named_parameters():
                if not name.startswith("norm."):  # N_a is also what b looks at
                    parameter.add_(1.0)
        after = block(streams, masks)
        assert torch.equal(after["b"], before["b"])
        assert not torch.equal(after["a"], before["a"])

    def test_each_stream_has_a_norm_of_its_own_for_either_sublayer(self):
        block, *_ = self.made()
        assert sum(isinstance(module, nn.LayerNorm) for module in block.modules()) == 4

    def test_the_residual_is_the_querys(self):
        """With both outputs zero, a block changes nothing."""
        block, streams, masks = self.made()
        with torch.no_grad():
            for half in block.halves.values():
                for parameter in (*half.attention.out.parameters(), *half.feed[3].parameters()):
                    parameter.zero_()
        assert all(torch.equal(after, streams[name]) for name, after in block(streams, masks).items())

    def test_padding_is_not_seen(self):
        block, streams, masks = self.made()
        changed = streams | {"b": torch.where(MASK.unsqueeze(-1), streams["b"], 1e3)}
        before, after = block(streams, masks), block(changed, masks)
        assert torch.equal(before["a"], after["a"])
        assert torch.equal(before["b"][MASK], after["b"][MASK])

    def test_weights_are_those_of_its_attention(self):
        block, streams, masks = self.made()
        weights = block.weights(streams, masks)
        assert {name: tuple(values.shape) for name, values in weights.items()} == {
            "a→b": (3, HEADS, 4, 5),
            "b→a": (3, HEADS, 5, 4),
        }
        half = block.halves["a"]
        context = norm(block.halves["b"].norm, streams["b"])
        value = F.linear(context, half.attention.key_value.weight[WIDTH:], half.attention.key_value.bias[WIDTH:])
        mixed = weights["a→b"] @ value.unflatten(-1, (HEADS, -1)).transpose(1, 2)
        expected = half.attention(half.norm(streams["a"]), context, MASK)
        torch.testing.assert_close(half.attention.out(mixed.transpose(1, 2).flatten(2)), expected)

    def test_joins_two(self):
        with pytest.raises(ValueError, match="2 streams, not 3"):
            CrossBlock(("a", "b", "c"), WIDTH, HEADS, HIDDEN)


class TestBottleneck:
    def made(self):
        block = double(BottleneckBlock(("a", "b"), WIDTH, HEADS, HIDDEN))
        streams = {"a": torch.randn(3, 4, WIDTH).double(), "b": torch.randn(3, 5, WIDTH).double()}
        return block, streams, {"a": None, "b": MASK}, torch.randn(3, 2, WIDTH).double()

    def test_equations_8_and_9(self):
        block, streams, masks, shared = self.made()
        found, bottleneck = block(streams, masks, shared)
        views = []
        for name, mask in (("a", None), ("b", torch.cat([torch.ones(3, 2, dtype=torch.bool), MASK], 1))):
            part, both = block.blocks[name].part, torch.cat([shared, streams[name]], 1)
            expected = half_by_hand(part, both, norm(part.norm, both), mask)
            torch.testing.assert_close(found[name], expected[:, 2:])
            views.append(expected[:, :2])
        torch.testing.assert_close(bottleneck, (views[0] + views[1]) / 2)

    def test_what_one_writes_the_other_reads_a_block_later(self):
        block, streams, masks, shared = self.made()
        other = streams | {"b": -streams["b"]}
        (one, read), (two, written) = block(streams, masks, shared), block(other, masks, shared)
        assert torch.equal(one["a"], two["a"])
        assert not torch.allclose(read, written)
        assert not torch.allclose(block(one, masks, read)[0]["a"], block(two, masks, written)[0]["a"])


def test_masked_mean_is_the_mean_of_the_real_ones():
    tokens = torch.randn(3, 5, WIDTH)
    expected = torch.stack([row[real].mean(0) for row, real in zip(tokens, MASK, strict=True)])
    torch.testing.assert_close(masked_mean(tokens, MASK), expected)
    torch.testing.assert_close(masked_mean(tokens, None), tokens.mean(1))
    hidden = torch.where(MASK.unsqueeze(-1), tokens, float("nan"))
    assert torch.equal(masked_mean(hidden, MASK), masked_mean(tokens, MASK))


def test_joined_sequences_have_one_mask_or_none():
    a, b = torch.randn(3, 2, WIDTH), torch.randn(3, 5, WIDTH)
    tokens, mask = joined([a, b], [None, MASK])
    assert torch.equal(tokens, torch.cat([a, b], 1))
    assert mask.tolist() == [[True, True, *row] for row in MASK.tolist()]
    assert joined([a, b], [None, None])[1] is None
