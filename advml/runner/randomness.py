"""Randomness by key, not by history: every number follows from (seed, purpose, key), wherever the run stands.

So checkpoints hold no generator state, a resumed run replays nothing, and a loop and a vectorised engine draw alike.
"""

from __future__ import annotations

import hashlib
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import torch

from advml.nn.seeding import seed_torch


def derive(seed: int, purpose: str, *key: int | str) -> int:
    """A 63-bit seed, a pure function of its arguments (BLAKE2b of their text).

    torch's CPU generator and NumPy's take the lowest 32 bits of it: of 10,000 keys two share their numbers in one run
    out of a hundred. That does no harm to orders and weights; of two sums under the same noise the difference is bare,
    one more reason why privacy from a seed is for research (docs/privacy.md).
    """
    text = repr((seed, purpose, key)).encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1


class KeyedRng:
    """`rng(purpose, *key)` → a fresh CPU generator for that purpose and key."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def __call__(self, purpose: str, *key: int | str) -> torch.Generator:
        """A fresh generator, always in the same state."""
        return torch.Generator().manual_seed(derive(self.seed, purpose, *key))


def reseed(seed: int, purpose: str, *key: int | str) -> None:
    """Seed Python, NumPy and torch (all devices): covers what draws from the global generators, like dropout."""
    derived = derive(seed, purpose, *key)
    random.seed(derived)
    np.random.seed(derived & 0xFFFFFFFF)
    seed_torch(derived)


@contextmanager
def numeric_settings(threads: int, deterministic: bool | Literal["warn"]) -> Iterator[None]:
    """Threads and determinism for the length of a run; what was set before comes back afterwards.

    `set_deterministic_debug_mode` is `use_deterministic_algorithms` without its import of the compiler (over a second).
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, when CUDA starts
    before = torch.get_num_threads(), torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    of_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode({False: "default", "warn": "warn", True: "error"}[deterministic])
    torch.backends.cudnn.benchmark = not deterministic
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        with whole_float32():
            yield
    finally:
        torch.set_num_threads(before[0])
        torch.set_deterministic_debug_mode(before[1])
        torch.backends.cudnn.benchmark = before[2]
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if of_gpus:
            torch.cuda.set_rng_state_all(of_gpus)


@contextmanager
def whole_float32() -> Iterator[None]:
    """On CUDA products of float32 keep its 24 bits; left alone, cuDNN rounds the factors of a convolution to 11 (TF32).

    Differences of gradients, as DARTS takes them, would drown in that.
    """
    flags: list[Any] = [torch.backends.cudnn, torch.backends.cuda.matmul]
    try:
        before = [one.allow_tf32 for one in flags]
    except RuntimeError:  # set in this session by torch's newer names, beside which these do not work: that stands
        yield
        return
    for one in flags:
        one.allow_tf32 = False
    try:
        yield
    finally:
        for one, earlier in zip(flags, before, strict=True):
            one.allow_tf32 = earlier
