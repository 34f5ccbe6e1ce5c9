"""DP-SGD inside each client: against a loop by hand, what it reduces to, how its noise is spread, what it costs."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from federated_words import QUANTITY, average, close, drawn, federated, refused
from scipy import stats

from advml.compose import compose
from advml.contracts import At
from advml.nn.accounting import epsilon, noise_for, over_disjoint
from advml.nn.private_clients import dearest
from advml.runner.baselines import plan

pytest.importorskip("dp_accounting")

EXAMPLE = ("method.privacy.kind=example", "method.privacy.delta=0.001")
FREE = (*EXAMPLE, "method.privacy.noise=0.0", "method.privacy.clip=1.0e+300")
NOISY = (*EXAMPLE, "method.privacy.noise=0.8", "method.privacy.clip=0.5")


def by_hand(played, start, round, client):
    """A client's steps as the specification has them: example by example, noise from its own generator."""
    config, context, owned = played.context.settings, played.context, played.view.owned[client]
    model, expected = copy.deepcopy(start).train(), min(config.batch_size, len(owned))
    weights = list(model.parameters())
    for step in range(config.epochs * -(-len(owned) // config.batch_size)):
        generator = context.rng("example sample", round, client, step)
        draws = torch.rand(len(owned), generator=generator, dtype=torch.float64)
        sums = [torch.zeros_like(value) for value in weights]
        for index in owned[draws < expected / len(owned)]:
            inputs, target, _ = played.view.train.batch(index.view(1))
            found = torch.autograd.grad(F.cross_entropy(model(inputs), target), weights)
            norm = math.sqrt(sum(float(part.square().sum()) for part in found))
            for total, part in zip(sums, found, strict=True):
                total += part * min(1.0, config.privacy.clip / norm)
        generator = context.rng("example noise", round, client, step)
        with torch.no_grad():
            for value, total in zip(weights, sums, strict=True):
                noise = torch.randn(value.shape, generator=generator, dtype=value.dtype)
                value -= config.lr * (total + config.privacy.noise * config.privacy.clip * noise) / expected
    return model.state_dict()


@pytest.mark.parametrize("model", ["mlp", "quantum"])
def test_it_is_dp_sgd_in_each_client(play, model):
    small = {"quantum": ("model.qubits=2", "model.layers=1", "model.front=linear", "dataset.limit=60")}.get(model, ())
    played = federated(play, "fedavg", *QUANTITY, *NOISY, "method.rounds=2", *small, model=model)
    network = copy.deepcopy(played.method.network)
    for round in range(2):
        cohort = drawn(played, round)
        sizes = [len(played.view.owned[client]) for client in cohort]
        states = [by_hand(played, network, round, client) for client in cohort]
        network.load_state_dict(average(states, [size / sum(sizes) for size in sizes]))
    close(played.go().weights(), network.state_dict(), 1e-9, 1e-11)


class TestReductions:
    """Neither noise nor a bound, every example in every step: what there is without privacy."""

    @pytest.mark.parametrize(
        ("method", "words"),
        [
            ("fedavg", ()),
            ("fedavg", ("method.momentum=0.9", "method.weight_decay=0.01", "method.clip_norm=0.5")),
            ("fedprox", ("method.mu=0.3",)),
            ("scaffold", ()),
            ("ditto", ("method.strength=0.5",)),
            ("fedavg", ("view.shift=noise",)),
        ],
    )
    def test_all_examples_are_plain_local_training(self, play, same, method, words):
        given = (*QUANTITY, *words, "method.batch_size=null")
        private, plain = (federated(play, method, *given, *extra).go() for extra in (FREE, ()))
        close(private.weights(), plain.weights(), 1e-12, 1e-12)
        assert not same(private.weights(), federated(play, method, *given).weights())
        assert private.budget.counts == plain.budget.counts

    def test_batches_of_one_size_are_plain_steps_on_them(self, play):
        """Sampled without replacement, sizes that the batch divides: the mean over the batch, as ever."""
        words = (*FREE, "method.privacy.sampling=fixed", "method.rounds=1")
        played = federated(play, "fedavg", *words, clients=1)
        model, owned, method = copy.deepcopy(played.method.network), played.view.owned[0], played.method
        optimiser = torch.optim.SGD(model.parameters(), 0.1)
        for step in range(method.planned(0)):
            index = owned[method.example_privacy.sample(0, 0, step)]
            assert len(set(index.tolist())) == 7
            inputs, target, _ = played.view.train.batch(index)
            optimiser.zero_grad()
            F.cross_entropy(model(inputs), target).backward()
            optimiser.step()
        close(played.go().weights(), model.state_dict(), 1e-10, 1e-11)

    def test_chunks_change_nothing(self, play, same):
        whole, few = (federated(play, "fedavg", *QUANTITY, *NOISY, "method.fraction=1.0") for _ in range(2))
        few.method.at_once = 2
        close(whole.go().weights(), few.go().weights(), 1e-12, 1e-13)


def test_the_noise_is_as_large_as_it_says(play):
    """With a tiny bound a step is noise: Σ x²/(lr σC/B)² over 3,000 independent numbers, χ², false alarm 1e-6."""
    words = (*EXAMPLE, "method.privacy.noise=1000.0", "method.privacy.clip=1.0e-9", "method.epochs=1")
    played = federated(play, "fedavg", *words, "method.batch_size=null", "method.fraction=1.0")
    method, found = played.method, []
    for client in range(5):
        update = method.local(0, [client], [1])
        deviation = 0.1 * 1000.0 * 1e-9 / method.sizes[client]
        found += [rows.flatten() / deviation for rows in update.deltas.values()]
    numbers = torch.cat(found)
    low, high = stats.chi2(len(numbers)).ppf([5e-7, 1 - 5e-7])
    assert len(numbers) == 5 * (64 * 8 + 8 + 8 * 10 + 10)
    assert low < float(numbers.square().sum()) < high
    assert abs(float(numbers.mean())) < 4.9 / math.sqrt(len(numbers))


class TestCost:
    def test_with_one_client_it_is_that_of_dp_sgd(self, play):
        """The same rate, σ, δ and number of sums; the noise for a target too."""
        given = ("dataset.limit=200", "model=linear", "method.batch_size=16")
        for noise in ("method.privacy.noise=1.2", "method.privacy.target_epsilon=2.0"):
            other = () if "target" in noise else ("method.privacy.target_epsilon=null",)
            words = (*given, "method.privacy.kind=example", noise)
            inside = play("method=fedavg", "view=clients", "view.clients=1", "method.rounds=3", "method.epochs=2",
                          "method.fraction=1.0", *words)  # fmt: skip
            plain = play("method=dp_sgd", "method.epochs=6", *words, *other)
            assert inside.method.spending.noise == plain.method.privacy.noise
            for _ in range(4):
                assert inside.evaluate("valid")["epsilon"] == plain.evaluate("valid")["epsilon"]
                inside.go(1), plain.go(2)
            one, two = (each.method.artifacts([])["privacy"].value for each in (inside, plain))
            keys = ("unit", "relation", "sampling", "rate", "noise", "steps", "delta", "epsilon", "accountant")
            assert [one[key] for key in keys] == [two[key] for key in keys]
            assert one["steps"] == inside.budget.counts["updates"]

    @pytest.mark.parametrize("sampling", ["poisson", "fixed"])
    def test_the_client_it_costs_most_counts_not_the_sum(self, play, sampling):
        played = federated(play, "fedavg", *QUANTITY, *NOISY, f"method.privacy.sampling={sampling}")
        method, steps = played.method, dict.fromkeys(range(5), 0)
        for round in range(4):
            rates = {client: min(7, size) / size for client, size in enumerate(method.sizes)}
            each = [epsilon(sampling, rates[client], 0.8, steps[client], 1e-3) for client in range(5)]
            assert {played.evaluate(split)["epsilon"] for split in ("train", "valid")} == {over_disjoint(each)}
            stated = method.artifacts([])["privacy"].value
            assert [one["epsilon"] for one in stated["clients"]] == each
            assert stated["epsilon"] == max(each)
            if round < 3:
                for client in drawn(played, round):
                    steps[client] += 2 * -(-method.sizes[client] // 7)
                played.go(1)
        assert method.summary([])["delta"] == 1e-3

    def test_a_target_is_met_by_the_dearest_client(self, play):
        words = (*QUANTITY, *EXAMPLE, "method.privacy.target_epsilon=3.0")
        played = federated(play, "fedavg", *words).go()
        assert 2.99 < played.evaluate()["epsilon"] <= 3.0
        slow = federated(play, "fedavg", *words, "method.stragglers.fraction=0.5", "method.stragglers.keep=true").go()
        assert slow.method.spending.noise == played.method.spending.noise
        assert slow.evaluate()["epsilon"] <= 3.0

    def test_nobody_is_counted_twice_or_forgotten(self, play, same):
        """A state taken back, a round repeated, an earlier state chosen as the best."""
        whole = federated(play, "fedavg", *QUANTITY, *NOISY).go()
        first, again = (federated(play, "fedavg", *QUANTITY, *NOISY) for _ in range(2))
        state = copy.deepcopy(first.go(1).method.state_dict())
        again.method.load_state_dict(state)
        again.steps = list(first.steps)
        again.go()
        assert same(again.weights(), whole.weights())
        assert again.method.spending.steps == whole.method.spending.steps
        spent = again.evaluate()["epsilon"]
        again.method.load_state_dict(state)
        assert again.evaluate()["epsilon"] == spent == whole.evaluate()["epsilon"]
        again.method.step(At(0, 1, 1, False))
        assert again.evaluate()["epsilon"] == spent

    def test_only_some_can_cost_the_most(self):
        assert dearest([(0.1, 5), (0.2, 5), (0.2, 3), (0.05, 9), (0.05, 9), (0.01, 8)]) == [(0.2, 5), (0.05, 9)]

    def test_the_noise_serves_all(self, play):
        """Rates and steps of which neither is the largest of both."""
        played = federated(play, "fedavg", *QUANTITY, *EXAMPLE, "method.privacy.target_epsilon=3.0", "method.rounds=1")
        make = type(played.method.spending)
        config = played.context.settings.privacy
        made = make(config, [10, 100], 5, [4, 900], played.context.rng)
        each = [noise_for(3.0, "poisson", *one, 1e-3) for one in ((0.5, 4), (0.05, 900))]
        assert made.noise == pytest.approx(max(each), rel=1e-3)


@pytest.mark.parametrize("method", ["fedavg", "ditto", "fedavg_finetune", "dp_fedavg"])
def test_the_baseline_that_sends_nothing_has_nothing_to_hide(play, method):
    tree, _ = compose([f"method={method}", *EXAMPLE, "method.privacy.noise=0.8", "method.privacy.target_epsilon=null"])
    alone = plan(tree)["local_only"]["method"]
    assert (alone["name"], alone["privacy"]["kind"]) == ("local_only", "none")
    given = [f"method.privacy.{key}={value}" for key, value in alone["privacy"].items() if value is not None]
    assert play("method=local_only", *given).method.spending is None


@pytest.mark.parametrize(
    ("method", "words", "told"),
    [
        ("fedavg", ("model.norm=batch",), "model.norm=batch: mixes examples, which privacy cannot bound"),
        ("local_only", (), "method.privacy: nothing is sent that could be hidden; use kind=none"),
        ("fedavg", ("method.privacy.quantile=0.5",), "method.privacy.quantile: is of clients' updates"),
        ("fedavg", ("method.privacy.weight_cap=5.0",), "method.privacy.weight_cap: is of clients"),
        ("fedavg", ("method.privacy.noise=null",), "method.privacy.noise: how much is neither given"),
    ],
)  # fmt: skip
def test_refused(play, method, words, told):
    assert refused(play, method, *NOISY, *words).startswith(told)
