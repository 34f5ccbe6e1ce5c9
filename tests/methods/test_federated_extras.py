"""Compression, masks, stragglers and privacy in whole rounds: what they reduce to, count and refuse."""

import math
import threading

import pytest
import torch
from runs import assert_same_state

from advml.contracts import At
from advml.errors import ConfigError
from advml.models.mlp import Mlp
from advml.nn.accounting import epsilon

SMALL = (
    "method=fedavg", "view.clients=12", "method.fraction=0.5", "method.rounds=4", "dataset.limit=300", "model=linear",
    "precision=float64",
)  # fmt: skip
PARAMETERS = 64 * 10 + 10
MASKED = "method.secure_aggregation.enabled=true"
OWN_NORMS = ("model=mlp", "model.norm=batch", "method.batch_norm=local")
PRIVATE = ("method.privacy.kind=client", "method.privacy.noise=1.0", "method.privacy.delta=0.001")
ADAPTIVE = (*PRIVATE, "method.privacy.quantile=0.5", "method.privacy.count_noise=2.0")


@pytest.fixture(scope="module")
def after(play):
    """after("…"): the method after all its rounds."""

    def run(*overrides):
        return play(*SMALL, *overrides).go()

    return run


@pytest.fixture(scope="module")
def plain(after):
    return after()


