import math

import numpy as np
import pytest
import sklearn.metrics
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from advml.nn import metrics

CLASSES = 4
labels = st.lists(st.tuples(*[st.integers(0, CLASSES - 1)] * 2), min_size=1, max_size=30)


def draw(seed, examples=300, classes=5, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(examples, classes, generator=generator, dtype=dtype)
    return logits, torch.randint(classes, (examples,), generator=generator)


# --- classes ------------------------------------------------------------------------------------------------------


def test_accuracy_by_hand_and_of_nothing():
    logits = torch.tensor([[2.0, 1.0], [0.0, 3.0], [1.0, 1.0], [0.0, 1.0]])
    assert metrics.accuracy(logits, torch.tensor([0, 1, 0, 0])).item() == 0.75
    assert metrics.accuracy(torch.empty(0, 2), torch.empty(0, dtype=torch.int64)).isnan()


def test_accuracy_is_a_fraction_in_float64():
    assert metrics.accuracy(torch.eye(3), torch.tensor([0, 1, 1])).item() == 2 / 3


@settings(max_examples=60, deadline=None)
@given(labels)
def test_confusion_matrix_and_macro_f1_are_those_of_sklearn(pairs):
    predicted, target = torch.tensor(pairs).T
    theirs = sklearn.metrics.confusion_matrix(target, predicted, labels=range(CLASSES))
    ours = metrics.confusion_matrix(predicted, target, CLASSES)
    assert ours.dtype == torch.int64
    assert ours.tolist() == theirs.tolist()
    score = sklearn.metrics.f1_score(target, predicted, average="macro", zero_division=0)
    assert metrics.macro_f1(predicted, target, CLASSES).item() == pytest.approx(score, abs=1e-12)


def test_rows_of_the_confusion_matrix_are_the_truth():
    matrix = metrics.confusion_matrix(predicted=torch.tensor([2, 2]), target=torch.tensor([0, 0]), classes=3)
    assert matrix.tolist() == [[0, 0, 2], [0, 0, 0], [0, 0, 0]]


def test_a_class_out_of_range_does_not_land_in_another_cell():
    with pytest.raises(IndexError):
        metrics.confusion_matrix(torch.tensor([3]), torch.tensor([0]), 3)


def test_macro_f1_leaves_out_absent_classes_and_is_undefined_for_nothing():
    same = torch.tensor([0, 0, 1])
    assert metrics.macro_f1(same, same, 10).item() == 1
    assert metrics.macro_f1(same[:0], same[:0], 10).isnan()


def test_calibration_error_by_hand():
    # Three bins: (0, 1/3], (1/3, 2/3], (2/3, 1].
    probabilities = torch.tensor([[0.5, 0.3, 0.2], [0.2, 0.6, 0.2], [0.9, 0.1, 0.0], [0.0, 0.2, 0.8]])
    target = torch.tensor([0, 0, 0, 1])
    # Second bin: half are right, mean confidence 0.55. Third: half are right, mean confidence 0.85.
    expected = 2 / 4 * abs(0.5 - 0.55) + 2 / 4 * abs(0.5 - 0.85)
    assert metrics.expected_calibration_error(probabilities, target, bins=3).item() == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_bin_contains_its_upper_edge(dtype):
    # 0.6 is the upper edge of the third of five bins, shared with 0.5. Right and wrong cancel in one bin: gaps +0.4
    # and -0.5 give 0.1 / 2; in two bins they would give 0.9 / 2.
    probabilities = torch.tensor([[0.6, 0.4], [0.5, 0.5]], dtype=dtype)
    error = metrics.expected_calibration_error(probabilities, torch.tensor([0, 1]), bins=5)
    assert error.item() == pytest.approx(0.05, abs=1e-7)


def calibration_error_by_loop(probabilities, target, bins):
    total = 0.0
    for lower in range(bins):
        members = [
            (max(row), row.index(max(row)) == label)
            for row, label in zip(probabilities.tolist(), target.tolist(), strict=True)
            if lower / bins < max(row) <= (lower + 1) / bins
        ]
        if members:
            gap = sum(right for _, right in members) / len(members) - sum(c for c, _ in members) / len(members)
            total += len(members) / len(target) * abs(gap)
    return total


@pytest.mark.parametrize("bins", [1, 2, 10, 15])
def test_calibration_error_is_the_sum_over_bins(bins):
    logits, target = draw(bins, dtype=torch.float64)
    probabilities = logits.softmax(1)
    expected = calibration_error_by_loop(probabilities, target, bins)
    assert expected > 0.1
    assert metrics.expected_calibration_error(probabilities, target, bins).item() == pytest.approx(expected, abs=1e-12)


def test_certain_and_right_is_calibrated_certain_and_wrong_is_not():
    probabilities = torch.eye(3)
    assert metrics.expected_calibration_error(probabilities, torch.arange(3)).item() == 0
    assert metrics.expected_calibration_error(probabilities, torch.tensor([1, 2, 0])).item() == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 1)), min_size=1, max_size=30))
def test_roc_auc_with_ties_is_that_of_sklearn(pairs):
    scores, target = torch.tensor(pairs).T
    area = metrics.roc_auc(scores / 3, target)
    if len(target.unique()) < 2:
        assert area.isnan()
    else:
        assert area.item() == pytest.approx(sklearn.metrics.roc_auc_score(target, scores), abs=1e-12)


def test_roc_auc_of_infinite_strided_and_undefined_scores():
    target = torch.tensor([0, 1, 0, 1])
    table = torch.tensor([[-math.inf, 0.0], [math.inf, 0.0], [0.5, 0.0], [0.5, 0.0]])
    assert metrics.roc_auc(table[:, 0], target).item() == 3.5 / 4
    table[0, 0] = math.nan
    assert metrics.roc_auc(table[:, 0], target).isnan()


