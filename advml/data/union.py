"""Several splits as one: each example prepared and masked as in the split that it comes from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from advml.contracts import Batch, Split


class Union:
    """Examples of `splits` one after another; those of `splits[k]` have the active outputs `masks[k]` (bool [C])."""

    def __init__(self, splits: Sequence[Split], masks: Sequence[Tensor]) -> None:
        self.splits, self.masks = list(splits), list(masks)
        lengths = torch.tensor([len(split) for split in splits])
        self.ends = lengths.cumsum(0)
        self.starts = self.ends - lengths

    def __len__(self) -> int:
        return int(self.ends[-1])

    def batch(self, index: Tensor) -> Batch:
        """The examples at `index` (CPU int64 [B]), grouped by split; `mask` is bool [B, C].

        Grouping happens on the CPU, where indices are drawn, so that no device is waited for.
        """
        owner = torch.bucketize(index, self.ends, right=True)
        batches, masks = [], []
        for number in owner.unique().tolist():
            split = self.splits[number]
            places = index[owner == number] - self.starts[number]
            batches.append(split.batch(places.to(split.device, non_blocking=True)))
            masks.append(self.masks[number].expand(len(places), -1))
        inputs = {name: torch.cat([batch.inputs[name] for batch in batches]) for name in batches[0].inputs}
        return Batch(inputs, torch.cat([batch.target for batch in batches]), torch.cat(masks))
