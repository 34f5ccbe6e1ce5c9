"""What benchmarks share: the machine in words, and times that can be compared."""

from __future__ import annotations

import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeVar

import torch

Key = TypeVar("Key")


def machine() -> str:
    """Processor, cores, load, threads and versions: what a ratio was measured on."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    load = f"load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "load unknown"
    return (
        f"{processor()}, {os.cpu_count()} cores ({load}){gpu}, {torch.get_num_threads()} torch thread(s), "
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


def seconds(run: Callable[[], object], device: str = "cpu") -> float:
    """CPU seconds of this process in `run`: other processes on the same cores disturb it little.

    On a GPU seconds by the clock on the wall, with the GPU idle before and after.
    """
    if device == "cpu":
        start = time.process_time()
        run()
        return time.process_time() - start
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def peak_memory(run: Callable[[], object], device: str = "cpu") -> int:
    """The most bytes of tensors on the device that `run` held at once, beyond those from before.

    By torch's profiler on the CPU, by its allocator on a GPU.
    """
    if device != "cpu":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        run()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        profile.export_chrome_trace(file.name)
        events = json.loads(Path(file.name).read_text())["traceEvents"]
    told = sorted((event for event in events if event.get("name") == "[memory]"), key=lambda event: event["ts"])
    first = told[0]["args"]  # what earlier calls left allocated when they ended is still counted by the profiler
    return max(event["args"]["Total Allocated"] for event in told) - (first["Total Allocated"] - first["Bytes"])


def medians(
    runs: Mapping[Key, Callable[[], object]], repeats: Mapping[Key, int], warm: int = 0, device: str = "cpu"
) -> dict[Key, float]:
    """Median `seconds` of each run over its `repeats`. Call each once before: to compare results, and to warm up.

    The runs take turns, each evenly spread over the whole time, so that a machine that slows down or speeds up does so
    for all of them. `warm`: calls at the beginning of each turn that are not counted, for what is short and is always
    called many times in a row, so that the caches hold its own numbers, not those of the run before.
    """
    times: dict[Key, list[float]] = {name: [] for name in runs}
    turns = [((turn + 0.5) / count, name) for name, count in repeats.items() for turn in range(count)]
    for _, name in sorted(turns, key=lambda one: one[0]):
        for _ in range(warm):
            runs[name]()
        times[name].append(seconds(runs[name], device))
    return {name: statistics.median(measured) for name, measured in times.items()}
