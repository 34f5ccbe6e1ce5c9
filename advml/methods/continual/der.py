"""Dark experience replay, DER and DER++ (Buzzega et al. 2020, "Dark experience for general continual learning")."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from advml.config import CountFloat, settings
from advml.contracts import At, Batch, Context, Step
from advml.methods.continual.rehearsal import RecallSettings, Rehearsal
from advml.nn.matching import output_distance


@settings
class Settings(RecallSettings):
    """How much the remembered outputs count, and the remembered targets."""

    alpha: CountFloat
    beta: CountFloat


class DarkExperienceReplay(Rehearsal):
    """Equation 6: L(θ) = CE(B_t) + α MSE(h(x'), z') + β CE(h(x''), y''), x' and x'' drawn independently; DER has β = 0.

    z' are the logits that the network gave for x' when it was stored, before the update of that moment. Compared are
    the outputs that were active then: of its task in the task scenario, of the classes seen up to then in the class
    scenario. The others had been taught nothing, and the paper's streams have no other heads.
    """

    settings = Settings

    def setup(self, context: Context) -> None:
        """Which outputs an example's stored logits speak about."""
        super().setup(context)
        self.active = torch.stack([self.stream.mask(number, number + 1) for number in range(len(self.stream))])

    def extras(self) -> Mapping[str, tuple[tuple[int, ...], torch.dtype]]:
        """The logits."""
        return {"logits": ((self.stream.spec.outputs,), self.context.dtype)}

    def step(self, at: At) -> Step:
        """A block of iterations on current examples, remembered logits and remembered targets."""
        alpha, beta = self.config.alpha, self.config.beta

        def loss(outputs: Tensor, batch: Batch) -> Tensor:
            self.beside = {"logits": outputs.detach()}
            value = self.loss(outputs, batch)
            if dark := self.drawn.get("logits"):
                active = self.active[dark.task.to(self.active.device, non_blocking=True)]
                value = value + alpha * output_distance(self.again(dark), dark.extras["logits"], active)
            if replayed := self.drawn.get("replay"):
                value = value + beta * self.loss(self.again(replayed), replayed.batch)
            return value

        names = [name for name, weight in (("logits", alpha), ("replay", beta)) if weight]
        return self.done(at, {"loss": self.rehearse(at, names, loss=loss)})
