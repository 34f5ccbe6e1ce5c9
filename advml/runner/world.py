"""Several processes that carry out one run: rank 0 leads it and writes all files, the others compute with it.

Every process holds the whole method and takes every step with the others; a method that reads `context.world` divides a
step's work among them and exchanges what came of it, so that all go on from the same numbers. Two ways to start them:

    advml run method=fedavg method.workers=4                            the run starts three more on this machine
    torchrun --nproc-per-node=4 -m advml run method=fedavg …            torchrun has started all, on one machine or many

By torch.distributed: NCCL where every process has a GPU of its own, gloo otherwise. See advml/runner/follower.py.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import advml
from advml.config import Bound
from advml.contracts import At, Method
from advml.errors import AdvmlError, ConfigError

PATIENCE = timedelta(days=7)  # the others wait while rank 0 evaluates; a process that dies is noticed at once
GRACE = 10.0  # seconds that a dismissed process may take to end
WORD = 8  # bytes: every tensor of a message begins at a multiple
LIBRARY = str(Path(advml.__file__).parent.parent)
CHILD = "import sys; sys.path.insert(0, sys.argv[1]); from advml.runner.follower import main; main(int(sys.argv[2]))"


class Alone:
    """One process: what it gives is all there is."""

    rank = 0
    size = 1

    def join(self) -> None:
        """Nobody to wait for."""

    def exchange(self, mine: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """What every rank gave, in the order of ranks."""
        return [dict(mine)]

    def lead(self, method: Method) -> Method:
        """The method itself."""
        return method

    def dismiss(self) -> None:
        """Nobody to send home."""


@dataclass
class Followers:
    """What a process needs to follow a run, pickled to its stdin."""

    tree: Mapping[str, Any]
    rank: int
    size: int
    port: int
    threads: int


class World(Alone):
    """Some processes, of which this is number `rank`."""

    def __init__(self, rank: int, size: int, device: torch.device, store: Any = None, named: bool = False) -> None:
        """`store`: where they meet; None = where the environment says (torchrun). `named`: the device was given with
        its number, so that all have the same.
        """
        self.rank, self.size, self.device, self.store, self.named = rank, size, device, store, named
        self.children: list[subprocess.Popen[bytes]] = []
        self.dismissed = False

    def join(self) -> None:
        """Wait until all are there. Raises AdvmlError where one has ended before."""
        import torch.distributed as dist

        if self.children:
            self._wait_for_children()
        local = int(os.environ.get("LOCAL_WORLD_SIZE", self.size))
        own_gpu = self.device.type == "cuda" and not self.named and torch.cuda.device_count() >= local
        if own_gpu:
            torch.cuda.set_device(self.device)
        self.on = self.device if own_gpu else torch.device("cpu")
        given = {} if self.store is None else {"store": self.store, "rank": self.rank, "world_size": self.size}
        dist.init_process_group("nccl" if own_gpu else "gloo", timeout=PATIENCE, **given)

    def _wait_for_children(self) -> None:
        while int(self.store.add("here", 0)) < self.size - 1:
            for number, child in enumerate(self.children, 1):
                if child.poll() is not None:
                    raise AdvmlError(f"worker {number} of the run ended before it began, with code {child.returncode}")
            time.sleep(0.02)

    def exchange(self, mine: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """What every rank gave, in the order of ranks: the same bits everywhere, on this process's device."""
        import torch.distributed as dist

        try:
            headers: list[Any] = [None] * self.size
            dist.all_gather_object(headers, [(name, value.shape, value.dtype) for name, value in mine.items()])
            found = []
            for rank, header in enumerate(headers):
                message = _packed(mine, self.on) if rank == self.rank else _empty(header, self.on)
                if message.numel():
                    dist.broadcast(message, src=rank)
                found.append(dict(mine) if rank == self.rank else _unpacked(message, header, self.device))
            return found
        except RuntimeError as error:
            raise AdvmlError(_lost(error)) from error

    def lead(self, method: Method) -> Method:
        """The method, whose steps the others take too."""
        return _Led(method, self)  # type: ignore[return-value]

    def tell(self, order: tuple[str, Any] | None) -> None:
        """Rank 0: let the others do something; None = end."""
        import torch.distributed as dist

        try:
            dist.broadcast_object_list([order], src=0)
        except RuntimeError as error:
            raise AdvmlError(_lost(error)) from error

    def told(self) -> tuple[str, Any] | None:
        """The others: what to do next."""
        import torch.distributed as dist

        orders: list[Any] = [None]
        dist.broadcast_object_list(orders, src=0)
        order: tuple[str, Any] | None = orders[0]
        return order

    def dismiss(self) -> None:
        """Rank 0, between two steps: send the others home."""
        self.tell(None)
        self.dismissed = True

    def end(self) -> None:
        """Let go of the others, in whatever state they are."""
        import torch.distributed as dist

        limit = time.monotonic() + (GRACE if self.dismissed else 0.0)
        for child in self.children:
            with suppress(subprocess.TimeoutExpired):
                child.wait(max(0.0, limit - time.monotonic()))
            child.kill()
            child.wait()
        if dist.is_initialized():
            dist.destroy_process_group()


