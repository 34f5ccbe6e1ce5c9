"""The smallest run, and what is compared of two: all that no clock, process number or random name changes."""

import json
from pathlib import Path

import torch

# The smallest run that has everything: batches, evaluations, several checkpoints, a best state.
TINY = ("dataset=iris", "model=linear", "method.epochs=4", "method.lr=0.05")
QUIET = ("device=cpu", "threads=1", "progress=off", "figures=false")

UNEQUAL = ("seconds", "peak_memory_mb")


def only_run(outputs):
    """The one run folder below `outputs`."""
    (found,) = Path(outputs).glob("*/*/*/config.yaml")
    return found.parent


def assert_same_state(left, right, where="state"):
    """Two nested states are equal, tensors bit by bit."""
    assert type(left) is type(right), where
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype, where
        assert torch.equal(left, right), where
    elif isinstance(left, dict):
        assert list(left) == list(right), where
        for key in left:
            assert_same_state(left[key], right[key], f"{where}.{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for index, (one, other) in enumerate(zip(left, right, strict=True)):
            assert_same_state(one, other, f"{where}.{index}")
    else:
        assert left == right, where


def load(path):
    return torch.load(path, map_location="cpu", weights_only=True)


def assert_same_run(left, right):
    """Records byte by byte, networks and checkpoints by torch.equal, results but for the clock, data files exactly."""
    left, right = Path(left), Path(right)
    assert (left / "metrics.jsonl").read_bytes() == (right / "metrics.jsonl").read_bytes()
    names = {path.relative_to(left) for path in left.rglob("*")}
    assert names == {path.relative_to(right) for path in right.rglob("*")}
    for name in names:
        if name.suffix == ".pt":
            one, other = load(left / name), load(right / name)
            one.pop("seconds", None), other.pop("seconds", None)
            assert_same_state(one, other, str(name))
        elif (name.parts[0] in ("artifacts", "figures") and name.suffix) or name.name in ("config.yaml", "data.json"):
            assert (left / name).read_bytes() == (right / name).read_bytes(), name
    one, other = (json.loads((folder / "result.json").read_text()) for folder in (left, right))
    assert {k: v for k, v in one.items() if k not in UNEQUAL} == {k: v for k, v in other.items() if k not in UNEQUAL}
