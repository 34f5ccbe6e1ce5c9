"""Plain supervised learning: it learns, stops, goes on, refuses what does not fit, and reports what is true."""

import math
import re

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix as reference_confusion

import advml
from advml.errors import ConfigError
from advml.nn.losses import make_loss
from advml.nn.metrics import regression_metrics
from advml.nn.optimisers import learning_rate
from advml.runner.artifacts import read_csv

SMALL = ("method=supervised", "dataset.limit=200", "method.epochs=4", "method.lr=0.01")
REAL = ("method=supervised", "dataset=diabetes", "method.epochs=4", "method.lr=0.01")
QUIET = ("device=cpu", "threads=1", "progress=off", "figures=false")


# --- learning -----------------------------------------------------------------------------------------------------


def test_digits_are_learnt(play):
    """The shipped settings, fewer epochs."""
    played = play("method=supervised", "dataset=digits", "method.epochs=12").go()
    assert played.evaluate()["accuracy"] > 0.95
    losses = [step["loss"] for step in played.steps]
    assert losses[-1] < 0.1 < 1 < losses[0]


def test_iris_is_learnt(play):
    """The mean of five seeds: a test split holds 30 flowers."""
    chosen = ("method=supervised", "dataset=iris", "method.lr=0.01", "method.epochs=20")
    scores = [play(*chosen, f"seed={seed}").go().evaluate()["accuracy"] for seed in range(5)]
    assert sum(scores) / 5 > 0.93


def test_diabetes_is_learnt(play):
    """Linear regression by gradient descent comes near the least-squares solution of the same examples."""
    played = play("method=supervised", "dataset=diabetes", "model=linear", "method.epochs=60", "method.lr=0.01").go()
    train, test = (part.batch(slice(None)) for part in (played.view.train, played.view.test))
    design, goal = (np.c_[b.inputs["features"].double().numpy(), np.ones(len(b.target))] for b in (train, test))
    solution = np.linalg.lstsq(design, train.target.double().numpy(), rcond=None)[0]
    best = regression_metrics(torch.from_numpy(goal @ solution), test.target)
    assert played.evaluate()["r2"] == pytest.approx(float(best["r2"]), abs=0.03)
    assert float(best["r2"]) > 0.3


@pytest.mark.parametrize(
    ("dataset", "names"),
    [
        ("digits", {"loss", "accuracy", "macro_f1", "ece"}),
        ("breast_cancer", {"loss", "accuracy", "macro_f1", "ece", "roc_auc"}),
        ("diabetes", {"mse", "mae", "r2"}),
    ],
)
def test_what_is_measured(play, dataset, names):
    played = play("method=supervised", f"dataset={dataset}", "dataset.limit=150", "method.epochs=1").go()
    for split in ("train", "valid", "test"):
        assert set(played.evaluate(split)) == names
    objective = played.method.objective
    assert (objective.metric, objective.mode) == (("mse", "min") if dataset == "diabetes" else ("accuracy", "max"))


def test_an_epoch_sees_every_example_once(play):
    played = play(*SMALL, "method.epochs=2", "method.batch_size=30")
    count = len(played.view.train)
    played.go(1)
    assert played.budget.counts == {"samples": count, "updates": math.ceil(count / 30), "gradients": count}


# --- losses, schedules, precision ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mse", "l1", "huber"])
def test_losses_of_real_targets_by_name(play, same, name):
    played = play(*REAL, f"method.loss={name}", "model=linear")
    batch = played.view.train.batch(slice(None))
    before = float(make_loss(name, played.view.spec.target)(played.method.network(batch.inputs).detach(), batch))
    played.go()
    assert 0 < played.steps[-1]["loss"] < before
    auto = play(*REAL, "model=linear").go()
    assert same(played.weights(), auto.weights()) == (name == "mse")


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        ((*SMALL, "method.loss=mse"), "loss: mse does not fit a target of classes; use method.loss=auto"),
        (
            (*REAL, "method.loss=cross_entropy"),
            "loss: cross_entropy does not fit a target of real numbers; use method.loss=auto",
        ),
        (
            (*REAL, "method.label_smoothing=0.1"),
            "label_smoothing: needs a target of classes; use method.label_smoothing=0",
        ),
    ],
)
def test_a_loss_that_does_not_fit(play, chosen, said):
    with pytest.raises(ConfigError, match=rf"^method\.{re.escape(said)}$"):
        play(*chosen)


@pytest.mark.parametrize("schedule", ["constant", "cosine", "linear", "step"])
def test_schedules(play, same, schedule):
    """The rate at the end of each epoch is that of its last update; and it matters."""
    more = (f"method.schedule={schedule}", "method.warmup=3", "method.step_every=7")
    played = play(*SMALL, *more)
    per_epoch, config = played.method.updates_per_epoch, played.context.settings
    for epoch in range(1, 5):
        played.go(1)
        assert played.method.optimiser.lr == learning_rate(config, epoch * per_epoch - 1, 4 * per_epoch)
    assert same(played.weights(), play(*SMALL, "method.warmup=3").go().weights()) == (schedule == "constant")


