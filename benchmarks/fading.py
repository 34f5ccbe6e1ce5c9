"""Adam after some inputs went dark for good, as between two tasks of a stream: ours beside torch's fused one.

    python benchmarks/fading.py

A weight [1000, 1024]; after 100 updates the gradients of 300 of its columns are 0 for 1,400 more, in which Adam's mean
of them fades below the smallest normal number. Both see the same gradients; the weights must be equal bit for bit at
the end, or nothing is said. Medians of CPU time of the last 300 updates, and their ratio.
"""

from __future__ import annotations

import statistics
import time

import torch
from common import machine
from torch import nn

from advml.nn.optimisers import Adam

SHAPE, DARK, BRIGHT, UPDATES, TIMED = (1000, 1024), 300, 100, 1500, 300


def main() -> None:
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    start, gradients = torch.randn(SHAPE, generator=draw), [torch.randn(SHAPE, generator=draw) for _ in range(4)]
    dark = [gradient.clone() for gradient in gradients]
    for gradient in dark:
        gradient[:, :DARK] = 0
    sides = {"ours": nn.Parameter(start.clone()), "torch": nn.Parameter(start.clone())}
    optimisers = {
        "ours": Adam([sides["ours"]], lr=1e-4),
        "torch": torch.optim.Adam([sides["torch"]], lr=1e-4, fused=True),
    }
    times: dict[str, list[float]] = {"ours": [], "torch": []}
    for update in range(UPDATES):
        for side, parameter in sides.items():
            parameter.grad = (gradients if update < BRIGHT else dark)[update % 4]
            begin = time.process_time()
            optimisers[side].step()
            times[side].append(time.process_time() - begin)
    if not torch.equal(sides["ours"], sides["torch"]):
        raise SystemExit("the weights differ: nothing is said of time")
    ours, theirs = (statistics.median(times[side][-TIMED:]) * 1e3 for side in ("ours", "torch"))
    print(f"weights equal; ours {ours:.2f} ms, torch {theirs:.2f} ms, ratio {theirs / ours:.2f}")
    print(machine())


if __name__ == "__main__":
    main()
