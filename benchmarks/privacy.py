"""A step of differentially private training (DP-SGD): ours against Opacus and against example by example.

    python benchmarks/privacy.py              beside Opacus, where installed: pip install "advml[bench-privacy]"

Settings: the perceptron of study/private_mnist (784-64-10), the 2NN of McMahan et al. 2017 (784-200-200-10), a network
of two convolutions (5×5, 32 and 64 channels, 512 hidden units), and Conv-4 with group norm (64 channels). A step is:
gradients of all examples of a batch of random images clipped to C = 1, noise of σ = 1, the mean over the expected
number, SGD. Ours is `train_privately` as a run calls it, with the drawing of the batch and its gathering in it; Opacus
gets the batch as it is, and draws the same amount of noise.

`Opacus` writes down every example's gradient, as its PrivacyEngine does by default; `Opacus, ghost` clips by norms
found without them and differentiates twice, as grad_sample_mode="ghost" does. `example by example` is our reference.

Equality comes first: in float64 without noise, where a bound clips about half of the examples, every gradient may
differ from the loop's by 1e-10 of a parameter's largest entry, Opacus' by 1e-6, since it adds 1e-6 to each norm; and
without a bound (C = 1e6) Opacus' too by 1e-7. Otherwise nothing is timed. Then in float32, one thread, CPU times, the
runs taking turns; medians and ratios of medians. Beside the time the most bytes of tensors held at once (16 MiB of ours
are reserved and never written to: advml/nn/products.py). With other work on the machine ratios move by tens of percent:
take them for provisional unless the load is low.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from common import machine, medians, peak_memory
from torch import Tensor, nn

from advml.compose import compose
from advml.config import bind
from advml.contracts import Batch, Classes, Network, Spec, Split
from advml.models.build import build
from advml.nn.clipped import clipped_sums
from advml.nn.losses import cross_entropy
from advml.nn.optimisers import make_optimiser
from advml.nn.private_training import Privacy, train_privately
from advml.runner.randomness import KeyedRng

SPEC = Spec({"image": (1, 28, 28)}, Classes(10))
SETTINGS = {
    "mlp 784-64-10": (("model=mlp", "model.hidden=[64]"), 512),
    "2NN 784-200-200-10": (("model=mlp_2nn",), 256),
    "two convolutions": (("model=cnn", "model.channels=[32,64]", "model.hidden=512"), 128),
    "conv4-64, group norm": (("model=conv4", "model.norm=group"), 128),
}
OURS, BY_OPACUS, UNCLIPPED = 1e-10, 1e-6, 1e-7  # of a parameter's largest entry
LR = 0.1
Step = Callable[[], object]


class Setting:
    """A network, a batch, and how it is trained on; in float64 or float32."""

    def __init__(self, words: tuple[str, ...], examples: int, dtype: torch.dtype, clip: float, noise: float) -> None:
        privacy = ("kind=example", f"clip={clip}", f"noise={noise}", "target_epsilon=null", "sampling=fixed")
        given = ["method=dp_sgd", *words, "dataset=mnist", f"method.lr={LR}", "method.optimiser=sgd",
                 "method.momentum=0.0", "method.warmup=0", "method.schedule=constant",
                 *(f"method.privacy.{word}" for word in privacy)]  # fmt: skip
        bound = bind(compose(given)[0])
        self.config, self.examples, self.clip, self.noise = bound.method.settings, examples, clip, noise
        self.network = build(bound.model.name, bound.model.settings, SPEC, seed=0).to(dtype)
        generator = torch.Generator().manual_seed(0)
        image = torch.rand(examples, 1, 28, 28, generator=generator).to(dtype)
        self.split = Split({"image": image}, torch.randint(10, (examples,), generator=generator))

    def fresh(self) -> Network:
        """A copy of the network in training mode."""
        return copy.deepcopy(self.network).train()


class Way:
    """A step that moves a network, whose gradients can be looked at afterwards."""

    def __init__(self, network: nn.Module, step: Step) -> None:
        self.network, self.step = network, step

    def gradients(self) -> list[Tensor]:
        """How the network has moved in one step, over the rate."""
        before = [value.detach().clone() for value in self.network.parameters()]
        self.step()
        moved = zip(before, self.network.parameters(), strict=True)
        return [(old - new.detach()) / LR for old, new in moved]


# --- the ways -----------------------------------------------------------------------------------------------------


def ours(setting: Setting) -> Way:
    """An update of dp_sgd; the batch is all examples, drawn without replacement."""
    network = setting.fresh()
    optimiser = make_optimiser(network.parameters(), setting.config)
    privacy = Privacy(setting.config.privacy, setting.examples, setting.examples, 1, KeyedRng(0))

    def step() -> object:
        return train_privately(
            network, setting.split, cross_entropy, optimiser, privacy, settings=setting.config, start=0, stop=1,
            total=1, count=lambda **work: None,
        )  # fmt: skip

    return Way(network, step)


def loop(setting: Setting) -> Way:
    """Example by example: our own reference."""
    network = setting.fresh()

    def step() -> None:
        whole = lambda limit: [setting.split.batch(slice(None))]  # noqa: E731
        sums, _, _ = clipped_sums(network, whole, cross_entropy, setting.clip, "loop")
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                noise = torch.randn_like(parameter) * (setting.noise * setting.clip)
                parameter -= LR * (sums[name] + noise) / setting.examples

    return Way(network, step)


def opacus(setting: Setting) -> Way:
    """Opacus by hooks, as its PrivacyEngine sets it up by default."""
    from opacus.grad_sample import GradSampleModule  # type: ignore[import-not-found]
    from opacus.optimizers import DPOptimizer  # type: ignore[import-not-found]

    wrapped = GradSampleModule(setting.fresh())
    optimiser = DPOptimizer(torch.optim.SGD(wrapped.parameters(), LR), **privately(setting))
    inputs, target, _ = setting.split.batch(slice(None))

    def step() -> None:
        optimiser.zero_grad()
        F.cross_entropy(wrapped(inputs), target).backward()
        optimiser.step()

    return Way(wrapped, step)


def opacus_ghost(setting: Setting) -> Way:
    """Opacus by ghost norms."""
    from opacus.grad_sample import GradSampleModuleFastGradientClipping
    from opacus.optimizers import DPOptimizerFastGradientClipping
    from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping  # type: ignore[import-not-found]

    wrapped = GradSampleModuleFastGradientClipping(setting.fresh(), max_grad_norm=setting.clip, use_ghost_clipping=True)
    optimiser = DPOptimizerFastGradientClipping(torch.optim.SGD(wrapped.parameters(), LR), **privately(setting))
    loss = DPLossFastGradientClipping(wrapped, optimiser, nn.CrossEntropyLoss(), loss_reduction="mean")
    inputs, target, _ = setting.split.batch(slice(None))

    def step() -> None:
        optimiser.zero_grad()
        loss(wrapped(inputs), target).backward()
        optimiser.step()

    return Way(wrapped, step)


def privately(setting: Setting) -> Mapping[str, Any]:
    """What Opacus' optimisers are told."""
    return {"noise_multiplier": setting.noise, "max_grad_norm": setting.clip, "expected_batch_size": setting.examples}


