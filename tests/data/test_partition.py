"""Partitions: every example has one client, and each kind divides as its paper says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advml.data import partition
from advml.errors import ConfigError

KINDS = {
    "iid": lambda target, clients, generator: partition.iid(len(target), clients, generator),
    "shards": lambda target, clients, generator: partition.shards(target, clients, 2, generator),
    "dirichlet": lambda target, clients, generator: partition.label_skew(target, clients, 2.0, 1, False, generator),
    "balanced": lambda target, clients, generator: partition.label_skew(target, clients, 2.0, 1, True, generator),
    "labels": lambda target, clients, generator: partition.fixed_labels(
        target, int(target.max()) + 1, clients, 2, generator
    ),
    "quantity": lambda target, clients, generator: partition.quantity_skew(len(target), clients, 2.0, 1, generator),
}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def balanced(classes=10, each=600):
    return torch.arange(classes).repeat(each)


def uneven(seed, classes, examples):
    """Labels of unequal frequency, each present."""
    weights = torch.rand(classes, generator=rng(seed)) + 1
    drawn = torch.multinomial(weights, examples - classes, replacement=True, generator=rng(seed + 1))
    return torch.cat([torch.arange(classes), drawn])[torch.randperm(examples, generator=rng(seed + 2))]


def whole(owner, clients, examples):
    """Is it a partition: the clients' parts disjoint, ascending, and together all examples?"""
    parts = partition.held(owner, clients)
    assert len(parts) == clients
    assert all(torch.equal(part, part.sort().values) for part in parts)
    assert torch.equal(torch.cat(parts).sort().values, torch.arange(examples))
    return parts


