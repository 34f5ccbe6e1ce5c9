"""The generators that torch draws from where it is given none: for new layers, dropout, shots."""

from __future__ import annotations

import torch


def seed_torch(seed: int) -> None:
    """Seed those of the CPU and of CUDA, where there is one, like `torch.manual_seed`.

    That one writes down with the whole stack of calls what to do for devices there are not: 0.2 ms and more, each time.
    """
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(seed)


def draw_from(rng: torch.Generator) -> None:
    """What layers, dropout and shots draw from now on follows from the seed of `rng`, not from earlier draws."""
    seed_torch(rng.initial_seed())
