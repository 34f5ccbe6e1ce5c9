"""Prototypes and distances against loops in plain numbers."""

import math

import pytest
import torch

from advml.nn.prototypes import cosines, memberships, metric_logits, nearest_logits, prototypes, squared_distances


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


LABELS = torch.tensor([[2, 0, 1, 0, 2, 2], [1, 1, 0, 2, 0, 1]])  # two tasks of three classes, shots not equal


def mean_by_hand(rows):
    return [math.fsum(column) / len(rows) for column in zip(*rows, strict=True)]


def square_by_hand(one, other):
    return math.fsum((a - b) ** 2 for a, b in zip(one, other, strict=True))


def cosine_by_hand(one, other):
    dot = math.fsum(a * b for a, b in zip(one, other, strict=True))
    return dot / math.sqrt(math.fsum(a * a for a in one)) / math.sqrt(math.fsum(b * b for b in other))


def every_pair(measure, queries, centres):
    return [[[measure(q, c) for c in theirs] for q in ours] for ours, theirs in zip(queries, centres, strict=True)]


def test_prototypes_are_the_means_of_the_classes():
    features = normal(2, 6, 4)
    found = prototypes(features, LABELS, 3)
    expected = [
        [mean_by_hand([row for row, label in zip(rows, labels, strict=True) if label == k]) for k in range(3)]
        for rows, labels in zip(features.tolist(), LABELS.tolist(), strict=True)
    ]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-14, atol=1e-15)


def test_a_single_task_needs_no_axis_for_it():
    features = normal(2, 6, 4)
    assert torch.equal(prototypes(features[1], LABELS[1], 3), prototypes(features, LABELS, 3)[1])


def test_of_one_shot_a_prototype_is_the_example_itself():
    features, labels = normal(5, 4), torch.tensor([3, 1, 4, 0, 2])
    assert torch.equal(prototypes(features, labels, 5)[labels], features)


def test_everyone_belongs_to_one_class():
    belongs = memberships(LABELS, 3, torch.float64)
    assert belongs.tolist()[0] == [[0, 1, 0, 1, 0, 0], [0, 0, 1, 0, 0, 0], [1, 0, 0, 0, 1, 1]]
    assert torch.equal(belongs.sum(-2), torch.ones(2, 6, dtype=torch.float64))


@pytest.mark.parametrize(("measure", "by_hand"), [(squared_distances, square_by_hand), (cosines, cosine_by_hand)])
def test_distances_are_those_of_the_loop(measure, by_hand):
    queries, centres = normal(2, 7, 4, seed=1), normal(2, 3, 4, seed=2)
    expected = every_pair(by_hand, queries.tolist(), centres.tolist())
    torch.testing.assert_close(
        measure(queries, centres), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-14
    )


def test_far_from_the_origin_nothing_is_lost():
    """At 1000 with distances near 5, ‖q‖² − 2 q·c + ‖c‖² as it stands is off by whole numbers in float32."""
    queries, centres = 1000 + normal(7, 16, seed=1), 1000 + normal(3, 16, seed=2)
    single, other = queries.float(), centres.float()
    exact = squared_distances(single.double(), other.double())
    found = squared_distances(single, other).double()
    assert (found / exact - 1).abs().max() < 1e-5
    plain = single.square().sum(1, keepdim=True) - 2 * single @ other.T + other.square().sum(1)
    assert (plain.double() / exact - 1).abs().max() > 1e-2


def test_distances_do_not_change_when_everything_is_moved():
    queries, centres, away = normal(7, 4, seed=1), normal(3, 4, seed=2), normal(4, seed=3)
    torch.testing.assert_close(
        squared_distances(queries + away, centres + away), squared_distances(queries, centres), rtol=1e-12, atol=1e-12
    )


def test_a_vector_of_zeros_has_cosine_zero_and_a_gradient():
    queries = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
    found = cosines(queries, normal(3, 4))
    found.sum().backward()
    assert found.tolist() == [[0.0, 0.0, 0.0]]
    assert queries.grad.isfinite().all()


def test_logits_are_the_negative_distances():
    queries, centres = normal(7, 4, seed=1), normal(3, 4, seed=2)
    assert torch.equal(metric_logits(queries, centres, "euclidean"), -squared_distances(queries, centres))
    torch.testing.assert_close(metric_logits(queries, centres, "cosine", 10.0), -10 * (1 - cosines(queries, centres)))


def test_by_euclidean_distance_it_is_a_linear_model():
    """Section 2.4: −‖q − c‖² = 2 c·q − ‖c‖² − ‖q‖², whose last term is the same for all classes."""
    queries, centres = normal(7, 4, seed=1), normal(3, 4, seed=2)
    linear = queries @ (2 * centres).T - centres.square().sum(1)
    found = metric_logits(queries, centres, "euclidean").log_softmax(1)
    torch.testing.assert_close(found, linear.log_softmax(1), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_gradients_reach_support_and_query(distance):
    def logits(features, queries):
        return metric_logits(queries, prototypes(features, LABELS, 3), distance, 0.7)

    inputs = normal(2, 6, 3).requires_grad_(), normal(2, 4, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(logits, inputs)


def test_the_nearest_of_each_class():
    logits = normal(2, 4, 6)
    found = nearest_logits(logits, LABELS, 3)
    for task in range(2):
        for query in range(4):
            for way in range(3):
                assert found[task, query, way] == logits[task, query][LABELS[task] == way].max()
    nearest = LABELS.gather(1, logits.argmax(2))
    assert torch.equal(found.argmax(2), nearest)
