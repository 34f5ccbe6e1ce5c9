"""What benchmarks share: the machine in words, and times that can be compared."""

from __future__ import annotations

import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch


def machine() -> str:
    """Processor, cores, load, threads and versions: what a ratio was measured on."""
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    return (
        f"{processor()}, {os.cpu_count()} cores ({load}), {torch.get_num_threads()} torch thread(s), "
        f"torch {torch.__version__}, Python {platform.python_version()}, {platform.system()}"
    )


def processor() -> str:
    """The processor's name, as far as the system tells it."""
    described = Path("/proc/cpuinfo")
    if described.exists():
        for line in described.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def seconds(run: Callable[[], object]) -> float:
    """CPU seconds of this process in `run`: other processes on the same cores disturb it little."""
    start = time.process_time()
    run()
    return time.process_time() - start


def medians(runs: Mapping[str, Callable[[], object]], repeats: Mapping[str, int]) -> dict[str, float]:
    """Median CPU seconds of each run over its `repeats`. Call each once before: to compare results, and to warm up.

    The runs take turns, each evenly spread over the whole time, so that a machine that slows down or speeds up does so
    for all of them.
    """
    times: dict[str, list[float]] = {name: [] for name in runs}
    turns = sorted(((turn + 0.5) / count, name) for name, count in repeats.items() for turn in range(count))
    for _, name in turns:
        times[name].append(seconds(runs[name]))
    return {name: statistics.median(measured) for name, measured in times.items()}
