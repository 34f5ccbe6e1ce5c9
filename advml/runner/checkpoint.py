"""Checkpoints: plain dicts of tensors and primitives, written whole or not at all.

Order: metrics.jsonl is flushed; a new best state is written beside the old one; last.pt, which holds the byte length of
metrics.jsonl and names the step of its best state, is renamed into place (this is the moment that counts); then the new
best state takes the old one's name. A crash anywhere leaves a pair that belongs together.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from advml.errors import AdvmlError
from advml.runner import files
from advml.runner.folder import RunFolder
from advml.runner.recorder import NonFinite


def save(folder: RunFolder, last: Mapping[str, Any], best: Mapping[str, Any] | None) -> None:
    """Write last.pt, and best.pt too where there is a new best. Raises NonFinite before touching a good checkpoint."""
    for key, tensor in tensors(last["method"], "method"):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise NonFinite(f"step {last['total']}: {key} is no longer finite; try a smaller learning rate")
    checkpoints = folder / "checkpoints"
    if best is not None:
        files.write_atomic(checkpoints / "best.new.pt", _bytes(best))
    files.write_atomic(checkpoints / "last.pt", _bytes(last))
    if best is not None:
        (checkpoints / "best.new.pt").replace(checkpoints / "best.pt")
        files.reached("best.pt: renamed")


def load_last(folder: RunFolder) -> dict[str, Any] | None:
    """The last checkpoint, after finishing or undoing what a crash left half done; None if there is none yet."""
    checkpoints = folder / "checkpoints"
    if not (checkpoints / "last.pt").exists():
        return None
    last = _load(checkpoints / "last.pt", "metrics_bytes", "best_total")
    waiting = checkpoints / "best.new.pt"
    if waiting.exists():
        if _load(waiting)["total"] == last["best_total"]:
            waiting.replace(checkpoints / "best.pt")
        else:
            waiting.unlink()
    return last


def load_complete(folder: RunFolder) -> None:
    """Raises AdvmlError where the last checkpoint of a completed run is missing or damaged: it could not go on."""
    if load_last(folder) is None:
        raise AdvmlError(f"{folder / 'checkpoints/last.pt'}: missing; bring it back, or start the run anew")


def load_best(folder: RunFolder) -> dict[str, Any]:
    """The state with the best validation objective so far."""
    return _load(folder / "checkpoints/best.pt")


def tensors(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    """All tensors in nested dicts and lists, with their dotted names."""
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            yield from tensors(inner, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            yield from tensors(inner, f"{name}.{index}")


def copied(value: Any) -> Any:
    """A copy of a nested state whose tensors share no memory with the original."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: copied(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(copied(inner) for inner in value)
    return value


def _bytes(state: Mapping[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    return buffer.getvalue()


def _load(path: Any, *keys: str) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes the unpickler stumble in many ways
        reason = getattr(error, "strerror", None) or "it is damaged"
        raise AdvmlError(f"{path}: this checkpoint cannot be read ({reason}); start the run anew") from None
    if not isinstance(state, dict) or not {"total", "method", *keys} <= state.keys():
        raise AdvmlError(f"{path}: this checkpoint cannot be read (it holds something else); start the run anew")
    return state
