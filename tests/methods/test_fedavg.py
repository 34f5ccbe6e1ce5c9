"""Federated averaging: against an ordinary loop, its exact reductions, and the bugs that public projects carry."""

import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from federated_words import QUANTITY, average, batches_of, close, drawn, federated, refused, train_alone

from advml.contracts import At
from advml.methods.federated.fedavg import FedAvg

QUANTUM = ("model=quantum", "model.qubits=4", "model.layers=1")
PAIRS = (*QUANTUM, "model.circuit=iqp", "model.observables=zz")
PLAIN_SGD = ("method.optimiser=sgd", "method.momentum=0.0", "method.epochs=6", "method.batch_size=102")


@pytest.mark.parametrize("model", ["mlp", "mlp_batch", "conv4", "cnn", "linear"])
def test_it_is_the_ordinary_loop(play, model):
    """Deep copies, torch's SGD, Σ n_k/n w_k over the sampled clients, of very unequal sizes; running averages too."""
    small = {"conv4": ["model.channels=3", "model.blocks=2"], "cnn": ["model.channels=[2,3]", "model.hidden=6"]}
    played = federated(play, "fedavg", *QUANTITY, *small.get(model, []), model=model)
    network = copy.deepcopy(played.method.network)
    for round in range(3):
        cohort = drawn(played, round)
        sizes = [len(played.view.owned[client]) for client in cohort]
        states = [train_alone(played, network, round, client)[0] for client in cohort]
        network.load_state_dict(average(states, [size / sum(sizes) for size in sizes]))
    assert len(set(played.view.sizes.tolist())) == 5
    close(played.go().weights(), network.state_dict(), rtol=1e-8, atol=1e-9)


def test_uniform_weighting(play):
    played = federated(play, "fedavg", *QUANTITY, "method.weighting=uniform", "method.rounds=1")
    network = played.method.network
    cohort = drawn(played, 0)
    states = [train_alone(played, network, 0, client)[0] for client in cohort]
    close(played.go().weights(), average(states, [1 / len(cohort)] * len(cohort)))


@pytest.mark.parametrize("words", [QUANTITY, ("view.partition=shards",)], ids=["unequal", "equal"])
@pytest.mark.parametrize("model", ["mlp", "mlp_batch"])
def test_engines_agree(play, model, words):
    """Cohorts and batches to the bit, weights to rounding; a tenth of the engines' freedom is rounding before norms."""
    played = [federated(play, "fedavg", *words, f"method.engine={engine}", model=model).go()
              for engine in ("loop", "batched", "vmap", "auto")]  # fmt: skip
    assert [type(one.method.replicas).__name__ for one in played] == ["Replicas", "Batched", "Vmapped", "Batched"]
    for one in played[1:]:
        close(played[0].weights(), one.weights(), *((1e-12, 1e-12) if model == "mlp" else (1e-7, 1e-8)))
        assert one.budget.counts == played[0].budget.counts
        assert [step["clients"] for step in one.steps] == [2.0, 2.0, 2.0]


def test_who_trains_side_by_side(play):
    """Behind batch norms clients of unequal sizes only where padding stays out of the statistics."""
    found = {}
    for engine in ("batched", "vmap", "loop"):
        method = federated(play, "fedavg", *QUANTITY, f"method.engine={engine}", model="mlp_batch").method
        steps = {client: method.planned(client) for client in range(5)}
        found[engine] = list(method.chunks(method.order(steps), steps))
    assert len({method.sizes[client] for client in range(5)}) > 1
    assert len(found["batched"]) == 1
    assert all(len({method.sizes[client] for client in chunk}) == 1 for chunk in found["vmap"])
    assert [len(chunk) for chunk in found["loop"]] == [1] * 5


def test_chunks_change_rounding_only(play):
    """Clients two by two instead of all at once."""
    whole, few = (federated(play, "fedavg", *QUANTITY, "method.fraction=1.0") for _ in range(2))
    few.method.at_once = 2
    close(whole.go().weights(), few.go().weights(), 1e-12, 1e-12)


