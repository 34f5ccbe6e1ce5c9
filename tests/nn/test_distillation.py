"""Distillation against a loop in plain numbers, and what its gradient must be."""

import math

import pytest
import torch

from advml.nn.distillation import distillation

HEADS = torch.tensor([[1, 1, 0, 0, 0], [0, 0, 1, 1, 0]], dtype=torch.bool)
SHARED = torch.ones(1, 5, dtype=torch.bool)


def logits(seed, dtype=torch.float64):
    return 3 * torch.randn(7, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def softened(row, outputs, temperature):
    """{output: probability} of plain numbers."""
    exponentials = {c: math.exp(float(row[c]) / temperature) for c in outputs}
    return {c: value / sum(exponentials.values()) for c, value in exponentials.items()}


def by_hand(student, teacher, heads, temperature, student_heads=None):
    """T² of (cross-entropy − the teacher's entropy), averaged over examples, for each head."""
    found = []
    for number, head in enumerate(heads):
        old = head.nonzero().flatten().tolist()
        every = (head if student_heads is None else student_heads[number]).nonzero().flatten().tolist()
        total = 0.0
        for mine, its in zip(student, teacher, strict=True):
            p, q = softened(its, old, temperature), softened(mine, every, temperature)
            total += sum(-p[c] * math.log(q[c]) + p[c] * math.log(p[c]) for c in old)
        found.append(temperature**2 * total / len(student))
    return found


@pytest.mark.parametrize("temperature", [1.0, 2.0, 5.0])
@pytest.mark.parametrize("heads", [HEADS, SHARED], ids=["heads", "shared"])
def test_it_is_the_loop(heads, temperature):
    student, teacher = logits(1), logits(2)
    assert distillation(student, teacher, heads, temperature).tolist() == pytest.approx(
        by_hand(student, teacher, heads, temperature), rel=1e-12
    )


def test_new_classes_that_the_teacher_does_not_know():
    student, teacher = logits(1), logits(2)
    old, every = torch.tensor([[1, 1, 1, 0, 0]], dtype=torch.bool), torch.tensor([[1, 1, 1, 1, 0]], dtype=torch.bool)
    found = distillation(student, teacher, old, 2.0, every)
    assert found.tolist() == pytest.approx(by_hand(student, teacher, old, 2.0, every), rel=1e-12)
    assert found > distillation(student, teacher, old, 2.0)


@pytest.mark.parametrize("temperature", [0.5, 2.0, 20.0])
def test_the_gradient_is_the_difference_of_the_probabilities(temperature):
    """T (q − p) / B within each head, 0 outside; nothing reaches the teacher's outputs of no head."""
    student, teacher = logits(1).requires_grad_(), logits(2)
    distillation(student, teacher, HEADS, temperature).sum().backward()
    expected = torch.zeros(7, 5, dtype=torch.float64)
    for head in HEADS:
        p, q = ((values.detach()[:, head] / temperature).softmax(1) for values in (teacher, student))
        expected[:, head] += temperature * (q - p) / 7
    torch.testing.assert_close(student.grad, expected, rtol=1e-10, atol=1e-14)
    assert not student.grad[:, 4].any()


def test_at_the_teacher_loss_and_gradient_are_zero():
    student = logits(1).requires_grad_()
    found = distillation(student, student.detach().clone(), HEADS, 2.0)
    found.sum().backward()
    assert found.tolist() == [0.0, 0.0]
    assert student.grad.abs().max() < 1e-15


def test_at_a_high_temperature_it_matches_logits():
    """Hinton et al., equation 4: T² KL → ½ Σ (z − v)² / C for logits with zero mean in each example."""
    student, teacher = (values - values.mean(1, keepdim=True) for values in (logits(1), logits(2)))
    limit = 0.5 * (student - teacher).square().sum(1).mean() / 5
    near, nearer = (float(distillation(student, teacher, SHARED, t) / limit - 1) for t in (1e3, 1e4))
    assert abs(near) < 1e-2
    assert nearer == pytest.approx(near / 10, rel=0.1)


def test_outputs_of_no_head_may_be_anything():
    student, teacher = logits(1).requires_grad_(), logits(2)
    clean = distillation(student, teacher, HEADS, 2.0).detach()
    spoilt = teacher.clone()
    spoilt[:, 4] = 1e30
    assert torch.equal(distillation(student, spoilt, HEADS, 2.0).detach(), clean)


def test_bfloat16_outputs_are_compared_in_float32():
    student, teacher = logits(1, torch.bfloat16).requires_grad_(), logits(2, torch.bfloat16)
    found = distillation(student, teacher, SHARED, 2.0)
    found.sum().backward()
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx(by_hand(student.detach(), teacher, SHARED, 2.0), rel=1e-5)
    assert student.grad.isfinite().all()


def test_a_sure_teacher_makes_no_nan():
    """Probabilities that underflow to 0."""
    student = torch.tensor([[0.0, 1000.0, 0.0, 0.0, 0.0]]).requires_grad_()
    teacher = torch.tensor([[1000.0, 0.0, 0.0, 0.0, 0.0]])
    found = distillation(student, teacher, SHARED, 2.0)
    found.sum().backward()
    assert found.tolist() == pytest.approx([4 * 500.0])
    assert student.grad.isfinite().all()
