"""The Fisher diagonal: the closed form for linear layers against two loops over single examples.

    python benchmarks/fisher.py

`usual loop` is written as public code has it: backward() for each example (and class), squares added parameter by
parameter, as in estimate_fisher of github.com/GMvandeVen/continual-learning. `our loop` is the engine that serves any
network; it spares the gradients' way through p.grad and most temporaries. One thread, a perceptron 784-400-400-10
with its initial weights, 2,000 random examples, all of them in every run. Results are compared before anything is
timed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Literal

import torch
from common import machine, medians
from torch import Tensor, nn

from advml.contracts import Classes, Network, Spec, Split
from advml.models.mlp import Mlp, MlpSettings
from advml.nn.fisher import fisher_diagonal

TOLERANCE = 1e-5  # of the largest entry of each parameter
Kind = Literal["empirical", "exact"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--examples", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=11, help="of the closed form")
    parser.add_argument("--loops", type=int, default=3, help="repeats of each loop")
    options = parser.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(0)
    settings = MlpSettings(hidden=(400, 400), activation="relu", norm="none", dropout=0.0)
    network = Mlp(Spec({"image": (784,)}, Classes(10)), settings)
    split = Split({"image": torch.randn(options.examples, 784)}, torch.randint(10, (options.examples,)))
    print(machine())
    print(f"MLP 784-400-400-10, {options.examples:,} examples, float32; CPU time, medians of runs that take turns")
    repeats = {"closed form": options.repeats, "our loop": options.loops, "usual loop": options.loops}
    for kind in ("empirical", "exact"):
        compare(network, split, kind, repeats)


def compare(network: Network, split: Split, kind: Kind, repeats: dict[str, int]) -> None:
    """Check that all ways agree, time them and print the ratios."""
    runs: dict[str, Callable[[], dict[str, Tensor]]] = {
        "closed form": lambda: fisher_diagonal(network, split, kind=kind, engine="linear"),
        "our loop": lambda: fisher_diagonal(network, split, kind=kind, engine="loop"),
        "usual loop": lambda: usual_loop(network, split, kind),
    }
    reference = runs["usual loop"]()
    errors = {name: worst_difference(run(), reference) for name, run in runs.items()}
    if max(errors.values()) > TOLERANCE:
        raise SystemExit(f"{kind}: results differ by {errors} of the largest entry, so there is nothing to time")
    times = medians(runs, repeats)
    for name, taken in times.items():
        print(
            f"{kind:>9}  {name:<11} {taken * 1e3:9,.1f} ms  ({repeats[name]} repeats)  "
            f"closed form is {taken / times['closed form']:6.1f} times as fast   differs by {errors[name]:.0e}"
        )


def usual_loop(network: Network, split: Split, kind: Kind) -> dict[str, Tensor]:
    """Example by example, class by class: backward(), then weight · p.grad² added to each parameter's sum."""
    network.eval()
    total = {name: torch.zeros_like(value) for name, value in network.named_parameters()}
    for row in range(len(split)):
        batch = split.batch(slice(row, row + 1))
        logits = network(batch.inputs)
        probability = logits.detach().softmax(1)[0]
        for label in range(logits.shape[1]) if kind == "exact" else [int(batch.target)]:
            loss = nn.functional.cross_entropy(logits, torch.tensor([label]))
            network.zero_grad()
            loss.backward(retain_graph=True)
            for name, value in network.named_parameters():
                assert value.grad is not None
                square = value.grad.detach() ** 2
                total[name] += probability[label] * square if kind == "exact" else square
    network.zero_grad()
    return {name: value / len(split) for name, value in total.items()}


def worst_difference(mine: dict[str, Tensor], reference: dict[str, Tensor]) -> float:
    """The largest difference in any parameter, relative to that parameter's largest entry."""
    return max(float((mine[name] - value).abs().max() / value.abs().max()) for name, value in reference.items())


if __name__ == "__main__":
    main()
