"""How good the global network is, and how good each client's own model is on its own held-out examples."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from advml.artifacts import Artifact, Curve
from advml.contracts import Metrics, Network, SplitName
from advml.data.clients import Clients
from advml.nn.evaluation import measure, predict
from advml.nn.local_training import side_by_side
from advml.nn.replicas import Parameters, Replicas

AT_ONCE = 2**14  # examples of all clients of a chunk together
BINS = 20  # of the histogram of the clients' accuracies


class Measured(Protocol):
    """What of a federated method is needed here."""

    network: Network
    view: Clients
    replicas: Replicas
    at_once: int

    def personal(self, clients: list[int]) -> Parameters | None:
        """The values with which these clients work; None = with the global network."""
        ...


def of_network(network: Network, view: Clients, split: SplitName) -> Metrics:
    """The usual metrics of a network on the whole split."""
    return measure(network, {"train": view.train, "valid": view.valid, "test": view.test}[split])


def measured(method: Measured, split: SplitName) -> Metrics:
    """`accuracy` … of the global network on the whole split; over the clients, by their own examples of the split,
    `client_accuracy` (mean), `client_accuracy_weighted`, `client_accuracy_p10`, `client_accuracy_p90`; the same as
    `personal_accuracy` … where clients have models of their own. `mse` instead, for real targets.
    """
    found = dict(of_network(method.network, method.view, split))
    if not found:
        return {}
    name = "accuracy" if "accuracy" in found else "mse"
    found |= over_clients(global_scores(method, split), method.view.shares[split].owned, f"client_{name}")
    personal = personal_scores(method, split)
    if personal is not None:
        found |= over_clients(personal, method.view.shares[split].owned, f"personal_{name}")
    return found


def scores_of(outputs: Tensor, target: Tensor) -> Tensor:
    """Of each example whether it is right, or its squared error: float64 [N] of outputs [N, C]."""
    if target.is_floating_point():
        return (outputs.reshape(target.shape) - target).double().square().flatten(1).mean(1)
    return (outputs.argmax(1) == target).double()


def global_scores(method: Measured, split: SplitName) -> Tensor:
    """`scores_of` the global network, each example as its owner sees it: one pass for all clients."""
    seen = method.view.seen(split)
    return scores_of(predict(method.network, seen), seen.target)


@torch.no_grad()
def personal_scores(method: Measured, split: SplitName) -> Tensor | None:
    """`scores_of` each example's owner's model; None where clients have none of their own."""
    shares = method.view.shares[split]
    clients = [client for client, index in enumerate(shares.owned) if len(index)]
    if not clients or method.personal(clients[:1]) is None:
        return None
    found = torch.zeros(len(shares.seen), dtype=torch.float64, device=shares.seen.device)
    clients.sort(key=lambda client: (-len(shares.owned[client]), client))
    for at in range(0, len(clients), method.at_once):
        chunk = clients[at : at + method.at_once]
        values = method.personal(chunk)
        assert values is not None
        parts = [shares.owned[client].split(max(1, AT_ONCE // len(chunk))) for client in chunk]
        for number in range(len(parts[0])):
            rows = [part[number] for part in parts if len(part) > number]
            index, _ = side_by_side(rows)
            inputs, target, _ = shares.seen.batch(index.flatten().to(found.device))
            given = {name: value.unflatten(0, index.shape) for name, value in inputs.items()}
            few = {name: value[: len(rows)] for name, value in values.items()}
            outputs = method.replicas.outputs(few, given, dropout=False).flatten(0, 1)
            found[index.flatten().to(found.device)] = scores_of(outputs, target)
    return found


def means(scores: Tensor, owned: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
    """(the mean score of each client that has examples [K'], how many it has [K'])."""
    sizes = torch.tensor([len(index) for index in owned])
    held = torch.cat(list(owned)).to(scores.device)
    owner = torch.arange(len(owned)).repeat_interleave(sizes).to(scores.device)
    sums = torch.zeros(len(owned), dtype=scores.dtype, device=scores.device)
    sums.index_put_((owner,), scores[held], accumulate=True)
    present = (sizes > 0).nonzero().flatten().to(scores.device)
    counts = sizes.to(scores.device, scores.dtype)[present]
    return sums[present] / counts, counts


def over_clients(scores: Tensor, owned: tuple[Tensor, ...], name: str) -> dict[str, Tensor]:
    """Mean, mean weighted by examples, and the 10th and 90th percentile over the clients; empty if none has any."""
    each, counts = means(scores, owned)
    if not len(each):
        return {}
    low, high = each.quantile(torch.tensor([0.1, 0.9], dtype=each.dtype, device=each.device))
    weighted = (each * counts).sum() / counts.sum()
    return {name: each.mean(), f"{name}_weighted": weighted, f"{name}_p10": low, f"{name}_p90": high}


def spread(method: Measured) -> dict[str, Artifact]:
    """`client_accuracy`: how many clients have which accuracy on their own test examples, in 20 bins."""
    if method.view.test.target.is_floating_point() or not len(method.view.test):
        return {}
    owned = method.view.shares["test"].owned
    rows = {"global model": global_scores(method, "test")}
    personal = personal_scores(method, "test")
    if personal is not None:
        rows["own model"] = personal
    lines = {}
    for name, scores in rows.items():
        each, _ = means(scores, owned)
        if not len(each):
            return {}
        bins = (each * BINS).long().clamp(max=BINS - 1).cpu()
        lines[name] = torch.bincount(bins, minlength=BINS).tolist()
    centres = [(number + 0.5) / BINS for number in range(BINS)]
    title = "Accuracy of the clients on their own test examples"
    return {"client_accuracy": Curve(centres, lines, "accuracy", "clients", title)}