def distance(one, other):
    pairs = zip(one.weights().values(), other.weights().values(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


# --- what is sent --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("feedback", ["true", "false"])
def test_sending_all_numbers_is_plain_averaging(after, plain, same, feedback):
    all_sent = after(
        "method.compression.kind=topk", "method.compression.share=1.0", f"method.compression.error_feedback={feedback}"
    )
    assert same(all_sent.weights(), plain.weights())
    bitmap = -(-PARAMETERS // 8)
    assert all_sent.budget.counts["bytes_up"] == 4 * 6 * (8 * PARAMETERS + bitmap)
    assert plain.budget.counts["bytes_up"] == 4 * 6 * 8 * PARAMETERS == plain.budget.counts["bytes_down"]


def test_the_largest_numbers_only(after, plain):
    few = after("method.compression.kind=topk", "method.compression.share=0.1")
    count = PARAMETERS // 10
    assert few.budget.counts["bytes_up"] == 4 * 6 * (8 * count + min(4 * count, 82))
    assert few.budget.counts["bytes_down"] == plain.budget.counts["bytes_down"]
    owed = few.method.channel.memory.owed
    assert set(owed) == {client for number in range(4) for client in few.method.cohort(number)}
    assert few.evaluate("test")["accuracy"] > 0.3
    forgetful = after(
        "method.compression.kind=topk", "method.compression.share=0.1", "method.compression.error_feedback=false"
    )
    assert not forgetful.method.channel.memory.owed
    assert distance(few, forgetful) > 1e-3


def test_few_bits(after, plain):
    """Sixteen of them are near the plain result, two still learn, and what is sent is counted."""
    sixteen, two = (after("method.compression.kind=quantise", f"method.compression.bits={bits}") for bits in (16, 2))
    assert 0 < distance(sixteen, plain) < 1e-4
    assert two.evaluate("test")["accuracy"] > 0.5
    assert two.budget.counts["bytes_up"] == 4 * 6 * (640 * 2 // 8 + 8 + -(-10 * 2 // 8) + 8)


def test_engines_draw_the_same_levels(after):
    """Rounding by chance does not depend on who is computed beside whom."""
    words = ("method.compression.kind=quantise", "method.compression.bits=8")
    assert distance(after(*words, "method.engine=loop"), after(*words, "method.engine=batched")) < 1e-12


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("neighbours", ["null", "2"])
def test_masked_rounds_are_plain_rounds_in_fixed_point(after, neighbours, dropout):
    """Each round's mean is off by half a unit for each client at most; local training hardly widens that here."""
    words = (f"method.dropout={dropout}", "method.secure_aggregation.fraction_bits=30")
    masked = after(
        *words, MASKED, "method.secure_aggregation.bits=40",
        f"method.secure_aggregation.neighbours={neighbours}",
    )  # fmt: skip
    open_ = after(*words)
    assert 0 < distance(masked, open_) < 4 * 6 * 2**-30 * 4
    assert [step["clients"] for step in masked.steps] == [step["clients"] for step in open_.steps]
    assert sum(step["cut"] for step in masked.steps) == 0
    senders = sum(int(step["clients"]) for step in masked.steps)
    assert masked.budget.counts["bytes_up"] == senders * (640 * 5 + 10 * 5)


# --- who works -----------------------------------------------------------------------------------------------------


def test_if_all_drop_out_the_model_stays_and_the_record_says_so(play, same):
    run = play(*SMALL, "method.dropout=1.0")
    before = run.weights()
    run.go()
    assert same(before, run.weights())
    assert [step["clients"] for step in run.steps] == [0.0] * 4
    assert not any("loss" in step for step in run.steps)
    assert run.budget.counts["bytes_up"] == 0
    assert run.budget.counts["bytes_down"] == 4 * 6 * 8 * PARAMETERS


def test_stragglers_are_dropped_or_keep_part_of_their_work(after):
    words = ("method.epochs=4", "method.stragglers.fraction=0.5")
    whole, dropped, kept = after("method.epochs=4"), after(*words), after(*words, "method.stragglers.keep=true")
    assert [step["clients"] for step in dropped.steps] == [3.0] * 4
    assert [step["clients"] for step in kept.steps] == [6.0] * 4
    work = [run.budget.counts["updates"] for run in (whole, kept, dropped)]
    assert work[0] > work[1] > work[2] == work[0] / 2


# --- privacy -------------------------------------------------------------------------------------------------------


def test_without_noise_and_bound_over_fixed_cohorts_it_is_uniform_averaging(after):
    private = after(
        "method.privacy.kind=client", "method.privacy.noise=0.0", "method.privacy.clip=1.0e+300",
        "method.privacy.sampling=fixed",
    )  # fmt: skip
    assert distance(private, after("method.weighting=uniform")) < 1e-12
    assert private.method.evaluate("valid")["epsilon"] is None


def test_under_poisson_sampling_the_denominator_is_the_expected_cohort(play):
    """Without noise and bound: the sum of deltas of whoever came, over q K = 6, and not over how many came."""
    words = ("method.privacy.kind=client", "method.privacy.noise=0.0", "method.privacy.clip=1.0e+300")
    run = play(*SMALL, *words)
    cohort = next(number for number in range(50) if len(run.method.cohort(number)) not in (0, 6))
    clients, before = run.method.cohort(cohort), run.weights()
    sums = {name: torch.zeros_like(value) for name, value in before.items()}
    for client in clients:
        update = run.method.local(cohort, [client], [run.method.planned(client)])
        for name, rows in update.deltas.items():
            sums[name] += rows[0]
    run.method.step(At(0, cohort, cohort, False))
    for name, value in run.weights().items():
        torch.testing.assert_close(value, before[name] + sums[name] / 6, rtol=0, atol=1e-12)


def test_a_round_without_clients_moves_the_network_by_noise(play, same):
    run = play(*SMALL, *PRIVATE, "method.fraction=0.000001", "method.rounds=1")
    before = run.weights()
    step = run.method.step(At(0, 0, 0, True))
    assert (step.metrics["clients"], step.metrics["clipped"]) == (0, None)
    assert not same(before, run.weights())


def test_an_update_moves_the_network_by_no_more_than_the_bound(after):
    """One round, all clients, no noise, a small C: however far they go, the mean moves by C at most."""
    bounded = after(
        "method.privacy.kind=client", "method.privacy.noise=0.0", "method.privacy.clip=0.01", "method.fraction=1.0",
        "method.rounds=1", "method.lr=1.0",
    )  # fmt: skip
    start = after("method.dropout=1.0", "method.rounds=1")
    pairs = zip(bounded.weights().values(), start.weights().values(), strict=True)
    moved = math.sqrt(sum(float((a - b).square().sum()) for a, b in pairs))
    assert 0.002 < moved <= 0.01 * (1 + 1e-9)
    assert bounded.steps[0]["clipped"] == 1.0
    assert bounded.steps[0]["clip"] == 0.01


def test_epsilon_is_told_at_every_evaluation_and_stated_at_the_end(play):
    run = play(*SMALL, *PRIVATE)
    for done in range(4):
        assert run.evaluate("valid")["epsilon"] == epsilon("poisson", 0.5, 1.0, done, 1e-3)
        run.go(1)
    assert run.method.summary([])["delta"] == 1e-3
    stated = run.method.artifacts([])["privacy"].value
    assert (stated["unit"], stated["steps"]) == ("client", 4)
    assert stated["epsilon"] == pytest.approx(epsilon("poisson", 0.5, 1.0, 4, 1e-3))


def test_the_bound_may_follow_the_norms(after):
    run = after(
        *PRIVATE, "view.clients=60", "method.fraction=0.9", "method.privacy.quantile=0.5", "method.privacy.clip=0.001",
        "method.privacy.clip_speed=1.0",
    )  # fmt: skip
    bounds = [step["clip"] for step in run.steps]
    assert bounds[0] == 0.001
    assert bounds[-1] > 2 * bounds[0]


def test_the_shipped_private_run_learns_and_keeps_its_promise(play):
    run = play("method=dp_fedavg", "method.rounds=15").go()
    found = run.evaluate("test")
    assert found["accuracy"] > 0.7
    assert 7.9 < found["epsilon"] <= 8.0


# --- what does not go together -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((MASKED, "method.compression.kind=topk"), r"use method\.compression\.kind=none"),
        ((*PRIVATE, MASKED), r"use method\.secure_aggregation\.enabled=false"),
        (("method=scaffold", *PRIVATE), r"method\.privacy: SCAFFOLD sends its variates"),
        ((*PRIVATE, "model=mlp", "model.norm=batch", "method.batch_norm=average"), r"batch_norm=local"),
        ((*PRIVATE, "method.privacy.quantile=0.5"), r"method\.privacy\.count_noise: "),
        ((*ADAPTIVE, "method.dropout=0.4"), r"method\.dropout: .*quantile=null, or method\.dropout=0$"),
        ((*ADAPTIVE, "method.stragglers.fraction=0.4"), r"method\.stragglers: .*or method\.stragglers\.keep=true$"),
        (("method.privacy.kind=client",), r"method\.privacy\.noise: "),
        ((*PRIVATE[:2], "view.clients=1"), r"method\.privacy\.delta: 1/N for N clients is 1"),
    ],
)
def test_refusals(play, words, told):
    with pytest.raises(ConfigError, match=told):
        play(*SMALL, *words)


def test_privacy_goes_with_batch_norms_that_stay_with_the_clients(after):
    """And not in the network that is handed out, nor in what chooses it."""
    run = after(*PRIVATE, *OWN_NORMS, "method.rounds=2")
    assert run.method.evaluate("valid")["epsilon"] > 0
    initial = after(*OWN_NORMS, "method.dropout=1.0").weights()
    handed_out = run.method.result().state_dict()
    norms = [name for name in initial if name in run.method.own]
    assert norms
    assert all(torch.equal(handed_out[name], initial[name]) for name in norms)


@pytest.mark.parametrize("method", ["fedavg", "fedopt"])
def test_what_is_frozen_gets_no_noise(play, method):
    """Angles of a circuit that is not trained are no statistics of anything."""
    circuit = ("dataset=iris", "model=quantum", "model.layers=1", "model.trainable=false")
    run = play(*SMALL, *PRIVATE, f"method={method}", "view=clients", *circuit)
    before, trained = run.weights(), dict(run.method.network.named_parameters())
    after = run.go(2).weights()
    assert 0 < len(trained) < len(before)
    assert all(torch.equal(before[name], after[name]) != (name in trained) for name in before)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("client", ("method=ditto",)),
        ("client", ("method=fedavg_finetune",)),
        ("client", OWN_NORMS),
        ("example", ("method=ditto",)),
    ],
)
def test_models_without_noise_choose_no_private_state(play, kind, words):
    private = play(*SMALL, *PRIVATE, f"method.privacy.kind={kind}", *words)
    assert private.method.objective.metric == "accuracy"
    assert "personal_accuracy" in private.evaluate("valid")
    assert play(*SMALL, *words).method.objective.metric == "personal_accuracy"


