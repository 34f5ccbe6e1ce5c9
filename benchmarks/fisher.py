"""The Fisher diagonal: the closed form for linear layers against loops over single examples.

    python benchmarks/fisher.py

`batch-1 loop` is written as public code has it (estimate_fisher of github.com/GMvandeVen/continual-learning): for
every example a forward pass with batch 1; for its class, or for every class, −log_softmax(logits)[class].backward()
with the graph kept; then weight · p.grad² is added to a sum, parameter by parameter. The ratios to reach, 20 times
for empirical and 80 times for exact, are over this loop. `our loop` is the engine of ours that serves any network: it
spares the way through p.grad, most temporaries and, for exact, one backward pass in C. One thread, a perceptron
784-400-400-10 with its initial weights, 2,000 random examples, all of them in every run.

Equality comes first: each result may differ from the batch-1 loop's in float64 by 1e-5 of the largest entry of a
parameter, or nothing is timed. Most of a loop's difference is its own rounding, thousands of small terms added to one
float32 sum. Times are CPU times; the runs take turns, and what is printed are medians and ratios of medians.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from typing import Literal

import torch
from common import machine, medians
from torch import Tensor

from advml.contracts import Classes, Network, Spec, Split
from advml.models.mlp import Mlp, MlpSettings
from advml.nn.fisher import fisher_diagonal

TOLERANCE = 1e-5  # of the largest entry of each parameter
REACH = {"empirical": 20.0, "exact": 80.0}  # times as fast as the batch-1 loop
Kind = Literal["empirical", "exact"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=5, help="of each loop; the closed form runs 5 times as often")
    options = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(0)
    settings = MlpSettings(hidden=(400, 400), activation="relu", norm="none", dropout=0.0)
    network = Mlp(Spec({"image": (784,)}, Classes(10)), settings)
    split = Split({"image": torch.randn(options.examples, 784)}, torch.randint(10, (options.examples,)))
    print(machine())
    print(f"MLP 784-400-400-10, {options.examples:,} examples, float32; CPU time, medians")
    compare(network, split, "empirical", options.repeats)
    compare(network, split, "exact", options.repeats)


def compare(network: Network, split: Split, kind: Kind, repeats: int) -> None:
    """Check that all ways agree, time them and print the ratios."""
    runs: dict[str, Callable[[], dict[str, Tensor]]] = {
        "closed form": lambda: fisher_diagonal(network, split, kind=kind, engine="closed"),
        "our loop": lambda: fisher_diagonal(network, split, kind=kind, engine="loop"),
        "batch-1 loop": lambda: batch_1_loop(network, split, kind),
    }
    double = Split({name: values.double() for name, values in split.inputs.items()}, split.target)
    reference = batch_1_loop(copy.deepcopy(network).double(), double, kind)
    errors = {name: worst_difference(run(), reference) for name, run in runs.items()}
    if max(errors.values()) > TOLERANCE:
        raise SystemExit(f"{kind}: results differ by {errors} of the largest entry, so there is nothing to time")
    times = medians(runs, {"closed form": 5 * repeats, "our loop": repeats, "batch-1 loop": repeats})
    for name, taken in times.items():
        ratio = taken / times["closed form"]
        goal = f"  (to reach: {REACH[kind]:.0f})" if name == "batch-1 loop" else ""
        print(f"{kind:>9}  {name:<12} {taken * 1e3:9,.1f} ms {ratio:7.1f} times  off by {errors[name]:.0e}{goal}")


def batch_1_loop(network: Network, split: Split, kind: Kind) -> dict[str, Tensor]:
    """Example by example, class by class: backward(), then weight · p.grad² added to each parameter's sum."""
    network.eval()
    total = {name: torch.zeros_like(value) for name, value in network.named_parameters()}
    for row in range(len(split)):
        batch = split.batch(slice(row, row + 1))
        log_p = torch.log_softmax(network(batch.inputs), 1)[0]
        weight = log_p.detach().exp()
        for label in range(len(log_p)) if kind == "exact" else [int(batch.target)]:
            network.zero_grad()
            (-log_p[label]).backward(retain_graph=True)
            for name, value in network.named_parameters():
                assert value.grad is not None
                square = value.grad.detach() ** 2
                total[name] += weight[label] * square if kind == "exact" else square
    network.zero_grad()
    return {name: value / len(split) for name, value in total.items()}


def worst_difference(mine: dict[str, Tensor], reference: dict[str, Tensor]) -> float:
    """The largest difference in any parameter, relative to that parameter's largest entry."""
    return max(float((mine[name] - value).abs().max() / value.abs().max()) for name, value in reference.items())


if __name__ == "__main__":
    main()
