"""Bayesian optimisation by Optuna's tree-structured Parzen estimator (Bergstra et al. 2011), as a searcher."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from advml.errors import AdvmlError
from advml.nn.search.choices import Choices


class ParzenEstimator:
    """Each of R searches is a study of its own; its first `start` points are random.

    Optuna's sampler is seeded anew for every question, so that a resumed search asks what it would have asked.
    """

    def __init__(self, choices: Choices, repeats: int, start: int = 10) -> None:
        try:
            import optuna
        except ImportError:
            raise AdvmlError("Bayesian optimisation needs Optuna: pip install 'advml[search]'") from None
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.optuna, self.choices, self.start = optuna, choices, start
        self.kinds: dict[str, Any] = {
            f"{place:03}": optuna.distributions.CategoricalDistribution(list(range(count)))
            for place, count in enumerate(choices.counts)
        }
        self.points = torch.zeros((repeats, 0, len(choices.counts)), dtype=torch.int64)
        self.scores = torch.zeros((repeats, 0), dtype=torch.float64)
        self.studies = [optuna.create_study(direction="maximize") for _ in range(repeats)]
        self.asked: list[Any] = []

    def ask(self, rng: torch.Generator) -> Tensor:
        """The point of each search with the largest expected improvement among those drawn by the sampler."""
        seeds = torch.randint(2**31, (len(self.studies),), generator=rng).tolist()
        self.asked = []
        for study, seed in zip(self.studies, seeds, strict=True):
            study.sampler = self.optuna.samplers.TPESampler(seed=seed, n_startup_trials=self.start)
            self.asked.append(study.ask(self.kinds))
        return torch.tensor([[trial.params[name] for name in self.kinds] for trial in self.asked])

    def tell(self, points: Tensor, scores: Tensor) -> None:
        """One trial more for each study."""
        self.points = torch.cat([self.points, points.unsqueeze(1)], 1)
        self.scores = torch.cat([self.scores, scores.to(self.scores).unsqueeze(1)], 1)
        for study, trial, score in zip(self.studies, self.asked, scores.tolist(), strict=True):
            study.tell(trial, score)

    def state_dict(self) -> dict[str, Any]:
        """All points and scores."""
        return {"points": self.points, "scores": self.scores}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Studies with these trials."""
        self.points, self.scores = state["points"].clone(), state["scores"].clone()
        self.studies = [self.optuna.create_study(direction="maximize") for _ in self.studies]
        for study, rows, values in zip(self.studies, self.points.tolist(), self.scores.tolist(), strict=True):
            for row, value in zip(rows, values, strict=True):
                params = dict(zip(self.kinds, row, strict=True))
                study.add_trial(self.optuna.trial.create_trial(params=params, distributions=self.kinds, value=value))
