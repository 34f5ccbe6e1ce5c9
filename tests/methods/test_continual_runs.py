"""Whole continual runs: the accuracy matrix and its numbers, checkpoints, what is missing without a split."""

import json

import numpy as np
import pytest
import torch
from continual_words import small

import advml
from advml.data.prepare import restore
from advml.methods.continual import metrics as numbers
from advml.nn.fisher import fisher_diagonal
from advml.runner.artifacts import read_csv

QUIET = ("device=cpu", "threads=1", "progress=off", "figures=false")


def matrix_of(run):
    """(corner, columns, row labels, values) of the artefact."""
    header, *body = read_csv(run.folder / "artifacts/accuracy_matrix.csv")
    return header[0], header[1:], [row[0] for row in body], [[float(value) for value in row[1:]] for row in body]


@pytest.mark.parametrize(
    ("method", "view"), [("ewc", "task"), ("finetune", "class"), ("joint", "class"), ("ewc", "permuted")]
)
def test_matrix_and_summary_of_a_run(inside, method, view):
    run = advml.run(*small(method, view), *QUIET)
    corner, columns, rows, values = matrix_of(run)
    labels = {
        "task": ["0/1/2/3", "4/5/6", "7/8/9"],
        "class": ["0/1/2/3", "4/5/6", "7/8/9"],
        "permuted": ["natural", "order 1", "order 2"],
    }[view]
    assert corner == "trained up to \\ tested on"
    assert columns == [f"task{number} ({label})" for number, label in enumerate(labels, start=1)]
    assert rows == ["before", "after task1", "after task2", "after task3"]
    before, matrix = values[0], values[1:]
    assert all(0 <= value <= 1 for row in values for value in row)
    assert min(matrix[0][0], matrix[1][1], matrix[2][2]) > 0.3  # it learns

    summary = run.result["summary"]
    assert summary["test_average_accuracy"] == pytest.approx(sum(matrix[2]) / 3)
    assert summary["test_learning_accuracy"] == pytest.approx((matrix[0][0] + matrix[1][1] + matrix[2][2]) / 3)
    back = [matrix[2][j] - matrix[j][j] for j in (0, 1)]
    assert summary["test_backward_transfer"] == pytest.approx(sum(back) / 2)
    lost = [max(matrix[0][0], matrix[1][0]) - matrix[2][0], matrix[1][1] - matrix[2][1]]
    assert summary["test_forgetting"] == pytest.approx(sum(lost) / 2)
    if view != "permuted":  # an unseen task's outputs are untrained
        assert summary["test_forward_transfer"] is None
    else:
        gained = [matrix[0][1] - before[1], matrix[1][2] - before[2]]
        assert summary["test_forward_transfer"] == pytest.approx(sum(gained) / 2)
    assert {name: value for name, value in summary.items() if name.startswith("test_")} == pytest.approx(
        {f"test_{k}": v for k, v in numbers.summarise(matrix, before if view == "permuted" else None).items()}
    )
    assert run.result["metrics"]["test"]["average_accuracy"] == pytest.approx(summary["test_average_accuracy"])
    assert run.result["objective"]["value"] == run.result["metrics"]["valid"]["average_accuracy"]
    assert run.result["best"] is None


def test_a_run_stopped_early_has_fewer_rows_and_no_summary(inside):
    run = advml.run(*small("ewc", "task"), *QUIET, "limits.steps=4")
    _, _, rows, values = matrix_of(run)
    assert rows == ["before", "after task1"]
    assert [len(row) for row in values] == [3, 3]
    assert run.result["summary"] == {}


@pytest.mark.parametrize("method", ["finetune", "ewc", "joint"])
def test_no_validation_split(inside, method):
    run = advml.run(*small(method, "task"), *QUIET, "dataset.valid=0")
    assert {record["split"] for record in run.records} == {"train", "test"}
    assert run.result["objective"]["value"] is None
    assert run.result["summary"]["test_average_accuracy"] > 0.4


def test_no_test_split(inside):
    run = advml.run(*small("ewc", "task"), *QUIET, "dataset.test=0")
    assert {record["split"] for record in run.records} == {"train", "valid"}
    assert set(run.result["summary"]) == {"memory_parameters", "memory_examples", "memory_bytes"}
    assert not (run.folder / "artifacts/accuracy_matrix.csv").exists()


