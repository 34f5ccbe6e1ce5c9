"""Continual learning: the Fisher diagonal of convolutions, the cost of the penalty, a whole run beside Avalanche.

    python benchmarks/continual.py fisher
    python benchmarks/continual.py penalty
    python benchmarks/continual.py avalanche data_dir=FOLDER

`fisher`: the closed form against the usual loop over single examples (benchmarks/fisher.py has it, and linear layers),
on the shipped convolutional networks at their shipped sizes, 28×28 images. Equal within 1e-5 of the largest entry.

`penalty`: one optimiser update of the MLP 784-400-400-10 (Adam, batch 128) here, without a penalty, with the analytic
gradient of the collapsed anchors, and with the penalty as a Python loop over tasks and parameters under autograd, as
public code has it; after 1, 4 and 9 earlier tasks. The two penalties' gradients are compared first. A plain step is an
update as it is usually written, torch's layers and `torch.optim.Adam(parameters)`; ours takes less time than that, so
that the penalty's share of it is larger: both are printed.

`avalanche`: split MNIST, domain-incremental (five tasks of two digits, two outputs), MLP 784-400-400-2, one epoch a
task, Adam, batch 128, in Avalanche 0.6 (Naive, EWC) and here (finetune, ewc). Avalanche's EWC squares the mean
gradient of mini-batches and has no ½: that is `fisher=batched` with twice its λ here. First both train from the same
weights on the same batches in the same order, and must end with the same weights (tasks are cut to whole batches for
this, since Avalanche's Fisher counts an incomplete last batch like a full one); then each is timed as its own users
run it, data already in memory, evaluation of all tasks after each task on both sides, loggers off. Avalanche comes with
the extra `bench`.

One thread; CPU time, medians of runs that take turns.
"""

from __future__ import annotations

import contextlib
import copy
import io
import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "penalty" in sys.argv:
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as in a run of advml, and for all three ways

import torch
from common import machine, medians
from fisher import TOLERANCE, batch_1_loop, worst_difference
from torch import Tensor, nn

from advml.compose import compose
from advml.config import Bound, bind
from advml.contracts import At, Batch, Classes, Network, Spec, Split
from advml.methods.continual.ewc import ElasticWeightConsolidation
from advml.methods.continual.finetune import Finetune
from advml.models.build import build
from advml.nn.anchor import Anchor
from advml.nn.fisher import fisher_diagonal
from advml.nn.losses import cross_entropy
from advml.nn.optimisers import make_optimiser
from advml.nn.products import keep_freed_memory


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    what, words = (sys.argv[1] if len(sys.argv) > 1 else ""), sys.argv[2:]
    print(machine())
    match what:
        case "fisher":
            for name in ("cnn", "conv4"):
                compare_fisher(name, network_of(shipped(f"model={name}"), 1, 28, 28))
        case "penalty":
            for tasks in (1, 4, 9):
                compare_penalty(tasks)
        case "avalanche":
            beside_avalanche(words)
        case _:
            raise SystemExit("name a part: fisher, penalty or avalanche")


# --- the Fisher diagonal of convolutions ---------------------------------------------------------------------------


def shipped(*words: str) -> Bound:
    """What a command with these words would use."""
    return bind(compose(list(words))[0])


def network_of(bound: Bound, *shape: int) -> Network:
    """The model of a configuration, for images of this shape in ten classes."""
    return build(bound.model.name, bound.model.settings, Spec({"image": shape}, Classes(10)), seed=0)


def compare_fisher(name: str, network: Network, examples: int = 100) -> None:
    """Check that both ways agree, time them, print the ratio."""
    split = Split({"image": torch.randn(examples, 1, 28, 28)}, torch.randint(10, (examples,)))
    double = Split({"image": split.inputs["image"].double()}, split.target)
    for kind in ("empirical", "exact"):
        runs: dict[str, Callable[[], dict[str, Tensor]]] = {
            "closed form": lambda kind=kind: fisher_diagonal(network, split, kind=kind, engine="closed"),
            "batch-1 loop": lambda kind=kind: batch_1_loop(network, split, kind),
        }
        reference = batch_1_loop(copy.deepcopy(network).double(), double, kind)
        errors = {way: worst_difference(run(), reference) for way, run in runs.items()}
        if max(errors.values()) > TOLERANCE:
            raise SystemExit(f"{name}, {kind}: results differ by {errors} of the largest entry: nothing to time")
        times = medians(runs, {"closed form": 7, "batch-1 loop": 3})
        closed, loop = (1e3 * times[way] for way in runs)
        print(f"{name:>6} {kind:<9} closed form {closed:7,.1f} ms, batch-1 loop {loop:8,.1f} ms: "
              f"{loop / closed:.1f} times, off by {errors['closed form']:.0e}")  # fmt: skip


# --- the penalty ---------------------------------------------------------------------------------------------------


