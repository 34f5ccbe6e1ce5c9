"""The linear layer by oneDNN against torch's own."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, vmap
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from advml.nn import affine, products
from advml.nn.affine import Affine
from advml.nn.flops import FlopCounter

IN, OUT, EXAMPLES = 256, 512, 128


@pytest.fixture(autouse=True)
def mkl_lags(monkeypatch):
    """As on a processor where oneDNN is the faster one: its results must be right on every one that has it."""
    if not torch.backends.mkldnn.is_available():
        pytest.skip("torch is built without oneDNN")
    monkeypatch.setattr(products, "mkl_lags", lambda: True)


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return Affine(IN, OUT)


@pytest.fixture
def inputs():
    return torch.randn(EXAMPLES, IN, generator=torch.Generator().manual_seed(1))


def taken(work):
    """Whether `work` went through oneDNN."""
    calls = []

    def counted(a, weight, bias):
        calls.append(1)
        return F.linear(a, weight, bias)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(affine, "onednn", counted)
        work()
    return len(calls)


def gradients(layer, inputs, forward):
    """Of x, W, b for the loss Σ tanh(y)²."""
    inputs = inputs.clone().requires_grad_()
    return torch.autograd.grad(forward(inputs).tanh().square().sum(), [inputs, *layer.parameters()])


@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients(inputs, bias):
    layer = Affine(IN, OUT, bias=bias)
    exact = nn.Linear(IN, OUT, bias=bias).double()
    exact.load_state_dict(layer.state_dict())
    assert torch.allclose(layer(inputs).double(), exact(inputs.double()), atol=1e-5)
    found, expected = gradients(layer, inputs, layer), gradients(exact, inputs.double(), exact)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one.double(), other, rtol=1e-4, atol=1e-4 * float(other.abs().max()))


def test_second_derivatives(layer, inputs):
    def norm_of_gradient(x, weight, forward):
        (first,) = torch.autograd.grad(forward(x).tanh().square().sum(), x, create_graph=True)
        return torch.autograd.grad(first.square().sum(), [x, weight])

    exact = nn.Linear(IN, OUT).double()
    exact.load_state_dict(layer.state_dict())
    found = norm_of_gradient(inputs.clone().requires_grad_(), layer.weight, layer)
    expected = norm_of_gradient(inputs.double().requires_grad_(), exact.weight, exact)
    for one, other in zip(found, expected, strict=True):
        assert torch.allclose(one.double(), other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


def test_oneDNN_is_used_where_it_pays_and_nowhere_else(layer, inputs):
    assert taken(lambda: layer(inputs)) == 1
    assert taken(lambda: layer(inputs).sum().backward()) == 2  # the inputs need no gradient
    assert taken(lambda: gradients(layer, inputs, layer)) == 3
    assert not taken(lambda: layer(inputs[:16]))
    assert not taken(lambda: layer(inputs.unsqueeze(0)))
    assert not taken(lambda: layer.double()(inputs.double()))


def test_watched_and_autocast_calls_are_torchs_own(layer, inputs):
    seen = []

    class Watching(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    def watched():
        with Watching():
            layer(inputs)

    assert not taken(watched)
    assert F.linear in seen
    with torch.autocast("cpu", torch.bfloat16):
        assert not taken(lambda: layer(inputs))
        assert layer(inputs).dtype == torch.bfloat16


def test_as_a_function_of_its_parameters(layer, inputs):
    """By name, and many at once under vmap, with gradients."""
    values = {name: value.detach() for name, value in layer.named_parameters()}
    assert torch.equal(functional_call(layer, values, (inputs,)), layer(inputs))
    many = {name: torch.stack([value, 2 * value]).requires_grad_() for name, value in values.items()}
    outputs = vmap(lambda own: functional_call(layer, own, (inputs,)))(many)
    assert torch.allclose(outputs[1], 2 * layer(inputs), atol=1e-4)
    weights = torch.autograd.grad(outputs.square().sum(), many["weight"])[0]
    own = {name: (2 * value).requires_grad_() for name, value in values.items()}
    (alone,) = torch.autograd.grad(functional_call(layer, own, (inputs,)).square().sum(), own["weight"])
    assert torch.allclose(weights[1], alone, rtol=1e-3, atol=1e-2)


def test_its_work_is_counted(layer, inputs):
    with FlopCounter() as counter:
        layer(inputs)
    assert counter.total == 2 * EXAMPLES * IN * OUT


def test_it_is_exported_as_torchs_own(layer, inputs):
    sizes = {"inputs": {0: torch.export.Dim("batch")}}
    program = torch.export.export(layer, (inputs,), dynamic_shapes=sizes)
    assert torch.allclose(program.module()(inputs[:5]), layer(inputs[:5]), atol=1e-5)
    assert "mkldnn" not in str(program.graph)
    assert torch.allclose(program.module()(inputs), layer(inputs), atol=1e-5)
