"""Who works how much: as many slow clients as asked for, partial work, dropouts at their rate."""

import torch
from scipy import stats

from advml.nn.participation import (
    StragglerSettings,
    drops,
    partial_epochs,
    planned_work,
    slow_by_themselves,
    stragglers,
)
from advml.runner.randomness import KeyedRng

FALSE_ALARM = 1e-6


def plan(cohort, epochs=5, fraction=0.0, keep=False, dropout=0.0, seed=0):
    rng, config = KeyedRng(seed), StragglerSettings(fraction=fraction, keep=keep)
    generators = [rng(purpose) for purpose in ("slow", "far", "out")]
    return planned_work(range(cohort), epochs, config=config, dropout=dropout, generators=generators)


def test_by_default_all_work_in_full():
    assert plan(7) == [5.0] * 7


def test_slow_clients_are_dropped_or_keep_part_of_their_work():
    """The same ones either way, half of ten; who keeps did 1 to 4 of 5 epochs."""
    dropped, kept = plan(10, fraction=0.5), plan(10, fraction=0.5, keep=True)
    assert sorted(dropped) == [0.0] * 5 + [5.0] * 5
    assert all((less == 5.0) == (more == 5.0) for less, more in zip(dropped, kept, strict=True))
    assert set(kept) <= {1, 2, 3, 4, 5}
    assert sum(done < 5 for done in kept) == 5


def test_partial_epochs_are_uniform():
    """χ² of 4,000 draws, by chance beyond it once in a million."""
    generator = torch.Generator().manual_seed(0)
    counts = torch.bincount(torch.tensor([int(partial_epochs(5, generator)) for _ in range(4000)]), minlength=5)
    assert counts[0] == 0
    assert stats.chisquare(counts[1:].numpy()).pvalue > FALSE_ALARM


def test_of_a_single_epoch_a_share_is_done():
    generator = torch.Generator().manual_seed(0)
    shares = [partial_epochs(1, generator) for _ in range(1000)]
    assert all(0 < share <= 1 for share in shares)
    assert stats.kstest(shares, "uniform").pvalue > FALSE_ALARM


def test_the_slow_are_a_fixed_number_chosen_uniformly():
    generator = torch.Generator().manual_seed(0)
    chosen = [stragglers(6, 0.34, generator) for _ in range(3000)]
    assert {len(some) for some in chosen} == {2}
    counts = torch.bincount(torch.tensor(chosen).flatten(), minlength=6)
    assert stats.chisquare(counts.numpy()).pvalue > FALSE_ALARM


def test_where_it_is_private_who_is_there_each_is_slow_by_itself():
    """Of a fixed share one more client makes another slow: with hundred and one members the sum moves by two."""
    rng, config = KeyedRng(0), StragglerSettings(fraction=0.5, keep=False)

    def at_work(cohort, draw, independent):
        generators = [rng(purpose, draw) for purpose in ("slow", "far", "out")]
        work = planned_work(
            range(cohort), 1, config=config, dropout=0.0, generators=generators, independent=independent
        )
        return sum(done > 0 for done in work[:10])

    assert {at_work(10, draw, False) for draw in range(200)} == {5}
    for cohort in (10, 11):  # of the first ten as many, whoever else is there: binomial
        counts = torch.bincount(torch.tensor([at_work(cohort, draw, True) for draw in range(3000)]), minlength=11)
        middle = slice(2, 9)
        expected = 3000 * torch.tensor(stats.binom.pmf(range(11), 10, 0.5))
        seen = [*counts[middle].tolist(), 3000 - int(counts[middle].sum())]
        due = [*expected[middle].tolist(), 3000 - float(expected[middle].sum())]
        assert stats.chisquare(seen, due).pvalue > FALSE_ALARM
    assert slow_by_themselves(4, 1.0, rng("slow")) == [0, 1, 2, 3]
    assert slow_by_themselves(4, 0.0, rng("slow")) == []


def test_dropouts_come_at_their_rate_and_beat_all_else():
    out = sum(drops(20_000, 0.3, torch.Generator().manual_seed(0)))
    assert stats.binomtest(out, 20_000, 0.3).pvalue > FALSE_ALARM
    assert plan(5, dropout=1.0, fraction=0.5, keep=True) == [0.0] * 5
