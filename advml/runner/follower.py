"""A process that follows a run which another one leads: it holds the same method and takes the same steps.

It writes no file and evaluates nothing. As a main program it is started by advml/runner/world.py, with what it needs
pickled on stdin.
"""

from __future__ import annotations

import pickle
import signal
import sys

import torch

from advml.config import Bound, bind
from advml.errors import AdvmlError
from advml.runner import environment
from advml.runner.budget import Budget
from advml.runner.randomness import numeric_settings, reseed
from advml.runner.worker import die_with
from advml.runner.world import PATIENCE, World, own_device, under_torchrun


def main(parent: int) -> None:
    """Follow to the end. Signals from the terminal are for rank 0, which decides; it dies, and this dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    die_with(parent)
    import torch.distributed as dist

    needed = pickle.load(sys.stdin.buffer)
    try:
        bound = bind(needed.tree)
        store = dist.TCPStore(  # type: ignore[attr-defined]
            "127.0.0.1", needed.port, needed.size, is_master=False, timeout=PATIENCE
        )
        store.add("here", 1)
        device = own_device(environment.resolve_device(bound.run.device), bound.run.device, needed.rank)
        follow(bound, World(needed.rank, needed.size, device, store, named=":" in bound.run.device), needed.threads)
    except (AdvmlError, RuntimeError) as error:
        sys.stderr.write(f"advml: worker {needed.rank}: {' '.join(str(error).split())[:300]}\n")
        sys.exit(1)


def followed(bound: Bound) -> bool:
    """Under torchrun, every process but the first follows that one's run to its end; False for all others."""
    placed = under_torchrun()
    if placed is None or placed[0] == 0:
        return False
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    rank, size = placed
    device = own_device(environment.resolve_device(bound.run.device), bound.run.device, rank)
    follow(
        bound, World(rank, size, device, named=":" in bound.run.device), environment.resolve_threads(bound.run.threads)
    )
    return True


def follow(bound: Bound, world: World, threads: int) -> None:
    """Set up as rank 0 does, then do as told."""
    from advml.runner.run import load_view, set_up

    with numeric_settings(threads, bound.run.deterministic):
        world.join()  # only then the data: rank 0 has read it, and fetched what was missing
        view = None if bound.dataset.name == "none" else load_view(bound, lambda text: None)
        method = set_up(bound, view, world.device, Budget(), world)
        try:
            while (order := world.told()) is not None:
                what, given = order
                if what == "load":
                    method.load_state_dict(given)
                else:
                    reseed(bound.run.seed, "step", given.total)
                    method.step(given)
        finally:
            if torch.distributed.is_initialized():
                torch.distributed.destroy_process_group()
