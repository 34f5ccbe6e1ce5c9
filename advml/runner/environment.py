"""What a run became on this machine: device, threads, versions, processor, source; and how two of them differ."""

from __future__ import annotations

import hashlib
import os
import platform
import subprocess
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch

import advml
from advml.errors import ConfigError

PACKAGES = ("torch", "numpy", "hydra-core", "omegaconf", "pydantic", "scikit-learn", "pennylane", "Pillow")
VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "CUBLAS_WORKSPACE_CONFIG", "CUDA_VISIBLE_DEVICES",
    "OMP_WAIT_POLICY", "THP_MEM_ALLOC_ENABLE", "PYTHONHASHSEED", "ADVML_DATA", "ADVML_CONFIG_PATH",
)  # fmt: skip


def resolve_device(wanted: str) -> torch.device:
    """`auto` → CUDA where torch can use it, else the CPU. Raises ConfigError for a device that is not there."""
    if wanted == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        if wanted == "auto":
            return torch.device("cpu")
        raise ConfigError(f"device={wanted}: torch finds no CUDA device on this machine; use device=cpu or device=auto")
    if wanted == "auto":
        return torch.device("cuda", 0)
    device = torch.device(wanted)
    index, count = device.index or 0, torch.cuda.device_count()
    if index >= count:
        raise ConfigError(f"device={wanted}: this machine has {count} CUDA device(s), numbered from 0")
    return torch.device("cuda", index)


def resolve_threads(wanted: int | Literal["auto"]) -> int:
    """`auto` → the physical cores this process may use, at most 8: more hardly help, and bits depend on the number."""
    return min(_physical_cores(), 8) if wanted == "auto" else wanted


def _physical_cores() -> int:
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    cores = set()
    for cpu in allowed:
        topology = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology")
        try:
            cores.add((topology / "physical_package_id").read_text() + (topology / "core_id").read_text())
        except OSError:
            return len(allowed)
    return len(cores)


BITS = ("advml", "source", "python", "platform", "cpu", "gpu", "packages")
"""What may change the bits of a run that is gone on with, beside what resuming refuses to change."""


def describe(device: torch.device, threads: int, precision: str) -> dict[str, Any]:
    """All that the bits of a run may depend on, as plain data for environment.json."""
    return {
        "advml": advml.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "device": str(device),
        "gpu": torch.cuda.get_device_name(device) if device.type == "cuda" else None,
        "threads": threads,
        "precision": precision,
        "packages": {name: _version(name) for name in PACKAGES},
        "variables": {name: os.environ[name] for name in VARIABLES if name in os.environ},
        "source": _git(Path(advml.__file__).parent),
    }


def differences(left: Mapping[str, Any], right: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """`key: left → right` for every leaf that differs between two nested mappings."""
    for key in dict.fromkeys([*left, *right]):
        ours, theirs = left.get(key), right.get(key)
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            yield from differences(ours, theirs, f"{prefix}{key}.")
        elif ours != theirs:
            yield f"{prefix}{key}: {ours} → {theirs}"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _git(folder: Path) -> dict[str, Any] | None:
    """Commit, whether anything differs from it (new files too), and a hash of that; None outside a git checkout."""
    if not (folder.parent / ".git").exists():
        return None
    ours = ("--", "advml", "configs")
    commands = (
        ["rev-parse", "HEAD"],
        ["diff", "HEAD", *ours],
        ["ls-files", "-z", "--others", "--exclude-standard", *ours],
    )
    try:
        commit, diff, new = (
            subprocess.run(
                ["git", "-C", str(folder.parent), *command], capture_output=True, check=True, timeout=10
            ).stdout
            for command in commands
        )
        names = [os.fsdecode(name) for name in new.split(b"\0") if name]
        changes = diff + b"".join(os.fsencode(name) + (folder.parent / name).read_bytes() for name in names)
    except (OSError, subprocess.SubprocessError):
        return None
    return {
        "commit": commit.decode().strip(),
        "dirty": bool(changes),
        "diff_sha256": hashlib.sha256(changes).hexdigest() if changes else None,
    }
