"""Batch norm by the batch at hand is torch's, with its derivatives to the second order, and under vmap as well."""

import pytest
import torch
import torch.nn.functional as F

from advml.nn.batch_norm import batch_norm

SHAPES = {"rows": (4, 3), "sequence": (3, 3, 4), "images": (3, 3, 2, 3), "one example": (1, 3, 4, 4)}
EPS = 1e-3


def inputs(shape, copies=(), seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = (shape, shape[1:2], shape[1:2])
    return [
        torch.randn(*copies, *each, generator=generator, dtype=torch.float64).add_(0.5).requires_grad_()
        for each in shapes
    ]


def torchs(values, weight, bias):
    return F.batch_norm(values, None, None, weight, bias, training=True, eps=EPS)


def ours(values, weight, bias):
    return batch_norm(values, weight, bias, EPS)


def twice(norm, tensors):
    """The output, its derivatives, and those of a function of them that all three are in."""
    output = norm(*tensors)
    weigh = torch.linspace(-1, 2, output.numel(), dtype=output.dtype).view_as(output)
    first = torch.autograd.grad((weigh * output.tanh()).sum(), tensors, create_graph=True)
    total = sum(each.square().sum() + each.sin().sum() for each in first)
    return [output, *first, *torch.autograd.grad(total, tensors)]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_output_and_derivatives_are_torchs(shape):
    tensors = inputs(shape)
    for mine, theirs in zip(twice(ours, tensors), twice(torchs, tensors), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_second_derivatives_are_those_of_finite_differences(shape):
    tensors = inputs(shape)
    assert torch.autograd.gradcheck(ours, tensors)
    assert torch.autograd.gradgradcheck(ours, tensors)


@pytest.mark.parametrize("asked", [(0,), (1,), (2,), (1, 2)])
def test_second_derivative_of_some_first_derivatives_alone(asked):
    """Where the others are not differentiated, nothing is missing."""
    tensors = inputs(SHAPES["images"])
    found = []
    for norm in (ours, torchs):
        first = torch.autograd.grad(norm(*tensors).tanh().sum(), tensors, create_graph=True)
        total = sum(first[index].sin().sum() for index in asked)
        found.append(torch.autograd.grad(total, tensors[:2]))
    for mine, theirs in zip(*found, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


def test_channels_may_lie_last():
    """In the input, in its gradient or in both."""
    values, *affine = inputs((3, 4, 2, 3))
    last = values.detach().clone(memory_format=torch.channels_last).requires_grad_()
    weigh = torch.linspace(-1, 2, values.numel(), dtype=values.dtype).view_as(values)
    expected = twice(torchs, [values, *affine])
    for turned in (weigh, weigh.contiguous(memory_format=torch.channels_last)):
        output = ours(last, *affine)
        first = torch.autograd.grad((turned * output.tanh()).sum(), [last, *affine], create_graph=True)
        second = torch.autograd.grad(sum(each.square().sum() + each.sin().sum() for each in first), [last, *affine])
        for mine, theirs in zip([output, *first, *second], expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dims", [(0, 0, 0), (1, 0, 0), (0, None, None), (None, 0, 0), (0, None, 0), (0, 1, 0)])
def test_copies_by_vmap_are_copies_one_by_one(shape, dims):
    copies = 3
    stacked = [
        each.detach().movedim(0, dim).requires_grad_() if dim is not None else each[0].detach().requires_grad_()
        for each, dim in zip(inputs(shape, (copies,)), dims, strict=True)
    ]

    def one_by_one(*tensors):
        rows = [
            [each if dim is None else each.select(dim, copy) for each, dim in zip(tensors, dims, strict=True)]
            for copy in range(copies)
        ]
        return torch.stack([torchs(*row) for row in rows])

    mapped = torch.func.vmap(ours, in_dims=dims)
    for mine, theirs in zip(twice(mapped, stacked), twice(one_by_one, stacked), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-11)


def test_without_scale_and_shift_these_are_1_and_0():
    values = inputs(SHAPES["images"])[0]
    expected = twice(lambda given: F.batch_norm(given, None, None, training=True, eps=EPS), [values])
    for mine, theirs in zip(twice(lambda given: batch_norm(given, None, None, EPS), [values]), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-12)


def test_in_float32_second_derivatives_are_as_exact_as_torchs():
    """Far from zero, where μ is a hundred times σ: against float64, no more than a few times torch's own error."""
    exact = inputs((8, 3, 6, 6), seed=1)
    with torch.no_grad():
        exact[0].mul_(0.1).add_(10)
    single = [each.detach().float().requires_grad_() for each in exact]
    reference = twice(torchs, [each.detach().double().requires_grad_() for each in single])
    errors = {}
    for name, norm in (("ours", ours), ("torch", torchs)):
        found = twice(norm, single)
        errors[name] = [((a.double() - b).norm() / b.norm()).item() for a, b in zip(found, reference, strict=True)]
    for mine, theirs in zip(errors["ours"], errors["torch"], strict=True):
        assert mine <= 4 * theirs + 1e-6


def test_a_third_derivative_is_refused():
    tensors = inputs(SHAPES["rows"])
    first = torch.autograd.grad(ours(*tensors).tanh().sum(), tensors[0], create_graph=True)[0]
    second = torch.autograd.grad(first.sin().sum(), tensors[0], create_graph=True)[0]
    with pytest.raises(RuntimeError, match="not three times"):
        torch.autograd.grad(second.sum(), tensors[0])
