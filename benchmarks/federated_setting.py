"""The setting of benchmarks/federated.py: clients with random images, our method on them, a plain client's training.

A module of its own because Flower's worker processes import it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from advml.compose import compose
from advml.config import bind
from advml.contracts import Classes, Network, Spec, Split
from advml.data.clients import Clients, Shares
from advml.methods.federated.fedavg import FedAvg
from advml.models.build import build
from advml.nn.local_training import local_batches
from advml.runner.randomness import KeyedRng
from advml.runner.world import Alone

SPEC = Spec({"image": (1, 28, 28)}, Classes(10))
LR, BATCH = 0.1, 10
RNG = KeyedRng(0)


@lru_cache(maxsize=2)
def bound(model: str) -> Any:
    """The shipped method at the setting's sizes, and a network of McMahan et al. 2017: mlp_2nn or cnn."""
    words = ["method=fedavg", f"model={model}", "method.fraction=1.0", f"method.lr={LR}", f"method.batch_size={BATCH}"]
    tree = compose(words)[0]
    return bind(tree)


@lru_cache(maxsize=4)
def clients(count: int, examples: int, dtype: torch.dtype) -> Clients:
    """`count` clients of so many examples each; they share a pool of 60,000 images where there are more of them."""
    total = count * examples
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(min(total, 60_000), 1, 28, 28, generator=generator).to(dtype)
    target = torch.randint(10, (len(image),), generator=generator)
    split = Split({"image": image}, target)
    owned = tuple((torch.arange(examples) + number * examples) % len(image) for number in range(count))
    none = split.take(torch.empty(0, dtype=torch.int64))
    nobodys = tuple(torch.empty(0, dtype=torch.int64) for _ in range(count))
    shares = {"train": Shares(split, split, owned)} | {name: Shares(none, none, nobodys) for name in ("valid", "test")}
    return Clients(shares, SPEC, {})  # type: ignore[arg-type]


def network(dtype: torch.dtype, model: str = "mlp_2nn") -> Network:
    """Where all ways start."""
    chosen = bound(model).model
    return build(chosen.name, chosen.settings, SPEC, seed=0).to(dtype)


def ours(view: Clients, dtype: torch.dtype, model: str = "mlp_2nn", **changes: Any) -> FedAvg:
    """The method as it is shipped, outside a run."""
    method, config = FedAvg(), replace(bound(model).method.settings, **changes)
    context: Any = SimpleNamespace(
        settings=config, data=view, build=lambda: network(dtype, model), rng=RNG, count=lambda **work: None,
        device=torch.device("cpu"), dtype=dtype, world=Alone(),
    )  # fmt: skip
    method.setup(context)
    return method


class Examples(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """One client's, as a DataLoader wants them."""

    def __init__(self, split: Split) -> None:
        self.images, self.target = split.inputs["image"], split.target

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.target[index]


def order(view: Clients, round: int, client: int) -> Sequence[Sequence[int]]:
    """The batches of a client in a round, as our method draws them: indices into all examples."""
    steps = -(-len(view.owned[client]) // BATCH)
    batches = local_batches(view.owned[client], BATCH, steps, RNG("order", round, client))
    return [batch.tolist() for batch in batches]


def trained(start: Network, view: Clients, round: int, client: int) -> Network:
    """One client's round as tutorials write it: a deep copy, a DataLoader and an optimiser of torch."""
    model = copy.deepcopy(start).train()
    loader = torch.utils.data.DataLoader(Examples(view.train), batch_sampler=order(view, round, client))
    optimiser = torch.optim.SGD(model.parameters(), lr=LR)
    for image, target in loader:
        optimiser.zero_grad()
        F.cross_entropy(model({"image": image}), target).backward()
        optimiser.step()
    return model


def naive_round(model: Network, view: Clients, round: int) -> None:
    """All clients one after another, then the mean of their networks, weighted by their examples, in `model`."""
    total = int(view.sizes.sum())
    mean = {name: torch.zeros_like(value) for name, value in model.state_dict().items()}
    for client in range(len(view)):
        local = trained(model, view, round, client).state_dict()
        for name, value in local.items():
            mean[name] += value * (int(view.sizes[client]) / total)
    model.load_state_dict(mean)


def tight_round(model: Network, view: Clients, round: int) -> None:
    """The same without DataLoader and optimiser: indexing and updates in place."""
    total = int(view.sizes.sum())
    begin = {name: value.clone() for name, value in model.state_dict().items()}
    mean = {name: torch.zeros_like(value) for name, value in begin.items()}
    parameters = dict(model.named_parameters())
    for client in range(len(view)):
        model.load_state_dict(begin)
        for batch in order(view, round, client):
            inputs, target, _ = view.train.batch(torch.tensor(batch))
            loss = F.cross_entropy(model(inputs), target)
            gradients = torch.autograd.grad(loss, list(parameters.values()))
            with torch.no_grad():
                for parameter, gradient in zip(parameters.values(), gradients, strict=True):
                    parameter.sub_(gradient, alpha=LR)
        for name, value in parameters.items():
            mean[name] += value.detach() * (int(view.sizes[client]) / total)
    model.load_state_dict(mean)


def worst_difference(found: Mapping[str, Tensor], reference: Mapping[str, Tensor]) -> float:
    """The largest difference of any number."""
    return max(float((found[name] - value).abs().max()) for name, value in reference.items())
