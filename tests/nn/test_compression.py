"""Compressed updates: error feedback loses nothing, quantisation is right on average, bytes are those of messages."""

import pytest
import torch
from scipy import stats

from advml.nn.compression import (
    ErrorFeedback,
    from_levels,
    largest,
    level_bytes,
    levels,
    packed_levels,
    packed_sparse,
    quantised,
    sparse_bytes,
    top_k,
)

FALSE_ALARM = 1e-6  # of each statistical test; the seeds are fixed besides


def rows(seed=0, copies=3, size=40, dtype=torch.float64):
    return torch.randn(copies, size, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- the largest numbers -------------------------------------------------------------------------------------------


def test_top_k_keeps_the_largest_of_each_row_as_sorting_does():
    updates = rows()
    sent = top_k(updates, 7)
    for row, kept in zip(updates.tolist(), sent.tolist(), strict=True):
        least = sorted(map(abs, row))[-7]
        assert kept == [value if abs(value) >= least else 0.0 for value in row]


@pytest.mark.parametrize(("share", "size", "count"), [(0.1, 30, 3), (0.01, 30, 1), (1.0, 30, 30), (0.34, 3, 2)])
def test_a_share_is_rounded_up(share, size, count):
    assert largest(share, size) == count


def test_error_feedback_loses_nothing_and_forgetting_does():
    """All that was sent plus what is still owed is all that was to be sent, for each client by itself."""
    memory, sums, due = ErrorFeedback(), *torch.zeros(2, 4, 40, dtype=torch.float64)
    for turn, clients in enumerate([[0, 2], [2, 3], [0, 1, 2], [3]]):
        updates = rows(turn, len(clients))
        sent = memory.sent(clients, updates, 5)
        assert (sent != 0).sum(1).tolist() == [5] * len(clients)
        sums[clients] += sent
        due[clients] += updates
    owed = torch.stack([memory.owed[client] for client in range(4)])
    torch.testing.assert_close(sums + owed, due, rtol=0, atol=1e-14)
    forgetful = ErrorFeedback()
    assert torch.equal(forgetful.sent([0], rows(0, 1), 5, remember=False), top_k(rows(0, 1), 5))
    assert not forgetful.owed


def test_a_small_number_is_sent_at_last_with_error_feedback_only():
    steady = torch.tensor([[1.0, 0.3]])
    memory = ErrorFeedback()
    sent = torch.cat([memory.sent([0], steady, 1) for _ in range(5)])
    assert sent.tolist() == [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0], [0.0, pytest.approx(1.2)], [2.0, 0.0]]


def test_debts_survive_a_checkpoint():
    one, other = ErrorFeedback(), ErrorFeedback()
    one.sent([3, 1, 2], rows(), 5)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one.sent([1], rows(1, 1), 5), other.sent([1], rows(1, 1), 5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 3, 100, 400])
def test_sparse_messages_are_as_long_as_counted_and_can_be_read(count, dtype):
    size, width = 400, torch.empty((), dtype=dtype).element_size()
    update = top_k(rows(2, 1, size, dtype), count)[0]
    message = packed_sparse(update)
    assert len(message) == sparse_bytes(size, count, width)
    where, values = message[: -width * count], torch.frombuffer(bytearray(message[-width * count :]), dtype=dtype)
    if count == 1:
        assert int.from_bytes(where, "little") == int(update.nonzero())
    if count >= 100:
        bits = [byte >> bit & 1 for byte in where for bit in range(8)]
        assert bits[:size] == (update != 0).long().tolist()
    assert torch.equal(values, update[update != 0])


# --- few bits ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_quantisation_is_right_on_average_and_never_off_by_a_level(bits):
    """The mean of many draws within 5σ or so of the value, σ ≤ level / (2√n); a single one within a level."""
    values = rows(3, 1, 30)[0]
    values[0] = 0.0
    many = torch.stack([quantised(values, bits, torch.Generator().manual_seed(seed)) for seed in range(2000)])
    level = float(values.abs().max()) / (2 ** (bits - 1) - 1)
    assert float((many - values).abs().max()) < level * (1 + 1e-9)
    off = (many.mean(0) - values).abs() / (level / 2 / 2000**0.5)
    assert float(off.max()) < stats.norm.isf(FALSE_ALARM / 60)
    assert not many[:, 0].any()
    extreme = values.abs().argmax()
    assert torch.allclose(many[:, extreme], values[extreme].expand(2000), rtol=1e-12)


def test_rounding_to_the_nearest_level_would_fail_that_test():
    """The same with draws that are always a half: biased."""
    values = rows(3, 1, 30)[0]
    nearest = from_levels(*levels(values, 2, torch.full((30,), 0.5)), 2)
    level = float(values.abs().max())
    assert float((nearest - values).abs().max()) / (level / 2 / 2000**0.5) > stats.norm.isf(FALSE_ALARM / 60)


def test_zeros_and_empty_tensors_stay():
    generator = torch.Generator().manual_seed(0)
    assert not quantised(torch.zeros(5), 4, generator).any()
    assert quantised(torch.empty(0), 4, generator).numel() == 0


@pytest.mark.parametrize("bits", [2, 3, 8, 11])
def test_quantised_messages_are_as_long_as_counted_and_can_be_read(bits):
    values = rows(4, 1, 37, torch.float32)[0]
    whole, size = levels(values, bits, torch.rand(37, generator=torch.Generator().manual_seed(1)))
    message = packed_levels(whole, size, bits)
    assert len(message) == level_bytes(37, bits, 4)
    stream = [byte >> bit & 1 for byte in message[4:] for bit in range(8)]
    read = [sum(stream[at * bits + bit] << bit for bit in range(bits)) - (2 ** (bits - 1) - 1) for at in range(37)]
    assert read == whole.tolist()
