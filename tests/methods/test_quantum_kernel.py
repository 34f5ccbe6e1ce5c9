"""The quantum kernel machine: what it predicts, what alignment does, what is refused."""

import pytest
import torch

from advml.compose import compose
from advml.config import bind
from advml.methods.quantum.quantum_kernel import of_two_classes
from advml.runner.baselines import plan
from advml.runner.folder import RunFolder


def run(run_cli, *words):
    quiet = ("device=cpu", "threads=1", "progress=off", "figures=false", "baselines=off")
    said = run_cli("run", "method=quantum_kernel", *words, *quiet)
    assert said.code == 0, said.err
    return RunFolder(said.last)


def test_learns_iris_and_keeps_the_best_penalty(run_cli):
    folder = run(run_cli, "dataset.split_seed=1", "method.circuit=angle_ry", "method.penalties=[0.001,1,10]")
    result = folder.result()
    assert result["metrics"]["test"]["accuracy"] > 0.85
    rows = (folder / "artifacts/penalties.csv").read_text().splitlines()[1:]
    tried = {float(row.split(",")[0]): float(row.split(",")[1]) for row in rows}
    assert result["metrics"]["valid"]["accuracy"] == max(tried.values()) == tried[result["summary"]["penalty"]]


def test_the_kernel_of_ry_is_that_of_scikit_learn(run_cli):
    """A fidelity kernel that is a product of cosines, computed by hand and given to the same SVM."""
    from sklearn.svm import SVC

    from advml.runner.run import load_view

    folder = run(run_cli, "method.circuit=angle_ry", "method.penalties=[1]", "method.bandwidth=1", "precision=float64")
    view = load_view(bind(compose(["dataset=iris_angles", "model=mlp"])[0]), lambda line: None)
    train, test = (view.split(name).batch(slice(None)) for name in ("train", "test"))
    x, y = train.inputs["features"], test.inputs["features"]

    def kernel(a, b):
        return ((a.unsqueeze(1) - b) / 2).cos().square().prod(2).numpy()

    machine = SVC(C=1, kernel="precomputed").fit(kernel(x, x), train.target.numpy())
    expected = (machine.predict(kernel(y, x)) == test.target.numpy()).mean()
    assert folder.result()["metrics"]["test"]["accuracy"] == pytest.approx(expected)


@pytest.mark.parametrize("kernel", ["fidelity", "projected"])
def test_alignment_rises(run_cli, kernel):
    words = ("dataset=moons", "dataset.examples=120", "dataset.normalise=angles", f"method.kernel={kernel}",
             "method.circuit=data_reuploading", "method.layers=2", "method.penalties=[1]")  # fmt: skip
    before = run(run_cli, *words).result()["summary"]["alignment"]
    after = run(run_cli, *words, "method.align=30", "method.align_batch_size=60").result()
    assert after["summary"]["alignment"] > before + 0.02
    assert after["budget"]["circuits"] == 30 * 60 + 82  # in the end the 82 training examples once


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("method.align=5",), "method.align: iqp has its weights after the inputs"),
        (("method.align=5", "method.kernel=rbf"), "method.align: this kernel has no weights"),
        (("method.align=5", "method.kernel=projected"), "method.align: this kernel has no weights"),
        (("method.align=5", "method.align_batch_size=1"), "method.align_batch_size=1: one example has no kernel"),
        (("dataset.limit=1",), "dataset.limit: all training examples are of one class"),
        (("dataset=digits",), "the circuit would have 64 qubits; use at most 16"),
        (("method.penalties=[]",), "method.penalties: give at least one"),
        (("dataset=diabetes",), "its target is real"),
        (("model=mlp",), "trains no network; use model=none"),
    ],
)
def test_mistakes_are_told(run_cli, words, reason):
    said = run_cli("run", "method=quantum_kernel", "baselines=off", *words, "progress=off")
    assert said.code == 2
    assert reason in said.err


def test_small_batches_are_aligned_and_never_of_one_class(run_cli):
    order, target = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([0, 1, 1, 0, 0])
    assert of_two_classes(order, target, 3).tolist() == [3, 0, 1]
    assert of_two_classes(order, target, 2).tolist() == [3, 1]
    words = ("method.circuit=data_reuploading", "method.layers=1", "method.align=8", "method.align_batch_size=2")
    result = run(run_cli, *words).result()
    assert result["budget"]["updates"] == 8
    assert result["summary"]["alignment"] is not None


def test_without_entanglers_projected_has_nothing_to_align(run_cli):
    words = ("method.kernel=projected", "method.layers=1", "method.align=5", "method.penalties=[1]")
    with pytest.warns(UserWarning, match="iqp without gates on two qubits .* nothing is aligned"):
        result = run(run_cli, *words, "method.entangle=false").result()
    assert "updates" not in result["budget"]


def test_the_classical_baseline_of_an_aligned_kernel_is_not_aligned():
    tree, _ = compose(["method=quantum_kernel", "method.kernel=projected", "method.layers=1", "method.align=5"])
    assert {name: one["method"].get("align") for name, one in plan(tree).items()} == {
        "rbf": 0, "no_entanglers": 5, "linear": None,
    }  # fmt: skip
    assert bind(plan(tree)["rbf"]).method.settings.kernel == "rbf"
