"""What a configuration computes, as a short hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

INDIFFERENT = (
    "progress", "outputs", "data_dir", "download", "figures", "checkpoint_seconds", "threads", "sweep", "tracker",
    "tracker_uri", "baselines",
)  # fmt: skip
"""Keys of a run that do not change what it computes. Threads do change bits, but not the experiment."""

FREE_TO_CHANGE = (
    "limits", "progress", "figures", "checkpoint_seconds", "data_dir", "download", "tracker", "tracker_uri",
    "baselines",
)  # fmt: skip
"""Keys that a resumed run may be given anew: with any value of theirs its records go on as they began."""


def identity(tree: Mapping[str, Any]) -> str:
    """Equal for two configurations that ask for the same experiment, wherever it is stored and however it is shown."""
    kept = {key: value for key, value in tree.items() if key not in INDIFFERENT}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]


def flattened(tree: Mapping[str, Any], separator: str = ".", prefix: str = "") -> dict[str, Any]:
    """{"method": {"lr": 0.1}} → {"method.lr": 0.1}; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat |= flattened(value, separator, f"{prefix}{key}{separator}")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
