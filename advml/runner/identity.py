"""What a configuration computes, as a short hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

INDIFFERENT = ("progress", "outputs", "data_dir", "download", "figures", "checkpoint_seconds", "threads")
"""Keys of a run that do not change what it computes. Threads do change bits, but not the experiment."""


def identity(tree: Mapping[str, Any]) -> str:
    """Equal for two configurations that ask for the same experiment, wherever it is stored and however it is shown."""
    kept = {key: value for key, value in tree.items() if key not in INDIFFERENT}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]
