"""A union of splits: every example prepared and masked as in the split it comes from."""

import pytest
import torch

from advml.contracts import Split
from advml.data.prepare import Affine, Reorder
from advml.data.union import Union


def part(count, first, factor, order):
    """x holds numbers from `first` on; each part has its own preparation."""
    x = torch.arange(first, first + 3 * count).reshape(count, 3)
    steps = (Affine(torch.tensor(factor), torch.tensor(0.5)), Reorder(torch.tensor(order)))
    return Split({"x": x, "y": x[:, :1].float()}, torch.arange(count) % 2 + first, prepare={"x": steps})


PARTS = [part(4, 0, 2.0, [0, 1, 2]), part(3, 100, -1.0, [2, 0, 1]), part(5, 200, 0.1, [1, 2, 0])]
MASKS = [torch.tensor(mask, dtype=torch.bool) for mask in ([1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1])]


def each(number, place):
    """One example by way of its own split."""
    return PARTS[number].batch(torch.tensor([place]))


def owner(index):
    return (0, index) if index < 4 else (1, index - 4) if index < 7 else (2, index - 7)


def test_length_is_the_sum():
    assert len(Union(PARTS, MASKS)) == 12


@pytest.mark.parametrize("index", [[0, 1, 2], [4, 6, 5], [11], [3, 4, 6, 7, 11, 0], list(range(12)), [8, 8, 0]])
def test_batch_is_what_the_splits_give_grouped_in_their_order(index):
    batch = Union(PARTS, MASKS).batch(torch.tensor(index))
    ordered = [pair for number in range(3) for pair in map(owner, index) if pair[0] == number]
    expected = [each(*pair) for pair in ordered]
    for name in ("x", "y"):
        assert torch.equal(batch.inputs[name], torch.cat([one.inputs[name] for one in expected]))
    assert torch.equal(batch.target, torch.cat([one.target for one in expected]))
    assert batch.mask.dtype == torch.bool
    assert torch.equal(batch.mask, torch.stack([MASKS[number] for number, _ in ordered]))


def test_one_split_alone_keeps_the_order_of_the_index():
    index = torch.tensor([3, 0, 2])
    batch = Union(PARTS[:1], MASKS[:1]).batch(index)
    assert torch.equal(batch.inputs["x"], PARTS[0].batch(index).inputs["x"])
    assert torch.equal(batch.target, PARTS[0].target[index])


def test_an_empty_split_among_others_is_never_asked():
    empty = PARTS[1].take(torch.empty(0, dtype=torch.int64))
    union = Union([PARTS[0], empty, PARTS[2]], MASKS)
    assert len(union) == 9
    batch = union.batch(torch.arange(9))
    assert torch.equal(batch.target, torch.cat([PARTS[0].target, PARTS[2].target]))
    assert torch.equal(batch.mask[:4], MASKS[0].expand(4, -1))
    assert torch.equal(batch.mask[4:], MASKS[2].expand(5, -1))
