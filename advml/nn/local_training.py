"""Training on each of many clients' own examples, from a common start: the inner loop of federated learning.

Clients lie side by side as copies of one network (advml/nn/replicas.py). They differ in how many examples they have, so
their batches are padded and the padding weighs nothing; a client that is done is left out of what follows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from advml.contracts import Batch, Network
from advml.nn.abilities import Unsuited, unmapped
from advml.nn.chain_sgd import ChainSgd
from advml.nn.example_losses import ExampleLosses
from advml.nn.optimisers import Optimiser, OptimiserSettings, make_optimiser
from advml.nn.replicas import ENGINES, Batched, Parameters, Replicas, Vmapped
from advml.nn.seeding import draw_from

LocalEngine = Literal["auto", "loop", "batched", "vmap"]
CPU_CACHE, GPU_MEMORY, MOST = 2**22, 2**30, 64  # bytes of copies side by side, and how many copies at most

Batches = Sequence[Tensor]
"""The indices of a client's examples, int64 [b] on the CPU, for each of its local steps."""


@dataclass(frozen=True)
class Pull:
    """What is added to each gradient of the loss: `strength` · w + `offset`; offset name → [R, *shape] or [1, *shape].

    FedProx's μ (w − w₀), SCAFFOLD's c − c_k, Ditto's λ (v − w).
    """

    strength: float = 0.0
    offset: Mapping[str, Tensor] | None = None

    def rows(self, active: int) -> Pull:
        """That of the first so many copies."""
        if self.offset is None:
            return self
        return Pull(self.strength, {name: value[:active] for name, value in self.offset.items()})

    def row(self, row: int) -> Pull:
        """That of one copy by itself, offset name → [*shape]."""
        if self.offset is None:
            return self
        return Pull(self.strength, {name: value[min(row, len(value) - 1)] for name, value in self.offset.items()})


# --- batches ------------------------------------------------------------------------------------------------------


def batch_sizes(examples: int, batch_size: int | None, alone: bool = True) -> list[int]:
    """The sizes of an epoch's batches: the last is what is left. Not `alone`: a single one joins the batch before."""
    if batch_size is None or batch_size >= examples:
        return [examples]
    whole, left = divmod(examples, batch_size)
    sizes = [batch_size] * whole + ([left] if left else [])
    return [*sizes[:-2], sizes[-2] + 1] if left == 1 and not alone else sizes


def local_batches(
    owned: Tensor, batch_size: int | None, steps: int, generator: torch.Generator, alone: bool = True
) -> list[Tensor]:
    """The first `steps` batches of endless epochs over the examples `owned`, each epoch in an order of its own.

    One batch of all is taken as it is: its order changes nothing.
    """
    sizes = batch_sizes(len(owned), batch_size, alone)
    batches: list[Tensor] = []
    while len(batches) < steps:
        order = owned if len(sizes) == 1 else owned[torch.randperm(len(owned), generator=generator)]
        batches += order.split(sizes)
    return batches[:steps]


