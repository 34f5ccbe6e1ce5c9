"""DP-SGD as a setting of supervised learning: it learns, says what it promises, refuses what it cannot promise."""

import json
import re

import pytest
import torch

import advml
from advml.contracts import Real
from advml.errors import ConfigError
from advml.nn.accounting import epsilon
from advml.nn.losses import cross_entropy
from advml.nn.optimisers import make_optimiser
from advml.nn.training import batches_of, minibatches, train

pytest.importorskip("dp_accounting")

SMALL = ("method=dp_sgd", "dataset.limit=200", "method.epochs=3", "method.batch_size=32")
NOISE = ("method.privacy.target_epsilon=null", "method.privacy.noise=1.5")
QUIET = ("device=cpu", "threads=1", "progress=off", "figures=false")


def test_digits_are_learnt_within_the_shipped_budget(play):
    played = play("method=dp_sgd").go()
    found = played.evaluate()
    assert found["accuracy"] > 0.88
    assert 2.99 < found["epsilon"] <= 3.0
    assert played.steps[0]["loss"] > 1.5 > played.steps[-1]["loss"]


@pytest.mark.parametrize("sampling", ["poisson", "fixed"])
def test_epsilon_at_every_evaluation(play, sampling):
    played = play(*SMALL, *NOISE, f"method.privacy.sampling={sampling}", "method.privacy.delta=0.001")
    count, per_epoch = len(played.view.train), played.method.updates_per_epoch
    for epoch in range(4):
        expected = epsilon(sampling, 32 / count, 1.5, epoch * per_epoch, 1e-3)
        assert {played.evaluate(split)["epsilon"] for split in ("train", "valid", "test")} == {expected}
        played.go(1)
    assert played.method.summary([]) == {"epsilon": epsilon(sampling, 32 / count, 1.5, 3 * per_epoch, 1e-3),
                                         "delta": 1e-3}  # fmt: skip


def test_without_a_delta_it_is_one_over_the_number_of_examples(play):
    played = play(*SMALL, *NOISE)
    assert played.method.privacy.delta == 1 / len(played.view.train)


