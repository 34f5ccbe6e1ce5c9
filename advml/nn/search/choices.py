"""The space that searchers see: P choices, of which each has its own number of alternatives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Choices:
    """Points are int64 [P] with 0 ≤ x_p < counts[p]. All functions take and give R points at once, [R, P]."""

    def __init__(self, counts: Sequence[int]) -> None:
        self.counts = tuple(counts)
        self.limits = torch.tensor(self.counts)
        # Every way to change exactly one choice: move j adds offset[j] to choice place[j], modulo its count.
        moves = [(place, offset) for place, count in enumerate(self.counts) for offset in range(1, count)]
        self.places = torch.tensor([place for place, _ in moves])
        self.offsets = torch.tensor([offset for _, offset in moves])

    @property
    def moves(self) -> int:
        """How many neighbours a point has: M = Σ (counts[p] − 1)."""
        return len(self.places)

    def draw(self, repeats: int, rng: torch.Generator) -> Tensor:
        """Uniform points [R, P]."""
        even = torch.rand((repeats, len(self.counts)), generator=rng, dtype=torch.float64)
        return (even * self.limits).long()

    def moved(self, points: Tensor, moves: Tensor) -> Tensor:
        """The neighbours of points [R, P] by the moves [R], each between 0 and M − 1."""
        rows, place = torch.arange(len(points)), self.places[moves]
        changed = points.clone()
        changed[rows, place] = (points[rows, place] + self.offsets[moves]) % self.limits[place]
        return changed

    def mutate(self, points: Tensor, rng: torch.Generator) -> Tensor:
        """Each point with one choice, drawn evenly, changed to another alternative, drawn evenly; where there is
        no other point, itself.
        """
        if not self.moves:
            return points.clone()
        rows = torch.arange(len(points))
        open_to_change = (self.limits > 1).nonzero().flatten()
        even = torch.rand((2, len(points)), generator=rng, dtype=torch.float64)
        place = open_to_change[(even[0] * len(open_to_change)).long()]
        offset = 1 + (even[1] * (self.limits[place] - 1)).long()
        changed = points.clone()
        changed[rows, place] = (points[rows, place] + offset) % self.limits[place]
        return changed

    def number(self, points: Tensor) -> Tensor:
        """A point [..., P] as one number, the first choice most significant: its place among all points."""
        found = torch.zeros(points.shape[:-1], dtype=torch.int64)
        for place, count in enumerate(self.counts):
            found = found * count + points[..., place]
        return found
