"""What happens to updates between a client and the server: compression or masks; and which of it is private.

The order is: the client compresses; the server clips, where privacy is asked for, and adds up. Only parameters are
compressed; running averages and what else a method sends go whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from advml.contracts import Context
from advml.errors import ConfigError
from advml.nn.aggregation import WeightedSum
from advml.nn.compression import (
    CompressionSettings,
    ErrorFeedback,
    largest,
    level_bytes,
    quantised,
    sparse_bytes,
)
from advml.nn.secure_sum import SecureSettings, SecureSum, message_bytes

Rows = dict[str, Tensor]
"""Name → [r, *shape]: a value for each of r clients."""


class Channel:
    """Compression and masks of one run; keeps what error feedback owes, a vector for each client that took part."""

    def __init__(
        self,
        compression: CompressionSettings,
        masks: SecureSettings,
        parameters: Mapping[str, Tensor],
        context: Context,
    ) -> None:
        if masks.enabled and compression.kind != "none":
            raise ConfigError(
                "method.secure_aggregation: a masked message has all bits of every number, so that compression saves "
                "nothing; use method.compression.kind=none"
            )
        self.compression, self.masks, self.context = compression, masks, context
        self.parameters = list(parameters)
        self.size = sum(value.numel() for value in parameters.values())
        self.memory = ErrorFeedback()
        self.sum: SecureSum | None = None

    def sent(self, round: int, clients: list[int], deltas: Rows) -> tuple[Rows, int]:
        """(what arrives of the deltas, bytes)."""
        if self.masks.enabled:
            numbers = (rows[0].numel() for rows in deltas.values())
            return deltas, len(clients) * message_bytes(numbers, self.masks.bits)
        if self.compression.kind == "none":
            return deltas, bytes_of(deltas)
        given = {name: deltas[name] for name in self.parameters if name in deltas}
        send = self._largest if self.compression.kind == "topk" else self._quantised
        arrived, size = send(round, clients, given)
        rest = {name: rows for name, rows in deltas.items() if name not in given}
        return {name: arrived.get(name, rows) for name, rows in deltas.items()}, size + bytes_of(rest)

    def _largest(self, round: int, clients: list[int], given: Rows) -> tuple[Rows, int]:
        flat = torch.cat([rows.flatten(1) for rows in given.values()], 1)
        count = largest(self.compression.share, self.size)
        sent = self.memory.sent(clients, flat, count, self.compression.error_feedback)
        parts = sent.split([rows[0].numel() for rows in given.values()], 1)
        arrived = {name: part.reshape(rows.shape) for (name, rows), part in zip(given.items(), parts, strict=True)}
        return arrived, len(clients) * sparse_bytes(self.size, count, flat.element_size())

    def _quantised(self, round: int, clients: list[int], given: Rows) -> tuple[Rows, int]:
        bits, arrived = self.compression.bits, {name: torch.empty_like(rows) for name, rows in given.items()}
        for row, client in enumerate(clients):
            generator = self.context.rng("quantise", round, client)
            for name, rows in given.items():
                arrived[name][row] = quantised(rows[row], bits, generator)
        each = sum(level_bytes(rows[0].numel(), bits, rows.element_size()) for rows in given.values())
        return arrived, len(clients) * each

    def new_sum(self, round: int, cohort: list[int]) -> WeightedSum | SecureSum:
        """Where a round's updates are added up."""
        if not self.masks.enabled:
            return WeightedSum()
        self.sum = SecureSum(cohort, self.masks, lambda *key: self.context.rng("mask", round, *key))
        return self.sum

    def end_round(self) -> dict[str, float]:
        """What happened: `cut`, how many numbers were too large for their bits under masks."""
        return {} if self.sum is None else {"cut": float(self.sum.cut)}

    def state_dict(self) -> dict[str, Any]:
        """What error feedback owes."""
        return self.memory.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore it."""
        self.memory.load_state_dict(state, self.context.device)


def bytes_of(rows: Mapping[str, Tensor]) -> int:
    """Of all these numbers as they are."""
    return sum(value.numel() * value.element_size() for value in rows.values())