def side_by_side(batches: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Batches of R clients as one: index [R, B], and what each example counts in its client's mean, [R, B] or None.

    Shorter batches are filled with their first example, which counts nothing there. None: all count alike.
    """
    sizes = [batch.numel() for batch in batches]  # `len` of a tensor is Python, and slower
    longest = max(sizes)
    if min(sizes) == longest:
        return torch.stack(list(batches)), None
    index = torch.stack([torch.cat([batch, batch[:1].expand(longest - len(batch))]) for batch in batches])
    weight = torch.zeros(len(batches), longest, dtype=torch.float64)
    for row, size in enumerate(sizes):
        weight[row, :size] = 1 / size
    return index, weight


# --- engines ------------------------------------------------------------------------------------------------------


def local_replicas(network: Network, engine: LocalEngine) -> Replicas:
    """Copies of `network` with its running averages. Raises Unsuited where the engine does not serve it."""
    if engine != "auto":
        return ENGINES[engine](network, remember=True)
    try:
        return Batched(network, remember=True)
    except Unsuited:
        on_cpu = next(network.parameters()).device.type == "cpu"
        return (Replicas if on_cpu or unmapped(network) is not None else Vmapped)(network, remember=True)


def copies_at_once(network: Network, replicas: Replicas) -> int:
    """How many copies lie side by side: on a CPU as many as stay in its cache. It follows from the network alone."""
    if replicas.at_once == 1:
        return 1
    first = next(network.parameters())
    size = sum(value.numel() * value.element_size() for value in network.parameters())
    fitting = max(1, (CPU_CACHE if first.device.type == "cpu" else GPU_MEMORY) // max(1, size))
    return min(fitting, MOST if replicas.at_once is None else replicas.at_once)


# --- the loop -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LocalTraining:
    """How copies are trained; `train` does it."""

    replicas: Replicas
    losses: ExampleLosses
    settings: OptimiserSettings

    def train(
        self,
        values: Parameters,
        trained: Sequence[str],
        batches: Sequence[Batches],
        fetch: Callable[[Tensor], Batch],
        lr: float,
        pull: Pull | None = None,
        noise: torch.Generator | None = None,
    ) -> Tensor:
        """Move `values` [R, *shape] in place, those in `trained` by gradients; the loss summed over examples, 0-d.

        Row r takes one step for each of its `batches`, whose examples `fetch` gets; rows with more steps come first.
        `noise` says what dropout draws: by itself it would depend on what the process did before.
        """
        if noise is not None:
            draw_from(noise)
        mover = self._mover(values, trained, lr, pull or Pull())
        taken: list[Tensor] = []
        counts: dict[tuple[int, ...], Tensor] = {}  # of examples, by themselves: mostly the same in all steps
        for step in range(len(batches[0])):
            at_hand = [rows[step] for rows in batches if len(rows) > step]
            mover.narrow(len(at_hand))
            index, weight = side_by_side(at_hand)
            batch = fetch(index)
            device, dtype = batch.target.device, next(iter(values.values())).dtype
            sizes = tuple(rows.numel() for rows in at_hand)
            if (counted := counts.get(sizes)) is None:
                counted = counts[sizes] = torch.tensor(sizes, dtype=dtype).to(device, non_blocking=True)
            found = mover.step(batch, None if weight is None else weight.to(device, dtype, non_blocking=True))
            taken.append((found * counted).sum())
        return torch.stack(taken).sum()

    @cached_property
    def _affine(self) -> frozenset[str]:
        return ChainSgd.serves(self.replicas) if isinstance(self.replicas, Batched) else frozenset()

    def _mover(self, values: Parameters, trained: Sequence[str], lr: float, pull: Pull) -> ChainSgd | _Differentiated:
        plain = self.settings.optimiser == "sgd" and not self.settings.momentum and self.settings.clip_norm is None
        if plain and isinstance(self.replicas, Batched) and self._affine == set(trained):
            decay = self.settings.weight_decay
            return ChainSgd(self.replicas, values, self.losses, lr, pull.strength + decay, pull.offset)
        return _Differentiated(self, values, trained, lr, pull)


class _Differentiated:
    """A step by differentiating the sum of all copies' losses, and any optimiser: serves all networks and engines."""

    def __init__(self, plan: LocalTraining, values: Parameters, trained: Sequence[str], lr: float, pull: Pull) -> None:
        self.plan, self.whole, self.lr, self.pull = plan, values, lr, pull
        self.parameters = {name: nn.Parameter(values[name]) for name in trained}
        self.optimiser: Optimiser = make_optimiser(self.parameters.values(), plan.settings)
        self.optimiser.lr = lr
        self.active = len(next(iter(values.values())))
        self.rows = {**values, **self.parameters}

    def narrow(self, active: int) -> None:
        """From now on only the first so many copies: all that belongs to them is seen through views."""
        if active == self.active:
            return
        self.active = active
        whole = {name: value[:active] for name, value in self.whole.items()}
        self.parameters = {name: nn.Parameter(whole[name]) for name in self.parameters}
        self.rows = {**whole, **self.parameters}
        self.optimiser.parameters = list(self.parameters.values())
        for name, tensors in self.optimiser.slots.items():
            self.optimiser.slots[name] = [None if tensor is None else tensor[:active] for tensor in tensors]
        self.pull = self.pull.rows(active)

    def step(self, batch: Batch, weight: Tensor | None) -> Tensor:
        """One update; the mean loss of each copy before it, [R]."""
        with torch.enable_grad():
            outputs = self.plan.replicas.outputs(self.rows, batch.inputs, dropout=True, weight=weight)
            each = self.plan.losses(outputs, batch.target)
            found = each.mean(1) if weight is None else (each * weight).sum(1)
            gradients = torch.autograd.grad(found.sum(), list(self.parameters.values()), allow_unused=True)
        moving = [
            pulled(gradient, parameter.detach(), self.pull, name)
            for (name, parameter), gradient in zip(self.parameters.items(), gradients, strict=True)
        ]
        if self.plan.settings.clip_norm is not None:
            clip_rows(moving, self.plan.settings.clip_norm)
        for parameter, gradient in zip(self.parameters.values(), moving, strict=True):
            parameter.grad = gradient
        self.optimiser.step()
        self.optimiser.zero_grad()
        return found.detach()


def pulled(gradient: Tensor | None, value: Tensor, pull: Pull, name: str) -> Tensor | None:
    """The gradient with the pull added."""
    if pull.strength:
        gradient = value * pull.strength if gradient is None else torch.add(gradient, value, alpha=pull.strength)
    if pull.offset is None:
        return gradient
    offset = pull.offset[name]
    return offset.expand_as(value).clone() if gradient is None else gradient + offset


def clip_rows(gradients: Sequence[Tensor | None], most: float) -> None:
    """Scale each copy's gradients down to the 2-norm `most` over all of them together, in place; [R, *shape] each."""
    present = [gradient for gradient in gradients if gradient is not None]
    norms = torch.stack([gradient.flatten(1).square().sum(1) for gradient in present]).sum(0).sqrt()
    factor = (most / (norms + 1e-6)).clamp(max=1.0)
    for gradient in present:
        gradient.mul_(factor.view(-1, *[1] * (gradient.dim() - 1)))
