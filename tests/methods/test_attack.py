"""The attack by the loss at the end of a run."""

import pytest
import torch

from advml.errors import ConfigError
from advml.nn.membership import auc

OVERFITTED = (
    "dataset=moons", "dataset.examples=400", "dataset.noise=0.8", "model.hidden=[200,200]", "method.epochs=150",
    "method.lr=0.01", "method.attack=loss",
)  # fmt: skip
NUMBERS = {f"attack_{what}{end}" for what in ("auc", "tpr") for end in ("", "_low", "_high")}


def test_an_overfitted_network_tells_who_was_trained_on(play):
    """Two clouds that overlap, learned by heart: even the lower end of the interval is above a half."""
    found = play("method=supervised", *OVERFITTED).go().method.summary([])
    assert set(found) == NUMBERS
    assert 0.52 < found["attack_auc_low"] < found["attack_auc"] < found["attack_auc_high"]


def test_of_a_private_network_both_are_told(play):
    run = play("method=dp_sgd", *OVERFITTED, "method.epochs=2", "method.privacy.target_epsilon=1.0").go()
    assert set(run.method.summary([])) == NUMBERS | {"epsilon", "delta"}


def test_the_numbers_are_those_of_the_losses(play):
    run = play("method=supervised", *OVERFITTED, "method.epochs=3").go()
    odds = []
    for split in (run.view.train, run.view.test):
        batch = split.batch(slice(None))
        logits = run.method.network.eval()(batch.inputs)
        chance = logits.detach().double().softmax(1)[torch.arange(len(logits)), batch.target]
        odds.append((chance / (1 - chance)).log())
    assert run.method.summary([])["attack_auc"] == pytest.approx(auc(*odds).value)


def test_real_targets_are_refused(play):
    with pytest.raises(ConfigError, match=r"method\.attack"):
        play("method=supervised", "dataset=diabetes", "method.attack=loss")
