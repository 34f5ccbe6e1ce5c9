"""MaxCut: graphs, cuts by exhaustive search, and the states of QAOA, of many graphs at a time.

A graph is a list of edges (i, j); a cut is a whole number whose bits, qubit 0 the most significant, are the sides.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Edges = Sequence[tuple[int, int]]

TRIES = 10_000  # of the pairing model, until a graph has neither loops nor double edges


def ring(nodes: int) -> list[tuple[int, int]]:
    """0–1–2–…–0."""
    return [(node, node + 1) for node in range(nodes - 1)] + [(0, nodes - 1)]


def random_regular(nodes: int, degree: int, generator: torch.Generator) -> list[tuple[int, int]]:
    """A graph in which each node has `degree` neighbours, uniformly drawn: pairings with rejection (Bollobás 1980).

    Raises ValueError where there is none, or where none is found.
    """
    if nodes * degree % 2 or degree >= nodes:
        raise ValueError(f"there is no graph of {nodes} nodes with {degree} neighbours each")
    ends = torch.arange(nodes).repeat_interleave(degree)
    for _ in range(TRIES):
        pairs = ends[torch.randperm(len(ends), generator=generator)].view(-1, 2).sort(1).values
        edges = {(int(a), int(b)) for a, b in pairs}
        if len(edges) == len(pairs) and all(a != b for a, b in edges):
            return sorted(edges)
    raise ValueError(f"found no graph of {nodes} nodes with {degree} neighbours each; use fewer neighbours")


def erdos_renyi(nodes: int, probability: float, generator: torch.Generator) -> list[tuple[int, int]]:
    """Each pair of nodes is an edge with this probability, independently."""
    pairs = torch.combinations(torch.arange(nodes))
    drawn = torch.rand(len(pairs), generator=generator) < probability
    return [(int(a), int(b)) for a, b in pairs[drawn]]


def cut_values(edges: Edges, weights: Sequence[float], nodes: int) -> Tensor:
    """The weight of the edges between the two sides, of all 2^nodes cuts: float64 [2^nodes]."""
    cuts = torch.arange(2**nodes)
    total = torch.zeros(2**nodes, dtype=torch.float64)
    for (first, second), weight in zip(edges, weights, strict=True):
        sides = [(cuts >> (nodes - 1 - node)) & 1 for node in (first, second)]
        total += weight * (sides[0] ^ sides[1])
    return total


def qaoa_states(cuts: Tensor, gammas: Tensor, betas: Tensor) -> Tensor:
    """∏_l e^{−iβ_l ΣX} e^{−iγ_l C} |+…+⟩ (Farhi et al. 2014, eq. 6): cuts [..., 2^n], angles [..., p] → [..., 2^n].

    e^{−iγC} is a phase for each cut; e^{−iβX} on a qubit mixes an amplitude with the one across that bit.
    """
    size = cuts.shape[-1]
    nodes = size.bit_length() - 1
    state = torch.full_like(cuts, size**-0.5, dtype=torch.promote_types(cuts.dtype, torch.complex64))
    for layer in range(gammas.shape[-1]):
        state = state * torch.exp(-1j * gammas[..., layer, None] * cuts)
        cos, sin = betas[..., layer, None].cos(), betas[..., layer, None].sin()
        for node in range(nodes):
            across = state.unflatten(-1, (2**node, 2, -1)).flip(-2).flatten(-3)
            state = cos * state - 1j * sin * across
    return state


def expected_cut(cuts: Tensor, gammas: Tensor, betas: Tensor) -> Tensor:
    """⟨C⟩ of QAOA's state, [...]: the mean cut of what a measurement would give."""
    return (qaoa_states(cuts, gammas, betas).abs().square() * cuts).sum(-1)


def escape(cuts: Tensor, angles: Tensor) -> Tensor:
    """The direction in which ⟨C⟩ curves upwards most, a unit vector [2p]: where the slope is zero, the way out.

    An optimum of p layers with an empty layer appended is a stationary point of p + 1 (Sack et al. 2023, "Recursive
    greedy initialization …"): gradients there say nothing, the Hessian's leading eigenvector does. `angles` [2p] are
    γ, then β; `cuts` [2^n]. Its sign makes the last β grow.
    """
    half = angles.shape[-1] // 2

    def value(at: Tensor) -> Tensor:
        return expected_cut(cuts, at[:half], at[half:])

    hessian: Tensor = torch.autograd.functional.hessian(value, angles.detach())
    vector: Tensor = torch.linalg.eigh(hessian).eigenvectors[:, -1]
    return vector if vector[-1] >= 0 else -vector