# --- the comparison -----------------------------------------------------------------------------------------------


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--only", choices=SETTINGS, default=None)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    ways: dict[str, Callable[[Setting], Way]] = {"ours": ours, "example by example": loop}
    try:
        import opacus as installed
    except ImportError:
        print("Opacus: not installed: pip install 'advml[bench-privacy]'")
    else:
        print(f"Opacus {installed.__version__}")
        ways |= {"Opacus": opacus, "Opacus, ghost": opacus_ghost}
    for title in [options.only] if options.only else SETTINGS:
        compare(title, ways, options.repeats)


def compare(title: str, ways: Mapping[str, Callable[[Setting], Way]], repeats: int) -> None:
    """Check that all ways agree, time them, measure the memory they hold and print all with the ratios of times."""
    words, examples = SETTINGS[title]
    half = half_clipped(words, examples)
    errors = differences(ways, Setting(words, examples, torch.float64, half, 0.0))
    free = differences(ways, Setting(words, examples, torch.float64, 1e6, 0.0))
    if errors["ours"] > OURS or max(errors.values()) > BY_OPACUS or max(free.values()) > UNCLIPPED:
        raise SystemExit(f"{title}: gradients differ by {errors}, unclipped {free}: there is nothing to time")
    made = {name: way(Setting(words, examples, torch.float32, 1.0, 1.0)) for name, way in ways.items()}
    for way in made.values():
        way.step()
    counts = {name: max(2, repeats // 8) if name == "example by example" else repeats for name in made}
    times = medians({name: way.step for name, way in made.items()}, counts)
    for name, taken in times.items():
        memory = peak_memory(made[name].step) / 1e6
        print(
            f"{title:<22} {name:<19} {taken * 1e3:9,.2f} ms {taken / times['ours']:7.2f} times ours "
            f"{memory:8,.1f} MB, off by {errors[name]:.0e} (unclipped {free[name]:.0e})"
        )


def half_clipped(words: tuple[str, ...], examples: int) -> float:
    """The median norm of the examples' gradients at the beginning."""
    setting = Setting(words, examples, torch.float64, 1.0, 0.0)
    whole: Callable[[int | None], list[Batch]] = lambda limit: [setting.split.batch(slice(None))]  # noqa: E731
    return float(clipped_sums(setting.fresh(), whole, cross_entropy, 1.0, "loop").norms.median())


def differences(ways: Mapping[str, Callable[[Setting], Way]], setting: Setting) -> dict[str, float]:
    """The largest difference of each way's gradients from the loop's, relative to a parameter's largest entry."""
    reference = loop(setting).gradients()
    found = {}
    for name, way in ways.items():
        pairs = zip(way(setting).gradients(), reference, strict=True)
        found[name] = max(float((a - b).abs().max()) / float(b.abs().max()) for a, b in pairs)
    return found


if __name__ == "__main__":
    main()
