"""The methods beside federated averaging: each against an ordinary loop, and in the cases where two must be one."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F
from federated_words import QUANTITY, average, close, drawn, federated, refused, train_alone

from advml.contracts import Objective
from advml.methods.federated.curves import crossing, rounds_to_targets


@pytest.mark.parametrize("engine", ["loop", "batched"])
def test_fedprox(play, engine):
    """μ/2 ‖w − w_global‖² added to the loss."""
    played = federated(play, "fedprox", *QUANTITY, "method.mu=0.6", f"method.engine={engine}")
    network = copy.deepcopy(played.method.network)
    for round in range(3):
        centre = {name: value.detach().clone() for name, value in network.named_parameters()}

        def held(model, centre=centre):
            for name, value in model.named_parameters():
                value.grad += 0.6 * (value.detach() - centre[name])

        cohort = drawn(played, round)
        sizes = [len(played.view.owned[client]) for client in cohort]
        states = [train_alone(played, network, round, client, held)[0] for client in cohort]
        network.load_state_dict(average(states, [size / sum(sizes) for size in sizes]))
    close(played.go().weights(), network.state_dict())


class TestScaffold:
    @pytest.mark.parametrize("weighting", ["samples", "uniform"])
    @pytest.mark.parametrize("engine", ["loop", "batched"])
    def test_option_two(self, play, engine, weighting):
        words = ("method.rounds=4", f"method.engine={engine}", f"method.weighting={weighting}", "method.server_lr=0.8")
        played = federated(play, "scaffold", *QUANTITY, *words)
        network = copy.deepcopy(played.method.network)
        zero = {name: torch.zeros_like(value.detach()) for name, value in network.named_parameters()}
        common, own = dict(zero), [dict(zero) for _ in range(5)]
        masses = [float(size) if weighting == "samples" else 1.0 for size in played.view.sizes]
        largest = []
        for round in range(4):
            cohort, start = drawn(played, round), copy.deepcopy(network.state_dict())
            present = sum(masses[client] for client in cohort)
            moved, turned = dict(zero), dict(zero)
            for client in cohort:

                def corrected(model, client=client, common=common):
                    for name, value in model.named_parameters():
                        value.grad += common[name] - own[client][name]

                state, steps = train_alone(played, network, round, client, corrected)
                for name in zero:
                    new = own[client][name] - common[name] + (start[name] - state[name]) / (steps * 0.1)
                    moved[name] = moved[name] + masses[client] / present * (state[name] - start[name])
                    turned[name] = turned[name] + masses[client] / sum(masses) * (new - own[client][name])
                    own[client][name] = new
            network.load_state_dict({name: start[name] + 0.8 * moved[name] for name in zero})
            common = {name: common[name] + turned[name] for name in zero}
            flat = [torch.cat([value.flatten() for value in own[client].values()]) for client in cohort]
            largest.append(max(float(one.norm()) for one in flat))
        close(played.go().weights(), network.state_dict())
        close(played.method.variate, common)
        assert [float(step["largest_variate"]) for step in played.steps] == pytest.approx(largest, rel=1e-10)

    def test_with_all_clients_the_servers_variate_is_the_mean_of_theirs(self, play):
        played = federated(play, "scaffold", *QUANTITY, "method.fraction=1.0").go()
        shares = played.view.sizes.double() / played.view.sizes.sum()
        for name, value in played.method.variate.items():
            mine = torch.stack([played.method.kept[client]["variate/" + name] for client in range(5)])
            torch.testing.assert_close(value, torch.tensordot(shares, mine, 1), rtol=1e-10, atol=1e-13)

    def test_twice_the_bytes(self, play):
        """Of FedAvg, both ways; running averages have no variates."""
        plain, corrected = (federated(play, name).go(1).steps[0] for name in ("fedavg", "scaffold"))
        for way in ("bytes_up", "bytes_down"):
            assert corrected[way] == 2 * plain[way]

    def test_it_corrects_a_drift(self, play):
        """Clients with a label or two each, many local steps: SCAFFOLD's loss is the lower one."""
        words = ("view.partition=labels", "view.labels=2", "method.fraction=1.0", "method.epochs=10")
        played = [federated(play, name, *words, "method.rounds=20").go() for name in ("fedavg", "scaffold")]
        plain, corrected = (one.evaluate("train")["loss"] for one in played)
        assert corrected < plain

    @pytest.mark.parametrize("words", ["method.momentum=0.9", "method.optimiser=adam", "method.clip_norm=1.0"])
    def test_its_variates_are_those_of_plain_steps(self, play, words):
        assert "SCAFFOLD" in refused(play, "scaffold", words)


