"""What a job of `advml sweep` costs beside a shell loop of `advml run`: the same jobs, one by one, each in a process.

    python benchmarks/sweep_overhead.py [JOBS] [REPEATS]

The jobs are tiny (a linear model on iris, two epochs), so that what is measured is everything around the training:
starting Python, importing torch, composing, folders. The records of both must be equal byte by byte before a time
counts. The shell loop composes each job with Hydra in the job's own process; the sweep composes all of them beforehand
and hands each child a finished configuration. The sweep's own start is shared by its jobs: it is divided among them.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
OVERRIDES = [
    "dataset=iris", "model=linear", "method.epochs=2", "threads=1", "device=cpu", "progress=off", "figures=false",
    "baselines=off",
]  # fmt: skip
ADVML = [sys.executable, "-m", "advml"]


def cost(words: list[list[str]], folder: Path) -> tuple[float, float]:
    """(wall seconds, CPU seconds of all children) of commands one after another, in a shell."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    lines = "\n".join(" ".join(f"'{word}'" for word in command) for command in words)
    subprocess.run(["sh", "-e", "-c", lines], cwd=folder, check=True, capture_output=True)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def records(outputs: Path) -> dict[str, bytes]:
    """The bytes of metrics.jsonl by seed (the line of overrides.txt that names it)."""
    found = {}
    for file in outputs.glob("*/*/*/metrics.jsonl"):
        words = (file.parent / "overrides.txt").read_text().splitlines()
        (seed,) = [word for word in words if word.startswith("seed=")]
        found[seed] = file.read_bytes()
    return found


def once(jobs: int) -> tuple[tuple[float, float], tuple[float, float]]:
    """((wall, CPU) of a job in the loop, (wall, CPU) of a job in the sweep); stops if their records differ."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "loop").mkdir()
        (folder / "sweep").mkdir()
        seeds = [f"seed={seed}" for seed in range(jobs)]
        loop = cost([[*ADVML, "run", seed, *OVERRIDES] for seed in seeds], folder / "loop")
        several = f"seed=range(0,{jobs})"
        sweep = cost([[*ADVML, "sweep", several, *OVERRIDES, "hydra/launcher=process"]], folder / "sweep")
        one, other = records(folder / "loop/outputs"), records(folder / "sweep/outputs")
        if len(one) != jobs or one != other:
            raise SystemExit("the records of the two differ")
    return (loop[0] / jobs, loop[1] / jobs), (sweep[0] / jobs, sweep[1] / jobs)


def main() -> None:
    from common import machine

    jobs = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    repeats = int(sys.argv[2]) if len(sys.argv) > 2 else 3
    measured = [once(jobs) for _ in range(repeats)]
    print(f"{jobs} jobs, {repeats} times: all records equal, byte by byte")
    for number, name in enumerate(("wall", "CPU")):
        loop, sweep = (statistics.median(pair[side][number] for pair in measured) for side in (0, 1))
        print(f"{name} seconds per job: shell loop {loop:.2f}, sweep {sweep:.2f}, ratio of medians {sweep / loop:.2f}")
    print(machine())


if __name__ == "__main__":
    main()