class _Led:
    """A method that tells the other processes what it is about to do."""

    def __init__(self, method: Method, world: World) -> None:
        self._method, self._world = method, world

    def __getattr__(self, name: str) -> Any:
        return getattr(self._method, name)

    def step(self, at: At) -> Any:
        """All take it."""
        self._world.tell(("step", at))
        return self._method.step(at)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """All go on from it."""
        self._world.tell(("load", state))
        self._method.load_state_dict(state)


def _lost(error: RuntimeError) -> str:
    return f"a worker of the run is gone ({' '.join(str(error).split())[:120]}); to go on: advml resume RUN"


# --- messages -----------------------------------------------------------------------------------------------------


def _length(shape: torch.Size, dtype: torch.dtype) -> int:
    """Bytes of a tensor in a message, a multiple of WORD."""
    return -(-shape.numel() * dtype.itemsize // WORD) * WORD


def _empty(header: list[tuple[str, torch.Size, torch.dtype]], on: torch.device) -> Tensor:
    return torch.zeros(sum(_length(shape, dtype) for _, shape, dtype in header), dtype=torch.uint8, device=on)


def _packed(values: Mapping[str, Tensor], on: torch.device) -> Tensor:
    """All tensors' bytes, end to end: uint8."""
    message = _empty([(name, value.shape, value.dtype) for name, value in values.items()], on)
    at = 0
    for value in values.values():
        flat = value.detach().to(on).contiguous().flatten().view(torch.uint8)
        message[at : at + len(flat)] = flat
        at += _length(value.shape, value.dtype)
    return message


def _unpacked(
    message: Tensor, header: list[tuple[str, torch.Size, torch.dtype]], device: torch.device
) -> dict[str, Tensor]:
    found, at = {}, 0
    for name, shape, dtype in header:
        flat = message[at : at + shape.numel() * dtype.itemsize]
        found[name] = flat.view(dtype).view(shape).to(device)
        at += _length(shape, dtype)
    return found


# --- their beginning and end --------------------------------------------------------------------------------------


def under_torchrun() -> tuple[int, int] | None:
    """(rank, number of processes) where torchrun has started more than one; None otherwise."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    return (int(os.environ["RANK"]), size) if size > 1 and "MASTER_ADDR" in os.environ else None


def own_device(device: torch.device, wanted: str, rank: int) -> torch.device:
    """The device of a process: with `auto` and `cuda`, the GPUs in turn."""
    if device.type != "cuda" or ":" in wanted:
        return device
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", rank)) % torch.cuda.device_count())


@contextmanager
def opened(bound: Bound, device: torch.device, threads: int) -> Iterator[Alone]:
    """The processes of a run, for rank 0: those that `method.workers` asks for, or that torchrun has started.

    They are on their way when this returns; `join` waits for them.
    """
    placed, workers = under_torchrun(), getattr(bound.method.settings, "workers", 1)
    if placed is None and workers == 1:
        yield Alone()
        return
    if placed is not None and not hasattr(bound.method.settings, "workers"):
        raise ConfigError(f"method={bound.method.name}: does not divide its work among processes; start it by itself")
    world = (
        World(0, placed[1], device, named=":" in bound.run.device)
        if placed is not None
        else _launched(bound, device, threads, workers)
    )
    try:
        yield world
    finally:
        world.end()


def _launched(bound: Bound, device: torch.device, threads: int, workers: int) -> World:
    import torch.distributed as dist

    store = dist.TCPStore(  # type: ignore[attr-defined]
        "127.0.0.1", 0, workers, is_master=True, timeout=PATIENCE, wait_for_workers=False
    )
    world = World(0, workers, device, store, named=":" in bound.run.device)
    for rank in range(1, workers):
        child = subprocess.Popen(
            [sys.executable, "-P", "-c", CHILD, LIBRARY, str(os.getpid())],
            stdin=subprocess.PIPE, stdout=subprocess.DEVNULL,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )  # fmt: skip
        world.children.append(child)
        assert child.stdin is not None
        with suppress(BrokenPipeError), child.stdin as pipe:
            pipe.write(pickle.dumps(Followers(bound.tree, rank, workers, store.port, threads)))
    return world
