"""What the runner costs beside a bare torch loop: per step, and from the start of the process to the first step.

    python benchmarks/runner_overhead.py

Both train the 64-400-400-10 MLP on digits by Adam in batches of 128, one thread, deterministic algorithms on. The bare
script uses torch.optim and nothing of advml; it is given the same initial weights and the same order of examples, and
must end with the same bits before anything is timed. A step is an epoch (10 iterations), as `method=supervised` has it.

The cost of a step is CPU time between two records, everything included: seeds, records, timing, limits, observers. The
start-up is wall time of a fresh process until its first epoch is over, imports and data included.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
EPOCHS, REPEATS, STARTS, BATCH = 60, 7, 5, 128
OVERRIDES = [
    "dataset=digits", "model=mlp_400", f"method.batch_size={BATCH}", f"method.epochs={EPOCHS}",
    "threads=1", "device=cpu", "evaluate_every=never", "progress=off", "figures=false",
]  # fmt: skip

BARE = """
import os, time, sys
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
import torch
from torch import nn
from sklearn.datasets import load_digits
torch.set_num_threads(1)
torch.use_deterministic_algorithms(True)
torch.manual_seed(0)
data = load_digits()
images = torch.tensor(data.images, dtype=torch.float32).flatten(1)[:1222] / 16
target = torch.tensor(data.target)[:1222]
net = nn.Sequential(nn.Linear(64, 400), nn.ReLU(), nn.Linear(400, 400), nn.ReLU(), nn.Linear(400, 10))
optimiser = torch.optim.Adam(net.parameters(), lr=1e-3)
for index in torch.randperm(len(target)).split(128):
    optimiser.zero_grad()
    nn.functional.cross_entropy(net(images[index]), target[index]).backward()
    optimiser.step()
print("first epoch", flush=True)
"""


class Stopwatch:
    """An observer that notes CPU time whenever a training record passes."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def start(self, phases: Any, done: int) -> None: ...

    def record(self, record: Any) -> None:
        if record["split"] == "train":
            self.times.append(time.process_time())

    def note(self, text: str) -> None: ...

    def finish(self) -> None: ...

    def steps(self) -> list[float]:
        return [after - before for before, after in pairwise(self.times)]


def with_runner(folder: str) -> tuple[list[float], dict[str, Any]]:
    """CPU seconds of each step through the runner, and the final weights."""
    import advml
    from advml.compose import compose
    from advml.config import bind
    from advml.runner.run import Asked, start

    watch = Stopwatch()
    tree, _ = compose([*OVERRIDES, f"outputs={folder}"])
    outcome = start(bind(tree), Asked("benchmark"), [watch])
    if outcome.state != "completed":
        raise SystemExit(f"the run failed: {outcome.message}")
    return watch.steps(), advml.load(outcome.folder.path).model.state_dict()


def bare() -> tuple[list[float], dict[str, Any]]:
    """CPU seconds of each epoch of a hand-written loop with torch.optim, and the final weights."""
    import torch
    from torch import nn

    from advml.compose import compose
    from advml.config import bind
    from advml.models.build import build
    from advml.runner.randomness import KeyedRng, derive
    from advml.runner.run import load_view

    bound = bind(compose(OVERRIDES)[0])  # only for equal data, equal weights to start from and an equal order
    split = load_view(bound, print).train
    images, target, rng = split.inputs["image"], split.target, KeyedRng(0)
    normalise = split.prepare["image"][0].to(torch.device("cpu"), torch.float32)
    net = build("mlp", bound.model.settings, bound.dataset.cls(None).spec(), derive(0, "build", "model"))
    net.train()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    optimiser = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)
    times = []
    for epoch in range(EPOCHS):
        losses = []
        for index in torch.randperm(len(target), generator=rng("shuffle", epoch)).split(BATCH):
            optimiser.zero_grad()
            loss = nn.functional.cross_entropy(net({"image": normalise(images[index])}), target[index])
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
        torch.stack(losses).mean().item()
        times.append(time.process_time())
    torch.use_deterministic_algorithms(False)
    return [after - before for before, after in pairwise(times)], net.state_dict()


def start_up(folder: str) -> tuple[float, float]:
    """Wall seconds until the first epoch is over: (advml run, the bare script)."""
    words = [sys.executable, "-m", "advml", "run", *OVERRIDES, "limits.steps=1", f"outputs={folder}"]
    began = time.perf_counter()
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
    while process.poll() is None and not any(
        '"split": "train"' in path.read_text() for path in Path(folder).glob("*/*/*/metrics.jsonl")
    ):
        time.sleep(0.005)
    ours = time.perf_counter() - began
    process.wait()
    began = time.perf_counter()
    with subprocess.Popen([sys.executable, "-c", BARE], stdout=subprocess.PIPE, text=True) as script:
        assert script.stdout is not None
        script.stdout.readline()
        theirs = time.perf_counter() - began
    return ours, theirs


def main() -> None:
    import torch
    from common import machine

    with tempfile.TemporaryDirectory() as folder:
        _, ours = with_runner(folder)
        _, theirs = bare()
        different = [name for name in ours if not torch.equal(ours[name], theirs[name])]
        if different:
            raise SystemExit(f"the two end with different weights: {different}")
        print(f"final weights after {EPOCHS} epochs: equal to the bit")
        steps: dict[str, list[float]] = {"advml": [], "bare": []}
        for _ in range(REPEATS):
            steps["advml"] += with_runner(folder)[0]
            steps["bare"] += bare()[0]
    runner, loop = (statistics.median(times) for times in steps.values())
    print(f"a step of 10 iterations: advml {runner * 1e3:.3f} ms, bare loop {loop * 1e3:.3f} ms, "
          f"ratio of medians {runner / loop:.3f}")  # fmt: skip
    starts = []
    for _ in range(STARTS):
        with tempfile.TemporaryDirectory() as folder:
            starts.append(start_up(folder))
    ours_start, theirs_start = (statistics.median(column) for column in zip(*starts, strict=True))
    print(f"start to first step: advml {ours_start:.2f} s, bare script {theirs_start:.2f} s, "
          f"ratio of medians {ours_start / theirs_start:.2f}")  # fmt: skip
    print(machine())


if __name__ == "__main__":
    main()
