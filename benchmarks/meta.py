"""The gradient of one MAML meta-iteration: ours against TorchOpt, higher and a loop over tasks.

    python benchmarks/meta.py                 beside all that is installed: pip install 'advml[bench-meta]'
    python benchmarks/meta.py --compile       also ours compiled (method.compile=true), on sine waves: minutes more
    python benchmarks/meta.py --device cuda   on a GPU, where times are of the clock on the wall

Settings: a perceptron 1-40-40-1 on 25 tasks of 10 points (sine waves), 1 and 5 inner steps of rate 0.01; and MAML's
Omniglot network (4 blocks of 64 channels, stride 2, batch norm by the batch at hand) on 5-way 1-shot tasks, one inner
step of rate 0.4, with as many queries as shots (as in the paper's code) and with 15 per class. Examples are random.

`loop` is written with torch.func alone: task by task, `functional_call` and `torch.autograd.grad`, a backward pass for
each. `TorchOpt` is its MetaSGD, the network's state put back after every task; `higher` its inner-loop context: both as
in their own examples of MAML. learn2learn, once the common yardstick, does not build on Python 3.11.

Equality comes first: in float64 every gradient may differ from the loop's by 1e-10 of the largest entry of a parameter,
or nothing is timed. Then in float32, one thread, CPU times, the runs taking turns; medians and ratios of medians. On
sine waves two calls at the beginning of each turn are not counted: a meta-iteration follows others of its own kind, in
the same caches. Beside the time the most bytes of tensors held at once. With other work on the machine ratios move by
tens of percent: take them for provisional unless the load is low.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from common import machine, medians, peak_memory
from torch import Tensor, nn

from advml.compose import compose
from advml.config import bind
from advml.contracts import Batch, Classes, Network, Real, Spec
from advml.data.episodes import Tasks
from advml.data.few_shot import TaskShape
from advml.methods.meta.maml import Maml
from advml.models.build import build

TOLERANCE = 1e-10  # in float64, of the largest entry of each parameter
Gradients = Callable[[], list[Tensor]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=45, help="of each way on sine waves; images have a ninth")
    parser.add_argument("--image-tasks", type=int, default=32, help="tasks of images in a meta-iteration (MAML: 32)")
    parser.add_argument("--only", choices=["sine", "images"], default=None)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    if options.only != "images":
        for steps in (1, 5):
            setting = sines(steps).on(options.device)
            compare(f"sine waves, {steps} inner step(s)", setting, options.repeats, options.compile, warm=2)
    if options.only != "sine":
        for queries in (1, 15):
            setting = images(queries, options.image_tasks).on(options.device)
            compare(f"conv4-64, {5 * queries} queries a task", setting, max(3, options.repeats // 9))


def sines(steps: int) -> Setting:
    """25 tasks of 10 points to learn from and 10 to be tested on."""
    spec = Spec({"x": (1,)}, Real((1,)))
    halves = [Batch({"x": torch.randn(25, 10, 1)}, torch.randn(25, 10, 1)) for _ in range(2)]
    return Setting(spec, "mlp_40", Tasks(*halves), TaskShape(None, 10, 10), steps, 0.01)


def images(queries: int, tasks: int) -> Setting:
    """Tasks of 5 classes with one image of each, and some to be tested on."""
    spec = Spec({"image": (1, 28, 28)}, Classes(5))
    labels = [torch.arange(5).repeat(each).expand(tasks, -1).contiguous() for each in (1, queries)]
    halves = [Batch({"image": torch.rand(*target.shape, 1, 28, 28)}, target) for target in labels]
    return Setting(spec, "conv4_stride", Tasks(*halves), TaskShape(5, 1, queries), 1, 0.4)


class Setting:
    """A network, tasks, and how a task is adapted to; in float64 or float32."""

    def __init__(self, spec: Spec, model: str, tasks: Tasks, shape: TaskShape, steps: int, rate: float) -> None:
        self.spec, self.tasks, self.shape, self.steps, self.rate = spec, tasks, shape, steps, rate
        bound = bind(compose(["method=maml", f"model={model}"])[0])
        self.settings = replace(bound.method.settings, steps=steps, inner_lr=rate, tasks=len(tasks.query.target))
        self.network = build(bound.model.name, bound.model.settings, spec, seed=0)

    @property
    def device(self) -> str:
        """cpu or cuda."""
        return self.tasks.query.target.device.type

    def on(self, device: str) -> Setting:
        """The same on another device."""
        return self._with(lambda values: values.to(device))

    def as_type(self, dtype: torch.dtype) -> Setting:
        """The same in another type of floats."""
        return self._with(lambda values: values.to(dtype) if values.is_floating_point() else values)

    def _with(self, change: Callable[[Tensor], Tensor]) -> Setting:
        other = copy.copy(self)
        other.network = copy.deepcopy(self.network)._apply(change)
        other.tasks = Tasks(*(_changed(half, change) for half in self.tasks))
        return other

    def each(self) -> list[tuple[Batch, Batch]]:
        """(support, query) of one task after the other."""
        count = range(len(self.tasks.query.target))
        return [tuple(_nth(half, number) for half in self.tasks) for number in count]  # type: ignore[misc]


def _changed(batch: Batch, change: Callable[[Tensor], Tensor]) -> Batch:
    return Batch({name: change(values) for name, values in batch.inputs.items()}, change(batch.target))


def _nth(batch: Batch, number: int) -> Batch:
    return Batch({name: values[number] for name, values in batch.inputs.items()}, batch.target[number])


def loss_of(outputs: Tensor, target: Tensor) -> Tensor:
    """Of one task."""
    return F.mse_loss(outputs, target) if target.is_floating_point() else F.cross_entropy(outputs, target)


# --- the ways -----------------------------------------------------------------------------------------------------


def ours(setting: Setting, compiled: bool = False) -> Gradients:
    """The method as it is shipped, at the setting given; the optimiser's step and the drawing of tasks left out."""
    learner = Maml()
    view = SimpleNamespace(
        spec=setting.spec, ways=setting.shape.ways, shots=setting.shape.shots,
        config=SimpleNamespace(shape=lambda split: setting.shape),
    )  # fmt: skip
    config = replace(setting.settings, compile=compiled)
    context: Any = SimpleNamespace(settings=config, data=view, build=lambda: copy.deepcopy(setting.network))
    learner.setup(context)

    def run() -> list[Tensor]:
        learner.optimiser.zero_grad()
        learner.differentiate(setting.tasks)
        return gradients(learner.network)

    return run


