"""A step of ordinary training in a run of advml, beside the same network as one would write it with torch alone.

    python benchmarks/training.py [--repeats 30]

Both start from the same weights and see the same batches. *ours*: the network as `model=…` builds it, our Adam, and
what a run sets before it begins. *torch*: nn.Linear for our linear layers, filters as torch lays them out, its Adam as
it comes, no environment variable. Each is a process of its own with one thread. The losses of the first 3 steps must
agree to a thousandth, or nothing is timed (later the two drift apart, as rounding makes them); then CPU time of a
step: medians, and their ratio.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

NETWORKS = {  # model, its settings, input, batch size
    "MLP 784-400-400-10": ("mlp_400", (1, 28, 28), 128),
    "MLP 784-1000-1000-10": ("mlp_1000", (1, 28, 28), 128),
    "cnn": ("cnn", (1, 28, 28), 64),
    "conv4": ("conv4", (1, 28, 28), 128),
    "DARTS_V2, 5 cells, C=16": ("genotype", (1, 28, 28), 64),
}
SET = {"OMP_WAIT_POLICY": "PASSIVE", "THP_MEM_ALLOC_ENABLE": "1"}  # by the command line of advml
COMPARED, WARM, TOLERANCE = 3, 17, 1e-3


def child(side: str, name: str, repeats: int) -> None:
    """Print the losses of the first steps and the seconds of the others, as JSON."""
    import torch

    torch.set_num_threads(1)
    step = steps_of(side, name)
    losses = [step() for _ in range(COMPARED)]
    for _ in range(WARM):
        step()
    times = []
    for _ in range(repeats):
        begin = time.process_time()
        step()
        times.append(time.process_time() - begin)
    print(json.dumps({"losses": losses, "times": times}))


def steps_of(side: str, name: str) -> Callable[[], float]:
    """A function that takes one step and gives the loss before it."""
    import torch
    from torch import nn

    from advml.compose import compose
    from advml.config import bind
    from advml.contracts import Classes, Spec
    from advml.models.build import build
    from advml.nn.affine import Affine
    from advml.nn.optimisers import Adam
    from advml.nn.products import keep_freed_memory

    model, shape, batch = NETWORKS[name]
    part = bind(compose(["method=supervised", f"model={model}", "dataset=mnist"])[0]).model
    network = build(part.name, part.settings, Spec({"image": shape}, Classes(10)), 0).train()
    if side == "ours":
        keep_freed_memory()
        optimiser = Adam(network.parameters(), 1e-3)
    else:
        network.to(memory_format=torch.contiguous_format)
        for module in network.modules():
            if isinstance(module, Affine):
                module.__class__ = nn.Linear
        optimiser = torch.optim.Adam(network.parameters(), 1e-3)
    draw = torch.Generator().manual_seed(0)
    inputs, target = torch.rand(4 * batch, *shape, generator=draw), torch.randint(10, (4 * batch,), generator=draw)
    batches = list(zip(inputs.split(batch), target.split(batch), strict=True))
    done = [0]

    def step() -> float:
        image, wanted = batches[done[0] % len(batches)]
        done[0] += 1
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(network({"image": image}), wanted)
        loss.backward()
        optimiser.step()
        return loss.item()

    return step


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--child", nargs=2)
    asked = parser.parse_args()
    if asked.child:
        child(*asked.child, asked.repeats)
        return
    for name in NETWORKS:
        found = {}
        for side in ("ours", "torch"):
            environment = {key: value for key, value in os.environ.items() if key not in SET}
            environment |= SET if side == "ours" else {}
            words = [sys.executable, __file__, "--repeats", str(asked.repeats), "--child", side, name]
            done = subprocess.run(words, env=environment, stdout=subprocess.PIPE, check=True)
            found[side] = json.loads(done.stdout)
        worst = max(abs(a / b - 1) for a, b in zip(found["ours"]["losses"], found["torch"]["losses"], strict=True))
        if worst > TOLERANCE:
            raise SystemExit(f"{name}: losses differ by {worst:.1e} of their size")
        ours, theirs = (statistics.median(found[side]["times"]) * 1e3 for side in ("ours", "torch"))
        print(f"{name}: ours {ours:.2f} ms, torch {theirs:.2f} ms, ratio {theirs / ours:.2f} (losses to {worst:.0e})")
    from common import machine

    print(machine())


if __name__ == "__main__":
    main()
