"""The projected gradient against its definition: the closest one that does not work against the reference."""

import pytest
import torch
from scipy.optimize import minimize

from advml.nn.projection import project_gradient

SHAPES = [(4, 3), (4,), (), (2, 4, 1)]


def random(seed, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES]


def flat(tensors):
    return torch.cat([tensor.flatten() for tensor in tensors])


def conflicting(seed, dtype=torch.float64):
    """A pair with g·g_ref < 0."""
    g, reference = random(seed, dtype), random(1000 + seed, dtype)
    if flat(g) @ flat(reference) > 0:
        reference = [-one for one in reference]
    return g, reference


@pytest.mark.parametrize("seed", range(20))
def test_the_closed_form(seed):
    g, reference = conflicting(seed)
    found, against = project_gradient(g, reference)
    a, r = flat(g), flat(reference)
    assert against.dtype == torch.bool
    assert bool(against)
    torch.testing.assert_close(flat(found), a - (a @ r) / (r @ r) * r, rtol=1e-13, atol=1e-13)
    assert abs(float(flat(found) @ r)) < 1e-12
    assert [one.shape for one in found] == [one.shape for one in g]


def test_it_is_the_closest_that_does_no_harm():
    """What a solver of min ½‖x − g‖² with x·g_ref ≥ 0 finds."""
    g, reference = conflicting(3)
    a, r = flat(g).numpy(), flat(reference).numpy()
    constraint = {"type": "ineq", "fun": lambda x: x @ r, "jac": lambda x: r}
    solved = minimize(
        lambda x: 0.5 * ((x - a) ** 2).sum(), a, jac=lambda x: x - a, constraints=constraint, method="SLSQP",
        options={"ftol": 1e-14},
    ).x  # fmt: skip
    torch.testing.assert_close(flat(project_gradient(g, reference)[0]), torch.tensor(solved), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("seed", range(10))
def test_without_conflict_nothing_changes_bit_for_bit(seed, dtype):
    g, reference = random(seed, dtype), random(1000 + seed, dtype)
    g[0][0, 0] = -0.0
    if flat(g) @ flat(reference) < 0:
        reference = [-one for one in reference]
    found, against = project_gradient(g, reference)
    assert not bool(against)
    for new, old in zip(found, g, strict=True):
        assert torch.equal(new, old)
        assert torch.equal(new.signbit(), old.signbit())


@pytest.mark.parametrize("seed", range(10))
def test_in_single_precision_hardly_any_harm_is_left(seed):
    g, reference = conflicting(seed, torch.float32)
    found = flat(project_gradient(g, reference)[0])
    assert float(found @ flat(reference)) > -1e-6 * float(flat(g).norm() * flat(reference).norm())


def test_a_reference_of_zero_changes_nothing():
    g = random(1)
    found, against = project_gradient(g, [torch.zeros_like(one) for one in g])
    assert not bool(against)
    assert all(torch.equal(new, old) for new, old in zip(found, g, strict=True))


def test_what_was_given_stays_as_it_was():
    g, reference = conflicting(5)
    before = [one.clone() for one in (*g, *reference)]
    project_gradient(g, reference)
    assert all(torch.equal(new, old) for new, old in zip((*g, *reference), before, strict=True))
