"""QAOA against PennyLane's own layers, against exhaustive search and against what is known of rings."""

import itertools
import math

import pytest
import torch

from advml.nn.quantum import maxcut
from advml.runner.folder import RunFolder


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def run(run_cli, *words):
    said = run_cli("run", "method=qaoa", *words, "device=cpu", "threads=1", "progress=off", "figures=false")
    assert said.code == 0, said.err
    return RunFolder(said.last)


class TestGraphs:
    def test_regular(self):
        seen = set()
        for seed in range(20):
            edges = maxcut.random_regular(6, 3, generator(seed))
            assert len(set(edges)) == 9
            assert all(sum(node in edge for edge in edges) == 3 for node in range(6))
            seen.add(tuple(edges))
        assert len(seen) > 5

    @pytest.mark.parametrize(("nodes", "degree"), [(5, 3), (4, 4)])
    def test_there_is_none(self, nodes, degree):
        with pytest.raises(ValueError, match="there is no graph"):
            maxcut.random_regular(nodes, degree, generator())

    def test_erdos_renyi(self):
        counts = [len(maxcut.erdos_renyi(10, 0.3, generator(seed))) for seed in range(300)]
        assert sum(counts) / 300 == pytest.approx(45 * 0.3, abs=4 * math.sqrt(45 * 0.21 / 300))
        assert len(maxcut.erdos_renyi(5, 1.0, generator())) == 10

    def test_cuts_one_by_one(self):
        edges, weights = [(0, 1), (1, 3), (0, 2)], [1.0, 0.5, 2.0]
        values = maxcut.cut_values(edges, weights, 4)
        for number, sides in enumerate(itertools.product((0, 1), repeat=4)):
            expected = sum(w for (a, b), w in zip(edges, weights, strict=True) if sides[a] != sides[b])
            assert values[number].item() == expected


class TestStates:
    def test_are_those_of_pennylane(self):
        import networkx
        import pennylane as qml

        edges = maxcut.random_regular(4, 3, generator())
        cost, mixer = qml.qaoa.maxcut(networkx.Graph(edges))
        cuts = maxcut.cut_values(edges, [1.0] * len(edges), 4)
        angles = torch.rand(2, 3, dtype=torch.float64, generator=generator(1))

        @qml.qnode(qml.device("default.qubit", wires=4))
        def circuit():
            for wire in range(4):
                qml.Hadamard(wires=wire)
            for gamma, beta in zip(*angles.tolist(), strict=True):
                qml.qaoa.cost_layer(-gamma, cost)  # theirs is minimised: −C but for a constant
                qml.qaoa.mixer_layer(beta, mixer)
            return qml.state()

        theirs, ours = torch.tensor(circuit()), maxcut.qaoa_states(cuts, *angles)
        phase = theirs[0] / ours[0]  # of the constant
        torch.testing.assert_close(ours * phase, theirs, rtol=0, atol=1e-12)

    def test_an_empty_layer_changes_nothing_and_its_slope_is_zero(self):
        cuts = maxcut.cut_values(maxcut.ring(5), [1.0] * 5, 5)
        start = torch.tensor([0.0, 0.0], dtype=torch.float64, requires_grad=True)
        maxcut.expected_cut(cuts, start[:1], start[1:]).backward()
        torch.testing.assert_close(start.grad, torch.zeros(2, dtype=torch.float64))
        direction = maxcut.escape(cuts, start)
        better = maxcut.expected_cut(cuts, 0.1 * direction[:1], 0.1 * direction[1:])
        assert better > maxcut.expected_cut(cuts, start[:1], start[1:]) + 0.01

    def test_a_batch_is_its_parts(self):
        cuts = torch.stack([maxcut.cut_values(maxcut.ring(4), w, 4) for w in ([1.0] * 4, [0.3, 1.0, 0.2, 0.9])])
        gammas, betas = torch.rand(2, 2, 3, dtype=torch.float64, generator=generator(2))
        together = maxcut.expected_cut(cuts, gammas, betas)
        apart = [maxcut.expected_cut(*one) for one in zip(cuts, gammas, betas, strict=True)]
        torch.testing.assert_close(together, torch.stack(apart), rtol=0, atol=1e-14)


def test_a_ring_reaches_what_is_known(run_cli):
    """(2p + 1) / (2p + 2) on a ring longer than 2p + 2 (Farhi et al. 2014, section IV)."""
    folder = run(run_cli, "method.graph=ring", "method.nodes=8", "method.graphs=1", "method.depth=2")
    result = folder.result()["summary"]
    assert result["ratio_p1"] == pytest.approx(3 / 4, abs=1e-5)
    assert result["ratio_p2"] == pytest.approx(5 / 6, abs=1e-4)


@pytest.mark.slow
def test_the_ratio_never_falls_and_every_graph_keeps_the_guarantee(run_cli):
    folder = run(run_cli, "method.nodes=8", "method.depth=3", "method.iterations=40")
    result = folder.result()["metrics"]["valid"]
    ratios = [folder.result()["summary"][f"ratio_p{depth}"] for depth in (1, 2, 3)]
    assert ratios == sorted(ratios)
    assert ratios[2] > ratios[0] + 0.05
    assert 0.6924 <= result["ratio_min"] <= result["ratio"] <= 1  # p = 1 on 3-regular graphs, same paper
    records = [record["ratio"] for record in folder.records() if record["split"] == "train"]
    assert records == sorted(records)
    assert (folder / "artifacts/ratio_by_depth.csv").exists()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("method.nodes=17",), "method.nodes=17: 2 to 16"),
        (("method.graph=erdos_renyi", "method.probability=5"), "method.probability: must be less than or equal to 1"),
        (("method.graph=ring", "method.nodes=2", "method.graphs=1"), "method.nodes=2: a ring needs 3"),
        (("method.graph=ring",), "method.graphs=5: all would be this one; use method.graphs=1 or method.weights"),
        (("method.nodes=5",), "method.degree: there is no graph of 5 nodes with 3 neighbours"),
        (("method.graph=listed", "method.edges=[[0,0]]"), "two different nodes of 0 to 9"),
        (("method.graph=listed",), "a graph has no edge"),
    ],
)
def test_mistakes_are_told(run_cli, words, reason):
    said = run_cli("run", "method=qaoa", *words, "progress=off")
    assert said.code == 2
    assert reason in said.err
