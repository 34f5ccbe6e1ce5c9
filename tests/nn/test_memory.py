"""What a memory keeps and draws: against per-example loops, known laws of chance, and examples prepared by hand."""

import io
import math
from collections import Counter

import pytest
import torch

from advml.contracts import Split
from advml.data.prepare import Affine, Reorder
from advml.nn.memory import Balance, Memory, balanced_update, draw_distinct, reservoir_update


def rng(seed):
    return torch.Generator().manual_seed(seed)


# --- reservoir ----------------------------------------------------------------------------------------------------


def one_by_one(kept, seen, draws):
    """Algorithm R as in the paper: fill up; then example m replaces a random slot out of m + 1, if there is such."""
    for place, u in enumerate(draws.tolist()):
        number = seen + place
        slot = number if number < len(kept) else math.floor(u * (number + 1))
        if slot < len(kept):
            kept[slot] = number
    return kept


@pytest.mark.parametrize("capacity", [0, 1, 7, 40])
@pytest.mark.parametrize("sizes", [[1] * 50, [16, 16, 5, 16], [50]])
def test_a_batch_at_once_is_one_example_after_another(capacity, sizes):
    for seed in range(20):
        at_once, looped, seen = torch.full((capacity,), -1), [-1] * capacity, 0
        generator = rng(seed)
        for size in sizes:
            draws = torch.rand(size, dtype=torch.float64, generator=generator)
            places, slots = reservoir_update(seen, capacity, draws)
            assert len(set(slots.tolist())) == len(slots)
            at_once[slots] = seen + places
            looped = one_by_one(looped, seen, draws)
            seen += size
            assert at_once.tolist() == looped


def chi_square(counts, expected):
    return sum((count - expected) ** 2 / expected for count in counts)


def kept_after(runs, capacity, sizes, update=reservoir_update):
    counts = Counter()
    for seed in range(runs):
        kept, seen, generator = torch.full((capacity,), -1), 0, rng(seed)
        for size in sizes:
            places, slots = update(seen, capacity, torch.rand(size, dtype=torch.float64, generator=generator))
            kept[slots] = seen + places
            seen += size
        counts.update(kept.tolist())
    return counts


def test_every_example_is_kept_equally_often():
    """40 examples, 10 slots, 2,000 runs: each is expected 500 times. Within a run 10 of 40 are drawn without
    replacement, so the statistic is (1 − 10/40) · 40/39 times a χ² of 39 degrees of freedom: 62.4 is its 99 % point.
    """
    runs, capacity, sizes = 2000, 10, [16, 16, 8]
    counts = kept_after(runs, capacity, sizes)
    assert sum(counts.values()) == runs * capacity
    bound = 62.4 * (1 - capacity / 40) * 40 / 39
    assert chi_square([counts[number] for number in range(40)], runs * capacity / 40) < bound

    def off_by_one(seen, capacity, draws):  # the usual mistake: one slot too few to choose from
        number = (seen + torch.arange(len(draws))).clamp(min=1)
        return reservoir_update(seen, capacity, draws * number / (number + 1))

    wrong = kept_after(runs, capacity, sizes, off_by_one)
    assert chi_square([wrong[number] for number in range(40)], runs * capacity / 40) > bound


# --- class-balancing reservoir sampling -----------------------------------------------------------------------------


def nothing_known(capacity, classes):
    return Balance(
        torch.full((capacity,), -1), torch.zeros(classes, dtype=torch.int64), torch.zeros(classes, dtype=torch.bool)
    )


def stream_of(sizes, seed=0):
    names = torch.cat([torch.full((size,), name) for name, size in enumerate(sizes)])
    return names[torch.randperm(len(names), generator=rng(seed))]


def play(balance, stream, seed, batch):
    """Which example of the stream is in each slot at the end, and the state."""
    kept, generator = torch.full_like(balance.stored, -1), rng(seed)
    for start in range(0, len(stream), batch):
        part = stream[start : start + batch]
        draws = torch.rand(len(part), 2, dtype=torch.float64, generator=generator)
        places, slots, balance = balanced_update(balance, part, draws)
        assert len(set(slots.tolist())) == len(slots)
        kept[slots] = start + places
    return kept, balance


