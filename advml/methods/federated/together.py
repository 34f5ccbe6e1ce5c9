"""Several processes share the chunks of a round: each trains every n-th, and all get the updates of all, in order."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import torch
from torch import Tensor

from advml.contracts import World

Chunk = tuple[list[int], list[int]]
"""The clients of a chunk, and the local steps of each."""
Made = TypeVar("Made")


def updates_together(
    world: World, chunks: Sequence[Chunk], kind: Callable[..., Made], train: Callable[[list[int], list[int]], Made]
) -> Iterator[Made]:
    """The update (a dataclass `kind`) of each chunk in the order of chunks: chunk c is trained by rank c mod n.

    The chunks follow from the round's work alone, and what comes of one from nothing that another one does, so that the
    bits do not depend on how many processes there are.
    """
    for first in range(0, len(chunks), world.size):
        wave = chunks[first : first + world.size]
        mine = _message(train(*wave[world.rank])) if world.rank < len(wave) else {}
        for (clients, _), message in zip(wave, world.exchange(mine), strict=False):
            yield kind(clients=clients, **_values(kind, message))


def _message(update: Any) -> dict[str, Tensor]:
    """All fields but the clients, as tensors: whole numbers too, and mappings entry by entry."""
    message: dict[str, Tensor] = {}
    for field in fields(update):
        value = getattr(update, field.name)
        if isinstance(value, dict):
            message |= {f"{field.name}/{name}": rows for name, rows in value.items()}
        elif field.name != "clients":
            message[field.name] = value if isinstance(value, Tensor) else torch.tensor(value)
    return message


def _values(kind: Any, message: dict[str, Tensor]) -> dict[str, Any]:
    """The fields back from a message."""
    types = {field.name: field.type for field in fields(kind)}
    values: dict[str, Any] = {}
    for key, value in message.items():
        name, _, entry = key.partition("/")
        if entry:
            values.setdefault(name, {})[entry] = value
        else:
            values[name] = int(value) if types[name] in (int, "int") else value
    return values
