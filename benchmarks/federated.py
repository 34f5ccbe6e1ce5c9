"""A round of federated averaging: ours against the loop of tutorials, a tight loop and Flower's simulation.

    python benchmarks/federated.py                    rounds, and the cost per client up to 10,000 clients
    python benchmarks/federated.py --model cnn        rounds of the paper's CNN: 2 clients of 600 images
    python benchmarks/federated.py --flower           also Flower, where installed: pip install 'advml[bench-federated]'

Setting: 20 clients of 60 images 28×28, all in every round, the 2NN of McMahan et al. 2017 (784-200-200-10), batches of
10, one local epoch, plain SGD. Images are random. `naive` copies the network, reads each client's batches from a
DataLoader and trains with torch.optim, filters lying as torch lays them; `tight` indexes tensors and updates in place,
filters lying as ours. Flower runs its own FedAvg over
Ray with the naive client, on as many processes as there are cores, at most two.

Equality comes first: after two rounds in float64 no weight may differ by more than 1e-12 (Flower: 1e-10; it sums in
the order in which clients answer), or nothing is timed. Then in float32, one thread: medians of CPU times of rounds
that take turns. Flower is compared by the wall clock: its rounds after the first, and its whole job of 11 rounds from a
fresh process to its end, beside a fresh process of ours. With other work on the machine ratios move by tens of percent:
take them for provisional unless the load is low.

Population: K clients of 6 images, all in one round, K from 100 to 10,000; CPU time per client, and how much the largest
resident memory of the process grew while training.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median

os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as in a run of advml, and for all ways

import torch
from common import machine, medians, seconds
from federated_setting import clients, naive_round, network, ours, tight_round, worst_difference

from advml.contracts import At
from advml.data.clients import Clients
from advml.nn.products import keep_freed_memory

COUNT, EXAMPLES, JOB = 20, 60, 11
OF_CNN = 2, 600  # clients, and images of each, as many as in the paper
TOLERANCE, IN_ANY_ORDER = 1e-12, 1e-10
POPULATIONS = (100, 1_000, 10_000)
HERE = Path(__file__)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--model", choices=["mlp_2nn", "cnn"], default="mlp_2nn")
    parser.add_argument("--flower", action="store_true")
    parser.add_argument("--population", type=int, default=None, help="one size only, in this process")
    parser.add_argument("--job", action="store_true", help="only our whole job, in this process")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.population is not None:
        print(json.dumps(population(options.population)))
        return
    if options.job:
        play(our_round(torch.float32), JOB)
        return
    print(machine())
    compare_rounds(options.repeats, options.model)
    if options.model == "cnn":
        return
    if options.flower:
        compare_flower()
    for count in POPULATIONS:
        found = json.loads(fresh_process(["--population", str(count)]))
        print(f"{count:>7,} clients: {found['ms']:6.2f} ms a client, {found['mb']:7.1f} MB more at the most")


# --- the ways -----------------------------------------------------------------------------------------------------


class Way:
    """A network and a round that moves it."""

    def __init__(self, step: Callable[[int], object], model: torch.nn.Module) -> None:
        self.step, self.model = step, model


def setting(dtype: torch.dtype, model: str) -> Clients:
    """The clients."""
    return clients(*(OF_CNN if model == "cnn" else (COUNT, EXAMPLES)), dtype)


def our_round(dtype: torch.dtype, model: str = "mlp_2nn") -> Way:
    """The method as it is shipped, its bookkeeping included."""
    method = ours(setting(dtype, model), dtype, model, rounds=1000)
    return Way(lambda number: method.step(At(0, number, number, False)), method.network)


def of_loop(run: Callable[..., None], layout: torch.memory_format) -> Callable[..., Way]:
    """A round that is a function of network, clients and number."""

    def make(dtype: torch.dtype, model: str = "mlp_2nn") -> Way:
        start, view = network(dtype, model).to(memory_format=layout), setting(dtype, model)
        return Way(lambda number: run(start, view, number), start)

    return make


WAYS = {
    "ours": our_round,
    "tight": of_loop(tight_round, torch.preserve_format),
    "naive": of_loop(naive_round, torch.contiguous_format),
}


def play(way: Way, rounds: int) -> dict[str, torch.Tensor]:
    """The weights after so many rounds."""
    for number in range(rounds):
        way.step(number)
    return {name: value.clone() for name, value in way.model.state_dict().items()}


# --- the comparisons ----------------------------------------------------------------------------------------------


def compare_rounds(repeats: int, model: str) -> None:
    """One round in this process."""
    keep_freed_memory()  # as in a run
    reference = play(WAYS["naive"](torch.float64, model), 2)
    errors = {name: worst_difference(play(make(torch.float64, model), 2), reference) for name, make in WAYS.items()}
    if max(errors.values()) > TOLERANCE:
        raise SystemExit(f"weights differ by {errors}, so there is nothing to time")
    ways = {name: make(torch.float32, model) for name, make in WAYS.items()}
    for way in ways.values():
        way.step(0)
    times = medians({name: lambda way=way: way.step(1) for name, way in ways.items()}, dict.fromkeys(ways, repeats))
    for name, taken in times.items():
        ratio = taken / times["ours"]
        print(f"one round  {name:<7} {taken * 1e3:8.1f} ms CPU {ratio:6.2f} times ours  off by {errors[name]:.0e}")


def compare_flower() -> None:
    """Warm rounds and whole jobs by the wall clock."""
    if find_spec("flwr") is None or find_spec("ray") is None:
        print("Flower: not installed: pip install 'advml[bench-federated]'")
        return
    reference = play(WAYS["naive"](torch.float64), 2)
    weights, _, _ = flower(2, "float64")
    error = worst_difference(weights, reference)
    if error > IN_ANY_ORDER:
        raise SystemExit(f"Flower's weights differ by {error}, so there is nothing to time")
    _, rounds, job = flower(JOB, "float32")
    way = our_round(torch.float32)
    way.step(0)
    mine = median(wall(lambda: way.step(1)) for _ in range(20))
    start = time.perf_counter()
    fresh_process(["--job"])
    whole = time.perf_counter() - start
    print(f"Flower: off by {error:.0e}; its first round {rounds[0]:.2f} s")
    warm = median(rounds[1:])
    print(f"warm round  ours {mine * 1e3:8.1f} ms  Flower {warm * 1e3:8.1f} ms  {warm / mine:6.1f} times ours")
    print(f"{JOB} rounds, a process  ours {whole:6.1f} s  Flower {job:6.1f} s  {job / whole:6.1f} times ours")


def wall(run: Callable[[], object]) -> float:
    """Seconds by the clock."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def flower(rounds: int, dtype: str) -> tuple[dict[str, torch.Tensor], list[float], float]:
    """(weights, seconds of each round, seconds of the whole process)."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.pt"
        program = [sys.executable, str(HERE.with_name("federated_flower.py"))]
        start = time.perf_counter()
        done = subprocess.run(
            [*program, str(rounds), dtype, str(min(2, os.cpu_count() or 1)), str(path)], capture_output=True, text=True
        )
        taken = time.perf_counter() - start
        if done.returncode or not path.exists():
            raise SystemExit(f"Flower failed: {(done.stderr.strip().splitlines() or ['no word why'])[-1]}")
        return torch.load(path, weights_only=True), json.loads(path.with_name("weights.pt.json").read_text()), taken


def population(count: int) -> dict[str, float]:
    """One round over all of `count` clients, in this process."""
    method = ours(clients(count, 6, torch.float32), torch.float32, rounds=10, fraction=100 / count)
    method.step(At(0, 0, 0, False))  # a hundred of them, to warm up
    method = ours(clients(count, 6, torch.float32), torch.float32, rounds=10)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    taken = seconds(lambda: method.step(At(0, 0, 0, False)))
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"ms": taken / count * 1e3, "mb": (after - before) / 1024}


def fresh_process(words: list[str]) -> str:
    """What this program says when started with these words."""
    return subprocess.run([sys.executable, str(HERE), *words], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
