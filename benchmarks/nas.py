"""A step of DARTS' search: our supernet and hypergradient against a plain supernet trained as the original code does.

    python benchmarks/nas.py                          8 channels, both orders: about three minutes
    python benchmarks/nas.py --channels 8 16          minutes more
    python benchmarks/nas.py --memory                 peak memory too: each way once more, in a process of its own
    python benchmarks/nas.py --nni                    NNI 3.0, not the plain one: pip install 'advml[bench-nas]'
    python benchmarks/nas.py --device cuda            on a GPU, but for NNI; times are of the clock on the wall

Setting: 5 cells (reductions at one and two thirds), 4 nodes, 8 operations, batches of 16 random images 32×32, 10
classes. A step is one of the architecture (Adam) and one of the weights (SGD, clipped).

`plain` computes every operation of every edge by itself in the default memory layout, except `none`, which it leaves
out; `loss.backward()` gives the gradients of weights and architecture in both steps, and the virtual step of the second
order goes through a copy of the network (quark0/darts, which itself does not run on a current Python: `async=True`).
`nni` is NNI's DARTS strategy on its own space of seven operations and zeros, to which ours is adapted: see nas_nni.py.
`ours` is engine=fused with advml.nn.hypergradient: what is not asked for is not differentiated, nothing is copied.

Equality comes first, in float64 and on 4 images: gradients of architecture and weights within 1e-10 of the largest
entry of a tensor, in the first order running statistics too, or nothing is timed. Then float32, one thread, CPU times,
the ways taking turns; medians and ratios of medians. On a machine with other work ratios move by tens of percent.
"""

from __future__ import annotations

import argparse
import copy
import resource
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from common import machine, medians, peak_memory
from torch import Tensor, nn

from advml.compose import compose
from advml.config import bind
from advml.contracts import Classes, Spec
from advml.models.build import build
from advml.nn.cells.supernet import Supernet
from advml.nn.hypergradient import first_order, second_order

TOLERANCE = 1e-10
SPEC = Spec({"image": (3, 32, 32)}, Classes(10))
LR, MOMENTUM, DECAY, CLIP = 0.025, 0.9, 3e-4, 5.0
Found = tuple[list[Tensor], list[Tensor]]
"""Gradients of the architecture, then of the weights after its step."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--channels", type=int, nargs="+", default=[8])
    parser.add_argument("--orders", type=int, nargs="+", choices=[1, 2], default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--nni", action="store_true", help="NNI is the other way; first order, which is all it has")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--one", help=argparse.SUPPRESS)  # the process whose memory is measured: WAY
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = NNI if options.nni else PLAIN
    if options.nni:
        options.orders = [1]
        if options.device != "cpu":
            parser.error("NNI is measured on the CPU only")
    if options.one:
        print(growth(options.one, options.channels[0], options.orders[0], options.device))
        return
    print(machine())
    if options.memory:  # first: a process starts with the peak of the one that starts it
        for channels in options.channels:
            for order in options.orders:
                used = {name: child(name, channels, order, options.device) for name in names}
                told = ", ".join(f"{name} {peak:,.0f} MB" for name, peak in used.items())
                print(f"C={channels} order {order}: peak memory of a step: {told}")
    for channels in options.channels:
        for order in options.orders:
            agree(names, channels, order, options.device)
            ways = {name: WAYS[name](channels, order, torch.float32, device=options.device) for name in names}
            for way in ways.values():
                way.step()
            steps = {name: way.step for name, way in ways.items()}
            times = medians(steps, dict.fromkeys(ways, options.repeats), device=options.device)
            other, ours = times.values()
            told = ", ".join(f"{name} {median:.3g} s" for name, median in times.items())
            print(f"C={channels} order {order}: {told}, {other / ours:.2f}×")


class Way:
    """A network with its two optimisers and two batches."""

    engine: str
    layout = torch.channels_last
    """How filters lie in memory."""
    nni = False
    """The space: NNI's, or ours."""

    def __init__(self, channels: int, order: int, dtype: torch.dtype, images: int = 16, device: str = "cpu") -> None:
        size = [f"model.channels={channels}", "model.cells=5", "model.nodes=4"]
        if self.nni:
            import nas_nni  # asks for NNI

            size += nas_nni.SPACE
        bound = bind(compose(["model=darts_cells", f"model.engine={self.engine}", *size])[0])
        network = build("darts_cells", bound.model.settings, SPEC, seed=0)
        assert isinstance(network, Supernet)
        if self.nni:
            nas_nni.adapt(network)
        self.network, self.order = network.to(device, dtype, memory_format=self.layout), order
        self.weights, self.architecture = network.weights(), network.architecture()
        self.sgd = torch.optim.SGD(self.weights, LR, MOMENTUM, weight_decay=DECAY)
        self.adam = torch.optim.Adam(self.architecture, 3e-4, (0.5, 0.999), weight_decay=1e-3)
        generator = torch.Generator().manual_seed(1)
        pictures = torch.randn(2, images, 3, 32, 32, generator=generator).to(device, dtype)
        labels = torch.randint(10, (2, images), generator=generator).to(device)
        self.train, self.valid = zip(pictures, labels, strict=True)

    def loss(self, batch: tuple[Tensor, Tensor], network: nn.Module | None = None) -> Tensor:
        """Cross-entropy on a batch."""
        return F.cross_entropy((network or self.network)({"image": batch[0]}), batch[1])

    def buffers(self) -> list[Tensor]:
        """SGD's momentum buffers, zeros before the first step."""
        return [self.sgd.state[w].get("momentum_buffer", torch.zeros_like(w)) for w in self.weights]

    def step(self) -> Found:
        """One step of the architecture, one of the weights."""
        alphas = self.hypergradient()
        _assign(self.architecture, alphas)
        self.adam.step()
        gradients = self.gradients()
        _assign(self.weights, gradients)
        nn.utils.clip_grad_norm_(self.weights, CLIP)
        self.sgd.step()
        return alphas, gradients

    def state(self) -> dict[str, Tensor]:
        """All weights and running averages."""
        return self.network.state_dict()

    def hypergradient(self) -> list[Tensor]:
        """That of the validation loss, with respect to the architecture."""
        raise NotImplementedError

    def gradients(self) -> list[Tensor]:
        """Those of the training loss, with respect to the weights."""
        raise NotImplementedError