@pytest.mark.parametrize(
    ("method", "rule"), [("fedavgm", "sgd"), ("fedadam", "adam"), ("fedyogi", "yogi"), ("fedopt", "adagrad")]
)
def test_the_presets_of_fedopt(play, method, rule):
    """The first round from FedAvg's mean change; batch norm's averages move as there."""
    words = ("method.rounds=2", "method.fraction=1.0", "method.lr=0.1")
    plain, played = (federated(play, name, *words, model="mlp_batch") for name in ("fedavg", method))
    start, config = plain.weights(), played.context.settings
    mean, moved = plain.go(1).weights(), played.go(1).weights()
    assert config.server_optimiser == rule
    for name, value in start.items():
        change = mean[name] - value
        if name not in dict(plain.method.network.named_parameters()):
            assert torch.equal(moved[name], mean[name])
            continue
        if rule == "sgd":
            step = change
        else:
            square = config.tau**2 * (config.server_betas[1] if rule == "adam" else 1)
            weight = 1 if rule == "adagrad" else 1 - config.server_betas[1]
            sign = torch.sign(change.square() - config.tau**2) if rule == "yogi" else 1
            square = square + weight * sign * change.square()
            step = (1 - config.server_betas[0]) * change / (square.sqrt() + config.tau)
        torch.testing.assert_close(moved[name], value + config.server_lr * step, rtol=1e-10, atol=1e-12)


class TestOwnNorms:
    def test_fedbn(self, play):
        """Norms stay at home, the rest is averaged: clients that take part twice go on with their own."""
        played = federated(play, "fedbn", *QUANTITY, "method.rounds=2", "method.fraction=1.0", model="mlp_batch")
        start = copy.deepcopy(played.method.network)
        own = {}
        for round in range(2):
            sizes, states = played.view.sizes.tolist(), []
            for client in range(5):
                mine = copy.deepcopy(start)
                mine.load_state_dict({**start.state_dict(), **own.get(client, {})})
                state, _ = train_alone(played, mine, round, client)
                own[client] = {name: state[name] for name in state if name.startswith(("body.1.", "body.5."))}
                states.append(state)
            found = average(states, [size / sum(sizes) for size in sizes])
            norms = {name: value for name, value in start.state_dict().items() if name.startswith("body.1.")}
            start.load_state_dict({**found, **norms})
        played.go()
        close(played.weights(), start.state_dict(), 1e-8, 1e-9)
        for client in range(5):
            norms = {name: value for name, value in own[client].items() if name.startswith("body.1.")}
            close(played.method.kept[client], norms, 1e-8, 1e-9)

    def test_its_norms_are_not_sent(self, play):
        """4 values of 8 numbers, and a count, of 8 bytes each."""
        plain, own = (federated(play, name, "method.fraction=1.0", model="mlp_batch").go(1).steps[0]
                      for name in ("fedavg", "fedbn"))  # fmt: skip
        assert plain["bytes_down"] - own["bytes_down"] == plain["bytes_up"] - own["bytes_up"] == 5 * 8 * (4 * 8 + 1)

    def test_each_is_measured_with_its_own(self, play):
        played = federated(play, "fedbn", "view.shift=noise", "method.fraction=1.0", model="mlp_batch").go()
        scores = []
        for client in range(5):
            mine = copy.deepcopy(played.method.network).eval()
            mine.load_state_dict({**mine.state_dict(), **played.method.kept[client]})
            split = played.view.examples(client, "test")
            outputs = mine(split.batch(slice(0, None)).inputs)
            scores.append(float((outputs.argmax(1) == split.target).double().mean()))
        found = played.evaluate("test")
        assert found["personal_accuracy"] == pytest.approx(sum(scores) / 5, abs=1e-12)
        assert played.method.objective.metric == "personal_accuracy"
        means = torch.stack([played.method.kept[client]["body.1.weight"] for client in range(5)]).mean(0)
        assert torch.equal(played.method.result().state_dict()["body.1.weight"], means)


