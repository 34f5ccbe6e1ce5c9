"""Taking modalities away in training: contents zeroed, mask and presence false, as the data do it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from advml.spec import Stream


def without(
    inputs: Mapping[str, Tensor], streams: Mapping[str, Stream], gone: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The inputs of a batch where the examples `gone[name]` (bool [B]) lack modality `name`; what is given stays."""
    changed = dict(inputs)
    for name, rows in gone.items():
        stream = streams[name]
        if stream.present is None:
            raise ValueError(f"{name} is never missing: the data name no input that tells its presence")
        for key in (name, stream.mask, stream.present):
            if key is not None:
                values = inputs[key]
                changed[key] = values.masked_fill(rows.view(-1, *[1] * (values.dim() - 1)), 0)
    return changed


def draw_gone(rates: Mapping[str, float], examples: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Which examples lose which modality: each by itself, with the probability `rates[name]`. Bool [examples], CPU.

    One that would lose all keeps one, every one that is not always taken away (a rate of 1) being equally likely.
    """
    names = [name for name, rate in rates.items() if rate > 0]
    if not names:
        return {}
    chance = torch.rand(len(names), examples, generator=generator)
    limits = torch.tensor([rates[name] for name in names]).unsqueeze(1)
    gone = chance < limits
    if len(names) == len(rates):
        # Given that all fall below their limits, chance / limit is uniform for each: the largest is a fair draw.
        share = torch.where(limits < 1, chance / limits, -1.0)
        spared = share.argmax(0)
        gone[spared, torch.arange(examples)] &= ~gone.all(0)
    return dict(zip(names, gone, strict=True))
