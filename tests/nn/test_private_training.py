"""DP-SGD against plain loops by hand: what is sampled, divided by, clipped, and how much noise comes in, once."""

import math

import pytest
import torch
from fisher_cases import examples, mlp
from scipy import stats

from advml.nn.accounting import epsilon
from advml.nn.losses import cross_entropy
from advml.nn.optimisers import make_optimiser
from advml.nn.private_training import Privacy, PrivacySettings, train_privately
from advml.nn.training import TrainingSettings
from advml.runner.randomness import KeyedRng

FALSE_ALARM = 1e-6  # how often one chi-square test would fail though all is right; the seeds are fixed besides
RNG = KeyedRng(0)
TRAINING = {
    "batch_size": 8, "loss": "auto", "label_smoothing": 0.0, "optimiser": "sgd", "lr": 1.0, "momentum": 0.0,
    "nesterov": False, "betas": (0.9, 0.999), "weight_decay": 0.0, "schedule": "constant", "warmup": 0,
    "step_every": 1000, "step_factor": 0.1, "clip_norm": None,
}  # fmt: skip
PRIVATE = {
    "kind": "example", "clip": 1.0, "noise": 1.0, "target_epsilon": None, "delta": 1e-5, "sampling": "poisson",
    "micro_batch_size": 1000,
}  # fmt: skip


def privacy(split, planned=20, batch_size=8, rng=RNG, **changes):
    return Privacy(PrivacySettings(**PRIVATE | changes), len(split), batch_size, planned, rng)


def fit(network, split, private, start=0, stop=5, engine="auto", **changes):
    """(metrics, what was counted)."""
    config, counted = TrainingSettings(**TRAINING | changes), {}
    optimiser = make_optimiser(network.parameters(), config)
    metrics = train_privately(
        network, split, cross_entropy, optimiser, private, settings=config, start=start, stop=stop, total=20,
        count=lambda **work: counted.update(work), engine=engine,
    )  # fmt: skip
    return metrics, counted


def vector(network):
    return torch.cat([value.detach().flatten() for value in network.parameters()])


# --- without noise and bound: plain SGD ----------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["loop", "closed"])
@pytest.mark.parametrize("sampling", ["poisson", "fixed"])
def test_without_noise_and_bound_it_is_plain_sgd_on_the_samples(engine, sampling):
    """Sum of the sampled gradients over the expected number, by one ordinary backward pass."""
    split, mine, plain = examples(), mlp(), mlp()
    private = privacy(split, clip=math.inf, noise=0.0, sampling=sampling)
    metrics, counted = fit(mine, split, private, engine=engine, lr=0.3)
    losses, sizes = 0.0, []
    for update in range(5):
        batch = split.batch(private.sample(update))
        total = torch.nn.functional.cross_entropy(plain(batch.inputs), batch.target, reduction="sum")
        plain.zero_grad()
        total.backward()
        with torch.no_grad():
            for value in plain.parameters():
                value -= 0.3 * value.grad / 8
        losses += float(total.detach())
        sizes.append(len(batch.target))
    torch.testing.assert_close(vector(mine), vector(plain), rtol=1e-12, atol=1e-13)
    assert float(metrics["loss"]) == pytest.approx(losses / sum(sizes), rel=1e-12)
    assert float(metrics["clipped"]) == 0
    assert counted == {"samples": sum(sizes), "updates": 5, "gradients": sum(sizes)}
    assert (len(set(sizes)) == 1) == (sampling == "fixed")


def test_optimisers_and_schedules_get_the_private_gradient():
    """Adam on a cosine, and the gradient's own clipping, as in ordinary training."""
    split, one, other = examples(), mlp(), mlp()
    changes = {"optimiser": "adam", "lr": 0.05, "schedule": "cosine", "clip_norm": 0.1}
    config = TrainingSettings(**TRAINING | changes)
    fit(one, split, privacy(split, clip=math.inf, noise=0.0), stop=6, **changes)
    optimiser = make_optimiser(other.parameters(), config)
    private = privacy(split)
    for update in range(6):
        batch = split.batch(private.sample(update))
        optimiser.zero_grad()
        (cross_entropy(other(batch.inputs), batch) * len(batch.target) / 8).backward()
        torch.nn.utils.clip_grad_norm_(other.parameters(), 0.1)
        optimiser.lr = 0.05 * (1 + math.cos(math.pi * update / 20)) / 2
        optimiser.step()
    torch.testing.assert_close(vector(one), vector(other), rtol=1e-10, atol=1e-11)


# --- the noise -----------------------------------------------------------------------------------------------------


def noise_of(update, split, noise=3.0, clip=0.5, micro=1000, batch_size=8, engine="auto"):
    """What the noise moved the network by in one update from the same start, as numbers of deviation 1."""
    ends = []
    for sigma in (noise, 0.0):
        network = mlp(hidden=(60, 40))
        private = privacy(split, noise=sigma, clip=clip, micro_batch_size=micro, batch_size=batch_size)
        fit(network, split, private, update, update + 1, engine=engine)
        ends.append(vector(network))
    return (ends[0] - ends[1]) * private.expected / (noise * clip)