@pytest.mark.parametrize("view", ["task", "permuted"])
def test_the_fisher_in_a_checkpoint_is_that_of_its_weights(inside, play, view):
    """A run stopped after task 1: what it holds is what its own network gives."""
    run = advml.run(*small("ewc", view), *QUIET, "limits.steps=3")
    state = torch.load(run.folder / "checkpoints/last.pt", weights_only=True)["method"]
    assert state["begun"] == 1
    stream = play(*small("ewc", view)).view
    assert json.loads((run.folder / "data.json").read_text())["train"] == stream.record["train"]
    expected = fisher_diagonal(run.model, stream[0].train, kind="exact", mask=stream[0].outputs)
    assert expected.keys() == state["anchor"]["importance"].keys()
    for name, value in state["anchor"]["importance"].items():
        assert torch.equal(value, expected[name])
        assert torch.equal(state["anchor"]["centre"][name], state["network"][name])
    assert float(state["anchor"]["importance"]["head.weight"].max()) > 0


@pytest.mark.parametrize("view", ["permuted", "rotated"])
def test_the_saved_network_takes_raw_images_of_the_first_task(inside, play, view):
    run = advml.run(*small("finetune", view), *QUIET)
    task = play(*small("finetune", view)).view[0]
    raw = task.test.inputs["image"]
    found = float((run.predict(raw, task="task1").argmax(1) == task.test.target).double().mean())
    assert found == pytest.approx(run.result["metrics"]["test"]["accuracy/task1"])
    saved = torch.load(run.folder / "checkpoints/model.pt", weights_only=True)["prepare"]["image"]
    assert [type(restore(state)) for state in saved] == [type(step) for step in task.train.prepare["image"]]


def test_the_confusion_of_all_tasks(inside):
    run = advml.run(*small("ewc", "task", "view.tasks=5"), *QUIET, "baselines=off", "figures=true")
    rows = read_csv(run.folder / "artifacts/confusion_matrix.csv")
    counts = np.array([[int(cell) for cell in row[1:]] for row in rows[1:]])
    task = np.arange(10) // 2
    assert counts[task[:, None] != task[None, :]].sum() == 0  # one task's outputs never compete with another's
    found = run.result["metrics"]["test"]
    scores = 2 * np.diag(counts) / (counts.sum(0) + counts.sum(1))
    assert scores.mean() == pytest.approx(found["macro_f1"])
    of_tasks = [np.trace(counts[i : i + 2, i : i + 2]) / counts[i : i + 2].sum() for i in range(0, 10, 2)]
    assert of_tasks == pytest.approx([found[f"accuracy/task{n}"] for n in range(1, 6)])
    assert (run.folder / "figures/confusion_matrix.png").exists()


def test_the_memory_is_told_without_test_examples_too(inside):
    run = advml.run(*small("replay", "task"), *QUIET, "dataset.test=0", "baselines=off")
    header, *rows = read_csv(run.folder / "artifacts/memory.csv")
    assert [row[0] for row in rows] == ["task1", "task2", "task3"]
    assert run.result["summary"] == {name: int(value) for name, value in zip(header[1:], rows[-1][1:], strict=True)}
    assert not (run.folder / "artifacts/accuracy_matrix.csv").exists()


def test_the_memory_held_after_each_task(inside):
    """The network itself; beside it an anchor of three tensors a parameter, or all examples of earlier tasks."""
    parameters = 64 * 64 + 64 + 64 * 10 + 10
    ewc = advml.run(*small("ewc", "task"), *QUIET, "model.hidden=[64]", "baselines=off")
    header, *rows = read_csv(ewc.folder / "artifacts/memory.csv")
    assert header == ["task", "memory_parameters", "memory_examples", "memory_bytes"]
    assert [[row[0], *map(int, row[1:])] for row in rows] == [
        [f"task{number}", parameters, 0, 3 * 4 * parameters] for number in (1, 2, 3)
    ]
    joint = advml.run(*small("joint", "task"), *QUIET)
    sizes = [task["train"] for task in json.loads((joint.folder / "data.json").read_text())["tasks"]]
    one = 64 + 8  # an image of uint8 and its label
    expected = [0, sizes[0], sizes[0] + sizes[1]]
    _, *rows = read_csv(joint.folder / "artifacts/memory.csv")
    assert [list(map(int, row[2:])) for row in rows] == [[count, count * one] for count in expected]
    assert joint.result["summary"]["memory_examples"] == expected[-1]
