"""Dark experience replay, DER and DER++ (Buzzega et al. 2020, "Dark experience for general continual learning")."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from advml.config import CountFloat, settings
from advml.contracts import At, Batch, Step
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
    all outputs that compete for x' now; in the class scenario that takes in classes which came later. The network had
    said little about those when x' was stored, and holding it to that keeps it from taking x' for one of them.
    """

    settings = Settings

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
                active = dark.batch.mask
                assert active is not None
                value = value + alpha * output_distance(self.again(dark), dark.extras["logits"], active)
            if replayed := self.drawn.get("replay"):
                value = value + beta * self.loss(self.again(replayed), replayed.batch)
            return value

        names = [name for name, weight in (("logits", alpha), ("replay", beta)) if weight]
        return self.done(at, {"loss": self.rehearse(at, names, loss=loss)})