# --- several processes -----------------------------------------------------------------------------------------------


class Threads:
    """A world of threads in lockstep."""

    def __init__(self, size):
        self.size, self.given, self.barrier = size, [None] * size, threading.Barrier(size)

    def of(self, rank):
        return Rank(self, rank)


class Rank:
    def __init__(self, world, rank):
        self.world, self.rank, self.size = world, rank, world.size

    def exchange(self, mine):
        self.world.given[self.rank] = {name: value.clone() for name, value in mine.items()}
        self.world.barrier.wait(60)
        found = list(self.world.given)
        self.world.barrier.wait(60)
        return found


def ranks_of(play, size, *words):
    world, ranks = Threads(size), [play(*SMALL, *words) for _ in range(size)]
    for rank, run in enumerate(ranks):
        run.context.world = world.of(rank)
    return ranks


def go_together(ranks):
    threads = [threading.Thread(target=run.go) for run in ranks]
    [thread.start() for thread in threads]
    [thread.join(120) for thread in threads]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("words", [(), OWN_NORMS, ("method=scaffold",)], ids=["plain", "own", "scaffold"])
def test_shared_among_several_the_bits_are_those_of_one(play, same, size, words):
    words = (*words, "method.engine=loop", "method.epochs=2", "view=clients")
    alone, ranks, seen = play(*SMALL, *words).go(), ranks_of(play, size, *words), []
    local = ranks[0].method.local
    ranks[0].method.local = lambda number, clients, steps: seen.append(clients) or local(number, clients, steps)
    go_together(ranks)
    for run in ranks:
        assert same(run.weights(), alone.weights())
        assert run.steps == alone.steps
        assert run.budget.counts == alone.budget.counts
        assert_same_state(run.method.state_dict(), alone.method.state_dict())
    assert len(seen) == 4 * -(-6 // size)  # this one trained its share only


def test_only_the_first_process_measures_the_curve(play):
    """What it finds may end the run; the others do as they are told."""
    words = ("method.engine=loop", "method.curve=valid", "view=clients")
    alone, ranks = play(*SMALL, *words).go(), ranks_of(play, 2, *words)
    go_together(ranks)
    assert ranks[0].steps == alone.steps
    assert ["valid_accuracy" in step for step in ranks[1].steps] == [False] * 4


# --- parts of the network that are frozen --------------------------------------------------------------------------


class HalfFrozen(Mlp):
    """Its first layer is not trained."""

    def __init__(self, *given):
        super().__init__(*given)
        for value in list(self.parameters())[:2]:
            value.requires_grad_(False)


@pytest.mark.parametrize(
    "words",
    [
        (), ("method.engine=loop",), ("method=scaffold",), ("method=fedprox",), ("method=ditto",),
        ("method=local_only",), ("method=centralised",), ("method=fedopt",), (MASKED,),
        ("method.compression.kind=topk",), PRIVATE, ("method.privacy.kind=example", "method.privacy.noise=1.0"),
    ],
)  # fmt: skip
def test_what_is_frozen_is_neither_trained_nor_sent_nor_gets_noise(play, monkeypatch, words):
    monkeypatch.setattr("advml.models.mlp.Mlp", HalfFrozen)
    small = ("method=fedavg", "view.clients=4", "method.rounds=2", "dataset.limit=100", "model=mlp")
    if words != ("method=centralised",):
        small += ("method.fraction=1.0",)
    run = play(*small, *words)
    before = run.weights()
    after = run.go().weights()
    frozen, moving = list(before)[:2], list(before)[2:]
    assert all(torch.equal(before[name], after[name]) for name in frozen)
    assert not any(torch.equal(before[name], after[name]) for name in moving)
    if not words:
        sent = sum(4 * before[name].numel() for name in moving)
        assert run.budget.counts["bytes_up"] == run.budget.counts["bytes_down"] == 2 * 4 * sent