@pytest.mark.parametrize("batch", [7, 32, 1000])
def test_balanced_in_batches_is_one_by_one(batch):
    stream = stream_of([100, 30, 5, 60])
    one, known = play(nothing_known(24, 4), stream, 3, 1)
    other, again = play(nothing_known(24, 4), stream, 3, batch)
    assert torch.equal(one, other)
    assert all(torch.equal(a, b) for a, b in zip(known, again, strict=True))
    assert torch.equal(known.stored, stream[one])
    assert known.seen.tolist() == [100, 30, 5, 60]


@pytest.mark.parametrize("order", ["mixed", "one class after another", "the smallest first"])
def test_as_balanced_as_the_stream_allows(order):
    """Of classes with 100, 30, 5 and 60 examples, 24 slots hold all 5 and about 6⅓ of each of the others."""
    stream = stream_of([100, 30, 5, 60])
    if order != "mixed":
        stream = stream.sort().values if order.startswith("one") else stream[(stream - 2).abs().sort().indices]
    for seed in range(20):
        _, balance = play(nothing_known(24, 4), stream, seed, 16)
        counts = balance.stored.bincount(minlength=4).tolist()
        assert counts[2] == 5
        assert sorted(counts)[1:] in ([6, 6, 7], [5, 7, 7])


def test_within_a_class_every_example_is_kept_equally_often():
    """Two classes, 30 and 10 examples in turn, 6 slots, 2,000 runs. χ² as above: 29 degrees of freedom, 99 %: 49.6."""
    stream = torch.tensor([0, 0, 0, 1] * 10)
    counts, runs = Counter(), 2000
    for seed in range(runs):
        counts.update(play(nothing_known(6, 2), stream, seed, 8)[0].tolist())
    for name, bound in ((0, 49.6), (1, 21.7)):
        members = (stream == name).nonzero().flatten().tolist()
        total = sum(counts[number] for number in members)
        assert total / runs == pytest.approx(3, abs=0.6)
        assert chi_square([counts[number] for number in members], total / len(members)) < bound


# --- drawing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "size"), [(0, 5), (3, 5), (5, 5), (100, 7), (7, 1)])
def test_drawn_numbers_differ(count, size):
    for seed in range(30):
        drawn = draw_distinct(count, size, rng(seed)).tolist()
        assert len(drawn) == len(set(drawn)) == min(count, size)
        assert all(0 <= number < count for number in drawn)


def test_every_set_is_drawn_equally_often():
    """All 10 pairs out of 5; χ² of 9 degrees of freedom, 99 %: 21.7."""
    counts = Counter(tuple(sorted(draw_distinct(5, 2, rng(seed)).tolist())) for seed in range(3000))
    assert len(counts) == 10
    assert chi_square(counts.values(), 300) < 21.7


# --- the memory itself ----------------------------------------------------------------------------------------------


def two_tasks():
    """The same stored bytes, prepared differently; the targets of the second task are 3, 4, 5."""
    raw = torch.randint(0, 256, (50, 6), generator=rng(1), dtype=torch.uint8)
    target = torch.arange(50) % 3
    scale = Affine(torch.tensor(0.5), torch.tensor(-1.0))
    order = Reorder(torch.randperm(6, generator=rng(2)))
    first = Split({"x": raw}, target, prepare={"x": (scale,)})
    second = Split({"x": raw}, target + 3, prepare={"x": (scale, order)})
    masks = torch.tensor([[True] * 3 + [False] * 3, [False] * 3 + [True] * 3])
    return (first, second), masks