def compare_penalty(tasks: int, strength: float = 10.0, updates: int = 40) -> None:
    """Updates without, with the collapsed and with the usual penalty after so many earlier tasks."""
    keep_freed_memory()  # as in a run
    bound = shipped("method=ewc", "model=mlp_400", "method.optimiser=adam")
    network = network_of(bound, 784)
    anchor = Anchor(network)
    separate: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = []
    for _ in range(tasks):
        fisher = {name: torch.rand_like(value) for name, value in network.named_parameters()}
        separate.append(({name: value.detach().clone() for name, value in network.named_parameters()}, fisher))
        anchor.consolidate(fisher)
        with torch.no_grad():
            for value in network.parameters():
                value += 0.01 * torch.randn_like(value)

    def usual() -> Tensor:
        total = torch.zeros(())
        for centres, importances in separate:
            for name, value in network.named_parameters():
                total = total + (importances[name] * (value - centres[name]).pow(2)).sum()
        return strength / 2 * total

    network.zero_grad()
    usual().backward()
    expected = [value.grad.clone() for value in network.parameters() if value.grad is not None]
    for value in network.parameters():
        value.grad = torch.zeros_like(value)
    anchor.add_gradient(strength)
    for value, other in zip(network.parameters(), expected, strict=True):
        assert value.grad is not None
        if float((value.grad - other).abs().max() / other.abs().max()) > TOLERANCE:
            raise SystemExit("the penalties' gradients differ: nothing to time")

    batch = Batch({"image": torch.randn(128, 784)}, torch.randint(10, (128,)))
    optimiser = make_optimiser(network.parameters(), bound.method.settings)

    def updating(transform: Callable[[], None] | None, penalty: Callable[[], Tensor] | None) -> Callable[[], None]:
        def run() -> None:
            for _ in range(updates):
                optimiser.zero_grad()
                value = cross_entropy(network(batch.inputs), batch)
                (value if penalty is None else value + penalty()).backward()
                if transform is not None:
                    transform()
                optimiser.step()

        return run

    runs = {
        "plain": updating(None, None),
        "collapsed": updating(lambda: anchor.add_gradient(strength), None),
        "usual": updating(None, usual),
        "torch": updating_in_torch(batch, bound.method.settings.lr, updates),
    }
    for run in runs.values():
        run()
    times = medians(runs, dict.fromkeys(runs, 25))
    plain, collapsed, loop, torchs = (1e3 * taken / updates for taken in times.values())
    added = collapsed - plain
    print(f"{tasks} earlier: plain step {torchs:.2f} ms, ours {plain:.2f} ms; penalty collapsed +{added:.2f} ms "
          f"({100 * added / torchs:.0f} % of a plain step, to reach: 20 %; {100 * added / plain:.0f} % of ours), "
          f"usual +{loop - plain:.2f} ms ({100 * (loop / plain - 1):.0f} %)")  # fmt: skip


def updating_in_torch(batch: Batch, lr: float, updates: int) -> Callable[[], None]:
    """Plain updates of the same network as torch's documentation writes them."""
    sizes = [784, 400, 400, 10]
    layers = [nn.Linear(*pair) for pair in itertools.pairwise(sizes)]
    network = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])
    optimiser = torch.optim.Adam(network.parameters(), lr)

    def run() -> None:
        for _ in range(updates):
            optimiser.zero_grad()
            nn.functional.cross_entropy(network(batch.inputs["image"]), batch.target).backward()
            optimiser.step()

    return run


# --- a whole run beside Avalanche ----------------------------------------------------------------------------------

STRENGTH = 50.0  # Avalanche's λ
RUN = ["dataset=mnist", "dataset.normalise=unit", "dataset.valid=0", "view=stream", "view.scenario=domain",
       "view.tasks=5", "model=mlp_400", "method.iterations=null", "method.epochs=1", "method.batch_size=128",
       "method.block=100", "method.fresh_optimiser=false", "method.lr=0.001", "seed=0", "threads=1", "device=cpu",
       "progress=off", "figures=false", "baselines=off"]  # fmt: skip
OURS = {
    "Naive": ["method=finetune"],
    "EWC": ["method=ewc", "method.anchor=separate", "method.fisher=batched", "method.fisher_batch_size=128",
            f"method.strength={2 * STRENGTH}"],
}  # fmt: skip


