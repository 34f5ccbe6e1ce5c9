"""Quantum circuits as networks: what they accept, that their weights are what is given, that checkpoints hold them."""

import copy
import io

import pytest
import torch
from torch.func import functional_call, vmap

from advml.contracts import Classes, Nothing, Real, Spec
from advml.models.build import build, from_recipe, rebuild
from advml.nn.quantum.engines import FastEngine, PennyLaneEngine
from advml.runner.finish import flops_estimate

FLOWERS, PIXELS = Spec({"features": (4,)}, Classes(3)), Spec({"image": (1, 6, 6)}, Classes(2))
ENGINES = ("fast", "pennylane")


def inputs_of(spec, batch=5):
    return {name: torch.rand(batch, *shape) for name, shape in spec.inputs.items()}


@pytest.mark.parametrize(
    ("changes", "parameters"),
    [
        ({}, 12 + 15),
        ({"circuit": "strongly_entangling", "observables": "zz"}, 36 + 33),
        ({"circuit": "data_reuploading", "observables": "pauli"}, 72 + 39),
        ({"circuit": "data_reuploading", "scaling": False}, 36 + 15),
        ({"circuit": "iqp", "observables": ["ZZII", "XIIX"]}, 12 + 9),
        ({"circuit": "amplitude", "qubits": 2}, 6 + 9),
        ({"trainable": False}, 15),
        ({"front": "linear", "qubits": 2}, 10 + 6 + 9),
        ({"readout": "scaled"}, 12 + 6),
    ],
)
def test_parameters_and_outputs(shipped, changes, parameters):
    network = shipped("quantum", FLOWERS, **changes)
    assert isinstance(network.layer.engine, FastEngine)
    assert sum(value.numel() for value in network.parameters()) == parameters
    outputs = network(inputs_of(FLOWERS))
    assert outputs.shape == (5, 3)
    outputs.square().sum().backward()
    assert all(value.grad.abs().max() > 0 for name, value in network.named_parameters() if name != "front.bias")


def test_what_does_not_fit_is_said(chosen):
    cases = [
        (Spec({"features": (5,)}, Classes(3)), {}, "at most 4 features for 4 qubits"),
        (Spec({"features": (2,)}, Nothing()), {}, "target"),
        (FLOWERS, {"observables": ["ZZ"]}, "ZZ: must be 4 letters"),
        (FLOWERS, {"readout": "scaled", "observables": ["ZIII"]}, r"as many observables as outputs \(3\)"),
    ]
    for spec, changes, said in cases:
        cls, settings = chosen("quantum", **changes)
        with pytest.raises(AssertionError, match=said):
            raise AssertionError(cls.check(spec, settings))
    cls, settings = chosen("quanvolution", kernel=3)
    assert "at most 4 pixels" in cls.check(PIXELS, settings)
    assert "one image" in cls.check(FLOWERS, settings)


def test_fewer_features_than_qubits_are_read_again(shipped):
    network = shipped("quantum", Spec({"features": (2,)}, Real((1,))), layers=0)
    point = torch.tensor([[0.3, 1.1]])
    assert torch.allclose(network.features({"features": point}), point.cos().repeat(1, 2), atol=1e-6)


def test_quanvolution_is_the_circuit_on_each_patch(shipped):
    network = shipped("quanvolution", PIXELS)
    image = inputs_of(PIXELS)["image"]
    features = network.features({"image": image})
    assert features.shape == (5, 9 * 4)
    patch = image[:, 0, 2:4, 4:6].reshape(5, 4) * torch.pi
    assert torch.allclose(features.reshape(5, 9, 4)[:, 5], network.layer(patch), atol=1e-6)
    assert [name for name, _ in network.named_parameters()] == ["head.weight", "head.bias"]


def test_given_weights_are_used_by_functional_call_and_vmap(shipped):
    network = shipped("quantum", FLOWERS, circuit="data_reuploading")
    inputs = inputs_of(FLOWERS)
    other = {name: value + 1 for name, value in network.named_parameters()}
    moved = copy.deepcopy(network)
    moved.load_state_dict(other)
    assert torch.allclose(functional_call(network, other, (inputs,)), moved(inputs), atol=1e-6)
    both = {name: torch.stack([value, value + 1]) for name, value in network.named_parameters()}
    many = vmap(lambda values: functional_call(network, values, (inputs,)))(both)
    assert torch.allclose(many, torch.stack([network(inputs), moved(inputs)]), atol=1e-5)
    moved.load_state_dict(network.state_dict(), assign=True)
    assert torch.equal(moved(inputs), network(inputs))


