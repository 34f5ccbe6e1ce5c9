"""How good a network is as a whole, and for each client on its own held-out examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from advml.artifacts import Artifact, Histogram
from advml.contracts import Metrics, Network, Split, SplitName
from advml.data.clients import Clients
from advml.nn.evaluation import measure, measured, predict
from advml.nn.local_training import side_by_side
from advml.nn.replicas import Parameters, Replicas

AT_ONCE = 2**14  # examples of all clients of a chunk together
BINS = 20  # of the histogram of the clients' accuracies


def whole(view: Clients, split: SplitName) -> Split:
    """The split as the data set has it."""
    return {"train": view.train, "valid": view.valid, "test": view.test}[split]


def of_network(network: Network, view: Clients, split: SplitName) -> Metrics:
    """The usual metrics of a network on the whole split."""
    return measure(network, whole(view, split))


def of_all(network: Network, view: Clients, split: SplitName) -> Metrics:
    """`accuracy` … of the network on the whole split; over the clients, by their own examples of the split,
    `client_accuracy` (mean), `client_accuracy_weighted`, `client_accuracy_p10`, `client_accuracy_p90`; `mse` instead
    of accuracy for real targets.
    """
    part, shares = whole(view, split), view.shares[split]
    if not len(part):
        return {}
    outputs = predict(network, part)
    found = measured(outputs, part)
    name = "client_accuracy" if "accuracy" in found else "client_mse"
    alike = shares.seen is part  # nobody's examples are shifted: one pass is enough
    scores = scores_of(outputs, part.target) if alike else global_scores(network, view, split)
    return {**found, **over_clients(scores, shares.owned, name)}


def scores_of(outputs: Tensor, target: Tensor) -> Tensor:
    """Of each example whether it is right, or its squared error: float64 [N] of outputs [N, C]."""
    if target.is_floating_point():
        return (outputs.reshape(target.shape) - target).double().square().flatten(1).mean(1)
    return (outputs.argmax(1) == target).double()


def global_scores(network: Network, view: Clients, split: SplitName) -> Tensor:
    """`scores_of` the network, each example as its owner sees it: one pass for all clients."""
    seen = view.seen(split)
    return scores_of(predict(network, seen), seen.target)


@torch.no_grad()
def score_chunk(replicas: Replicas, values: Parameters, seen: Split, owned: Sequence[Tensor], found: Tensor) -> None:
    """`scores_of` clients' own models, values [r, *shape], on their own examples, put in `found`."""
    pieces = [index.split(max(1, AT_ONCE // len(owned))) for index in owned]
    for number in range(max(map(len, pieces))):
        rows = [row for row, parts in enumerate(pieces) if len(parts) > number]
        index, _ = side_by_side([pieces[row][number] for row in rows])
        places = index.flatten().to(found.device)
        inputs, target, _ = seen.batch(places)
        given = {name: value.unflatten(0, index.shape) for name, value in inputs.items()}
        few = values if len(rows) == len(owned) else {name: value[rows] for name, value in values.items()}
        found[places] = scores_of(replicas.outputs(few, given, dropout=False).flatten(0, 1), target)


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


def spread(view: Clients, scores: Mapping[str, Tensor]) -> dict[str, Artifact]:
    """`client_accuracy`: how many clients have which accuracy on their own test examples, in 20 bins; 1 is in the last.

    `scores`: of each model, `scores_of` the test examples.
    """
    owned = view.shares["test"].owned
    if view.test.target.is_floating_point() or not any(map(len, owned)):
        return {}
    counts = {}
    for name, values in scores.items():
        each, _ = means(values, owned)
        bins = (each * BINS + 1e-9).long().clamp(max=BINS - 1).cpu()
        counts[name] = torch.bincount(bins, minlength=BINS).tolist()
    edges = [number / BINS for number in range(BINS + 1)]
    title = "Accuracy of the clients on their own test examples"
    return {"client_accuracy": Histogram(edges, counts, "accuracy", "clients", title)}