def filled(policy="reservoir", capacity=12, extras=True):
    splits, _ = two_tasks()
    kinds = {"logits": ((2,), torch.float64)} if extras else None
    memory = Memory(capacity, policy, splits[0], 2, 6, kinds)
    for task, split in enumerate(splits):
        for start in range(0, 50, 16):
            index = torch.arange(start, min(start + 16, 50))
            memory.offer(
                split, index, task, rng(100 * task + start), classes=split.target[index],
                extras={"logits": torch.stack([index.double(), split.target[index].double()], 1)} if extras else None,
            )  # fmt: skip
    return memory


@pytest.mark.parametrize("policy", ["reservoir", "balanced"])
def test_examples_come_back_as_their_own_task_shows_them(policy):
    splits, masks = two_tasks()
    memory = filled(policy)
    assert (len(memory), memory.seen) == (12, 100)
    assert memory.inputs["x"].dtype == torch.uint8
    assert set(memory.task.tolist()) == {0, 1}
    slots = memory.draw(9, rng(5))
    found = memory.recall(slots, splits, masks)
    assert sorted(found.task.tolist()) == found.task.tolist() == sorted(memory.task[slots].tolist())
    numbers = found.extras["logits"][:, 0].long()
    assert len(set(zip(numbers.tolist(), found.task.tolist(), strict=True))) == 9
    for row, (number, task) in enumerate(zip(numbers.tolist(), found.task.tolist(), strict=True)):
        expected = splits[task].batch(torch.tensor([number]))
        assert torch.equal(found.batch.inputs["x"][row], expected.inputs["x"][0])
        assert found.batch.target[row] == expected.target[0] == found.extras["logits"][row, 1]
        assert torch.equal(found.batch.mask[row], masks[task])


def test_both_tasks_get_their_share_of_a_balanced_memory():
    memory = filled("balanced")
    assert memory.target.bincount(minlength=6).tolist() == [2] * 6


def test_only_examples_of_earlier_tasks():
    memory = filled()
    earlier = memory.draw(100, rng(0), before=1)
    assert sorted(earlier.tolist()) == (memory.task == 0).nonzero().flatten().tolist()
    assert len(memory.draw(100, rng(0), before=0)) == 0
    assert sorted(memory.draw(100, rng(0)).tolist()) == list(range(12))


@pytest.mark.parametrize("policy", ["reservoir", "balanced"])
def test_a_memory_larger_than_the_stream_keeps_all_in_order(policy):
    splits, _ = two_tasks()
    memory = filled(policy, capacity=130)
    assert len(memory) == 100
    assert torch.equal(memory.inputs["x"][:100], torch.cat([split.inputs["x"] for split in splits]))
    assert torch.equal(memory.target[:100], torch.cat([split.target for split in splits]))
    assert memory.task.tolist() == [0] * 50 + [1] * 50 + [-1] * 30
    assert all(len(tensor) == 100 for tensor in memory.tensors())


def test_a_memory_without_room():
    memory = filled(capacity=0)
    assert (len(memory), memory.seen) == (0, 0)
    assert len(memory.draw(3, rng(0))) == 0


@pytest.mark.parametrize("policy", ["reservoir", "balanced"])
def test_saved_and_restored(policy):
    splits, masks = two_tasks()
    memory = filled(policy)
    buffer = io.BytesIO()
    torch.save(memory.state_dict(), buffer)
    buffer.seek(0)
    other = Memory(12, policy, splits[0], 2, 6, {"logits": ((2,), torch.float64)})
    other.load_state_dict(torch.load(buffer, weights_only=True))
    for one in (memory, other):
        one.offer(
            splits[1], torch.arange(30), 1, rng(9), classes=splits[1].target[:30],
            extras={"logits": torch.zeros(30, 2)},
        )  # fmt: skip
    found, expected = (one.recall(one.draw(12, rng(7)), splits, masks) for one in (other, memory))
    assert torch.equal(found.batch.inputs["x"], expected.batch.inputs["x"])
    assert torch.equal(found.extras["logits"], expected.extras["logits"])
    assert torch.equal(found.task, expected.task)
    assert other.seen == memory.seen == 130