def beside_avalanche(words: Sequence[str]) -> None:
    """Equal weights from equal batches, then times."""
    import advml

    operators = declare_operators()
    with tempfile.TemporaryDirectory() as folder:

        def ours(name: str) -> Any:
            with contextlib.redirect_stdout(io.StringIO()):
                return advml.run(*OURS[name], *RUN, f"outputs={folder}", *words)

        stream = stream_of(words)
        whole = [len(task.train) // 128 * 128 for task in stream]
        tasks = (replace(t, train=t.train.take(torch.arange(n))) for t, n in zip(stream, whole, strict=True))
        cut = type(stream)(tuple(tasks), stream.scenario, stream.spec, stream.record)
        for name in OURS:
            context = context_of(name, cut, words)
            begun = context.build().state_dict()
            own = train_ours(context)
            others = train_avalanche(name, as_benchmark(cut), context.build(), batches_of(context))
            off = max(float((own[key] - value).abs().max()) for key, value in others.items())
            moved = max(float((value - begun[key]).abs().max()) for key, value in others.items())
            print(f"{name}: from equal batches weights differ by {off:.1e} at most, having moved by {moved:.2f}")
            if off > 1e-3 * moved:
                raise SystemExit("the results differ: nothing to time")
        benchmark, context = as_benchmark(stream), context_of("Naive", stream, words)
        for name in OURS:
            runs: dict[str, Callable[[], object]] = {
                "advml": lambda name=name: ours(name),
                "avalanche": lambda name=name: train_avalanche(name, benchmark, context.build(), None),
            }
            times = medians(runs, dict.fromkeys(runs, 3))
            mine, theirs = times.values()
            print(f"{name}: advml {mine:.1f} s, Avalanche {theirs:.1f} s: {theirs / mine:.1f} times")
    del operators


def stream_of(words: Sequence[str]) -> Any:
    """The tasks that `advml run` has."""
    from advml.runner.run import load_view

    stream: Any = load_view(shipped(*OURS["Naive"], *RUN, *words), lambda text: None)
    return stream.to(torch.device("cpu"), torch.float32)


def context_of(name: str, stream: Any, words: Sequence[str]) -> Any:
    """What the runner hands to a method: source of weights and orders."""
    from advml.runner.budget import Budget
    from advml.runner.context import RunContext

    bound = shipped(*OURS[name], *RUN, *words)
    cpu = torch.device("cpu")
    return RunContext(bound.method.settings, stream, bound.model, 0, cpu, "float32", Budget())


def train_ours(context: Any) -> dict[str, Tensor]:
    """Step by step as the runner does; the final weights."""
    method = ElasticWeightConsolidation() if hasattr(context.settings, "fisher") else Finetune()
    method.setup(context)
    total = 0
    for number, phase in enumerate(method.phases()):
        for index in range(phase.steps):
            method.step(At(number, index, total, index == phase.steps - 1))
            total += 1
    return method.network.state_dict()


def declare_operators() -> torch.library.Library:
    """Let torchvision, which Avalanche imports, load beside a CPU build of torch, that has none of its operators.

    Nothing here calls them. The library must be kept: its operators go with it.
    """
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def as_benchmark(stream: Any) -> Any:
    """Avalanche's form of the tasks: float tensors in memory."""
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.utils import as_classification_dataset
    from torch.utils.data import TensorDataset

    def datasets(part: str) -> list[Any]:
        found = []
        for task in stream:
            batch = task.split(part).batch(slice(None))
            dataset = TensorDataset(batch.inputs["image"], batch.target)
            dataset.targets = batch.target.tolist()  # type: ignore[attr-defined]
            found.append(as_classification_dataset(dataset))
        return found

    return benchmark_from_datasets(train=datasets("train"), test=datasets("test"))


def batches_of(context: Any) -> list[list[tuple[Tensor, Tensor, Tensor]]]:
    """The batches of one epoch of each task, in the order that `advml run` draws."""
    found = []
    for number, task in enumerate(context.data):
        order = torch.randperm(len(task.train), generator=context.rng("shuffle", number, 0))
        each = [task.train.batch(index) for index in order.split(128)]
        found.append([(one.inputs["image"], one.target, torch.zeros_like(one.target)) for one in each])
    return found


class Flat(nn.Module):
    """A network of ours for a caller that passes a tensor."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Images [B, ...] → logits."""
        outputs: Tensor = self.network({"image": image})
        return outputs


def train_avalanche(
    name: str, benchmark: Any, network: Network, batches: Sequence[Sequence[Any]] | None
) -> dict[str, Tensor]:
    """Train on all tasks in turn, on given batches or on its own loader's; the final weights."""
    from avalanche.evaluation.metrics import accuracy_metrics
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.supervised import EWC, Naive

    kind = Naive if name == "Naive" else EWC
    given = iter(batches or ())

    class Given(kind):  # type: ignore[misc, valid-type]
        """With batches in the place of its loader's."""

        def make_train_dataloader(self, **options: Any) -> None:
            self.dataloader = next(given)

    model = Flat(network)  # the same Adam where results are compared, as ours is fused; torch's default where timed
    optimiser = torch.optim.Adam(model.parameters(), lr=0.001, fused=batches is not None)
    more = {} if name == "Naive" else {"ewc_lambda": STRENGTH, "mode": "separate"}
    with contextlib.redirect_stdout(io.StringIO()):
        strategy = (kind if batches is None else Given)(
            model=model, optimizer=optimiser, criterion=nn.CrossEntropyLoss(),
            train_mb_size=128, train_epochs=1, eval_mb_size=1024,
            evaluator=EvaluationPlugin(accuracy_metrics(experience=True), loggers=[]), **more,
        )  # fmt: skip
        for experience in benchmark.train_stream:
            strategy.train(experience)
            strategy.eval(benchmark.test_stream)
    return network.state_dict()


if __name__ == "__main__":
    main()