@pytest.mark.parametrize("classes", [2, 5])
def test_classification_metrics_are_those_of_sklearn(classes):
    logits, target = draw(classes, classes=classes)
    ours = {name: value.item() for name, value in metrics.classification_metrics(logits, target).items()}
    probabilities = logits.double().softmax(1).numpy()
    predicted = probabilities.argmax(1)
    theirs = {
        "loss": sklearn.metrics.log_loss(target, probabilities, labels=range(classes)),
        "accuracy": sklearn.metrics.accuracy_score(target, predicted),
        "macro_f1": sklearn.metrics.f1_score(target, predicted, average="macro", zero_division=0),
        "ece": calibration_error_by_loop(torch.from_numpy(probabilities), target, 15),
    }
    if classes == 2:
        theirs["roc_auc"] = sklearn.metrics.roc_auc_score(target, probabilities[:, 1])
    assert ours == pytest.approx(theirs, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_masked_classes_change_nothing(dtype):
    logits, target = draw(0, classes=3)
    logits = logits.to(dtype)
    masked = torch.full((len(target), 5), -math.inf, dtype=dtype)
    masked[:, 1:4] = logits
    plain, ours = metrics.classification_metrics(logits, target), metrics.classification_metrics(masked, target + 1)
    for name, value in plain.items():
        assert value.isfinite()
        assert ours[name].item() == pytest.approx(value.item(), abs=1e-12), name


def test_a_masked_target_costs_infinitely_much_and_nothing_else_breaks():
    logits = torch.tensor([[1.0, -math.inf, 0.0], [0.0, -math.inf, 2.0]])
    ours = metrics.classification_metrics(logits, torch.tensor([0, 1]))
    assert ours.pop("loss").item() == math.inf
    assert all(value.isfinite() for value in ours.values())
    assert ours["accuracy"].item() == 0.5


def test_roc_auc_does_not_tie_where_probabilities_saturate():
    logits = torch.tensor([[0.0, 50.0], [0.0, 60.0], [0.0, 70.0]])
    assert logits.double().softmax(1)[:, 1].unique().numel() == 1
    assert metrics.classification_metrics(logits, torch.tensor([0, 1, 1]))["roc_auc"].item() == 1


def test_a_diverged_network_shows_and_does_not_stop_the_run():
    ours = metrics.classification_metrics(torch.full((4, 2), math.nan), torch.tensor([0, 1, 0, 1]))
    assert ours["loss"].isnan()
    assert ours["ece"].isnan()
    assert ours["roc_auc"].isnan()


def test_no_example_gives_nan_everywhere():
    for classes in (2, 3):
        ours = metrics.classification_metrics(torch.empty(0, classes), torch.empty(0, dtype=torch.int64))
        assert all(value.isnan() for value in ours.values())
    ours = metrics.regression_metrics(torch.empty(0, 2), torch.empty(0, 2))
    assert all(value.isnan() for value in ours.values())


def test_summaries_are_detached_scalars():
    logits, target = draw(0, classes=2)
    both = metrics.classification_metrics(logits.requires_grad_(), target)
    both |= metrics.regression_metrics(logits, torch.zeros_like(logits))
    for value in both.values():
        assert value.shape == ()
        assert value.dtype == torch.float64
        assert not value.requires_grad


def test_metrics_run_where_only_deterministic_operations_are_allowed():
    logits, target = draw(0, classes=2)
    free = metrics.classification_metrics(logits, target)
    torch.use_deterministic_algorithms(True)
    try:
        strict = metrics.classification_metrics(logits, target)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(free[name], strict[name]) for name in free)


# --- real numbers -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(50,), (50, 1), (50, 3), (50, 2, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_regression_metrics_are_those_of_sklearn(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    target = 1e3 + torch.randn(shape, generator=generator, dtype=dtype)
    output = target + 0.5 * torch.randn(shape, generator=generator, dtype=dtype)
    rows = [values.double().reshape(50, -1).numpy() for values in (target, output)]
    theirs = {
        "mse": sklearn.metrics.mean_squared_error(*rows),
        "mae": sklearn.metrics.mean_absolute_error(*rows),
        "r2": sklearn.metrics.r2_score(*rows),
    }
    for given_output in (output, output.reshape(50, -1)):
        ours = {name: value.item() for name, value in metrics.regression_metrics(given_output, target).items()}
        assert ours == pytest.approx(theirs, abs=1e-9)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_r2_of_a_constant_target_is_undefined(value):
    # Three times 0.1 has a mean that is not 0.1: constancy is not judged by a sum of squares.
    target = torch.full((3, 2), value, dtype=torch.float64)
    assert metrics.r2(target, target).isnan()
    assert metrics.r2(target + 1, target).isnan()
    assert metrics.r2(torch.ones(1), torch.zeros(1)).isnan()


def test_r2_leaves_out_constant_outputs_and_keeps_nan():
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    target[:, 1] = 4
    output = target + 0.3 * torch.randn(20, 3, generator=generator, dtype=torch.float64)
    each = np.array([sklearn.metrics.r2_score(target[:, i], output[:, i]) for i in (0, 2)])
    assert metrics.r2(output, target).item() == pytest.approx(each.mean(), abs=1e-12)
    output[3, 0] = math.nan
    assert metrics.r2(output, target).isnan()


def test_shapes_that_would_broadcast_are_refused():
    for metric in (metrics.mse, metrics.mae, metrics.r2):
        with pytest.raises(ValueError, match=r"\(4, 1\) and targets \(4,\)"):
            metric(torch.zeros(4, 1), torch.zeros(4))
    with pytest.raises(ValueError, match="differ in shape"):
        metrics.regression_metrics(torch.zeros(6, 2), torch.zeros(2, 6))
