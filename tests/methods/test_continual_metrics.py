"""Numbers out of accuracy matrices made by hand."""

import pytest

from advml.contracts import Phase
from advml.methods.continual import metrics

R = [
    [0.9, 0.2, 0.1],
    [0.7, 0.8, 0.3],
    [0.5, 0.6, 0.95],
]
BEFORE = [0.1, 0.15, 0.05]


def test_by_hand():
    assert metrics.average_accuracy(R) == pytest.approx((0.5 + 0.6 + 0.95) / 3)
    assert metrics.backward_transfer(R) == pytest.approx(((0.5 - 0.9) + (0.6 - 0.8)) / 2)
    assert metrics.forward_transfer(R, BEFORE) == pytest.approx(((0.2 - 0.15) + (0.3 - 0.05)) / 2)
    assert metrics.forgetting(R) == pytest.approx(((0.9 - 0.5) + (0.8 - 0.6)) / 2)
    assert metrics.learning_accuracy(R) == pytest.approx((0.9 + 0.8 + 0.95) / 3)


def test_forgetting_is_measured_from_the_best_moment_since():
    """Task 1 got better with task 2: forgetting counts from there, backward transfer from where it was learnt."""
    better = [[0.6, 0.0, 0.0], [0.8, 0.7, 0.0], [0.5, 0.7, 0.9]]
    assert metrics.forgetting(better) == pytest.approx((0.3 + 0.0) / 2)
    assert metrics.backward_transfer(better) == pytest.approx((-0.1 + 0.0) / 2)


def test_forgetting_can_be_negative():
    assert metrics.forgetting([[0.5, 0.0], [0.7, 0.9]]) == pytest.approx(-0.2)
    assert metrics.backward_transfer([[0.5, 0.0], [0.7, 0.9]]) == pytest.approx(0.2)


def test_nothing_forgotten_is_exactly_zero():
    matrix = [[0.3, 0.1], [0.3, 0.7]]
    assert metrics.forgetting(matrix) == 0.0
    assert metrics.backward_transfer(matrix) == 0.0


def test_summary_names_them_all():
    assert metrics.summarise(R, BEFORE) == {
        "average_accuracy": metrics.average_accuracy(R),
        "backward_transfer": metrics.backward_transfer(R),
        "forward_transfer": metrics.forward_transfer(R, BEFORE),
        "forgetting": metrics.forgetting(R),
        "learning_accuracy": metrics.learning_accuracy(R),
    }
    assert metrics.summarise(R, None)["forward_transfer"] is None


# --- out of records -----------------------------------------------------------------------------------------------

PHASES = [Phase("task1", "block", 2), Phase("task2", "block", 2)]


def record(phase, split, *accuracies, **more):
    return {"step": 0, "phase": phase, "split": split} | {
        f"accuracy/task{number}": value for number, value in enumerate(accuracies, start=1)
    } | more  # fmt: skip


RECORDS = [
    record("start", "test", 0.1, 0.2),
    record("task1", "train"),
    record("task1", "valid", 0.99),
    record("task1", "test", 0.8, 0.3),
    record("task2", "valid", 0.98, 0.97),
    record("task2", "test", 0.5, 0.9),
    record("task2", "test", 0.6, 0.6, state="best"),
    record("end", "test", 0.55, 0.95, state="last"),
]


def test_rows_are_the_test_records_of_phase_ends():
    found = metrics.accuracy_matrix(RECORDS, PHASES, ["task1", "task2"])
    assert list(found.items()) == [("start", [0.1, 0.2]), ("task1", [0.8, 0.3]), ("task2", [0.5, 0.9])]


def test_a_run_that_stopped_has_fewer_rows():
    stopped = [*RECORDS[:4], RECORDS[-1]]
    assert list(metrics.accuracy_matrix(stopped, PHASES, ["task1", "task2"])) == ["start", "task1"]
    assert metrics.accuracy_matrix([], PHASES, ["task1", "task2"]) == {}
