"""Synaptic intelligence (Zenke et al. 2017, "Continual learning through synaptic intelligence")."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from torch import Tensor

from advml.config import CountFloat, PositiveFloat, settings
from advml.contracts import At, Context, Step
from advml.methods.continual.anchored import Anchored
from advml.methods.continual.common import ContinualSettings
from advml.nn.path_integral import PathIntegral, at_least_zero


@settings
class Settings(ContinualSettings):
    """How strongly, and how importance is measured."""

    strength: CountFloat
    xi: PositiveFloat
    gradient: Literal["task", "total"]
    clamp: bool


class SynapticIntelligence(Anchored):
    """Equation 4: L(θ) = L_task(θ) + c Σ_k Ω_k (θ_k − θ*_k)², without a ½; θ* as the last task left them.

    Equation 5: Ω_k = Σ_t ω_k / (Δ_k² + ξ), gathered while training; no pass over the examples is needed. c is
    `strength`. ω sums the task loss's gradient times what each update did; `gradient: total` takes the gradient of the
    loss with the penalty instead, as van de Ven's code does.
    """

    settings = Settings

    def setup(self, context: Context) -> None:
        """Nothing is important yet."""
        super().setup(context)
        self.path = PathIntegral(self.network)

    def step(self, at: At) -> Step:
        """A block of iterations with the penalty's gradient added and ω gathered; after a task's last, Ω."""
        strength = 2 * self.config.strength  # the anchor's penalty has a ½

        def transform() -> None:
            if self.config.gradient == "task":
                self.path.before()
            self.anchor.add_gradient(strength)
            if self.config.gradient == "total":
                self.path.before()

        # `after` does not see inactive outputs' rows put back, and need not: their gradient is 0, so g Δθ is 0.
        loss = self.train_block(at, transform=transform, after=self.path.after)
        metrics = {"loss": loss, "penalty": self.anchor.value(strength)}
        if at.last and at.phase + 1 < len(self.stream):  # nothing comes after the last task
            start = self.anchor.centre  # where this task began: the end of the one before it
            importance = self.path.finish(start, self.config.xi)
            if self.config.clamp:
                earlier = self.anchor.importance
                importance = {name: at_least_zero(new, earlier[name]) for name, new in importance.items()}
            self.anchor.consolidate(importance, online=True)
        return self.done(at, metrics)

    def memory(self) -> tuple[Iterable[Tensor], int]:
        """The anchor and ω: of the same size for any number of tasks."""
        return [*self.anchor.tensors(), *self.path.omega.values()], 0

    def state_dict(self) -> dict[str, Any]:
        """Adds ω."""
        return {**super().state_dict(), "omega": dict(self.path.omega)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore all of it."""
        super().load_state_dict(state)
        self.path.load(state["omega"])
