"""Targets and losses of replayed inputs against loops over examples and readings."""

import math

import torch

from advml.contracts import Batch
from advml.nn.losses import cross_entropy
from advml.nn.replayed import hard_targets, readings, soft_cross_entropy, soft_targets, split_rows

MASKS = torch.tensor([[True, True, False, False, False], [False, False, True, True, False]])


def drawn(*size, seed=0):
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_hard_targets_are_the_best_class_of_each_reading():
    outputs = drawn(7, 5)
    expected = [max(range(5), key=lambda c: (bool(mask[c]), row[c])) for mask in MASKS for row in outputs.tolist()]
    assert hard_targets(outputs, MASKS).tolist() == expected


def test_hard_loss_is_the_average_over_readings_of_each_heads_own():
    earlier, now = drawn(7, 5), drawn(7, 5, seed=1)
    targets = hard_targets(earlier, MASKS)
    each, active = readings(now, MASKS)
    found = cross_entropy(each, Batch({}, targets, active))
    values = []
    for mask in MASKS:
        classes = mask.nonzero().flatten().tolist()
        for old, new in zip(earlier.tolist(), now.tolist(), strict=True):
            best = max(classes, key=lambda c, old=old: old[c])
            values.append(math.log(sum(math.exp(new[c]) for c in classes)) - new[best])
    assert math.isclose(float(found), sum(values) / len(values), rel_tol=1e-12)


def test_distillation_against_a_loop():
    """The earlier network knew fewer classes than the present one has active: those have no share in the targets."""
    earlier, now, temperature = drawn(7, 5), drawn(7, 5, seed=1), 2.0
    active = MASKS.clone()
    active[:, 4] = True
    targets = soft_targets(earlier, MASKS, temperature)
    assert torch.equal(targets.sum(1).round(decimals=12), torch.ones(14, dtype=torch.float64))
    found = soft_cross_entropy(now, active, targets, temperature)
    values = []
    for known, live in zip(MASKS, active, strict=True):
        for old, new in zip(earlier.tolist(), now.tolist(), strict=True):
            had = [math.exp(old[c] / temperature) if known[c] else 0.0 for c in range(5)]
            total = sum(math.exp(new[c] / temperature) for c in range(5) if live[c])
            log_q = [new[c] / temperature - math.log(total) for c in range(5)]
            values.append(-sum(had[c] / sum(had) * log_q[c] for c in range(5)))
    assert math.isclose(float(found), temperature**2 * sum(values) / len(values), rel_tol=1e-12)


def test_distillation_pulls_towards_the_earlier_outputs_and_moves_no_other():
    earlier = drawn(4, 5)
    now = earlier.clone().requires_grad_()
    mask = MASKS[:1]
    soft_cross_entropy(now, mask, soft_targets(earlier, mask, 2.0), 2.0).backward()
    torch.testing.assert_close(now.grad, torch.zeros_like(now), rtol=0, atol=1e-15)
    away = (earlier + drawn(4, 5, seed=3)).requires_grad_()
    soft_cross_entropy(away, mask, soft_targets(earlier, mask, 2.0), 2.0).backward()
    assert bool((away.grad[:, :2] != 0).all())
    assert not away.grad[:, 2:].any()


def test_half_precision_outputs_are_worked_on_in_single():
    outputs = drawn(3, 5).bfloat16()
    targets = soft_targets(outputs, MASKS, 2.0)
    assert targets.dtype == torch.float32
    assert soft_cross_entropy(outputs, MASKS, targets, 2.0).dtype == torch.float32


def test_rows_become_inputs_again():
    shapes = {"image": (2, 2, 3), "features": (4,)}
    inputs = {name: drawn(5, *shape) for name, shape in shapes.items()}
    rows = torch.cat([values.flatten(1) for values in inputs.values()], 1)
    found = split_rows(rows, shapes)
    assert list(found) == list(inputs)
    assert all(torch.equal(found[name], inputs[name]) for name in inputs)
