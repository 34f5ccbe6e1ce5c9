"""Who of a cohort works how much: some drop out, some are slow and do part of their work (Li et al. 2020)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Interval

from advml.config import settings

Share = Annotated[float, Interval(ge=0, le=1)]


@settings
class StragglerSettings:
    """The keys of the block `stragglers` in configs/method/_base/federated.yaml."""

    fraction: Share
    keep: bool


def stragglers(cohort: int, fraction: float, generator: torch.Generator) -> list[int]:
    """Which positions of a cohort are slow: round(fraction · m) of them, uniformly, ascending."""
    return sorted(torch.randperm(cohort, generator=generator)[: round(fraction * cohort)].tolist())


def slow_by_themselves(cohort: int, fraction: float, generator: torch.Generator) -> list[int]:
    """Which positions are slow, each by itself with probability `fraction`: ascending.

    Where it is private who is there: of a fixed share of the cohort one client more would make another one slow.
    """
    return [position for position, slow in enumerate(drops(cohort, fraction, generator)) if slow]


def partial_epochs(epochs: int, generator: torch.Generator) -> float:
    """How far a slow client comes: a whole number of epochs, uniformly from 1 to E − 1; of a single epoch a share.

    Li et al. draw from 1 to E, so that some of their slow clients are not slow, and with E = 1 none.
    """
    if epochs > 1:
        return float(torch.randint(1, epochs, (), generator=generator))
    return epochs * (1 - float(torch.rand((), generator=generator, dtype=torch.float64)))


def drops(cohort: int, rate: float, generator: torch.Generator) -> list[bool]:
    """Does a client drop out? Each by itself with probability `rate`."""
    return (torch.rand(cohort, generator=generator, dtype=torch.float64) < rate).tolist()


def planned_work(
    cohort: Sequence[int],
    epochs: int,
    *,
    config: StragglerSettings,
    dropout: float,
    generators: Sequence[torch.Generator],
    independent: bool = False,
) -> list[float]:
    """Epochs that each client of a cohort trains, perhaps a fraction; 0 = nothing of it arrives.

    `generators`: for who is slow, for how far each comes, for who drops out. `config.keep`: what slow clients did in
    time is used (FedProx); otherwise they count as dropped out (FedAvg). `independent`: what one client does says
    nothing of another, so that being there changes one client's work only.
    """
    slow, far, out = generators
    work = [float(epochs)] * len(cohort)
    drawn = slow_by_themselves if independent else stragglers
    for position in drawn(len(cohort), config.fraction, slow):
        done = partial_epochs(epochs, far)
        work[position] = done if config.keep else 0.0
    return [0.0 if dropped else done for dropped, done in zip(drops(len(cohort), dropout, out), work, strict=True)]
