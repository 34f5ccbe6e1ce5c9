"""Matching networks (Vinyals et al. 2016, "Matching networks for one shot learning")."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from advml.config import PositiveFloat, PositiveInt, settings
from advml.contracts import Context
from advml.methods.meta.common import MetaSettings
from advml.methods.meta.metric import MetricLearner, features_of
from advml.nn.optimisers import make_optimiser
from advml.nn.support_attention import FullContext, attended_classes, make_full_context


@settings
class Settings(MetaSettings):
    """How sharp attention is, and whether examples are embedded in view of the support set."""

    scale: PositiveFloat
    full_context: bool
    reads: PositiveInt


class MatchingNetworks(MetricLearner):
    """Equation 1: P(y | x, S) = Σ_i a(x, x_i) 1[y_i = y], attention by the cosine of embeddings over the support set.

    The network learns f' = g'. With `full_context` two LSTMs make f(x, S) and g(x_i, S) of them (appendix A); the
    network that a run leaves to others is f' alone.
    """

    settings = Settings
    full_context: FullContext | None = None

    def setup(self, context: Context) -> None:
        """The LSTMs are as wide as the network's features."""
        super().setup(context)
        if self.config.full_context:
            width = features_of(self.network, self.view.fixed("valid", 0, 1), False).shape[2]
            made = make_full_context(width, self.config.reads, context.rng("full context"))
            self.full_context = made.to(context.device, context.dtype)
            self.optimiser = make_optimiser(self.learned(), self.config)

    def learned(self) -> list[nn.Parameter]:
        """Features, and the LSTMs."""
        return super().learned() + ([] if self.full_context is None else list(self.full_context.parameters()))

    def outputs(self, query: Tensor, support: Tensor, labels: Tensor, ways: int) -> Tensor:
        """log P(y | x, S)."""
        if self.full_context is not None:
            support = self.full_context.support(support)
            query = self.full_context.query(query, support)
        return attended_classes(query, support, labels, ways, self.config.scale)

    def state_dict(self) -> dict[str, Any]:
        """Adds the LSTMs."""
        state = super().state_dict()
        return state if self.full_context is None else {**state, "full_context": self.full_context.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore all of it."""
        super().load_state_dict(state)
        if self.full_context is not None:
            self.full_context.load_state_dict(state["full_context"])