@pytest.mark.parametrize("chosen", [SMALL, REAL])
def test_precisions_agree(play, chosen):
    exact = play(*chosen, "precision=float64").go()
    assert {value.dtype for value in exact.weights().values()} == {torch.float64}
    for precision, tolerance in (("float32", 1e-4), ("bf16", 0.1)):
        played = play(*chosen, f"precision={precision}").go()
        assert {value.dtype for value in played.weights().values()} == {torch.float32}
        found, expected = [s["loss"] for s in played.steps], [s["loss"] for s in exact.steps]
        assert found == pytest.approx(expected, rel=tolerance)
        assert found != expected


def test_label_smoothing_and_clipping_act(play, same):
    plain = play(*SMALL).go().weights()
    assert not same(plain, play(*SMALL, "method.label_smoothing=0.1").go().weights())
    assert not same(plain, play(*SMALL, "method.clip_norm=0.1").go().weights())
    assert same(plain, play(*SMALL, "method.clip_norm=1000000").go().weights())


# --- early stopping -----------------------------------------------------------------------------------------------

ENDLESS = ("method=supervised", "dataset=iris", "model=linear", "method.lr=1.0", "method.epochs=40")
STALLING = (*ENDLESS, "method.patience=3")


def by_hand(losses, patience):
    """How many epochs pass until `patience` in a row did not bring a lower loss."""
    lowest, waited = math.inf, 0
    for epoch, loss in enumerate(losses, start=1):
        lowest, waited = (loss, 0) if loss < lowest else (lowest, waited + 1)
        if waited == patience:
            return epoch
    return None


def test_early_stopping_stops_where_it_must(play):
    free = play(*ENDLESS)
    losses = []
    for _ in range(40):
        losses.append(free.go(1).evaluate("valid")["loss"])
    stop = by_hand(losses, 3)
    assert stop is not None
    assert stop < 40
    stopped = play(*STALLING).go()
    assert stopped.ended
    assert len(stopped.steps) == stop
    assert stopped.steps == free.steps[:stop]
    assert not play(*ENDLESS, "method.patience=40").go().ended


def test_early_stopping_of_real_targets_watches_the_squared_error(play):
    chosen = ("method=supervised", "dataset=diabetes", "method.lr=0.03", "method.epochs=30")
    free = play(*chosen)
    errors = []
    for _ in range(30):
        errors.append(free.go(1).evaluate("valid")["mse"])
    stopped = play(*chosen, "method.patience=2").go()
    assert len(stopped.steps) == by_hand(errors, 2) < 30


def test_early_stopping_survives_a_restore(play, same):
    """Restored in the middle of waiting, it waits no longer and no shorter."""
    whole = play(*STALLING).go()
    for cut in range(1, len(whole.steps)):
        first, again = play(*STALLING).go(cut), play(*STALLING)
        again.method.load_state_dict(first.method.state_dict())
        again.steps = list(first.steps)
        again.go()
        assert again.ended
        assert again.steps == whole.steps
        assert same(again.weights(), whole.weights())


def test_early_stopping_needs_validation_examples(play):
    with pytest.raises(ConfigError, match=r"^method\.patience: needs validation examples; set dataset\.valid above 0$"):
        play(*SMALL, "method.patience=2", "dataset.valid=0")
    assert play(*SMALL, "dataset.valid=0").go().evaluate("valid") == {}


def test_early_stopping_ends_a_run(inside):
    run = advml.run(*STALLING, *QUIET)
    assert 3 < run.result["budget"]["steps"] < 40
    assert run.result["stopped_by"] is None
    assert [record["step"] for record in run.records if record["split"] == "train"] == list(
        range(1, run.result["budget"]["steps"] + 1)
    )


# --- purity, artefacts --------------------------------------------------------------------------------------------


def test_evaluating_changes_nothing(play, same):
    more = ("model.norm=batch", "model.dropout=0.3")
    quiet, curious = play(*SMALL, *more), play(*SMALL, *more)
    for _ in range(4):
        quiet.go(1)
        curious.go(1)
        for split in ("valid", "test", "train"):
            assert curious.evaluate(split) == curious.evaluate(split)
    assert same(quiet.weights(), curious.weights())
    assert quiet.steps == curious.steps


def test_confusion_matrix_equals_scikit_learns(inside, play):
    run = advml.run(*SMALL, *QUIET)
    test = play(*SMALL).view.test
    predicted = run.predict(test.inputs["image"]).argmax(1)
    expected = reference_confusion(test.target.numpy(), predicted.numpy(), labels=range(10))
    header, *body = read_csv(run.folder / "artifacts/confusion_matrix.csv")
    assert header == ["true class \\ predicted class", *map(str, range(10))]
    assert [row[0] for row in body] == [str(label) for label in range(10)]
    assert [[int(value) for value in row[1:]] for row in body] == expected.tolist()
    assert np.trace(expected) / expected.sum() == pytest.approx(run.result["metrics"]["test"]["accuracy"])


def test_no_confusion_without_classes_or_test_examples(play):
    assert play(*REAL).method.artifacts([]) == {}
    assert play(*SMALL, "dataset.test=0").method.artifacts([]) == {}
    assert set(play(*SMALL).method.artifacts([])) == {"confusion_matrix"}