@settings(max_examples=150, deadline=None)
@given(
    kind=st.sampled_from(list(KINDS)),
    classes=st.integers(2, 9),
    clients=st.integers(1, 25),
    examples=st.integers(600, 900),
    seed=st.integers(0, 2**31),
)
def test_every_kind_is_disjoint_and_covers(kind, classes, clients, examples, seed):
    target = uneven(seed % 1000, classes, examples)
    if kind == "labels":
        clients = max(clients, -(-classes // 2))  # with two labels each, fewer could not have them all
    owner = KINDS[kind](target, clients, rng(seed))
    parts = whole(owner, clients, examples)
    assert all(len(part) for part in parts)


@pytest.mark.parametrize("kind", KINDS)
def test_the_generator_is_all_that_is_random(kind):
    target = uneven(3, 10, 1000)
    state = torch.random.get_rng_state()
    once, again, other = (KINDS[kind](target, 12, rng(seed)) for seed in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_ten_thousand_clients_are_no_loop_over_examples():
    target = balanced(10, 6000)
    for kind, each in (("iid", (6, 6)), ("shards", (6, 6)), ("labels", (4, 8))):
        sizes = KINDS[kind](target, 10_000, rng()).bincount(minlength=10_000)
        assert each[0] <= sizes.min() <= sizes.max() <= each[1]
    owner = partition.label_skew(target, 10_000, 20.0, 1, True, rng())
    whole(owner, 10_000, 60_000)


# --- IID and shards -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("examples", "clients"), [(100, 10), (103, 10), (7, 7)])
def test_iid_sizes_differ_by_at_most_one(examples, clients):
    sizes = partition.iid(examples, clients, rng()).bincount(minlength=clients)
    assert sizes.sum() == examples
    assert sizes.max() - sizes.min() <= 1


def test_iid_labels_are_mixed():
    target = balanced()
    counts = partition.table(partition.iid(6000, 10, rng()), target, 10, 10)
    assert ((counts - 60).abs() < 40).all()  # 60 of each expected, standard deviation about 7


def test_shards_of_the_paper_hold_one_label_each():
    target = balanced(10, 6000)[torch.randperm(60_000, generator=rng(9))]
    owner = partition.shards(target, 100, 2, rng())
    counts = partition.table(owner, target, 100, 10)
    assert set(counts.flatten().tolist()) <= {0, 300, 600}
    assert (counts.sum(1) == 600).all()
    assert ((counts > 0).sum(1) <= 2).all()
    assert (counts.sum(0) == 6000).all()
    assert ((counts > 0).sum(1) == 2).sum() > 70  # of two random shards of ten labels nine in ten differ


@pytest.mark.parametrize("each", [1, 3])
def test_a_client_has_so_many_shards(each):
    target = balanced(5, 120)
    counts = partition.table(partition.shards(target, 20, each, rng()), target, 20, 5)
    assert (counts % (600 // (20 * each)) == 0).all()
    assert ((counts > 0).sum(1) <= each).all()


def test_a_shard_across_two_labels_has_both():
    target = torch.tensor([0] * 5 + [1] * 5 + [2] * 5)
    owner = partition.shards(target, 2, 1, rng())  # 8 and 7 of the sorted examples
    counts = sorted(partition.table(owner, target, 2, 3).tolist(), reverse=True)
    assert counts == [[5, 3, 0], [0, 2, 5]]


def test_which_examples_a_shard_has_does_not_depend_on_their_order():
    target = torch.zeros(100, dtype=torch.int64)
    first = partition.held(partition.shards(target, 2, 1, rng()), 2)[0]
    assert not torch.equal(first, torch.arange(50))
    assert not torch.equal(first, torch.arange(50, 100))


# --- Dirichlet ----------------------------------------------------------------------------------------------------


def test_dirichlet_has_the_moments_of_a_dirichlet():
    # Of Dirichlet(α, …, α) over K: mean 1/K, variance (K − 1) / (K² (Kα + 1)).
    for alpha, columns in ((0.3, 4), (1.0, 3), (5.0, 6)):
        drawn = partition.log_gamma(alpha, 200_000, columns, rng()).softmax(1)
        assert torch.allclose(drawn.sum(1), torch.ones(200_000, dtype=torch.float64))
        variance = (columns - 1) / (columns**2 * (columns * alpha + 1))
        assert torch.allclose(drawn.mean(0), torch.full((columns,), 1 / columns, dtype=torch.float64), atol=4e-3)
        assert torch.allclose(drawn.var(0), torch.full((columns,), variance, dtype=torch.float64), rtol=0.03)


@pytest.mark.parametrize("alpha", [1e-2, 1e-4, 1e-8])
def test_a_tiny_alpha_gives_all_to_one_and_each_as_often(alpha):
    drawn = partition.log_gamma(alpha, 5000, 4, rng()).softmax(1)
    assert drawn.isfinite().all()
    assert (drawn.amax(1) > 0.99).double().mean() > 0.8
    often = drawn.argmax(1).bincount(minlength=4) / 5000
    assert ((often - 0.25).abs() < 0.04).all()


@pytest.mark.parametrize("balancing", [False, True])
def test_a_large_alpha_is_nearly_iid(balancing):
    target = balanced(10, 1000)
    counts = partition.table(partition.label_skew(target, 10, 1e6, 1, balancing, rng()), target, 10, 10)
    assert ((counts - 100).abs() <= 2).all()


def test_a_tiny_alpha_gives_each_label_to_one_client():
    target = balanced(10, 1000)
    counts = partition.table(partition.label_skew(target, 3, 1e-6, 1, False, rng()), target, 3, 10)
    assert set(counts.flatten().tolist()) == {0, 1000}
    alone = partition.table(partition.label_skew(target, 10, 1e-6, 1000, True, rng()), target, 10, 10)
    # Who has its even share gets no more: with as many labels as clients, one each.
    assert ((alone == 1000).sum(1) == 1).all()


def test_balancing_fills_no_client_further():
    target = uneven(8, 10, 10_000)
    counts = partition.table(partition.label_skew(target, 10, 0.3, 1, True, rng()), target, 10, 10)
    before = counts.cumsum(1) - counts
    assert ((before < 1000) | (counts == 0)).all()
    free = partition.table(partition.label_skew(target, 10, 0.3, 1, False, rng()), target, 10, 10)
    assert free.sum(1).double().std() > counts.sum(1).double().std()


@pytest.mark.parametrize("kind", ["label", "quantity"])
def test_each_client_has_the_least(kind):
    target = balanced(5, 400)
    for seed in range(20):
        if kind == "label":
            owner = partition.label_skew(target, 8, 0.4, 60, False, rng(seed))
        else:
            owner = partition.quantity_skew(2000, 8, 0.8, 60, rng(seed))
        assert owner.bincount(minlength=8).min() >= 60


def test_a_least_that_is_never_reached_is_one_line():
    with pytest.raises(ConfigError, match=r"^view.least=10: in 200 draws with view.alpha=0.01 some of the 100 clients"):
        partition.label_skew(balanced(), 100, 0.01, 10, False, rng())
    with pytest.raises(ConfigError, match=r"would need 7,000 training examples, and there are 6,000"):
        partition.quantity_skew(6000, 100, 1.0, 70, rng())


def test_quantity_skews_sizes_and_mixes_labels():
    target = balanced(4, 5000)
    owner = partition.quantity_skew(20_000, 10, 0.5, 100, rng())
    counts = partition.table(owner, target, 10, 4).double()
    sizes = counts.sum(1)
    assert sizes.max() > 3 * sizes.min()
    assert ((counts / sizes.unsqueeze(1) - 0.25).abs() < 0.15).all()
    assert ((partition.quantity_skew(20_000, 10, 1e7, 1, rng()).bincount() - 2000).abs() <= 3).all()


# --- fixed numbers of labels --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("clients", "each"), [(10, 2), (100, 3), (3, 4), (4, 10), (25, 1), (10, 1)])
def test_each_client_has_exactly_so_many_labels(clients, each):
    target = uneven(2, 10, 8000)
    for seed in range(5):
        owner = partition.fixed_labels(target, 10, clients, each, rng(seed))
        whole(owner, clients, 8000)
        counts = partition.table(owner, target, clients, 10)
        assert ((counts > 0).sum(1) == each).all()
        for label in counts.T:
            shared = label[label > 0]
            assert shared.max() - shared.min() <= 1
        if clients >= 10:
            assert (counts[torch.arange(clients), torch.arange(clients) % 10] > 0).all()


def test_the_other_labels_are_drawn():
    target = balanced()
    owners = [partition.fixed_labels(target, 10, 10, 2, rng(seed)) for seed in (1, 2)]
    first, second = (partition.table(owner, target, 10, 10) > 0 for owner in owners)
    assert not torch.equal(first, second)


def test_a_label_that_is_too_rare_is_named():
    target = torch.cat([torch.zeros(500, dtype=torch.int64), torch.ones(3, dtype=torch.int64)])
    with pytest.raises(ConfigError, match=r"^view.clients=20: label 1 has 3 training examples for 10 clients"):
        partition.fixed_labels(target, 2, 20, 1, rng())
    with pytest.raises(ConfigError, match=r"label 2 has 0 training examples for 1 clients"):
        partition.fixed_labels(target, 3, 3, 1, rng())


# --- groups, held-out examples, counts ----------------------------------------------------------------------------


def test_groups_stay_together():
    group = torch.randint(3, 60, (2000,), generator=rng())
    known = group.unique()
    for clients in (None, 7, len(known)):
        client_of = partition.clients_of_groups(len(known), clients, rng())
        count = clients or len(known)
        whole(partition.by_group(group, known, client_of), count, 2000)
        owner = partition.by_group(group, known, client_of)
        assert all(len(owner[group == value].unique()) == 1 for value in known)
        groups_each = client_of.bincount(minlength=count)
        assert groups_each.max() - groups_each.min() <= 1


def test_an_unknown_group_has_no_client():
    owner = partition.by_group(torch.tensor([5, 1, 9, 3]), torch.tensor([1, 5]), torch.tensor([0, 1]))
    assert owner.tolist() == [1, 0, -1, -1]
    assert [part.tolist() for part in partition.held(owner, 3)] == [[1], [0], []]


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(1, 12), st.integers(0, 300), st.integers(0, 2**31))
def test_held_out_examples_follow_the_labels_of_training(labels, clients, examples, seed):
    counts = torch.randint(0, 50, (labels, clients), generator=rng(seed))
    counts *= torch.rand(labels, clients, generator=rng(seed + 1)) < 0.5
    target = torch.randint(labels, (examples,), generator=rng(seed + 2))
    owner = partition.alike(target, counts, rng(seed))
    totals = target.bincount(minlength=labels)
    given_to = partition.table(owner, target, clients, labels).T
    known = counts.sum(1) > 0
    assert ((owner >= 0) == known[target]).all()
    share = counts[known] / counts[known].sum(1, keepdim=True) * totals[known].unsqueeze(1)
    assert ((given_to[known] - share).abs() < 1).all()
    assert (given_to[counts == 0] == 0).all()


def test_many_clients_share_few_held_out_examples_evenly():
    # 1,000 clients with all ten labels alike, 1,000 examples: rounding each label alike would give ten to every tenth.
    counts = torch.full((10, 1000), 6)
    sizes = partition.alike(balanced(10, 100), counts, rng()).bincount(minlength=1000)
    assert sizes.tolist() == [1] * 1000


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5), st.integers(1, 40), st.integers(0, 500), st.integers(0, 2**31))
def test_cutting_keeps_totals_and_comes_near(rows, columns, most, seed):
    shares = partition.log_gamma(0.5, rows, columns, rng(seed)).softmax(1)
    totals = torch.randint(0, most + 1, (rows,), generator=rng(seed))
    parts = partition.cut(shares, totals)
    assert torch.equal(parts.sum(1), totals)
    assert (parts >= 0).all()
    assert ((parts - shares * totals.unsqueeze(1)).abs() < 1 + 1e-9).all()


def test_even_parts():
    assert partition.even(11, 4).tolist() == [3, 3, 3, 2]
    assert partition.even(2, 4).tolist() == [1, 1, 0, 0]