@pytest.mark.parametrize("changes", [{}, {"trainable": False}, {"engine": "pennylane"}])
def test_checkpoints_and_recipes(chosen, changes):
    _, settings = chosen("quantum", layers=1, **changes)
    network = build("quantum", settings, FLOWERS, seed=3)
    buffer = io.BytesIO()
    torch.save({"recipe": network.recipe, "state": network.state_dict()}, buffer)
    buffer.seek(0)
    saved = torch.load(buffer, weights_only=True)
    inputs = inputs_of(FLOWERS)
    assert torch.equal(rebuild(saved["recipe"], saved["state"])(inputs), network(inputs))
    assert not torch.equal(from_recipe(saved["recipe"])(inputs), network(inputs))
    assert torch.equal(build("quantum", settings, FLOWERS, seed=3)(inputs), network(inputs))


def test_double_precision_reaches_the_circuit(shipped):
    network = shipped("quantum", FLOWERS, circuit="iqp")
    exact = copy.deepcopy(network).double()
    inputs = inputs_of(FLOWERS)
    found = exact({name: value.double() for name, value in inputs.items()})
    assert found.dtype == torch.float64
    assert torch.allclose(found.float(), network(inputs), atol=1e-5)


def test_autocast_leaves_the_circuit_in_full_precision(shipped):
    network = shipped("quantum", FLOWERS)
    inputs = inputs_of(FLOWERS)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network.features(inputs), network.features(inputs).float())
        assert torch.allclose(network.features(inputs), network.layer(inputs["features"]), atol=1e-6)


def test_shots_and_noise_train_too(shipped):
    for changes in ({"shots": 50}, {"noise": 0.02}):
        network = shipped("quantum", FLOWERS, layers=1, qubits=4, **changes)
        assert isinstance(network.layer.engine, PennyLaneEngine)
        network(inputs_of(FLOWERS, 1)).sum().backward()
        assert network.layer.angles.grad.abs().max() > 0
        assert copy.deepcopy(network)(inputs_of(FLOWERS, 1)).shape == (1, 3)


@pytest.mark.parametrize("changes", [{}, {"circuit": "strongly_entangling", "qubits": 6}, {"circuit": "iqp"}])
def test_exported_programs_serve_any_batch(shipped, changes):
    network = shipped("quantum", FLOWERS, layers=2, **changes).eval()
    batch = {"features": {0: torch.export.Dim("batch")}}
    program = torch.export.export(network, (inputs_of(FLOWERS, 4),), dynamic_shapes=(batch,))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    buffer.seek(0)
    inputs = inputs_of(FLOWERS, 7)
    assert torch.allclose(torch.export.load(buffer).module()(inputs), network(inputs), atol=1e-6)


def test_the_circuit_is_drawn(shipped):
    drawn = shipped("quantum", FLOWERS).artifacts()["circuit"]
    assert drawn.text.count("RY") == 16
    assert drawn.text.count("╭●") == 9
    assert drawn.figure().axes[0].get_title() == "angle_ry, 4 qubits, 3 layers"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"device": "nonsense"}, r"device: PennyLane has no nonsense; use one of default\.clifford"),
        ({"shots": 10, "diff_method": "backprop"}, "diff_method: backprop has no shots; use best"),
        ({"shots": 10, "diff_method": "adjoint"}, "diff_method: adjoint has no shots; use best"),
        ({"noise": 0.1, "device": "lightning.qubit"}, r"noise: lightning\.qubit has none; use device=default\.qubit"),
        ({"noise": 0.1, "diff_method": "adjoint"}, "diff_method: adjoint needs pure states"),
        ({"device": "lightning.qubit", "diff_method": "backprop"}, r"diff_method: backprop does not reach into"),
    ],
)
def test_what_pennylane_cannot_do_is_said_before_any_work(chosen, changes, said):
    with pytest.raises(ValueError, match=said):
        chosen("quantum", **changes)


def test_an_unknown_way_to_differentiate_is_refused(run_cli):
    said = run_cli("run", "method=qnn", "model.diff_method=bogus", "baselines=off", "progress=off")
    assert said.code == 2
    assert "model.diff_method: must be 'best', 'backprop'" in said.err


def test_what_pennylane_computes_has_no_flops_estimate(chosen):
    fast, by_pennylane = (build("quantum", chosen("quantum", engine=name)[1], FLOWERS, 0) for name in ENGINES)
    assert flops_estimate(fast, 7) > 0
    assert flops_estimate(by_pennylane, 7) is None
