"""PackNet (Mallya and Lazebnik 2018, "PackNet: adding multiple tasks to a single network by iterative pruning")."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from advml.config import Fraction, settings
from advml.contracts import At, Context, Network, Step
from advml.errors import ConfigError
from advml.methods.continual.common import Continual, ContinualSettings
from advml.models.packed import FREE, PackedNetwork
from advml.nn.pruning import magnitude_mask


@settings
class Settings(ContinualSettings):
    """How much of a task's weights is given up again, and how long the others are trained after that."""

    prune_fraction: Fraction
    retrain: Fraction


class PackNet(Continual):
    """Each task trains the weights that are still free, prunes most of them, and keeps the others for ever.

    Task k computes with the weights of tasks 1 to k, so nothing that later tasks do can change its outputs. Biases,
    norms and their running averages are learned in task 1 and frozen; each task has its own rows of the head, which
    are not pruned. Every task is pruned, the last like the others.
    """

    settings = Settings
    needs = replace(Continual.needs, scenarios=("task",))  # it must be told which task an example is of

    def setup(self, context: Context) -> None:
        """All weights are task 1's, until it gives some up."""
        super().setup(context)
        places = [task.outputs.nonzero().flatten().tolist() for task in self.stream]
        self.packed = PackedNetwork(self.network, places)
        self._enough_for_all()

    def _enough_for_all(self) -> None:
        """How many weights a task gives up is known before it is trained: refuse now what would fail then."""
        free = [weight.numel() for weight in self.packed.weights().values()]
        for task in self.stream.tasks[1:]:
            free = [math.floor(self.config.prune_fraction * count) for count in free]
            if not any(free):
                raise ConfigError(
                    f"method.prune_fraction={self.config.prune_fraction}: no weight is free any more for {task.name} "
                    f"of {len(self.stream)}; prune more, or use a larger network or fewer tasks (view.tasks)"
                )

    def step(self, at: At) -> Step:
        """A block of iterations: training up to where the task is pruned, retraining from there."""
        if at.index == 0:
            owner = self.packed.get_buffer("owner")
            owner.masked_fill_(owner == FREE, at.phase)  # they start at zero, as they were left
        total = self.iterations(self.stream[at.phase])
        trained = max(1, total - round(self.config.retrain * total))
        done = at.index * self.config.block
        held, common = self._held(at.phase), self._common(at.phase)

        def transform() -> None:
            for weight, mine, _ in held:
                if weight.grad is not None:
                    weight.grad.mul_(mine)
            for parameter in common:
                parameter.grad = None  # the optimiser lets it be

        @torch.no_grad()
        def after() -> None:
            nonlocal done, held
            for weight, mine, values in held:  # momentum and weight decay move what has no gradient, too
                torch.where(mine, weight, values, out=weight)
            done += 1
            if done == trained:
                self._prune(at.phase)
                held = self._held(at.phase)

        norms = [module for module in self.network.modules() if isinstance(module, _BatchNorm)]
        loss = self.train_block(at, transform=transform, after=after, still=norms if at.phase else ())
        free: dict[str, Tensor] = {"free": (self.packed.get_buffer("owner") == FREE).sum()} if at.last else {}
        return self.done(at, {"loss": loss, **free})

    def _held(self, number: int) -> list[tuple[nn.Parameter, Tensor, Tensor]]:
        """(weight, which of its entries task `number` may move, all of its values as they are now), for each."""
        weights, owners = self.packed.weights(), self.packed.owners()
        return [(weight, owners[name] == number, weight.detach().clone()) for name, weight in weights.items()]

    def _common(self, number: int) -> list[nn.Parameter]:
        """What no task after the first may move: all but the weights that belong to tasks and the rows of the head."""
        outputs = self.stream.spec.outputs
        rows = {parameter for parameter in self.network.head.parameters() if parameter.shape[:1] == (outputs,)}
        own = {*self.packed.weights().values(), *rows}
        return [parameter for parameter in self.network.parameters() if parameter not in own] if number else []

    @torch.no_grad()
    def _prune(self, number: int) -> None:
        """Task `number` gives up the smallest of its weights in each layer: they become free, and zero."""
        owners = self.packed.owners()
        for name, weight in self.packed.weights().items():
            mine = owners[name] == number
            given_up = mine & ~magnitude_mask(weight, mine, self.config.prune_fraction)
            owners[name].masked_fill_(given_up, FREE)
            weight.masked_fill_(given_up, 0)

    def network_for(self, number: int) -> Network:
        """The network through the weights of tasks up to this one."""
        return self.packed.of(number)

    def memory(self) -> tuple[Iterable[Tensor], int]:
        """Whose each weight is."""
        return [self.packed.get_buffer("owner")], 0

    def state_dict(self) -> dict[str, Any]:
        """Adds whose each weight is."""
        return {**super().state_dict(), "owner": self.packed.get_buffer("owner")}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore all of it."""
        super().load_state_dict(state)
        self.packed.get_buffer("owner").copy_(state["owner"])

    def result(self) -> Network:
        """The network with all its tasks."""
        return self.packed
