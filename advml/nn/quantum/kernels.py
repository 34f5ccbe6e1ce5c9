"""Kernels between quantum states, and how well a kernel fits labels."""

from __future__ import annotations

import torch
from torch import Tensor


def fidelity(first: Tensor, second: Tensor) -> Tensor:
    """|⟨φ(x)|φ(y)⟩|² of all pairs (Havlíček et al. 2019): states [A, D] and [B, D], real or complex → [A, B]."""
    overlaps = first.conj() @ second.T
    return overlaps.real.square() + overlaps.imag.square() if overlaps.is_complex() else overlaps.square()


def gaussian(first: Tensor, second: Tensor, gamma: float) -> Tensor:
    """exp(−γ ‖x − y‖²) of all pairs of rows [A, F] and [B, F] → [A, B]."""
    squares = first.square().sum(1).unsqueeze(1) + second.square().sum(1) - 2 * first @ second.T
    return torch.exp(-gamma * squares.clamp_min(0))


def projected(first: Tensor, second: Tensor, gamma: float) -> Tensor:
    """exp(−γ Σ_k ‖ρ_k(x) − ρ_k(y)‖²_F) over single qubits k (Huang et al. 2021, eq. 9) → [A, B].

    Rows are the expectation values of X, Y and Z of each qubit, [A, 3n]: ρ = (1 + ⟨X⟩X + ⟨Y⟩Y + ⟨Z⟩Z)/2, so that
    ‖ρ − ρ'‖²_F is half the squared distance of these rows.
    """
    return gaussian(first, second, gamma / 2)


def alignment(kernel: Tensor, target: Tensor) -> Tensor:
    """⟨K_c, T_c⟩ / (‖K_c‖ ‖T_c‖), 0-d (Cortes et al. 2012, def. 4): how alike a kernel [N, N] and the labels [N] are.

    T_ij = 1 within a class and 0 between; c: centred, each row's and column's mean taken away.
    """
    ideal = (target.unsqueeze(1) == target).to(kernel.dtype)
    ours, theirs = _centred(kernel), _centred(ideal)
    found: Tensor = (ours * theirs).sum() / (ours.norm() * theirs.norm())
    return found


def _centred(matrix: Tensor) -> Tensor:
    return matrix - matrix.mean(0) - matrix.mean(1, keepdim=True) + matrix.mean()