class TestReductions:
    def test_one_client_is_plain_sgd(self, play):
        """Over all rounds one network, the same permutation."""
        played = federated(play, "fedavg", clients=1)
        model = copy.deepcopy(played.method.network)
        optimiser = torch.optim.SGD(model.parameters(), 0.1)
        for round in range(3):
            for index in batches_of(played, round, 0):
                inputs, target, _ = played.view.train.batch(index)
                optimiser.zero_grad()
                F.cross_entropy(model(inputs), target).backward()
                optimiser.step()
        close(played.go().weights(), model.state_dict(), 1e-12, 1e-13)

    @pytest.mark.parametrize("engine", ["loop", "vmap"])
    @pytest.mark.parametrize("model", [QUANTUM, PAIRS, ("model=mlp",)], ids=["angles", "iqp", "mlp"])
    def test_one_client_is_supervised_learning(self, play, model, engine):
        """Of circuits too: all examples with one client, in one batch, three rounds of two epochs each."""
        words = ("dataset=iris", *model, "precision=float64", "method.lr=0.1", "method.batch_size=null")
        rounds = ("view.clients=1", "method.rounds=3", "method.epochs=2", f"method.engine={engine}")
        played = play("method=fedavg", "view=clients", *words, *rounds)
        ordinary = play("method=supervised", "view=plain", *words[:-1], *PLAIN_SGD)
        assert len(played.view.owned[0]) == len(ordinary.view.train) == 102
        close(played.weights(), ordinary.weights(), 0, 0)  # where both begin
        before = ordinary.weights()
        close(played.go().weights(), ordinary.go().weights(), 1e-12, 1e-12)
        assert any((value - before[name]).abs().max() > 0.01 for name, value in ordinary.weights().items())
        assert played.budget.counts["gradients"] == ordinary.budget.counts["gradients"] == 6 * 102

    def test_one_full_batch_of_all_clients_is_a_step_along_the_gradient(self, play):
        """B = ∞, E = 1, C = 1: FedSGD."""
        words = ("method.batch_size=null", "method.epochs=1", "method.fraction=1.0", "method.rounds=2")
        played = federated(play, "fedavg", *QUANTITY, *words)
        model = copy.deepcopy(played.method.network)
        for _ in range(2):
            inputs, target, _ = played.view.train.batch(slice(0, None))
            gradients = torch.autograd.grad(F.cross_entropy(model(inputs), target), list(model.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(model.parameters(), gradients, strict=True):
                    parameter -= 0.1 * gradient
        played.go()
        close(played.weights(), model.state_dict(), 1e-12, 1e-12)
        assert played.budget.counts["updates"] == 10

    @pytest.mark.parametrize(
        ("method", "words"),
        [("fedprox", ["method.mu=0"]), ("fedopt", ["method.server_optimiser=sgd", "method.server_lr=1.0"])],
    )
    def test_bit_by_bit(self, play, same, method, words):
        plain = federated(play, "fedavg", *QUANTITY, model="mlp_batch").go()
        assert same(plain.weights(), federated(play, method, *QUANTITY, *words, model="mlp_batch").go().weights())

    def test_the_first_round_of_scaffold(self, play, same):
        """From zero variates; they act from the second round on."""
        plain, corrected = (federated(play, name, "method.fraction=1.0") for name in ("fedavg", "scaffold"))
        assert same(plain.go(1).weights(), corrected.go(1).weights())
        assert not same(plain.go(1).weights(), corrected.go(1).weights())


class TestPublishedBugs:
    def test_the_mean_counts_examples_not_clients_nor_batches(self, play):
        """30 examples at B = 10 and 11 at B = 10 are 3 and 2 batches: weights 30/41 and 11/41."""
        played = federated(play, "fedavg", "method.fraction=1.0", clients=2)
        played.method.sizes = [30, 11]
        assert played.method.weights([0, 1]).tolist() == [30 / 41, 11 / 41]

    def test_buffers_are_averaged_and_counters_are_not(self, play):
        """Not those of the first client."""
        played = federated(play, "fedavg", *QUANTITY, "method.rounds=1", "method.fraction=1.0", model="mlp_batch")
        states = [train_alone(played, played.method.network, 0, client)[0] for client in range(5)]
        found, sizes = played.go().weights(), played.view.sizes
        means = torch.stack([state["body.1.running_mean"] for state in states])
        torch.testing.assert_close(found["body.1.running_mean"], (sizes.double() / sizes.sum()) @ means)
        assert not torch.allclose(found["body.1.running_mean"], means[0], rtol=1e-3)
        assert int(found["body.1.num_batches_tracked"]) == max(len(batches_of(played, 0, k)) for k in range(5))

    def test_logits_go_into_the_loss(self, play):
        """Softmax before it could not bring the loss of 10 classes below log(1 + 9/e) = 1.46."""
        played = federated(play, "fedavg", "method.rounds=60", "method.fraction=1.0").go()
        assert played.steps[-1]["loss"] < 0.5
        assert played.evaluate("train")["loss"] < 0.5

    def test_the_users_seed_draws_the_cohorts(self, play):
        """Not the round alone; and nobody else's generator is touched."""
        found = {}
        for seed in (0, 1, 2, 0):
            played = federated(play, "fedavg", f"seed={seed}", clients=20)
            states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
            cohorts = [tuple(played.method.cohort(round)) for round in range(5)]
            after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
            assert states[:2] == after[:2]
            assert torch.equal(states[2], after[2])
            assert found.setdefault(seed, cohorts) == cohorts
        assert len(set(map(tuple, found.values()))) == 3
        assert len(set(found[0])) == 5

    def test_the_local_optimiser_is_fresh(self, play, same):
        """With momentum: two rounds of one client differ from one long round."""
        words = ("method.momentum=0.9", "method.batch_size=null", "method.lr=0.01")
        long = federated(play, "fedavg", *words, "method.epochs=2", "method.rounds=1", clients=1).go()
        short = federated(play, "fedavg", *words, "method.epochs=1", "method.rounds=2", clients=1).go()
        assert not same(long.weights(), short.weights())


class Dropping(FedAvg):
    """Clients do the share of their work that `does` says."""

    does: tuple[float, ...] = ()

    def work(self, round, cohort, planned):
        return [int(steps * share) for steps, share in zip(planned, self.does, strict=True)]


@pytest.mark.parametrize("engine", ["loop", "batched"])
@pytest.mark.parametrize("does", [(0, 1, 0.5, 1, 0.2), (0, 0, 0, 0, 0)])
def test_those_who_drop_out(play, same, does, engine):
    """Weights are those of whom is left; if nobody is, the model stays and the record says so."""
    played = federated(play, "fedavg", *QUANTITY, "method.fraction=1.0", f"method.engine={engine}")
    played.method.__class__, played.method.does = Dropping, does
    before = played.weights()
    played.go(1)
    present = [client for client in range(5) if does[client]]
    assert played.steps[0]["clients"] == len(present)
    assert played.steps[0]["bytes_up"] == len(present) * played.steps[0]["bytes_down"] / 5
    if not present:
        assert same(before, played.weights())
        assert "loss" not in played.steps[0]
        assert "bytes_up" in played.budget.counts
        return
    method, sizes = played.method, [len(played.view.owned[client]) for client in present]
    method.network.load_state_dict(before)
    states = []
    for client in present:
        steps = int(method.planned(client) * does[client])
        update = method.local(0, [client], [steps])
        states.append({name: before[name] + update.deltas[name][0] for name in before})
        assert update.updates == steps
    expected = average(states, [size / sum(sizes) for size in sizes])
    method.step(At(0, 0, 0, False))
    close(played.weights(), expected, 1e-12, 1e-12)


class TestRecords:
    def test_bytes_and_work(self, play):
        """2 of 5 clients of 60 examples, 2 epochs at B = 7: 18 steps each; 650·8 + 90 numbers of 8 bytes."""
        played = federated(play, "fedavg", "method.rounds=1").go()
        examples = sum(len(played.view.owned[client]) for client in drawn(played, 0))
        size = 8 * sum(parameter.numel() for parameter in played.method.network.parameters())
        steps = sum(len(batches_of(played, 0, client)) for client in drawn(played, 0))
        assert played.budget.counts == {"samples": 2 * examples, "updates": steps, "gradients": 2 * examples,
                                        "bytes_up": 2 * size, "bytes_down": 2 * size}  # fmt: skip
        assert played.steps[0]["bytes_up"] == 2 * size

    def test_clients_are_measured_on_their_own_examples(self, play):
        played = federated(play, "fedavg", "view.shift=noise", "method.rounds=2").go()
        found, each, counts = played.evaluate("test"), [], []
        for client in range(5):
            mine = played.view.examples(client, "test")
            outputs = played.method.network.eval()(mine.batch(slice(0, None)).inputs)
            each.append(float((outputs.argmax(1) == mine.target).double().mean()))
            counts.append(len(mine))
        assert found["client_accuracy"] == pytest.approx(np.mean(each), abs=1e-12)
        assert found["client_accuracy_weighted"] == pytest.approx(np.average(each, weights=counts), abs=1e-12)
        assert found["client_accuracy_p10"] == pytest.approx(np.percentile(each, 10), abs=1e-12)
        assert found["client_accuracy_p90"] == pytest.approx(np.percentile(each, 90), abs=1e-12)
        assert found["accuracy"] != found["client_accuracy_weighted"]  # the whole split is seen without noise

    def test_the_curve_and_its_targets(self, play):
        words = ("method.curve=test", "method.targets=[0.3,0.4,1.0]", "method.rounds=12", "method.curve_every=2")
        played = federated(play, "fedavg", *words).go()
        assert ["test_accuracy" in step for step in played.steps] == [False, True] * 6
        assert played.steps[-1]["test_accuracy"] == played.evaluate("test")["accuracy"]
        records = [{"step": number + 1, "split": "train", **step} for number, step in enumerate(played.steps)]
        summary = played.method.summary(records)
        assert summary["rounds_to_0.3"] < summary["rounds_to_0.4"] <= 12
        assert summary["rounds_to_1"] is None
        made = played.method.artifacts(records)
        assert set(made) == {"partition", "by_rounds", "by_bytes", "client_accuracy"}
        assert list(made["by_rounds"].x) == [2, 4, 6, 8, 10, 12]
        assert made["by_bytes"].x[-1] == pytest.approx(24 * played.steps[0]["bytes_up"] / 1e6)
        assert sum(made["client_accuracy"].counts["the global network"]) == 5

    @pytest.mark.parametrize(("shift", "passes"), [("none", 1), ("noise", 2)])
    def test_examples_that_all_see_alike_are_measured_in_one_pass(self, play, shift, passes):
        played, seen = federated(play, "fedavg", f"view.shift={shift}", "view.noise=5.0").go(), []
        played.method.network.register_forward_hook(lambda network, given, outputs: seen.append(len(outputs)))
        found = played.evaluate("test")
        assert sum(seen) == passes * len(played.view.test)
        assert (found["client_accuracy_weighted"] == pytest.approx(found["accuracy"], abs=1e-12)) == (shift == "none")

    def test_it_ends_when_all_targets_are_reached(self, play):
        words = ("method.curve=valid", "method.targets=[0.3,0.6]", "method.stop_at_targets=true", "method.rounds=50")
        played = federated(play, "fedavg", *words).go()
        assert played.ended
        assert len(played.steps) < 50
        assert played.steps[-1]["valid_accuracy"] >= 0.6 > played.steps[-2]["valid_accuracy"]


def test_real_targets(play):
    words = ("method=fedavg", "dataset=diabetes", "view=clients", "model=mlp", "model.hidden=[8]", "view.clients=4")
    played = play(*words, *QUANTITY, "method.rounds=10", "method.fraction=1.0", "method.lr=0.01")
    before = played.evaluate("valid")["mse"]
    found = played.go().evaluate("valid")
    assert found["mse"] < before
    assert played.method.objective.metric == "mse"
    assert {"client_mse", "client_mse_weighted", "client_mse_p10", "client_mse_p90"} < set(found)


class TestRefusals:
    def test_batch_norm(self, play):
        line = refused(play, "fedavg", "method.batch_norm=refuse", model="mlp_batch")
        assert line.startswith("method.batch_norm: refuse")
        assert refused(play, "fedavg", "method.batch_size=1", model="mlp_batch").startswith("method.batch_size: 1")
        line = refused(play, "fedavg", model="mlp_batch", clients=150)
        assert line == "model.norm=batch: a client has one example, of which it has no statistics; give it more"

    def test_an_engine_that_does_not_serve(self, play):
        assert refused(play, "fedavg", "method.engine=batched", model="conv4").startswith("method.engine: batched")

    def test_fedbn_without_batch_norm(self, play):
        assert "model.norm=batch" in refused(play, "fedbn", model="mlp")

    @pytest.mark.parametrize("method", ["scaffold", "fedprox", "ditto"])
    def test_own_norms_where_all_must_be_the_servers(self, play, method):
        line = refused(play, method, "method.batch_norm=local", model="mlp_batch")
        assert line.startswith("method.batch_norm: local, but ")
        assert line.endswith("; use average, or method=fedbn")

    def test_a_curve_of_nothing(self, play):
        line = refused(play, "fedavg", "method.curve=valid", "dataset.valid=0.0")
        assert line.startswith("method.curve=valid: the split is empty")

    def test_stopping_at_no_target(self, play):
        assert "stop_at_targets" in refused(play, "fedavg", "method.stop_at_targets=true")

    def test_loss(self, play):
        assert refused(play, "fedavg", "method.loss=mse").startswith("method.loss: mse does not fit")