class TestPersonal:
    def test_ditto(self, play):
        """Beside FedAvg, own models held near what the server sent."""
        played = federated(play, "ditto", *QUANTITY, "method.strength=0.4")
        plain = federated(play, "fedavg", *QUANTITY)
        initial, own = played.weights(), {}
        for round in range(3):
            centre = plain.weights()

            def held(model, centre=centre):
                for name, value in model.named_parameters():
                    value.grad += 0.4 * (value.detach() - centre[name])

            for client in drawn(played, round):
                mine = copy.deepcopy(plain.method.network)
                mine.load_state_dict(own.get(client, initial))
                own[client] = train_alone(played, mine, round, client, held)[0]
            plain.go(1)
        close(played.go().weights(), plain.weights(), 1e-12, 1e-12)
        assert set(played.method.kept) == set(own)
        for client, state in own.items():
            close(played.method.kept[client], {"own/" + name: value for name, value in state.items()})
        for done in ("samples", "gradients", "updates"):
            assert played.budget.counts[done] == 2 * plain.budget.counts[done]
        assert played.budget.counts["bytes_up"] == plain.budget.counts["bytes_up"]

    @pytest.mark.parametrize("model", ["mlp", "mlp_batch"])
    def test_ditto_that_holds_nobody_is_everyone_for_itself(self, play, model):
        free = federated(play, "ditto", *QUANTITY, "method.strength=0", model=model).go()
        alone = federated(play, "local_only", *QUANTITY, model=model).go()
        assert free.evaluate("test")["personal_accuracy"] == alone.evaluate("test")["personal_accuracy"]
        for client, values in alone.method.kept.items():
            own = {name.removeprefix("own/"): value for name, value in free.method.kept[client].items()}
            assert own.keys() == values.keys()
            assert all(torch.equal(own[name], value) for name, value in values.items())

    @pytest.mark.parametrize(
        ("model", "words"),
        [("mlp", ""), ("mlp", "method.secure_aggregation.enabled=true"), ("mlp_batch", "method.batch_norm=local")],
    )
    def test_local_only(self, play, model, words):
        """The global network is Σ n_k/n v_k, those who never took part at the start; nothing is sent."""
        played = federated(play, "local_only", *QUANTITY, *words.split(), model=model)
        initial = played.weights()
        played.go()
        shares = (played.view.sizes.double() / played.view.sizes.sum()).tolist()
        models = [played.method.kept.get(client, initial) for client in range(5)]
        assert len(played.method.kept) < 5 or len(played.steps) > 2
        found, mean = played.weights(), average(models, shares)
        summed = [name for name, value in found.items() if value.is_floating_point()]
        close({name: found[name] for name in summed}, {name: mean[name] for name in summed})
        assert played.budget.counts["bytes_up"] == played.budget.counts["bytes_down"] == 0

    @pytest.mark.parametrize("model", ["mlp", "mlp_batch"])
    def test_fine_tuning(self, play, same, model):
        """Each client's copy of FedAvg's network, trained on; measuring changes nothing."""
        words = ("method.finetune_epochs=2", "method.finetune_lr=0.1")
        played = federated(play, "fedavg_finetune", *QUANTITY, *words, model=model).go()
        assert same(played.weights(), federated(play, "fedavg", *QUANTITY, model=model).go().weights())
        before, found, scores = played.weights(), played.evaluate("test"), []
        assert same(before, played.weights())
        rng = played.context.rng
        played.context.rng = lambda purpose, *key: rng("finetune order", *key)
        for client in range(5):
            mine = copy.deepcopy(played.method.network)
            mine.load_state_dict(train_alone(played, mine, 0, client)[0])
            split = played.view.examples(client, "test")
            outputs = mine.eval()(split.batch(slice(0, None)).inputs)
            scores.append(float((outputs.argmax(1) == split.target).double().mean()))
        played.context.rng = rng
        assert found["personal_accuracy"] == pytest.approx(sum(scores) / 5, abs=1e-12)
        assert found["personal_accuracy"] != found["client_accuracy"]


