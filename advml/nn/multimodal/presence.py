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


def draw_gone(
    rates: Mapping[str, float], examples: int, generator: torch.Generator, present: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Which examples lose which modality: each by itself, with the probability `rates[name]`. Bool [examples].

    `present`: modality → bool [examples], whether the data have it; of one that is not named, all do. Drawn on the CPU,
    given where `present` is. An example that would have nothing left keeps one of those that it has, every one that is
    not always taken away (a rate of 1) being equally likely.
    """
    names = [name for name, rate in rates.items() if rate > 0]
    if not names:
        return {}
    device = next((there.device for there in present.values()), torch.device("cpu"))
    chance = torch.rand(len(names), examples, generator=generator).to(device, non_blocking=True)
    limits = torch.tensor([rates[name] for name in names]).unsqueeze(1).to(device, non_blocking=True)
    everywhere = torch.ones(examples, dtype=torch.bool, device=device)
    there = torch.stack([present.get(name, everywhere) for name in names])
    others = [present.get(name, everywhere) for name in rates if name not in names]
    gone = chance < limits
    left = torch.stack([*others, *(there & ~gone)]).any(0)
    # Given that all fall below their limits, chance / limit is uniform for each: the largest is a fair draw.
    share = torch.where(there & (limits < 1), chance / limits, -1.0)
    spared = torch.arange(len(names), device=device).unsqueeze(1) == share.argmax(0)
    gone &= ~(spared & (share >= 0) & ~left)
    return dict(zip(names, gone, strict=True))