def test_an_epoch_has_as_many_updates_as_without_privacy(play):
    played = play(*SMALL, *NOISE).go(1)
    count = len(played.view.train)
    assert played.budget.counts["updates"] == -(-count // 32)
    assert played.budget.counts["samples"] == played.budget.counts["gradients"]
    assert 0.6 * count < played.budget.counts["samples"] < 1.4 * count
    assert set(played.steps[0]) == {"loss", "clipped"}
    fixed = play(*SMALL, *NOISE, "method.privacy.sampling=fixed").go(1)
    assert fixed.budget.counts["samples"] == 32 * -(-count // 32)


def test_real_targets(play):
    played = play("method=dp_sgd", "dataset=diabetes", "model=linear", "method.epochs=8", *NOISE)
    assert isinstance(played.view.spec.target, Real)
    before = played.evaluate()["mse"]
    played.go()
    found = played.evaluate()
    assert found["mse"] < before
    assert found["epsilon"] > 0


def test_early_stopping_and_restoring(play, same):
    chosen = (*SMALL, *NOISE, "method.patience=2", "method.epochs=6")
    whole = play(*chosen).go()
    first, again = play(*chosen).go(2), play(*chosen)
    again.method.load_state_dict(first.method.state_dict())
    again.steps = list(first.steps)
    again.go()
    assert same(whole.weights(), again.weights())
    assert whole.evaluate() == again.evaluate()


def test_micro_batches_change_only_the_order_of_additions(play):
    whole = play(*SMALL, *NOISE, "precision=float64").go()
    parts = play(*SMALL, *NOISE, "precision=float64", "method.privacy.micro_batch_size=5").go()
    for name, value in whole.weights().items():
        torch.testing.assert_close(parts.weights()[name], value, rtol=0, atol=1e-9)
    assert not all(torch.equal(value, play(*SMALL, *NOISE, "precision=float64").weights()[name])
                   for name, value in whole.weights().items())  # fmt: skip


# --- without privacy ----------------------------------------------------------------------------------------------

PLAIN = ("method=supervised", "dataset.limit=200", "method.epochs=3")


def test_without_privacy_nothing_has_changed(play, same):
    """Bit for bit the mini-batch loop by hand; the other keys of the block have no effect."""
    played = play(*PLAIN, "method.privacy.clip=0.1", "method.privacy.noise=5.0", "method.privacy.sampling=fixed").go()
    assert same(played.weights(), play(*PLAIN).go().weights())
    by_hand = play(*PLAIN)
    network, data, config = by_hand.method.network, by_hand.view.train, by_hand.context.settings
    total = 3 * by_hand.method.updates_per_epoch
    indices = minibatches(len(data), config.batch_size, 0, total, lambda epoch: by_hand.context.rng("shuffle", epoch))
    optimiser = make_optimiser(network.parameters(), config)
    train(network, batches_of(data, indices), cross_entropy, optimiser, settings=config, update=0, total=total,
          count=lambda **work: None)  # fmt: skip
    assert same(played.weights(), by_hand.weights())
    assert "epsilon" not in played.evaluate()
    assert set(played.method.state_dict()) == {"network", "optimiser", "lowest", "waited"}
    assert played.method.summary([]) == {}
    assert "privacy" not in played.method.artifacts([])


def test_switched_off_it_is_supervised_learning(play, same):
    chosen = ("dataset.limit=200", "method.epochs=2", "method.batch_size=32", "method.lr=0.01")
    off = play("method=dp_sgd", *chosen, "method.privacy.kind=none").go()
    assert same(off.weights(), play("method=supervised", *chosen).go().weights())


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        (("model.norm=batch",), "model.norm=batch: mixes examples, which privacy cannot bound; use model.norm=layer"),
        (("model=cnn", "model.norm=batch"),
         "model.norm=batch: mixes examples, which privacy cannot bound; use model.norm=group"),
        (("model=darts_cells", "dataset=digits"),
         "model=darts_cells: its batch norm mixes examples, which privacy cannot bound; use a network without "
         "(model=cnn, model=mlp)"),
        (("method=qnn", "method.rates=[0.1,0.2]", "method.patience=3", "model=linear", "method.privacy.kind=example"),
         "method.rates: privacy is accounted for one training; use method.rates=[] and method.lr"),
        (("precision=bf16",), "precision=bf16: privacy does not support it; use float32 or float64"),
        (("method.privacy.noise=1.0", "method.privacy.target_epsilon=2.0"),
         "method.privacy.noise: follows from target_epsilon; set one of them to null"),
        (("method.privacy.target_epsilon=null",),
         "method.privacy.noise: how much is neither given nor follows from a target_epsilon; set one of them"),
        (("method.privacy.target_epsilon=null", "method.privacy.noise=0.05"),
         "method.privacy.noise: 0.05 promises next to nothing; use 0.125 or more, or 0 for no promise"),
        (("method.privacy.target_epsilon=1000000000",),
         "method.privacy.target_epsilon: ε = 1e+09 promises next to nothing: noise below 0.125 would do"),
    ],
)  # fmt: skip
def test_refused(play, chosen, said):
    given = NOISE if not any("target" in word for word in chosen) else ()
    with pytest.raises(ConfigError, match=f"^{re.escape(said)}$"):
        play(*SMALL, *given, *chosen)


@pytest.mark.parametrize("value", [0, 1, -0.1])
def test_delta_is_a_probability(play, value):
    with pytest.raises(ConfigError, match=r"method\.privacy\.delta: must be "):
        play(*SMALL, *NOISE, f"method.privacy.delta={value}")


# --- whole runs ---------------------------------------------------------------------------------------------------


def test_the_promise_is_written_down(inside):
    run = advml.run(*SMALL, *NOISE, *QUIET)
    told = json.loads((run.folder / "artifacts/privacy.json").read_text())
    assert told["epsilon"] == run.result["summary"]["epsilon"] == run.result["metrics"]["test"]["epsilon"]
    assert told["epsilon"] == run.result["best"]["test"]["epsilon"]  # chosen by looking at all states
    assert (told["unit"], told["relation"], told["sampling"], told["accountant"]) == (
        "example", "add or remove one", "poisson", "PLD",
    )  # fmt: skip
    assert told["steps"] == run.result["budget"]["updates"]
    evaluated = [record for record in run.records if record["split"] == "valid"]
    assert [record["epsilon"] for record in evaluated] == sorted(record["epsilon"] for record in evaluated)
    assert evaluated[0]["epsilon"] == 0


def test_without_noise_nothing_is_promised(inside):
    run = advml.run(*SMALL, "method.privacy.target_epsilon=null", "method.privacy.noise=0", *QUIET)
    assert run.result["summary"]["epsilon"] is None
    assert json.loads((run.folder / "artifacts/privacy.json").read_text())["epsilon"] is None