def plausible(numbers):
    """Σ z² of N standard normal numbers is χ²(N): within its limits but for one seed in a million."""
    law = stats.chi2(len(numbers))
    return law.ppf(FALSE_ALARM / 2) < float(numbers.square().sum()) < law.ppf(1 - FALSE_ALARM / 2)


@pytest.mark.parametrize("micro", [1, 3, 1000])
def test_noise_comes_once_for_each_update_however_it_is_divided(micro):
    """Noise for each of the micro-batches would be too much. And it is the same noise."""
    split = examples(200)
    numbers = noise_of(0, split, micro=micro, batch_size=40)
    assert len(numbers) > 2500
    assert plausible(numbers)
    torch.testing.assert_close(numbers, noise_of(0, split, batch_size=40), rtol=0, atol=1e-9)
    assert not plausible(numbers * 1.2)


def test_noise_keeps_its_scale_from_update_to_update():
    """A published mistake: a scale shrunk on every call."""
    split = examples(100)
    draws = [noise_of(update, split) for update in (0, 1, 7, 19)]
    assert all(plausible(numbers) for numbers in draws)
    assert abs(float((draws[0] * draws[1]).mean())) < 5 / math.sqrt(len(draws[0]))  # other noise each time


def test_the_private_object_keeps_its_scale_too():
    split, network = examples(100), mlp()
    private = privacy(split, noise=2.0)
    for start in range(0, 20, 5):
        fit(network, split, private, start, start + 5, lr=0.01)
        assert (private.noise, private.expected, private.rate) == (2.0, 8, 0.08)


def test_division_by_the_expected_number_not_by_that_of_the_sample():
    split = examples(100)
    private = privacy(split, noise=0.0, clip=1e-3)
    sizes = [len(private.sample(update)) for update in range(12)]
    assert len(set(sizes)) > 3
    for update in (sizes.index(min(sizes)), sizes.index(max(sizes))):
        network = mlp()
        before = vector(network)
        fit(network, split, private, update, update + 1)
        by_hand = torch.zeros_like(before)
        for row in private.sample(update).tolist():
            reference = mlp()
            batch = split.batch(slice(row, row + 1))
            cross_entropy(reference(batch.inputs), batch).backward()
            gradient = torch.cat([value.grad.flatten() for value in reference.parameters()])
            by_hand += gradient * min(1.0, 1e-3 / float(gradient.norm()))
        torch.testing.assert_close(before - vector(network), by_hand / 8, rtol=1e-9, atol=1e-14)


def test_an_update_without_any_example_is_noise_alone():
    split = examples(60)
    private = privacy(split, batch_size=1, noise=4.0, clip=0.25)
    empty = next(update for update in range(20) if not len(private.sample(update)))
    network = mlp(hidden=(60, 40))
    before = vector(network)
    metrics, counted = fit(network, split, private, empty, empty + 1)
    assert plausible(before - vector(network))  # σ C / B = 1
    assert metrics == {"loss": None, "clipped": None}
    assert counted == {"samples": 0, "updates": 1, "gradients": 0}


def test_parts_are_as_the_whole():
    """Updates 0 to 3 and 3 to 6 are bit for bit those from 0 to 6: draws follow from the update's number."""
    split, whole, parts = examples(), mlp(dropout=0.0), mlp(dropout=0.0)
    fit(whole, split, privacy(split), 0, 6, lr=0.1)
    for start in (0, 3):
        fit(parts, split, privacy(split), start, start + 3, lr=0.1)
    assert torch.equal(vector(whole), vector(parts))
    other = mlp()
    fit(other, split, privacy(split, rng=KeyedRng(1)), 0, 6, lr=0.1)
    assert not torch.equal(vector(whole), vector(other))


def test_frozen_parameters_stay():
    split, network = examples(), mlp()
    network.body[0].weight.requires_grad_(False)
    before = network.body[0].weight.clone()
    fit(network, split, privacy(split))
    assert torch.equal(network.body[0].weight, before)
    assert all(value.grad is None for value in network.parameters())


# --- what is promised ----------------------------------------------------------------------------------------------


def test_epsilon_is_that_of_the_updates_done():
    split, network = examples(), mlp()
    private = privacy(split, noise=2.0)
    assert private.epsilon() == 0
    fit(network, split, private, 0, 3)
    assert private.released == 3
    assert private.epsilon() == epsilon("poisson", 0.2, 2.0, 3, 1e-5) == private.statement().epsilon
    private.restore(2)  # the best state was an earlier one; it was chosen by looking at all
    assert private.released == 3
    assert privacy(split, noise=0.0).statement().steps == 0
    free = privacy(split, noise=0.0)
    free.restore(1)
    assert free.epsilon() is None
    assert free.to_dict()["epsilon"] is None


def test_noise_follows_from_a_target():
    split = examples(100)
    private = privacy(split, planned=40, noise=None, target_epsilon=2.0)
    private.restore(40)
    assert 1.998 <= private.epsilon() <= 2.0
    assert private.to_dict()["statement"].startswith("ε = ")


def test_rates_and_the_usual_delta():
    split = examples(50)
    assert (privacy(split).rate, privacy(split).expected) == (0.16, 8)
    everyone = privacy(split, batch_size=64, sampling="fixed", delta=None)
    assert (everyone.rate, everyone.expected, everyone.delta) == (1.0, 50, 0.02)
    assert torch.equal(everyone.sample(3).sort().values, torch.arange(50))