def gradients(network: nn.Module) -> list[Tensor]:
    """Of all parameters, as they are now."""
    return [parameter.grad for parameter in network.parameters() if parameter.grad is not None]


def loop(setting: Setting) -> Gradients:
    """Task by task, by torch.func."""
    network, share = fresh(setting), 1 / len(setting.tasks.query.target)

    def run() -> list[Tensor]:
        network.zero_grad()
        for support, query in setting.each():
            values: dict[str, Tensor] = dict(network.named_parameters())
            for _ in range(setting.steps):
                loss = loss_of(torch.func.functional_call(network, values, (support.inputs,)), support.target)
                found = torch.autograd.grad(loss, list(values.values()), create_graph=True)
                values = {name: v - setting.rate * g for (name, v), g in zip(values.items(), found, strict=True)}
            (share * loss_of(torch.func.functional_call(network, values, (query.inputs,)), query.target)).backward()
        return gradients(network)

    return run


def torchopt_way(setting: Setting) -> Gradients:
    """TorchOpt's MetaSGD, the state before a task put back after it."""
    import torchopt  # type: ignore[import-not-found]

    network, share = fresh(setting), 1 / len(setting.tasks.query.target)
    inner = torchopt.MetaSGD(network, lr=setting.rate)

    def run() -> list[Tensor]:
        network.zero_grad()
        begin = torchopt.extract_state_dict(network, by="reference", detach_buffers=True)
        state = torchopt.extract_state_dict(inner, by="reference")
        start = list(network.parameters())
        total = start[0].new_zeros(())
        for support, query in setting.each():
            for _ in range(setting.steps):
                inner.step(loss_of(network(support.inputs), support.target))
            total = total + share * loss_of(network(query.inputs), query.target)
            torchopt.recover_state_dict(network, begin)
            torchopt.recover_state_dict(inner, state)
        total.backward()
        return [parameter.grad for parameter in start if parameter.grad is not None]

    return run


def higher_way(setting: Setting) -> Gradients:
    """higher's inner-loop context, one backward pass for each task."""
    import higher  # type: ignore[import-not-found]

    network, share = fresh(setting), 1 / len(setting.tasks.query.target)
    inner = torch.optim.SGD(network.parameters(), lr=setting.rate)

    def run() -> list[Tensor]:
        network.zero_grad()
        for support, query in setting.each():
            with higher.innerloop_ctx(network, inner, copy_initial_weights=False) as (copied, stepped):
                for _ in range(setting.steps):
                    stepped.step(loss_of(copied(support.inputs), support.target))
                (share * loss_of(copied(query.inputs), query.target)).backward()
        return gradients(network)

    return run


def fresh(setting: Setting) -> Network:
    """A copy of the network in training mode: batch norms use the batch at hand."""
    return copy.deepcopy(setting.network).train()


# --- the comparison -----------------------------------------------------------------------------------------------


def compare(title: str, setting: Setting, repeats: int, compiled: bool = False, warm: int = 0) -> None:
    """Check that all ways agree, time them, measure the memory they hold and print all with the ratios of times."""
    ways: dict[str, Callable[[Setting], Gradients]] = {"ours": ours, "loop": loop}
    if compiled:
        ways["compiled"] = lambda setting: ours(setting, compiled=True)
    for name, way, module in (("TorchOpt", torchopt_way, "torchopt"), ("higher", higher_way, "higher")):
        try:
            __import__(module)
        except ImportError:
            print(f"{name}: not installed: pip install 'advml[bench-meta]'")
        else:
            ways[name] = way
    reference = [value.clone() for value in loop(setting.as_type(torch.float64))()]
    errors = {name: worst_difference(way(setting.as_type(torch.float64))(), reference) for name, way in ways.items()}
    if max(errors.values()) > TOLERANCE:
        raise SystemExit(f"{title}: gradients differ by {errors} of the largest entry, so there is nothing to time")
    runs = {name: way(setting) for name, way in ways.items()}
    for run in runs.values():
        run()
    times = medians(runs, dict.fromkeys(runs, repeats), warm, setting.device)
    for name, taken in times.items():
        ratio, memory = taken / times["ours"], peak_memory(runs[name], setting.device) / 1e6
        print(
            f"{title:<32} {name:<9} {taken * 1e3:9,.2f} ms {ratio:6.2f} times ours {memory:8,.1f} MB "
            f"off by {errors[name]:.0e}"
        )


def worst_difference(found: list[Tensor], reference: list[Tensor]) -> float:
    """The largest difference in any parameter, relative to that parameter's largest entry.

    A thousandth of the largest of all counts at least: the true gradient of a shift before a batch norm is zero.
    """
    least = max(float(value.abs().max()) for value in reference) / 1000
    pairs = zip(found, reference, strict=True)
    return max(float((a - b).abs().max()) / max(float(b.abs().max()), least) for a, b in pairs)


if __name__ == "__main__":
    main()
