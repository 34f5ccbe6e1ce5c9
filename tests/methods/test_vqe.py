"""VQE: trial states against PennyLane, energies against exact diagonalisation."""

import math

import pytest
import torch

from advml.compose import compose
from advml.config import bind
from advml.errors import ConfigError
from advml.nn.quantum.ansatz import make_ansatz
from advml.nn.quantum.engines import make_engine
from advml.runner.folder import RunFolder


def run(run_cli, *words):
    said = run_cli("run", *words, "device=cpu", "threads=1", "progress=off", "figures=false")
    assert said.code == 0, said.err
    return RunFolder(said.last)


def test_a_pair_excitation_keeps_two_electrons():
    engine = make_engine(make_ansatz("pair_excitation", 4, 1), [{"ZIII": 1.0}])
    angle = torch.tensor([0.7], dtype=torch.float64)
    state = engine.states(None, {"angle": angle})[0]
    expected = torch.zeros(16, dtype=torch.float64)
    expected[0b1100] = math.cos(0.35)
    expected[0b0011] = state[0b0011].sign() * math.sin(0.35)
    torch.testing.assert_close(state, expected, rtol=0, atol=1e-14)


def test_other_trial_states_are_normalised_and_as_described():
    for name, shapes in (
        ("hardware_efficient", {"angles": (3, 3)}),
        ("alternating", {"bonds": (2,), "fields": (2,)}),
    ):
        circuit = make_ansatz(name, 3, 2)
        assert dict(circuit.weights) == shapes
        weights = {key: torch.rand(shape, dtype=torch.float64) for key, shape in shapes.items()}
        state = make_engine(circuit, [{"ZII": 1.0}]).states(None, weights)
        assert state.abs().square().sum().item() == pytest.approx(1)
        assert state.is_complex() != circuit.real
    zero = {"bonds": torch.zeros(2, dtype=torch.float64), "fields": torch.zeros(2, dtype=torch.float64)}
    plus = make_engine(make_ansatz("alternating", 3, 2), [{"ZII": 1.0}]).states(None, zero)
    torch.testing.assert_close(plus, torch.full_like(plus, 8**-0.5))


def test_hydrogen_is_exact_to_a_millionth_of_a_hartree(run_cli):
    folder = run(run_cli, "method=vqe")
    result = folder.result()["metrics"]["valid"]
    assert 0 <= result["error"] < 1e-6
    assert result["energy/0.7414"] == pytest.approx(-1.13727, abs=1e-5)
    assert (folder / "artifacts/energies_listed.csv").exists()


@pytest.mark.slow
def test_a_ring_is_exact_with_half_as_many_layers_as_sites_and_not_with_fewer(run_cli):
    words = ("method=vqe_ising", "method.ising.qubits=[4]", "method.ising.fields=[1.0]", "method.iterations=150")
    enough = run(run_cli, *words, "method.layers=2").result()["metrics"]["valid"]["error"]
    short = run(run_cli, *words, "method.layers=1").result()["metrics"]["valid"]["error"]
    assert 0 <= enough < 1e-6 < 1e-2 < short


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["method.problem=ising", "method.ising.qubits=[3]"], r"method\.ansatz=pair_excitation: is for 4 qubits"),
        (["method.problem=ising", "method.ising.qubits=[40]"], r"method\.ising\.qubits: 40; chains of 2 to 12"),
        (["method.problem=ising", "method.ising.fields=[]"], r"method\.ising: give at least one length"),
        (["method.problem=ising", "method.ising.qubits=[4,4]"], r"method\.ising\.qubits: one is given twice"),
        (["method.problem=ising", "method.ising.fields=[1.0,0.5,1.0]"], r"method\.ising\.fields: one is given twice"),
        (["method.hamiltonians=[]"], r"method\.hamiltonians: give at least one"),
        (["method.hamiltonians=[{at: 1, words: {ZZ: 1, Z: 2}}]"], r"at 1: give words of one length"),
        (["method.hamiltonians=[{at: 1, words: {ZQ: 1}}]"], r"at 1: ZQ: must be 2 letters"),
        (["method.hamiltonians=[{at: 1, words: {Z: 1}},{at: 1, words: {X: 1}}]"], r"two have the same `at`"),
    ],
)
def test_mistakes_are_told(words, reason):
    from advml.methods.quantum.vqe import Vqe

    bound = bind(compose(["method=vqe", *words])[0])

    class Context:
        settings, device = bound.method.settings, torch.device("cpu")

    with pytest.raises(ConfigError, match=reason):
        Vqe().setup(Context())
