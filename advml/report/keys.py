"""Dotted keys: configurations laid flat, and which keys tell them apart."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

ABSENT = "–"
"""Shown where a configuration has no such key."""

Flat = Mapping[str, Any]
"""A configuration by dotted keys."""


def shown(value: Any) -> str:
    """A value as one would type it."""
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return json.dumps(value, default=str).replace('"', "").replace(", ", ",")


def differing(rows: Sequence[Flat]) -> tuple[list[str], list[str]]:
    """(keys that tell the rows apart, keys that merely follow from a choice), for flat configurations.

    A key tells apart if two rows that have it have different values; keys that only one method knows say nothing by
    being there. A key that is constant within each choice of its block (each method has its own default of method.lr)
    follows from that choice: it is named apart from the table.
    """
    every = list(dict.fromkeys(key for row in rows for key in row))
    varying = [key for key in every if len({_fixed(row[key]) for row in rows if key in row}) > 1]
    following = [key for key in varying if _follows(key, rows, varying)]
    telling = [key for key in varying if key not in following]
    while (twin := _twins(rows, telling)) is not None:  # they differ only in which keys they have
        one, other = twin
        telling.append(next(key for key in every if (key in one) != (key in other) and key not in telling))
    return sorted(telling, key=_place(every)), following


def _place(every: Sequence[str]) -> Any:
    """Data set, view, model and method first, then the rest as in the configuration."""
    names = ["dataset.name", "view.name", "method.name", "model.name"]
    return lambda key: (names.index(key) if key in names else len(names), every.index(key))


def _follows(key: str, rows: Sequence[Flat], varying: Sequence[str]) -> bool:
    choice = f"{key.partition('.')[0]}.name"
    if key == choice or choice not in varying:
        return False
    pairs = {(_fixed(row.get(choice)), _fixed(row.get(key, ABSENT))) for row in rows}
    return len(pairs) == len({chosen for chosen, _ in pairs})


def _twins(rows: Sequence[Flat], keys: Sequence[str]) -> tuple[Flat, Flat] | None:
    """Two different rows that `keys` do not tell apart."""
    seen: dict[tuple[str, ...], Flat] = {}
    for row in rows:
        label = tuple(_fixed(row.get(key, ABSENT)) for key in keys)
        if label in seen and canonical(seen[label]) != canonical(row):
            return seen[label], row
        seen[label] = row
    return None


def canonical(row: Mapping[str, Any]) -> str:
    """A flat configuration as a text that is equal for equal ones."""
    return json.dumps({key: _fixed(value) for key, value in row.items()}, sort_keys=True)


def _fixed(value: Any) -> str:
    """A value as a text that is equal for equal values: 1 and 1.0 are one number, "1" is none."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return json.dumps(value, sort_keys=True, default=str)


HOW = ("dataset.normalise", "dataset.pca", "dataset.valid")
"""Keys of data sets that leave the test examples as they are: how inputs are prepared, how many train."""


def of_problem(key: str) -> bool:
    """Does the key say what is learnt (the data set, the view of it), and not how?

    `dataset.limit` and `dataset.split_seed` do: under another value a run is tested on other examples.
    """
    return key.startswith(("dataset.", "view.")) and key not in HOW


def heading(key: str) -> str:
    """`method.name` is called `method`, as on the command line."""
    return key.removesuffix(".name")


def ordered(value: Any) -> tuple[int, float, str]:
    """A sorting key: undefined, then numbers by size, then texts, in which numbers count too: [16] < [128]."""
    if value is None or value == ABSENT:
        return (0, 0.0, "")
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (1, float(value), "")
    return (2, 0.0, re.sub(r"\d+", lambda digits: digits[0].zfill(20), shown(value)))
