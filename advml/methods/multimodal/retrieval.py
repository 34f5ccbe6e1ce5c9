"""Finding what belongs together: each example of one modality asks for its partner in the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from advml.artifacts import Drawing
from advml.contracts import Network, Spec, Split
from advml.methods.multimodal.pictures import as_cpu, retrieval_picture, seen
from advml.nn.evaluation import BATCH, evaluating
from advml.nn.losses import at_least_float32
from advml.nn.multimodal.losses import median_rank, recall_at

RANKS = (1, 5, 10)
SHOWN = 5  # of what was found, in the picture


def keys_of(spec: Spec, name: str) -> tuple[str, ...]:
    """The inputs that belong to a modality: itself, its mask, its presence."""
    stream = spec.streams[name]
    return tuple(key for key in (name, stream.mask, stream.present) if key is not None)


def complete(split: Split, spec: Spec) -> Split:
    """The examples that have every modality."""
    present = [split.inputs[stream.present] for stream in spec.streams.values() if stream.present is not None]
    if not present or bool(torch.stack(present).all()):
        return split
    return split.take(torch.stack(present).all(0).nonzero().flatten())


def retrieval_metrics(scores: Tensor, positives: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
    """Recall and median rank in both directions, and the mean of both: recall_at_1/image_to_text, …, recall_at_1.

    scores, positives [N, N]: rows are examples of the first modality, columns of the second.
    """
    one, other = names
    found: dict[str, Tensor] = {}
    for direction, values, good in (
        (f"{one}_to_{other}", scores, positives),
        (f"{other}_to_{one}", scores.T, positives.T),
    ):
        for k, value in recall_at(values, good, RANKS).items():
            found[f"recall_at_{k}/{direction}"] = value
        found[f"median_rank/{direction}"] = median_rank(values, good)
    mean = {
        f"recall_at_{k}": (found[f"recall_at_{k}/{one}_to_{other}"] + found[f"recall_at_{k}/{other}_to_{one}"]) / 2
        for k in RANKS
    }
    return {**mean, **found}


@torch.no_grad()
def pair_scores(
    network: Network, split: Split, spec: Spec, autocast: Callable[[], AbstractContextManager[Any]]
) -> Tensor:
    """How much a network that tells matches (class 1 of 2) thinks of each pair: logit 1 − logit 0, [N, N].

    Row i, column j: the first modality of example i with the second of example j. N² passes through the network.
    """
    one, other = (keys_of(spec, name) for name in spec.streams)
    count = len(split)
    rows = []
    with evaluating(network):
        inputs = split.batch(slice(None)).inputs
        for pairs in torch.arange(count * count, device=split.device).split(BATCH):
            first, second = pairs // count, pairs % count
            mixed = {key: inputs[key][first] for key in one} | {key: inputs[key][second] for key in other}
            with autocast():
                logits = network(mixed)
            logits = at_least_float32(logits)  # under bf16 differences would be rounded to ties
            rows.append(logits[:, 1] - logits[:, 0])
    return torch.cat(rows).float().view(count, count)


def retrieval_grid(
    data: Any, split: Split, scores: Tensor, positives: Tensor, queries: int, words: Sequence[str]
) -> Drawing:
    """The first examples' second modality asks, the first modality answers, best first. `data`: the view."""
    one, other = data.spec.streams
    count = min(queries, len(split))
    ranked = as_cpu(scores.T[:count]).argsort(dim=1, descending=True, stable=True)[:, :SHOWN].tolist()
    good = as_cpu(positives.T).tolist()
    return retrieval_picture(
        [seen(data, split, place, words[place], [other]) for place in range(count)],
        [[seen(data, split, place, words[place], [one]) for place in row] for row in ranked],
        [[good[query][place] for place in row] for query, row in enumerate(ranked)],
        f"{other} asks, {one} answers: best first",
    )
