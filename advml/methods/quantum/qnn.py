"""Supervised learning with a quantum model: the one training loop of all networks, with circuits counted."""

from __future__ import annotations

from advml.contracts import At, Step
from advml.methods.supervised import Supervised


class Qnn(Supervised):
    """Minimise the mean loss over the training examples; a step is an epoch.

    `circuits` counts one for each example of an update, as a simulator runs them. Differentiated by parameter shift,
    an example costs two more for each angle.
    """

    def step(self, at: At) -> Step:
        """An epoch."""
        self.context.count(circuits=len(self.data.train))
        return super().step(at)
