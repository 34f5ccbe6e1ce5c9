"""Random circuits against PennyLane, and the plateau itself."""

import math

import pytest
import torch

from advml.nn.quantum.random_circuits import AXES, draw, first_gradients, global_cost, line, local_cost, states
from advml.runner.folder import RunFolder


@pytest.mark.parametrize("turns", ["axis", "any"])
def test_states_and_gradients_are_those_of_pennylane(turns):
    import pennylane as qml

    drawn = draw(turns, 4, 3, 3, torch.Generator().manual_seed(5))
    turn = drawn.angles.shape[-1] // 2
    found, slopes = states(drawn), first_gradients(drawn, ("local", "global"))

    def circuit(axes, angles, measure):
        for wire in range(3):
            qml.RY(math.pi / 4, wires=wire)
        for layer in range(3):
            for wire in range(3):
                for axis, angle in zip(axes[layer, wire], angles[layer, wire], strict=True):
                    {"X": qml.RX, "Y": qml.RY, "Z": qml.RZ}[AXES[axis]](angle, wires=wire)
            for wire in range(2):
                qml.CZ(wires=[wire, wire + 1])
        return measure()

    node = qml.QNode(circuit, qml.device("default.qubit", wires=3), interface="torch")
    for number in range(4):
        axes, angles = drawn.axes[number], drawn.angles[number].clone().requires_grad_()
        state = node(axes, angles.detach(), qml.state)
        torch.testing.assert_close(found[number], state, rtol=0, atol=1e-12)
        for cost, operator in (("local", qml.Z(0) @ qml.Z(1)), ("global", qml.Projector([0, 0, 0], wires=[0, 1, 2]))):
            value = node(axes, angles, lambda operator=operator: qml.expval(operator))
            ours = {"local": local_cost, "global": global_cost}[cost](found[number : number + 1])
            torch.testing.assert_close(ours[0], value.detach(), rtol=0, atol=1e-12)
            (gradient,) = torch.autograd.grad(value, angles)
            torch.testing.assert_close(slopes[cost][number], gradient[0, 0, turn], rtol=0, atol=1e-12)


def test_circuits_are_uniform():
    drawn = draw("axis", 3000, 1, 2, torch.Generator().manual_seed(0))
    shares = torch.bincount(drawn.axes.flatten(), minlength=3) / drawn.axes.numel()
    assert torch.allclose(shares, torch.full((3,), 1 / 3), atol=0.03)
    assert drawn.angles.mean().item() == pytest.approx(math.pi, abs=0.1)
    assert draw("any", 2, 1, 2, torch.Generator()).axes[0, 0, 0].tolist() == [2, 1, 2]


def test_a_line():
    x = torch.tensor([2.0, 4.0, 6.0, 8.0], dtype=torch.float64)
    slope, error = line(x, 3 - 2 * x)
    assert (slope, error) == (pytest.approx(-2), pytest.approx(0, abs=1e-12))
    y = torch.tensor([1.0, 0.0, 2.0, 1.5], dtype=torch.float64)
    from scipy.stats import linregress

    expected = linregress(x.numpy(), y.numpy())
    assert line(x, y) == (pytest.approx(expected.slope), pytest.approx(expected.stderr))
    assert math.isnan(line(x[:2], y[:2])[1])


def test_the_plateau(run_cli):
    """Deep: the variance halves with each qubit (a 2-design); shallow: a local cost keeps it, a global one does not."""
    words = ("method.qubits=[2,4,6,8]", "device=cpu", "threads=1", "progress=off", "figures=false")
    said = run_cli("run", "method=barren_plateau", *words)
    assert said.code == 0, said.err
    result = RunFolder(said.last).result()["metrics"]["valid"]
    assert result["slope_local/depth5n"] == pytest.approx(-1, abs=0.15) == result["slope"]
    assert result["slope_global/depth5n"] == pytest.approx(-2, abs=0.3)
    assert result["slope_local/depth2"] == pytest.approx(0, abs=0.1)
    assert result["slope_global/depth2"] < -0.8


def test_before_the_last_depth_is_measured_there_is_no_slope(run_cli):
    """That of an earlier depth would rank what was cut short by another number."""
    words = ("method.qubits=[2,4]", "method.samples=20", "method.depths=[1]", "method.depths_per_qubit=[2]")
    quiet = ("device=cpu", "threads=1", "progress=off", "figures=false")
    found = []
    for more in (("limits.steps=2",), ()):
        said = run_cli("run", "method=barren_plateau", *words, *quiet, *more)
        assert said.code == 0, said.err
        found.append(RunFolder(said.last).result()["metrics"]["valid"])
    cut, whole = found
    assert cut["slope"] is None
    assert cut["slope_local/depth1"] == whole["slope_local/depth1"]
    assert whole["slope"] == whole["slope_local/depth2n"]


@pytest.mark.parametrize(
    ("word", "reason"),
    [("method.qubits=[1]", "method.qubits: 1; give 2 to 14"), ("method.samples=1", "a variance needs at least 2"),
     ("method.qubits=[2,2]", "method.qubits: a size is given twice"), ("method.costs=[]", "must not be empty")],
)  # fmt: skip
def test_mistakes_are_told(run_cli, word, reason):
    said = run_cli("run", "method=barren_plateau", word, "progress=off")
    assert said.code == 2
    assert reason in said.err
