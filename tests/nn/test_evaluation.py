"""Measuring changes nothing and does not depend on how examples are grouped."""

import pytest
import torch

from advml.contracts import Classes, Network, Real, Spec, Split
from advml.data.prepare import Rotate
from advml.models.mlp import Mlp, MlpSettings
from advml.nn import evaluation
from advml.nn.evaluation import measure, predict
from advml.nn.metrics import classification_metrics, regression_metrics


def network(target=None, norm="batch", dropout=0.5):
    torch.manual_seed(1)
    settings = MlpSettings(hidden=(9,), activation="relu", norm=norm, dropout=dropout)
    model = Mlp(Spec({"x": (5,)}, target or Classes(4)), settings).double()
    model.train()
    model({"x": examples(40).inputs["x"] * 3 + 1})  # batch statistics other than 0 and 1
    return model


def examples(count=23, real=False):
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(count, 5, generator=generator, dtype=torch.float64)
    target = torch.randint(4, (count,), generator=generator)
    return Split({"x": x}, x[:, :1] * 2 if real else target)


def modes(model):
    return [module.training for module in model.modules()]


@pytest.mark.parametrize("training", [True, False])
def test_predict_changes_nothing(training):
    model = network().train(training)
    model.body[1].eval()  # one part frozen by its owner
    before, state = modes(model), {name: value.clone() for name, value in model.state_dict().items()}
    drawn = torch.get_rng_state()
    predict(model, examples())
    assert modes(model) == before
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_modes_come_back_after_an_error():
    model = network()
    before = modes(model)

    def measured(inputs):
        assert not any(modes(model))
        assert not torch.is_grad_enabled()
        raise RuntimeError("on purpose")

    model.forward = measured
    with pytest.raises(RuntimeError, match="on purpose"):
        predict(model, examples())
    assert modes(model) == before
    assert torch.is_grad_enabled()


def test_predict_is_the_network_in_evaluation_mode():
    model, split = network(), examples()
    found = predict(model, split)
    assert not found.requires_grad
    model.eval()
    torch.testing.assert_close(found, model(split.inputs).detach(), rtol=0, atol=0)


@pytest.mark.parametrize("batch", [1, 7, 23, 1024])
def test_results_do_not_depend_on_the_batch(batch, monkeypatch):
    model, split = network(), examples()
    expected = predict(model, split)
    monkeypatch.setattr(evaluation, "BATCH", batch)
    torch.testing.assert_close(predict(model, split), expected, rtol=1e-13, atol=1e-13)


def test_masked_classes_are_never_predicted():
    model, split = network(), examples()
    mask = torch.tensor([True, False, True, False])
    found = predict(model, split, mask)
    assert bool(found[:, ~mask].isneginf().all())
    assert torch.equal(found[:, mask], predict(model, split)[:, mask])


def test_measure_of_classes_and_of_real_targets():
    model, split = network(), examples()
    expected = classification_metrics(predict(model, split), split.target)
    found = measure(model, split)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)

    model, split = network(Real((1,))), examples(real=True)
    expected = regression_metrics(predict(model, split), split.target)
    found = measure(model, split)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_measure_of_nothing_is_empty():
    assert measure(network(), examples().take(torch.empty(0, dtype=torch.int64))) == {}


def test_inputs_are_prepared_outside_autocast():
    """In training they are too; a rotation computed in bfloat16 would shift pixels."""

    class Echo(Network):
        def features(self, inputs):
            return inputs["image"].flatten(1)

    model = Echo()
    model.head = torch.nn.Identity()
    images = torch.rand(6, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    split = Split({"image": images}, torch.zeros(6, dtype=torch.int64), prepare={"image": (Rotate(33.0),)})
    found = predict(model, split, autocast=lambda: torch.autocast("cpu", torch.bfloat16))
    assert torch.equal(found, split.batch(slice(None)).inputs["image"].flatten(1))


def test_bf16_outputs_come_back_in_float32():
    model = network(norm="none", dropout=0.0).float()
    split = Split({"x": examples().inputs["x"].float()}, examples().target)
    found = predict(model, split, autocast=lambda: torch.autocast("cpu", torch.bfloat16))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, predict(model, split), rtol=0.05, atol=0.05)
    assert not torch.equal(found, predict(model, split))
