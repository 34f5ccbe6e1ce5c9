"""How sensitive a network's outputs are to each parameter (Aljundi et al. 2018, "Memory aware synapses", section 4.1).

With the network in evaluation mode and f(x) its active outputs, averaged over examples x:

    Ω = 1/N Σ_n |∂ ‖f(x_n)‖² / ∂θ|

The absolute value is that of each example's own gradient: the mean gradient of a mini-batch would have them cancel. No
label is needed.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import torch
from torch import Tensor

from advml.contracts import Network, Split
from advml.nn.evaluation import evaluating
from advml.nn.per_example import Engine, folded_sums, in_batches

Norm = Literal["squared_l2", "l2"]


def sensitivity(
    network: Network,
    split: Split,
    *,
    norm: Norm = "squared_l2",
    mask: Tensor | None = None,
    index: Tensor | None = None,
    engine: Engine = "auto",
    batch_size: int = 1000,
) -> dict[str, Tensor]:
    """Ω of every trainable parameter, by name, averaged over examples of `split`.

    `mask` bool [C]: the active outputs. `index` int64 [N]: the examples to use, all by default. `batch_size` is what is
    evaluated at once and has no influence on the result. `norm`: of the outputs; the paper takes the squared one.
    Engines: as for the Fisher diagonal, see `advml.nn.per_example`.
    """
    batches, count = in_batches(split, index, batch_size)
    if not count:
        raise ValueError("the sensitivity needs at least one example")
    active = None if mask is None else mask.to(split.device)

    def directions(outputs: Tensor, target: Tensor) -> Iterator[Tensor]:
        yield direction(outputs, norm, active)

    with evaluating(network), torch.enable_grad():
        total = folded_sums(network, batches, directions, torch.abs, engine)
    return {name: values.div_(count) for name, values in total.items()}


def direction(outputs: Tensor, norm: Norm, mask: Tensor | None) -> Tensor:
    """The gradient [B, C] of each row's norm with respect to `outputs` [B, C]; 0 where not active.

    Of ‖z‖² it is 2z, of ‖z‖ it is z / ‖z‖, taken as 0 at 0.
    """
    active = outputs if mask is None else outputs.masked_fill(~mask, 0.0)
    if norm == "squared_l2":
        return 2 * active
    length: Tensor = active.norm(dim=-1, keepdim=True)
    return active / length.clamp_min(torch.finfo(active.dtype).tiny)
