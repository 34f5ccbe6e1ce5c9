"""Masked sums are bit for bit the plain sums of the same whole numbers, whoever drops out; a message tells nothing."""

import itertools

import pytest
import torch
from scipy import stats

from advml.errors import AdvmlError
from advml.nn.secure_sum import SecureSettings, SecureSum, bound, decode, encode, message_bytes, partners, signed
from advml.runner.randomness import KeyedRng

FALSE_ALARM = 1e-6
COHORT = [7, 3, 12, 5, 9, 30]


def config(**changes):
    return SecureSettings(**{"enabled": True, "bits": 32, "fraction_bits": 16, "neighbours": None} | changes)


def key(*what):
    return KeyedRng(0)("mask", 4, *what)


def updates(clients, scale=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(len(clients))
    shapes = {"weight": (len(clients), 4, 3), "bias": (len(clients), 3)}
    return {name: scale * torch.randn(shape, generator=generator, dtype=dtype) for name, shape in shapes.items()}


def weights(clients):
    given = torch.tensor([1.0 + client for client in clients], dtype=torch.float64)
    return given / given.sum()


def received(here, settings, parts=1):
    total, values, shares = SecureSum(COHORT, settings, key), updates(here), weights(here)
    step = -(-len(here) // parts)
    for at in range(0, len(here), step):
        few = {name: value[at : at + step] for name, value in values.items()}
        total.add(here[at : at + step], few, shares[at : at + step])
    return total


def plain(here, settings):
    """The same whole numbers added in Python's own integers, without masks and without a modulus."""
    values, shares = updates(here), weights(here)
    found = {}
    for name, value in values.items():
        weighted = [value[row] * shares[row] for row in range(len(here))]
        rows = [(one * 2**settings.fraction_bits).round().flatten().tolist() for one in weighted]
        found[name] = [sum(int(number) for number in column) for column in zip(*rows, strict=True)]
    return found


@pytest.mark.parametrize("neighbours", [None, 2, 4, 50])
@pytest.mark.parametrize("bits", [32, 40, 62])
@pytest.mark.parametrize("here", [COHORT, COHORT[1:], [3, 5], [12], [5, 30, 7]], ids=str)
def test_the_masked_sum_is_the_plain_sum_of_the_whole_numbers(here, bits, neighbours):
    settings = config(bits=bits, neighbours=neighbours)
    found = received(here, settings).whole_total()
    assert {name: number.flatten().tolist() for name, number in found.items()} == plain(here, settings)


def test_the_sum_is_near_the_sum_of_real_numbers():
    """Half a unit for each client at most."""
    found = received(COHORT, config()).total()
    for name, value in updates(COHORT).items():
        exact = torch.tensordot(weights(COHORT), value, 1)
        assert float((found[name] - exact).abs().max()) <= len(COHORT) * 0.5 / 2**16
        assert found[name].dtype == value.dtype


def test_neither_order_nor_chunks_matter():
    one, other = received(COHORT, config()).total(), received(COHORT, config(), parts=3).total()
    backwards = SecureSum(COHORT, config(), key)
    values, shares = updates(COHORT), weights(COHORT)
    backwards.add(COHORT[::-1], {name: value.flip(0) for name, value in values.items()}, shares.flip(0))
    for name, value in one.items():
        assert torch.equal(value, other[name])
        assert torch.equal(value, backwards.total()[name])


def test_without_its_keys_a_sum_with_dropouts_is_nonsense():
    """The masks left over are really there, and taking them off is what makes the sum right."""
    total = received(COHORT[:4], config())
    raw = {name: signed(number, 32).flatten().tolist() for name, number in total.sums.items()}
    assert raw != plain(COHORT[:4], config())
    revealed = list(total.uncancelled())
    assert len(revealed) == 4 + 4 * 2  # their own masks, and those shared with each of two that are gone


def test_nobody_came():
    assert SecureSum(COHORT, config(), key).total() == {}


def test_a_message_is_uniform_whatever_it_hides():
    """χ² over 64 cells of 40,000 numbers, all of them zero under the mask; with a probability of 1e-6 by chance."""
    total = SecureSum(COHORT, config(), key)
    for position in range(3):
        message = total.message(position, {"x": torch.zeros(40_000)}, 1.0)["x"]
        cells = torch.bincount(message >> 26, minlength=64)
        assert len(cells) == 64
        assert stats.chisquare(cells.numpy()).pvalue > FALSE_ALARM


def test_masks_differ_between_rounds_and_pairs():
    one = SecureSum(COHORT, config(), key).message(0, {"x": torch.zeros(5)}, 1.0)["x"]
    later = SecureSum(COHORT, config(), lambda *what: KeyedRng(0)("mask", 5, *what))
    assert not torch.equal(one, later.message(0, {"x": torch.zeros(5)}, 1.0)["x"])


@pytest.mark.parametrize(("cohort", "neighbours"), [(1, None), (2, 1), (5, 2), (6, 3), (8, 4), (9, 20)])
def test_partners_are_mutual(cohort, neighbours):
    shared = {position: partners(position, cohort, neighbours) for position in range(cohort)}
    for one, other in itertools.product(range(cohort), repeat=2):
        assert (one in shared[other]) == (other in shared[one])
    assert all(position not in others for position, others in shared.items())
    if neighbours is not None and neighbours + 1 < cohort:
        assert all(len(others) == neighbours + neighbours % 2 for others in shared.values())


# --- fixed point ---------------------------------------------------------------------------------------------------


def test_fixed_point_goes_there_and_back():
    values = torch.tensor([0.0, 1.5, -2.25, 1e-9, -300.0], dtype=torch.float64)
    back = decode(encode(values, 20), 40, 20, torch.float64)
    assert float((back - values).abs().max()) <= 0.5 / 2**20
    assert back[2] == -2.25


def test_values_beyond_the_bound_are_cut_and_counted_instead_of_wrapping_around():
    settings = config(bits=16, fraction_bits=8)
    limit = bound(16, 8, 2)
    total = SecureSum([0, 1], settings, key)
    values = {"x": torch.tensor([[1000.0, -limit, 0.5], [limit, -1e30, 0.25]], dtype=torch.float64)}
    total.add([0, 1], values, torch.tensor([0.5, 0.5]))
    found = total.total()["x"]
    assert total.cut == 2
    torch.testing.assert_close(found, torch.tensor([limit, -limit, 0.375], dtype=torch.float64), rtol=0, atol=1 / 2**8)
    beyond = decode(encode(torch.tensor([limit + 1], dtype=torch.float64), 8), 16, 8, torch.float64)
    assert float(beyond) < 0  # what would have come out without the bound


@pytest.mark.parametrize(("bits", "point"), [(32, 20), (32, 24), (40, 30)])
def test_the_bound_itself_does_not_wrap_around_in_float32(bits, point):
    """Rounded to float32 it would be a power of two, which is one more than there is room for."""
    limit = bound(bits, point, 2)
    total = SecureSum([0, 1], config(bits=bits, fraction_bits=point), key)
    values = torch.tensor([[5000.0, -5000.0], [2.0 ** (bits - 1 - point), -600.0]])
    total.add([0, 1], {"x": values}, torch.tensor([0.5, 0.5]))
    found = total.total()["x"]
    assert total.cut == int((values.double().abs() > limit).sum())
    assert found.dtype == torch.float32
    assert found[0] == pytest.approx(limit, rel=1e-6)
    assert found[1] == pytest.approx(-(min(600.0, limit) + limit) / 2, rel=1e-6)


def test_no_number_is_refused_in_one_line():
    with pytest.raises(AdvmlError, match=r"not finite; lower method\.lr"):
        SecureSum([0], config(), key).add([0], {"x": torch.tensor([[float("nan")]])}, torch.ones(1))


def test_bytes_have_all_bits_of_every_number():
    assert message_bytes([10, 3], 20) == 25 + 8


def test_the_point_must_leave_room():
    with pytest.raises(ValueError, match="fraction_bits"):
        config(bits=16, fraction_bits=9)
