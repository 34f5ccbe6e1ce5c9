import pytest
import torch

from advml.contracts import Classes, Real, Spec
from advml.models.build import build, from_recipe, rebuild
from advml.models.char_lstm import without_dropout

TEXT = Spec({"text": (12,)}, Classes(65), tokens={"text": 65})
NEED = "one input of tokens, such as dataset=shakespeare has"


def lstm(weights, hidden, x):
    """One LSTM layer by its equations (Hochreiter and Schmidhuber 1997, with forget gates): x [B, T, I] → [B, T, H]."""
    w, u, b, c = weights
    state = memory = torch.zeros(len(x), hidden)
    states = []
    for step in x.unbind(1):
        i, f, g, o = (step @ w.T + b + state @ u.T + c).chunk(4, 1)
        memory = f.sigmoid() * memory + i.sigmoid() * g.tanh()
        state = o.sigmoid() * memory.tanh()
        states.append(state)
    return torch.stack(states, 1)


def test_computes_what_the_equations_say(shipped):
    net = shipped("char_lstm", TEXT, hidden=7, embedding=5)
    text = torch.randint(65, (3, 12))
    values = net.embedding.weight[text]
    for layer in range(2):
        names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        values = lstm([getattr(net.body, f"{name}_l{layer}") for name in names], 7, values)
    torch.testing.assert_close(net.features({"text": text}), values[:, -1])
    torch.testing.assert_close(net({"text": text}), net.head(values[:, -1]))


def test_has_the_layers_of_the_paper(shipped):
    net = shipped("char_lstm", TEXT)
    sizes = {name: sum(p.numel() for p in part.parameters()) for name, part in net.named_children()}
    layers = [4 * 256 * (8 + 256 + 2), 4 * 256 * (256 + 256 + 2)]
    assert sizes == {"embedding": 65 * 8, "body": sum(layers), "head": 257 * 65}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64, torch.float32])
def test_reads_tokens_of_any_type(shipped, dtype):
    net = shipped("char_lstm", TEXT, hidden=4)
    text = torch.randint(65, (2, 12))
    assert torch.equal(net({"text": text.to(dtype)}), net({"text": text}))


@pytest.mark.parametrize(
    ("spec", "need"),
    [
        (Spec({"image": (1, 8, 8)}, Classes(10)), NEED),
        (Spec({"text": (12,)}, Classes(65)), NEED),
        (Spec({"a": (3,), "b": (3,)}, Classes(2), tokens={"a": 9}), NEED),
        (Spec({"text": (3, 4)}, Classes(2), tokens={"text": 9}), "a sequence of tokens [length]"),
        (Spec({"text": (4,)}, Real((1,)), tokens={"text": 9}), "a data set with classes"),
    ],
)
def test_refuses_other_inputs(chosen, spec, need):
    cls, settings = chosen("char_lstm")
    assert cls.check(spec, settings) == need


def test_dropout_needs_two_layers(chosen):
    chosen("char_lstm", dropout=0.5)
    with pytest.raises(ValueError, match="dropout: acts between recurrent layers"):
        chosen("char_lstm", dropout=0.5, layers=1)


def test_is_rebuilt_from_its_recipe(chosen):
    _, settings = chosen("char_lstm", hidden=6)
    net = build("char_lstm", settings, TEXT, seed=3)
    assert Spec.from_dict(net.recipe["spec"]) == TEXT
    assert from_recipe(net.recipe).embedding.weight.shape == (65, 8)
    again = rebuild(net.recipe, net.state_dict())
    text = torch.randint(65, (2, 12))
    assert torch.equal(again({"text": text}), net.eval()({"text": text}))


def test_a_spec_without_tokens_is_written_as_before():
    spec = Spec({"image": (1, 8, 8)}, Classes(10))
    assert spec.to_dict() == {"inputs": {"image": [1, 8, 8]}, "target": ["Classes", 10]}
    for each in (spec, TEXT, Spec({"x": (2,)}, Real((3, 4)))):
        assert Spec.from_dict(each.to_dict()) == each


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_way_that_cudnn_differentiates_is_the_same(dropout):
    torch.manual_seed(0)
    body = torch.nn.LSTM(3, 5, 2, batch_first=True, dropout=dropout).double().eval()
    inputs = torch.randn(4, 6, 3, dtype=torch.float64)
    found = []
    for states in (body(inputs)[0], without_dropout(body, inputs)):
        found.append((states, *torch.autograd.grad(states.pow(3).sum(), list(body.parameters()))))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert (body.training, body.dropout) == (False, dropout)
