"""Attention over a support set, and embeddings in full context, against loops in plain numbers."""

import math

import pytest
import torch
from torch import nn

from advml.nn.support_attention import FullContext, attended_classes, make_full_context

LABELS = torch.tensor([[2, 0, 1, 0, 2, 2], [1, 1, 0, 2, 0, 1]])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dot(one, other):
    return math.fsum(a * b for a, b in zip(one, other, strict=True))


def softmax(values):
    exponentials = [math.exp(value - max(values)) for value in values]
    return [value / math.fsum(exponentials) for value in exponentials]


def add(*vectors):
    return [math.fsum(column) for column in zip(*vectors, strict=True)]


def probabilities_by_hand(query, support, labels, ways, scale):
    """Equation 1, term by term."""
    attention = softmax(
        [scale * dot(query, one) / math.sqrt(dot(query, query)) / math.sqrt(dot(one, one)) for one in support]
    )
    return [math.fsum(a for a, y in zip(attention, labels, strict=True) if y == way) for way in range(ways)]


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_a_class_has_the_attention_of_its_examples(scale):
    queries, support = normal(2, 5, 4, seed=1), normal(2, 6, 4, seed=2)
    found = attended_classes(queries, support, LABELS, 3, scale).exp()
    expected = [
        [probabilities_by_hand(query, theirs, labels, 3, scale) for query in ours]
        for ours, theirs, labels in zip(queries.tolist(), support.tolist(), LABELS.tolist(), strict=True)
    ]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-14)


def test_they_are_normalised_so_as_logits_they_stay():
    found = attended_classes(normal(2, 5, 4, seed=1), normal(2, 6, 4, seed=2), LABELS, 3)
    torch.testing.assert_close(found.log_softmax(-1), found, rtol=1e-12, atol=1e-12)


def test_gradients_reach_support_and_query():
    inputs = normal(2, 3, 3, seed=1).requires_grad_(), normal(2, 6, 3, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(lambda f, g: attended_classes(f, g, LABELS, 3, 2.0), inputs)


# --- full context -------------------------------------------------------------------------------------------------


def sigmoid(value):
    return 1 / (1 + math.exp(-value))


def lstm_by_hand(gates, cell):
    """One step of the LSTM from its four affine maps, in torch's order i, f, g, o: (h, c)."""
    size = len(cell)
    i, f, g, o = (gates[at * size : (at + 1) * size] for at in range(4))
    cell = [sigmoid(fo) * c + sigmoid(inp) * math.tanh(new) for inp, fo, new, c in zip(i, f, g, cell, strict=True)]
    return [sigmoid(out) * math.tanh(c) for out, c in zip(o, cell, strict=True)], cell


def affine(weight, vector):
    return [dot(row, vector) for row in weight.tolist()]


def pass_by_hand(rows, lstm, suffix):
    """h_i of an LSTM along `rows`."""
    names = ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0", "bias_hh_l0")
    w_x, w_h, b_x, b_h = (getattr(lstm, name + suffix).detach() for name in names)
    hidden = cell = [0.0] * w_h.shape[1]
    found = []
    for row in rows:
        hidden, cell = lstm_by_hand(add(affine(w_x, row), affine(w_h, hidden), b_x.tolist(), b_h.tolist()), cell)
        found.append(hidden)
    return found


def support_by_hand(context, rows):
    forward = pass_by_hand(rows, context.support_lstm, "")
    backward = pass_by_hand(rows[::-1], context.support_lstm, "_reverse")[::-1]
    return [add(*three) for three in zip(forward, backward, rows, strict=True)]


def query_by_hand(context, row, support):
    """Equations 3 to 6; the LSTM's second argument [h, r] has weights W_h and W_r beside those of its input f'."""
    size = len(row)
    weight = context.query_lstm.weight_ih.detach()
    w_f, w_r, w_h = weight[:, :size], weight[:, size:], context.query_lstm.weight_hh.detach()
    bias = (context.query_lstm.bias_ih + context.query_lstm.bias_hh).tolist()
    state = cell = [0.0] * size
    for _ in range(context.reads):
        attention = softmax([dot(state, one) for one in support])
        read = add(*([a * value for value in one] for a, one in zip(attention, support, strict=True)))
        hidden, cell = lstm_by_hand(add(affine(w_f, row), affine(w_h, state), affine(w_r, read), bias), cell)
        state = add(hidden, row)
    return state


@pytest.fixture
def context():
    return make_full_context(3, 4, torch.Generator().manual_seed(5)).double()


def test_the_support_set_is_read_in_both_directions(context):
    features = normal(2, 6, 3)
    expected = [support_by_hand(context, rows) for rows in features.tolist()]
    torch.testing.assert_close(
        context.support(features), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize("reads", [1, 2, 4])
def test_a_query_reads_the_support_set(context, reads):
    context.reads = reads
    features, support = normal(2, 5, 3, seed=1), normal(2, 6, 3, seed=2)
    expected = [
        [query_by_hand(context, row, theirs) for row in rows]
        for rows, theirs in zip(features.tolist(), support.tolist(), strict=True)
    ]
    torch.testing.assert_close(
        context.query(features, support), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-14
    )


def test_without_weights_nothing_is_added():
    """An LSTM of zeros says 0: both embeddings are those without context."""
    context = FullContext(3, 2)
    for parameter in context.parameters():
        nn.init.zeros_(parameter)
    features = normal(2, 5, 3).float()
    assert torch.equal(context.support(features), features)
    assert torch.equal(context.query(features, features), features)


def test_queries_do_not_know_each_other(context):
    features, support = normal(2, 5, 3, seed=1), normal(2, 6, 3, seed=2)
    alone = context.query(features[:, 2:3], support)
    torch.testing.assert_close(alone, context.query(features, support)[:, 2:3], rtol=1e-12, atol=1e-14)


def test_tasks_do_not_know_each_other(context):
    features = normal(2, 6, 3)
    torch.testing.assert_close(context.support(features[1:]), context.support(features)[1:], rtol=1e-12, atol=1e-14)


def test_a_query_forgets_the_order_of_the_support_set_but_the_support_set_does_not(context):
    features, support = normal(1, 5, 3, seed=1), normal(1, 6, 3, seed=2)
    turned = support.flip(1)
    torch.testing.assert_close(context.query(features, turned), context.query(features, support))
    assert (context.support(turned).flip(1) - context.support(support)).abs().max() > 1e-3


def test_it_is_initialised_by_its_own_generator_alone():
    before = torch.get_rng_state()
    one, same, other = (make_full_context(3, 2, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    pairs = list(zip(one.parameters(), same.parameters(), strict=True))
    assert all(torch.equal(p, q) for p, q in pairs)
    assert not any(torch.equal(p, q) for p, q in zip(one.parameters(), other.parameters(), strict=True))


def test_gradients_reach_every_weight(context):
    support = context.support(normal(2, 6, 3, seed=2))
    found = attended_classes(context.query(normal(2, 5, 3, seed=1), support), support, LABELS, 3)
    found[..., 0].sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in context.parameters())
