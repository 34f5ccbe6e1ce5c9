"""The hypergradient against exact unrolled autograd, in float64 on a smooth network."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advml.nn.hypergradient import first_order, gradients_of, joint_norm, largest_eigenvalue, second_order

ETA, MU, DECAY = 0.1, 0.9, 0.03


class Toy:
    """tanh(x W₁) mixed with sin(x W₁) by softmax(α), then W₂: smooth in everything."""

    def __init__(self):
        rng = torch.Generator().manual_seed(3)
        draw = lambda *shape: torch.randn(shape, generator=rng, dtype=torch.float64)  # noqa: E731
        self.weights = [nn.Parameter(0.5 * draw(4, 6)), nn.Parameter(0.5 * draw(6, 3)), nn.Parameter(draw(2))]
        self.architecture = [nn.Parameter(draw(6, 2)), nn.Parameter(draw(3))]
        self.buffers = [0.1 * draw(4, 6), 0.1 * draw(6, 3), None]
        self.data = {split: (draw(20, 4), torch.randint(3, (20,), generator=rng)) for split in ("train", "valid")}

    def loss(self, split, weights=None, architecture=None):
        first, second, _ = weights or self.weights  # the third is of no matter
        mix, bias = architecture or self.architecture
        x, y = self.data[split]
        hidden, share = x @ first, mix.softmax(1)
        hidden = hidden.tanh() * share[:, 0] + hidden.sin() * share[:, 1]
        return F.cross_entropy(hidden @ second + bias, y)

    def approximate(self, radius=0.01, momentum=MU):
        return second_order(
            self.weights, self.architecture, lambda: self.loss("train"), lambda: self.loss("valid"),
            lr=ETA, momentum=momentum, buffers=self.buffers, weight_decay=DECAY, radius=radius,
        )  # fmt: skip

    def exact(self, momentum=MU):
        """Autograd through the virtual step."""
        used = self.weights[:2]
        gradients = torch.autograd.grad(self.loss("train"), used, create_graph=True)
        virtual = [
            w - ETA * (momentum * b + g + DECAY * w) for w, g, b in zip(used, gradients, self.buffers, strict=False)
        ]
        return torch.autograd.grad(self.loss("valid", [*virtual, None]), self.architecture)


@pytest.fixture
def toy():
    return Toy()


def error(found, exact):
    return float(joint_norm([a - b for a, b in zip(found, exact, strict=True)]) / joint_norm(list(exact)))


@pytest.mark.parametrize("momentum", [MU, 0.0])
def test_close_to_exact_unrolling_and_a_hundred_times_closer_at_a_tenth_of_the_radius(toy, momentum):
    exact = toy.exact(momentum)
    coarse, fine = (error(toy.approximate(radius, momentum).gradients, exact) for radius in (0.01, 0.001))
    assert 1e-8 < coarse < 1e-3
    assert coarse / fine == pytest.approx(100, rel=0.2)


def test_second_order_is_not_first_order(toy):
    plain = first_order(toy.architecture, lambda: toy.loss("valid"))
    exact = toy.exact()
    assert error(plain.gradients, exact) > 30 * error(toy.approximate().gradients, exact)
    torch.testing.assert_close(plain.gradients, gradients_of(toy.loss("valid"), toy.architecture))


def test_the_weights_come_back_bit_by_bit_and_no_gradient_is_left(toy):
    before = [weight.detach().clone() for weight in toy.weights]
    places = [weight.data_ptr() for weight in toy.weights]
    found = toy.approximate()
    assert all(torch.equal(old, new) for old, new in zip(before, toy.weights, strict=True))
    assert places == [weight.data_ptr() for weight in toy.weights]
    assert all(parameter.grad is None for parameter in (*toy.weights, *toy.architecture))
    torch.testing.assert_close(found.train_loss, toy.loss("train").detach())


def test_they_come_back_when_the_loss_fails(toy):
    before = [weight.detach().clone() for weight in toy.weights]

    def broken():
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        second_order(toy.weights, toy.architecture, lambda: toy.loss("train"), broken, lr=ETA)
    assert all(torch.equal(old, new) for old, new in zip(before, toy.weights, strict=True))


def test_without_a_step_it_is_first_order(toy):
    still = second_order(
        toy.weights, toy.architecture, lambda: toy.loss("train"), lambda: toy.loss("valid"), lr=0.0, buffers=None
    )
    plain = first_order(toy.architecture, lambda: toy.loss("valid"))
    torch.testing.assert_close(still.gradients, plain.gradients)
    assert torch.equal(still.valid_loss, plain.valid_loss)


def test_a_validation_loss_that_no_weight_moves(toy):
    """v = 0: nothing is divided by its norm."""
    found = second_order(
        toy.weights, toy.architecture, lambda: toy.loss("train"), lambda: toy.architecture[1].square().sum(), lr=ETA
    )
    assert all(one.isfinite().all() for one in found.gradients)
    torch.testing.assert_close(found.gradients[1], 2 * toy.architecture[1].detach())


@pytest.mark.parametrize("sign", [1, -1])
def test_the_largest_eigenvalue_is_that_of_the_hessian(toy, sign):
    """Of the loss and of its negative, so that once the one largest in size is not it."""
    sizes = [alpha.numel() for alpha in toy.architecture]

    def flat(values):
        parts = [piece.view_as(a) for piece, a in zip(values.split(sizes), toy.architecture, strict=True)]
        return sign * toy.loss("valid", architecture=parts)

    at = torch.cat([alpha.detach().flatten() for alpha in toy.architecture])
    eigenvalues = torch.linalg.eigvalsh(torch.autograd.functional.hessian(flat, at))
    rng = torch.Generator().manual_seed(0)
    start = [torch.randn(a.shape, generator=rng, dtype=a.dtype) for a in toy.architecture]
    before = [a.detach().clone() for a in toy.architecture]
    nearer = [
        largest_eigenvalue(lambda: sign * toy.loss("valid"), toy.architecture, start, iterations, radius=1e-4)
        for iterations in (1, 2, 3, 100)
    ]
    torch.testing.assert_close(nearer[-1], eigenvalues[-1], rtol=1e-6, atol=1e-8)
    assert eigenvalues[0] < nearer[0] < nearer[1] < nearer[2] <= nearer[3] + 1e-8
    assert all(torch.equal(old, new) for old, new in zip(before, toy.architecture, strict=True))


def test_the_largest_eigenvalue_where_nothing_curves(toy):
    """A linear loss, and a start that the Hessian leaves in its direction."""
    start = [torch.ones_like(a) for a in toy.architecture]
    linear = largest_eigenvalue(lambda: sum(a.sum() for a in toy.architecture), toy.architecture, start)
    assert abs(float(linear)) < 1e-9
    even = largest_eigenvalue(lambda: sum(a.square().sum() for a in toy.architecture), toy.architecture, start)
    torch.testing.assert_close(even, torch.full_like(even, 2.0))
