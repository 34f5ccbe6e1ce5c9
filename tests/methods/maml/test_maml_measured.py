"""MAML and its kin: what is measured after adaptation, what is drawn, and what is refused."""

import math

import pytest
import torch
import torch.nn.functional as F
from maml_cases import DIGITS, SINE

from advml.errors import ConfigError
from advml.methods.meta.common import interval


def test_before_adaptation_it_knows_nothing(digits):
    """Labels are dealt anew in each task: accuracy near 1/N at step 0, however long it is trained."""
    words = ("method.iterations=60", "method.block=60", "method.lr=0.01", "method.eval_steps=1", "view.test_tasks=150")
    played = digits(*words).go()
    found = played.evaluate()
    assert found["accuracy/step0"] == pytest.approx(1 / 3, abs=0.04)
    assert found["accuracy/step1"] > 0.45


def test_what_is_measured(digits):
    played = digits()
    found, tasks = played.evaluate(), played.view.fixed("test", 0, 7)
    rows = played.method.predictions(tasks)
    hits = (rows.argmax(3) == tasks.query.target).double().mean(2)
    for step in range(4):
        assert found[f"accuracy/step{step}"] == pytest.approx(float(hits[step].mean()), abs=1e-12)
        width = 1.96 * float(hits[step].std()) / math.sqrt(7)
        assert found[f"accuracy_ci/step{step}"] == pytest.approx(width, abs=1e-12)
    assert found["accuracy"] == found["accuracy/step3"]
    assert found["accuracy_ci"] == found["accuracy_ci/step3"]
    expected = F.cross_entropy(rows[1].flatten(0, 1), tasks.query.target.flatten())
    assert found["loss"] == pytest.approx(float(expected), abs=1e-12)
    assert played.method.evaluate("train") == {}


def test_large_evaluations_go_in_portions(sine):
    played = sine("view.test_tasks=120", "method.eval_steps=1")
    tasks = played.view.fixed("test", 0, 120)
    rows = played.method.predictions(tasks)
    errors = (rows - tasks.query.target).square().mean((2, 3))
    assert played.evaluate()["mse"] == pytest.approx(float(errors[-1].mean()), abs=1e-12)
    ranked = errors[-1].sort().values
    assert played.evaluate()["mse_median/step1"] == pytest.approx(float(ranked[59:61].mean()), abs=1e-12)
    assert played.method.objective.mode == "min"


def test_interval():
    mean, width = interval(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    assert mean.tolist() == [2.5]
    assert float(width) == pytest.approx(1.96 * math.sqrt(5 / 3) / 2)


def test_pictures(sine, digits):
    played = sine("method.eval_steps=2").go(1)
    record = {"split": "test", "state": "last", **played.evaluate()}
    made = played.method.artifacts([{"split": "valid"}, record, {"split": "test", "state": "best"}])
    assert set(made) == {"adaptation", "fit1", "fit2", "fit3"}
    curve = made["adaptation"]
    assert list(curve.x) == [0, 1, 2]
    assert curve.lines["mean"] == [record[f"mse/step{step}"] for step in range(3)]
    assert curve.lines["median"] == [record[f"mse_median/step{step}"] for step in range(3)]
    assert curve.log
    fit = made["fit2"]
    support = played.view.fixed("test", 1, 2).support
    given = [(x, y) for x, y in zip(fit.x, fit.lines["support"], strict=True) if y is not None]
    assert sorted(given) == sorted(zip(support.inputs["x"].flatten().tolist(), support.target.flatten().tolist(),
                                       strict=True))  # fmt: skip
    assert list(fit.x) == sorted(fit.x)
    assert set(fit.lines) == {"true", "support", "before", "after 1 step", "after 2 steps"}
    x = torch.tensor(fit.x, dtype=torch.float64).unsqueeze(1)
    assert torch.allclose(played.method.network({"x": x}).flatten(), torch.tensor(fit.lines["before"]).double())
    played = digits()
    record = {"split": "test", **played.evaluate()}
    made = played.method.artifacts([record])
    assert set(made) == {"adaptation"}
    upper = made["adaptation"].lines["upper 95 %"]
    assert upper[1] == pytest.approx(record["accuracy/step1"] + record["accuracy_ci/step1"])


# --- refused ----------------------------------------------------------------------------------------------------


REFUSED = [
    ("view.train_ways=2", "view.train_ways"),
    ("method.steps=0 method.inner_rates=per_step", "method.inner_rates=per_step"),
    ("method.steps=1 method.multi_step=5", "method.multi_step"),
    ("method.steps=1 method.norm_per_step=true", "method.norm_per_step"),
    ("method.compile=true method.multi_step=5 method.steps=2", "method.compile: the weights"),
    ("method.compile=true method.engine=vmap", "method.compile: only"),
    ("method.order=1 method.first_order=5", "method.first_order: method.order=1"),
    ("method.iterations=5 method.first_order=5", "method.first_order: order 2 would never"),
    ("model=conv4 model.blocks=2 model.channels=2 method.engine=batched", "method.engine: batched serves"),
]


@pytest.mark.parametrize(("words", "key"), REFUSED)
def test_what_has_no_meaning_is_refused(play, words, key):
    with pytest.raises(ConfigError, match=f"^{key}"):
        play("method=maml", *DIGITS, *words.split())


@pytest.mark.parametrize(("words", "key"), [("method.inner_loss=per_shot", "method.inner_loss=per_shot"),
                                            ("view.shots=1 model=mlp model.norm=batch", "view.shots")])  # fmt: skip
def test_what_has_no_meaning_in_regression_is_refused(play, words, key):
    with pytest.raises(ConfigError, match=f"^{key}"):
        play("method=maml", *SINE, *words.split())
