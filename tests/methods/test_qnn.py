"""Supervised quantum models and the company they are put in."""

import json

import pytest
import torch

from advml.compose import compose
from advml.config import bind
from advml.contracts import Classes, Spec
from advml.models.build import build
from advml.models.mlp_equal import equal_width, trained
from advml.runner.baselines import plan
from advml.runner.folder import RunFolder

QUIET = ("device=cpu", "threads=1", "progress=off", "figures=false")


def settings_of(*words):
    return bind(compose(["dataset=iris", *words])[0]).model


@pytest.mark.parametrize(
    ("words", "shape", "classes"),
    [
        ((), (4,), 3),
        (("model.layers=6", "model.circuit=data_reuploading"), (2,), 2),
        (("model.front=linear",), (30,), 2),
        (("model.trainable=false",), (4,), 3),
    ],
)
def test_the_equal_mlp_has_as_many_parameters_as_its_width_allows(words, shape, classes):
    model = settings_of("model=quantum", *words)
    spec = Spec({"x": shape}, Classes(classes))
    quantum = trained(build("quantum", model.settings, spec, 0))
    mlp = build("mlp_equal", model.settings, spec, 0)
    unit = shape[0] + 1 + classes
    assert abs(trained(mlp) - quantum) <= unit / 2
    assert mlp(dict.fromkeys(["x"], torch.zeros(2, *shape))).shape == (2, classes)
    assert mlp.body[0].out_features == equal_width(spec, quantum)


def test_on_iris_the_numbers_are_equal():
    spec = Spec({"x": (4,)}, Classes(3))
    model = settings_of("model=quantum")
    assert [trained(build(name, model.settings, spec, 0)) for name in ("quantum", "mlp_equal")] == [27, 27]


def test_baselines_keep_what_the_user_asked_of_the_circuit():
    tree, _ = compose(["method=qnn", "model.layers=5", "method.lr=0.2"])
    planned = plan(tree)
    assert set(planned) == {"linear", "mlp", "no_entanglers", "frozen"}
    assert planned["mlp"]["model"] == {**tree["model"], "name": "mlp_equal"}
    assert planned["mlp"]["method"]["lr"] == planned["linear"]["method"]["lr"] == 0.2
    assert planned["no_entanglers"]["model"] == {**tree["model"], "entangle": False}
    assert planned["frozen"]["model"] == {**tree["model"], "trainable": False}
    assert all(one["method"] == tree["method"] for one in planned.values())


def test_baselines_of_a_circuit_over_images():
    tree, _ = compose(["method=qnn_images", "model.layers=2", "method.epochs=7"])
    planned = plan(tree)
    assert {name: one["model"]["name"] for name, one in planned.items()} == {
        "linear": "linear", "cnn": "cnn", "no_entanglers": "quanvolution", "trained": "quanvolution",
    }  # fmt: skip
    assert planned["no_entanglers"]["model"] == {**tree["model"], "entangle": False}
    assert planned["trained"]["model"] == {**tree["model"], "trainable": True}
    assert all((one["method"], one["dataset"]) == (tree["method"], tree["dataset"]) for one in planned.values())


def test_learns_iris_beside_its_baselines(run_cli):
    said = run_cli("run", "method=qnn", "method.epochs=15", "dataset.split_seed=1", *QUIET)
    assert said.code == 0, said.err
    folder = RunFolder(said.last)
    result = folder.result()
    assert result["metrics"]["test"]["accuracy"] > 0.85
    assert result["budget"]["circuits"] == result["budget"]["samples"]
    assert "circuits" not in json.loads((folder / "baselines/mlp/result.json").read_text())["budget"]
    for name, parameters in {"linear": 15, "mlp": 27, "no_entanglers": 27, "frozen": 15}.items():
        found = json.loads((folder / f"baselines/{name}/result.json").read_text())
        assert found["parameters"] == parameters, name


@pytest.mark.slow
def test_of_several_rates_the_one_with_the_lowest_validation_loss_is_kept(run_cli):
    words = ("method=qnn", "model=linear", "baselines=off", "method.epochs=6", "method.patience=6", *QUIET)
    alone = {}
    for rate in (0.0001, 0.1):
        result = RunFolder(run_cli("run", *words, f"method.lr={rate}", "evaluate_every=1").last)
        measured = [record for record in result.records() if record["split"] == "valid" and record["step"]]
        alone[rate] = min(record["loss"] for record in measured)
    said = run_cli("run", *words, "method.rates=[0.1,0.0001]")
    assert said.code == 0, said.err
    result = RunFolder(said.last).result()
    assert alone[0.1] < alone[0.0001]
    assert result["summary"]["chosen_lr"] == 0.1
    assert result["metrics"]["valid"]["loss"] == pytest.approx(alone[0.1])
    assert result["budget"]["steps"] == 12


def test_rates_need_patience(run_cli):
    said = run_cli("run", "method=qnn", "method.rates=[0.1]", "baselines=off", *QUIET)
    assert said.code == 2
    assert "method.rates: are compared by early stopping; set method.patience" in said.err


@pytest.mark.parametrize("method", ["supervised", "qnn"])
def test_a_limit_of_circuits_stops_what_runs_circuits(run_cli, method):
    words = ("model=quantum", "dataset=iris_angles", "method.epochs=2", "limits.circuits=10", "baselines=off", *QUIET)
    result = RunFolder(run_cli("run", f"method={method}", *words).last).result()
    circuits = result["budget"]["circuits"]
    assert circuits == result["budget"]["samples"] > 10
    assert result["stopped_by"] == f"limits.circuits=10 reached ({circuits})"


def test_a_limit_of_what_is_not_counted_is_told(run_cli):
    words = ("method=supervised", "model=linear", "dataset=iris", "method.epochs=1", "baselines=off", *QUIET)
    said = run_cli("run", *words, "limits.circuits=10")
    assert said.code == 0
    assert "limits.circuits: this run counted none, so the limit could stop nothing" in said.err
    assert "counted none" not in run_cli("run", *words, "limits.samples=1000").err
