"""Averaged gradient episodic memory (Chaudhry et al. 2019, "Efficient lifelong learning with A-GEM")."""

from __future__ import annotations

import torch
from torch import Tensor

from advml.contracts import At, Step
from advml.methods.continual.rehearsal import Rehearsal, RehearsalSettings
from advml.nn.projection import project_gradient


class AveragedGem(Rehearsal):
    """Equation 11: where the gradient g would raise the loss of remembered examples, the part that would is taken away.

    g̃ = g − (g·g_ref / g_ref·g_ref) g_ref if g·g_ref < 0, with g_ref the gradient of the mean loss of examples drawn
    from the whole memory of earlier tasks, anew at each update.
    """

    settings = RehearsalSettings

    def step(self, at: At) -> Step:
        """A block of iterations with projected gradients; `projected`: the share of updates that needed it."""
        parameters = [parameter for parameter in self.network.parameters() if parameter.requires_grad]
        against: list[Tensor] = []

        def transform() -> None:
            if not (drawn := self.drawn.get("reference")):
                return
            with self.context.autocast():
                value = self.loss(self.again(drawn), drawn.batch)
            moving = [parameter for parameter in parameters if parameter.grad is not None]
            reference = torch.autograd.grad(value, moving, materialize_grads=True)
            gradients = [parameter.grad for parameter in moving if parameter.grad is not None]
            projected, needed = project_gradient(gradients, reference)
            for parameter, gradient in zip(moving, projected, strict=True):
                parameter.grad = gradient
            against.append(needed)

        loss = self.rehearse(at, ["reference"] if at.phase else [], transform=transform)
        share = torch.stack(against).float().mean() if against else 0.0
        return self.done(at, {"loss": loss, "projected": share})