@pytest.mark.parametrize("method", ["fedavg", "ditto", "centralised"])
def test_without_test_examples_no_scores_are_spread(play, method):
    played = federated(play, method, "dataset.test=0", "method.rounds=1").go()
    assert "client_accuracy" not in played.method.artifacts([])


def test_centralised(play):
    """Mini-batch descent on the pooled examples: m/K E ⌈N/B⌉ updates a round, of 5 clients m = 2; one optimiser."""
    words = ("method.momentum=0.5", "method.batch_size=20", "method.lr=0.05", "method.epochs=1")
    played = federated(play, "centralised", *words)
    model, examples = copy.deepcopy(played.method.network), len(played.view.train)
    optimiser = torch.optim.SGD(model.parameters(), 0.05, 0.5)
    updates = round(3 * 2 / 5 * -(-examples // 20))
    orders = [torch.randperm(examples, generator=played.context.rng("order", epoch)).split(20) for epoch in range(3)]
    for index in [index for order in orders for index in order][:updates]:
        inputs, target, _ = played.view.train.batch(index)
        optimiser.zero_grad()
        F.cross_entropy(model(inputs), target).backward()
        optimiser.step()
    close(played.go().weights(), model.state_dict())
    assert played.budget.counts["updates"] == updates


def test_centralised_with_batch_norm_leaves_no_example_alone(play):
    """As the clients of the federated run beside it do not: such a norm cannot learn from a single one."""
    examples = len(federated(play, "centralised").view.train)
    words = ("method.rounds=5", "method.fraction=1", "method.epochs=1", f"method.batch_size={examples - 1}")
    played = federated(play, "centralised", *words, model="mlp_batch").go()
    assert played.budget.counts["updates"] == 5
    assert played.budget.counts["gradients"] == 5 * examples


@pytest.mark.parametrize("words", [["method.batch_size=null"], ["method.batch_size=1000"], ["method.fraction=0.01"]])
def test_centralised_takes_as_many_examples_as_federated_averaging(play, words):
    """FedSGD too, where a batch is what the clients of a round have; and where C K is less than a client."""
    words = ("method.rounds=10", "method.epochs=1", "method.batch_size=4", *words)
    taken = [federated(play, name, *words).go().budget.counts["gradients"] for name in ("centralised", "fedavg")]
    assert taken[0] == pytest.approx(taken[1], abs=60)  # whose clients have 43 or 44 examples, batches end with epochs


@pytest.mark.parametrize("method", ["fedavg", "scaffold", "ditto", "fedavg_finetune"])
def test_dropout_is_drawn_by_chunk(play, same, method):
    """Whoever computes a chunk, and whatever was computed before it, it drops the same."""
    words = ("model.dropout=0.3", "method.fraction=1.0", "method.rounds=2")
    played = [federated(play, method, *QUANTITY, *words) for _ in range(2)]
    for one in played:
        one.method.at_once = 2
    method = played[0].method
    jobs = [([4, 1], [2, 2]), ([0], [3])]
    first = {job[0][0]: method.local(0, *job).deltas["head.bias"] for job in jobs}
    second = {job[0][0]: played[1].method.local(0, *job).deltas["head.bias"] for job in reversed(jobs)}
    assert all(torch.equal(first[key], second[key]) for key in first)


class TestTargets:
    @pytest.mark.parametrize(
        ("points", "target", "expected"),
        [
            ([(1, 0.2), (2, 0.6)], 0.4, 1.5),
            ([(1, 0.2), (2, 0.1), (3, 0.6)], 0.4, 2.5),  # the curve made monotone: 0.2, 0.2, 0.6
            ([(5, 0.9)], 0.5, 5.0),
            ([(1, 0.2), (2, 0.3)], 0.4, None),
            ([], 0.4, None),
            ([(1, 0.4), (2, 0.9)], 0.4, 1.0),
            ([(0, 0.0), (10, 1.0)], 0.97, 9.7),
        ],
    )
    def test_crossing(self, points, target, expected):
        found = crossing(points, target)
        assert found == (expected if expected is None else pytest.approx(expected))

    def test_downwards(self):
        assert crossing([(1, 5.0), (2, 6.0), (3, 1.0)], 3.0, "min") == pytest.approx(2.5)

    def test_by_evaluations(self):
        """Without a curve those of the objective; what is measured at the end of the best state does not count."""
        records = [
            {"step": 0, "split": "valid", "accuracy": 0.1},
            {"step": 5, "split": "valid", "accuracy": 0.5},
            {"step": 5, "split": "test", "accuracy": 0.99, "state": "last"},
            {"step": 5, "split": "train", "loss": 1.0},
        ]
        found = rounds_to_targets(records, [0.3, 0.9], "none", Objective("accuracy", "valid", "max"))
        assert found == {"rounds_to_0.3": pytest.approx(2.5), "rounds_to_0.9": None, "rounds_to_target": None}

    def test_personal_accuracies_are_not_what_is_counted(self):
        """Beside FedAvg's rounds those of Ditto's own models would be rounds to something else."""
        records = [
            {"step": 0, "split": "valid", "accuracy": 0.1, "personal_accuracy": 0.1},
            {"step": 4, "split": "valid", "accuracy": 0.5, "personal_accuracy": 0.9},
        ]
        personal = rounds_to_targets(records, [0.5], "none", Objective("personal_accuracy", "valid", "max"))
        assert personal == rounds_to_targets(records, [0.5], "none", Objective("accuracy", "valid", "max"))
        assert personal["rounds_to_0.5"] == 4


def test_a_recurrent_network_and_a_client_for_each_role(play, tmp_path):
    """LEAF's Shakespeare, made small: characters in the order of the alphabet, which an LSTM soon knows."""
    alphabet, data = "abcdefghij", {}
    for name, start in (("ann", 0), ("bob", 2)):
        texts = [alphabet[at : at + 5] for at in range(start, start + 3)]
        data[name] = {"x": texts, "y": [alphabet[alphabet.index(text[-1]) + 1] for text in texts]}
    content = {"users": list(data), "num_samples": [3, 3], "user_data": data}
    for part in ("train", "test"):
        (tmp_path / part).mkdir()
        (tmp_path / part / "roles.json").write_text(json.dumps(content))
    words = ("method=fedavg", "dataset=leaf", f"dataset.path={tmp_path}", "dataset.shape=[5]", "dataset.classes=null",
             f"dataset.alphabet={alphabet}", "dataset.valid=0.0")  # fmt: skip
    model = ("model=char_lstm", "model.hidden=8", "model.layers=1", "model.embedding=4")
    rounds = ("view=clients_groups", "method.fraction=1.0", "method.rounds=30", "method.lr=2.0")
    played = play(*words, *model, *rounds)
    assert played.method.replicas.engine == "loop"
    before = played.evaluate("train")["loss"]
    assert played.go().evaluate("train")["loss"] < before / 2
    assert played.evaluate("test")["client_accuracy"] > 0.5
