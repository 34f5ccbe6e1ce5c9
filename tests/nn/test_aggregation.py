"""Cohorts, weights, and a sum that does not know how it was divided."""

from collections import Counter

import pytest
import torch

from advml.nn.aggregation import WeightedSum, cohort, cohort_size, shares


def drawn(seed, clients=20, fraction=0.25):
    return cohort(clients, fraction, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    ("clients", "fraction", "size"), [(100, 0.1, 10), (100, 0.001, 1), (7, 0.5, 4), (10, 1.0, 10), (3, 0.5, 2)]
)
def test_the_size_of_a_cohort(clients, fraction, size):
    assert cohort_size(clients, fraction) == size
    found = drawn(1, clients, fraction)
    assert len(set(found)) == len(found) == size
    assert found == sorted(found)
    assert set(found) <= set(range(clients))


def test_the_generator_alone_decides():
    """Neither the global generator matters, nor is it moved."""
    torch.manual_seed(1)
    first, after = drawn(5), torch.rand(())
    torch.manual_seed(1)
    assert torch.rand(()) == after
    assert drawn(5) == first
    assert len({tuple(drawn(seed)) for seed in range(20)}) > 15


def test_every_client_is_as_likely():
    """5 of 20 in 4,000 draws: 1,000 each, standard deviation 27; beyond 5 of them with probability 1e-5 in all."""
    counts = Counter(client for seed in range(4000) for client in drawn(seed))
    assert max(abs(counts[client] - 1000) for client in range(20)) < 5 * 27.4


def test_shares():
    sizes = torch.tensor([10, 30, 60])
    assert shares(sizes, "samples").tolist() == [0.1, 0.3, 0.6]
    assert shares(sizes, "uniform").tolist() == pytest.approx([1 / 3] * 3, abs=1e-15)
    assert len(shares(sizes[:0], "samples")) == 0


VALUES = {"a": torch.randn(7, 3, 2, generator=torch.Generator().manual_seed(0)), "b": torch.arange(7.0) / 3}


class TestSum:
    weights = shares(torch.tensor([3, 1, 4, 1, 5, 9, 2]), "samples")

    def summed(self, *cuts):
        total, at = WeightedSum(), 0
        for cut in (*cuts, 7):
            rows = slice(at, cut)
            total.add(range(at, cut), {name: value[rows] for name, value in VALUES.items()}, self.weights[rows])
            at = cut
        return total.total()

    def test_it_is_the_weighted_sum(self):
        for name, value in self.summed().items():
            expected = torch.tensordot(self.weights, VALUES[name].double(), 1)
            torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("cuts", [(1,), (3,), (1, 2, 3, 4, 5, 6), (5, 6)])
    def test_division_into_chunks_changes_no_bit(self, cuts):
        whole, parts = self.summed(), self.summed(*cuts)
        assert all(torch.equal(whole[name], parts[name]) for name in whole)

    def test_nobody(self):
        assert WeightedSum().total() == {}

    def test_what_was_given_stays(self):
        before = VALUES["a"].clone()
        self.summed(2)
        assert torch.equal(before, VALUES["a"])
