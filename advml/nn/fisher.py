"""The diagonal of the Fisher information of a classifier: how sharply p(y|x) reacts to each parameter.

With the network in evaluation mode and c over the active classes, averaged over examples x (Kirkpatrick et al. 2017
use it as importance; van de Ven 2025, "On the computation of the Fisher information in continual learning", compares
the kinds):

    exact      Σ_c p(c|x) (∂ log p(c|x) / ∂θ)²
    sample     (∂ log p(c|x) / ∂θ)², one c drawn from p(c|x) for each example: exact on average
    empirical  (∂ log p(y|x) / ∂θ)², y the true class
    batched    the square of a mini-batch's mean empirical gradient. Wrong: gradients cancel before they are squared,
               so that it shrinks with the batch size; offered only to reproduce results obtained with it
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from advml.contracts import Batch, Network, Split
from advml.nn.evaluation import evaluating
from advml.nn.per_example import Directions, Engine, folded_sums, gradient, in_batches, trainable

Kind = Literal["exact", "sample", "empirical", "batched"]


def fisher_diagonal(
    network: Network,
    split: Split,
    *,
    kind: Kind = "exact",
    mask: Tensor | None = None,
    index: Tensor | None = None,
    generator: torch.Generator | None = None,
    engine: Engine = "auto",
    batch_size: int = 1000,
) -> dict[str, Tensor]:
    """The Fisher diagonal of every trainable parameter, by name, averaged over examples of `split`.

    `mask` bool [C]: the active classes; the others get probability 0. `index` int64 [N]: the examples to use, all by
    default. `generator` (on the CPU) draws the classes of kind `sample`. `batch_size` is what is evaluated at once and
    has no influence on the result, save for `batched`.

    Engines (`advml.nn.per_example`): `loop` differentiates example by example and serves any network; `closed` is a
    closed form for networks of linear layers, convolutions and norms; `auto` takes the fastest that applies.
    """
    batches, count = in_batches(split, index, batch_size)
    if not count:
        raise ValueError("the Fisher diagonal needs at least one example")
    if mask is not None:
        mask = mask.to(split.device)
        target = split.target if index is None else split.target[index.to(split.device)]
        if kind in ("empirical", "batched") and not bool(mask[target].all()):
            raise ValueError(f"kind {kind} needs examples of active classes only")

    def gradients(logits: Tensor, target: Tensor) -> Iterator[Tensor]:
        return directions(logits, target, kind, mask, generator)

    with evaluating(network), torch.enable_grad():
        if kind == "batched":
            total = _batched(network, batches(None), gradients)
        else:
            total = folded_sums(network, batches, gradients, torch.square, engine, generator)
    return {name: values.div_(count) for name, values in total.items()}


def directions(
    logits: Tensor, target: Tensor, kind: Kind, mask: Tensor | None, generator: torch.Generator | None
) -> Iterator[Tensor]:
    """Gradients δ [B, C] with respect to the logits, such that the Fisher diagonal is Σ over δ of (δᵀ ∂logits/∂θ)².

    For softmax ∂ log p(c|x) / ∂logits = e_c − p(·|x), in closed form: the direction itself for one class chosen.
    `exact` needs one direction fewer than active classes: see `contrasts`.
    """
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf)
    probability = logits.softmax(1)
    if kind == "exact":
        active = range(logits.shape[1]) if mask is None else mask.nonzero()[:, 0].tolist()
        yield from contrasts(probability, list(active))
        return
    chosen = drawn(logits, generator) if kind == "sample" else target
    yield nn.functional.one_hot(chosen, logits.shape[1]) - probability


def contrasts(probability: Tensor, labels: list[int]) -> Iterator[Tensor]:
    """C − 1 directions δ [B, C] with Σ δδᵀ = diag(p) − ppᵀ, for p [B, C] that is 0 outside the C ascending `labels`.

    With J = ∂logits/∂θ, any δs give Σ (δᵀJ)² = diag(Jᵀ (Σ δδᵀ) J), so only Σ δδᵀ matters; for the C directions
    √p_c (e_c − p) of the exact Fisher it is diag(p) − ppᵀ, of rank C − 1: fewer directions than here cannot do.
    These are the columns of its Cholesky factor (Tanabe & Sagae 1992), each class c but the last against those after
    it, with q_c = Σ_{k>c} p_k:  δ_c = √(p_c q_c / (p_c + q_c)) (e_c − Σ_{k>c} e_k p_k / q_c).
    """
    later = probability[:, labels[-1:]].clamp_min(torch.finfo(probability.dtype).tiny)  # no 0/0 where p underflows
    for label in reversed(labels[:-1]):
        here = probability[:, label : label + 1]
        both = here + later
        length = (here * (later / both)).sqrt()
        direction = torch.zeros_like(probability)
        direction[:, label : label + 1] = length
        direction[:, label + 1 :] = probability[:, label + 1 :] * (-length / later)
        yield direction
        later = both


def drawn(logits: Tensor, generator: torch.Generator | None) -> Tensor:
    """One class for each row of logits [B, C], drawn from their softmax as argmax(logits − log(−log u)) (Gumbel).

    One u for each logit, in order: the draws do not depend on how rows are grouped into batches.
    """
    uniform = torch.rand(logits.shape, generator=generator, dtype=torch.float64)
    noise = -(-uniform.log()).log()
    return (logits + noise.to(logits.device)).argmax(1)


def _batched(network: Network, batches: Iterable[Batch], gradients: Directions) -> dict[str, Tensor]:
    """The mistaken kind: the square of each mini-batch's mean gradient, weighted by its size."""
    parameters, total = trainable(network)
    weights, sums = list(parameters.values()), list(total.values())
    for batch in batches:
        size = len(batch.target)
        logits = network(batch.inputs)
        for direction in gradients(logits.detach(), batch.target):
            found = gradient(logits, weights, direction / size)
            torch._foreach_addcmul_(sums, found, found, size)
    return total