class Plain(Way):
    """As the original computes."""

    engine = "plain"
    layout = torch.contiguous_format

    def hypergradient(self) -> list[Tensor]:
        if self.order == 1:
            return self._backward(self.loss(self.valid), self.network)[0]
        gradients = self._backward(self.loss(self.train), self.network)[1]
        virtual = copy.deepcopy(self.network)
        steps = zip(virtual.weights(), self.weights, self.buffers(), gradients, strict=True)
        for weight, before, buffer, gradient in steps:
            weight.data = before.data - LR * (MOMENTUM * buffer + gradient + DECAY * before.data)
        alphas, vector = self._backward(self.loss(self.valid, virtual), virtual)
        radius = 0.01 / torch.cat([one.flatten() for one in vector]).norm()
        sides = []
        for move in (radius, -2 * radius):
            for weight, one in zip(self.weights, vector, strict=True):
                weight.data.add_(one * move)
            sides.append(torch.autograd.grad(self.loss(self.train), self.architecture))
        for weight, one in zip(self.weights, vector, strict=True):
            weight.data.add_(one * radius)
        return [alpha - LR * (high - low) / (2 * radius) for alpha, high, low in zip(alphas, *sides, strict=True)]

    def gradients(self) -> list[Tensor]:
        return self._backward(self.loss(self.train), self.network)[1]

    def _backward(self, loss: Tensor, network: Supernet) -> Found:
        network.zero_grad()
        loss.backward()
        return [_gradient(p) for p in network.architecture()], [_gradient(p) for p in network.weights()]


class Ours(Way):
    """As advml computes."""

    engine = "fused"

    def hypergradient(self) -> list[Tensor]:
        if self.order == 1:
            return first_order(self.architecture, lambda: self.loss(self.valid)).gradients
        losses = (lambda: self.loss(self.train)), (lambda: self.loss(self.valid))
        more: dict[str, Any] = {"lr": LR, "momentum": MOMENTUM, "buffers": self.buffers(), "weight_decay": DECAY}
        return second_order(self.weights, self.architecture, *losses, **more).gradients

    def gradients(self) -> list[Tensor]:
        return list(torch.autograd.grad(self.loss(self.train), self.weights))


class OursInNni(Ours):
    """As advml computes NNI's space."""

    nni = True


class Nni(Way):
    """As NNI computes; `network` is where it has its weights from."""

    engine, nni, layout = "plain", True, torch.contiguous_format

    def __init__(self, channels: int, order: int, dtype: torch.dtype, images: int = 16, device: str = "cpu") -> None:
        import nas_nni

        super().__init__(channels, order, dtype, images, device)
        more: dict[str, Any] = {"lr": LR, "momentum": MOMENTUM, "decay": DECAY, "clip": CLIP, "dtype": dtype}
        self.search = nas_nni.Search(self.network, **more)

    def step(self) -> Found:
        return self.search.step(self.train, self.valid)

    def state(self) -> dict[str, Tensor]:
        return self.search.state()


WAYS: dict[str, type[Way]] = {"plain": Plain, "ours": Ours, "nni": Nni, "ours in NNI's space": OursInNni}
PLAIN, NNI = ("plain", "ours"), ("nni", "ours in NNI's space")
"""The other way, then ours."""


def _gradient(parameter: nn.Parameter) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()


def _assign(parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor]) -> None:
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient


def agree(names: Sequence[str], channels: int, order: int, device: str) -> None:
    """Refuse to time what is not equal: two steps in float64, so that the second has momentum."""
    other, ours = (WAYS[name](channels, order, torch.float64, 4, device) for name in names)
    for turn in range(2):
        found = other.step(), ours.step()
        for kind, one, two in zip(("architecture", "weights"), *found, strict=True):
            worst = max(_apart(a, b) for a, b in zip(one, two, strict=True))
            if worst > TOLERANCE:
                sys.exit(f"C={channels} order {order}: gradients of the {kind} differ by {worst:.1e} in step {turn}")
        if order == 1:  # a copy of the network has running statistics of its own
            states = other.state(), ours.state()
            worst = max(_apart(states[0][name].double(), states[1][name].double()) for name in states[0])
            if worst > TOLERANCE:
                sys.exit(f"C={channels} order {order}: states differ by {worst:.1e} after step {turn}")
    print(f"C={channels} order {order}: equal within {TOLERANCE:g}")


def _apart(one: Tensor, two: Tensor) -> float:
    return float((one - two).abs().max() / one.abs().max().clamp_min(1e-6))


def growth(name: str, channels: int, order: int, device: str) -> float:
    """MB by which the largest resident memory of this process grows in two steps; on a GPU, what they hold there."""
    way = WAYS[name](channels, order, torch.float32, device=device)

    def steps() -> None:
        way.step()
        way.step()

    if device != "cpu":
        return peak_memory(steps, device) / 1e6
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    steps()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


def child(name: str, channels: int, order: int, device: str) -> float:
    """`growth` in a process of its own."""
    size = ["--channels", str(channels), "--orders", str(order), "--device", device]
    command = [sys.executable, __file__, "--one", name, *size]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


if __name__ == "__main__":
    main()
