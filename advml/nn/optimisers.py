"""Optimisers, learning-rate schedules and gradient clipping.

The optimisers do what torch.optim's do, to the bit of every weight: Adam in the `fused` form, the others in the
`foreach` form. They are our own because constructing one of torch's loads its compiler, which costs a process more than
a short run does.
`step` leaves the gradients as they are: methods that read them afterwards find what the loss gave.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from advml.config import CountFloat, CountInt, Fraction, PositiveFloat, PositiveInt, settings
from advml.errors import AdvmlError

Tensors = list[Tensor]
Memory = dict[str, list[Tensor]]
SWEPT_EVERY = 64  # updates, in which 0.9ᵗ falls to a thousandth: from 1e-30 not as far as the subnormal numbers


@settings
class OptimiserSettings:
    """Keys of every method that has an optimiser: configs/method/_base/optimiser.yaml. Inherit from it."""

    optimiser: Literal["sgd", "adam", "adamw", "rmsprop"]
    lr: PositiveFloat
    momentum: Fraction
    nesterov: bool
    betas: tuple[Fraction, Fraction]
    weight_decay: CountFloat
    schedule: Literal["constant", "cosine", "linear", "step"]
    warmup: CountInt
    step_every: PositiveInt
    step_factor: PositiveFloat
    clip_norm: PositiveFloat | None

    def __post_init__(self) -> None:
        # "KEY: what is wrong", as advml.config shows it. A setting without effect would mislead.
        if self.momentum and self.optimiser in ("adam", "adamw"):
            raise ValueError(f"momentum: {self.optimiser} has none; set momentum to 0 or choose sgd or rmsprop")
        if self.nesterov and (self.optimiser != "sgd" or not self.momentum):
            raise ValueError("nesterov: needs optimiser sgd with a momentum above 0")


class Optimiser:
    """Moves parameters along their gradients; those without a gradient stay, and keep their own count of updates.

    `slots` name what a rule remembers of each parameter: tensors of its shape that start at zero. What has faded there
    is set to zero now and then, see `sweep`.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0, slots: Sequence[str] = ()
    ) -> None:
        self.parameters = list(parameters)
        self.lr = lr
        self.weight_decay = weight_decay
        self.updates = [0] * len(self.parameters)
        self.slots: dict[str, list[Tensor | None]] = {name: [None] * len(self.parameters) for name in slots}

    def zero_grad(self) -> None:
        """Forget all gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self) -> None:
        """One update of every parameter that has a gradient."""
        moving = [index for index, parameter in enumerate(self.parameters) if parameter.grad is not None]
        if not moving:
            return
        parameters: Tensors = [self.parameters[index] for index in moving]
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        memory: Memory = {name: [] for name in self.slots}
        for index, parameter in zip(moving, parameters, strict=True):
            self.updates[index] += 1
            for name, tensors in self.slots.items():
                tensor = tensors[index]
                if tensor is None:
                    tensor = tensors[index] = torch.zeros_like(parameter)
                memory[name].append(tensor)
        self.update(parameters, gradients, memory, [self.updates[index] for index in moving])
        if self.updates[moving[0]] % SWEPT_EVERY == 0:
            sweep(memory)

    def update(self, parameters: Tensors, gradients: Tensors, memory: Memory, updates: list[int]) -> None:
        """The rule: changes `parameters` and `memory` in place. `updates` counts from 1."""
        raise NotImplementedError

    def decayed(self, parameters: Tensors, gradients: Tensors) -> Tensors:
        """Gradients of the loss with ½ · weight_decay · ‖θ‖² added: g + weight_decay · θ."""
        if not self.weight_decay:
            return gradients
        return list(torch._foreach_add(gradients, parameters, alpha=self.weight_decay))

    def state_dict(self) -> dict[str, Any]:
        """Tensors and primitives. The tensors are the live ones, as in torch: copy them to keep a moment."""
        slots = {name: list(tensors) for name, tensors in self.slots.items()}
        return {"lr": self.lr, "updates": list(self.updates), "slots": slots}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` gave, copied to where the parameters are."""
        slots: Mapping[str, list[Tensor | None]] = state["slots"]
        if len(state["updates"]) != len(self.parameters) or set(slots) != set(self.slots):
            raise AdvmlError(
                f"the saved optimiser has {len(state['updates'])} parameters with {sorted(slots)}, this one "
                f"{len(self.parameters)} with {sorted(self.slots)}: resume with the configuration of the saved run"
            )
        self.lr = state["lr"]
        self.updates = list(state["updates"])
        for name, tensors in slots.items():
            pairs = zip(tensors, self.parameters, strict=True)
            self.slots[name] = [None if t is None else torch.empty_like(p).copy_(t) for t, p in pairs]


def sweep(memory: Memory) -> None:
    """Set to zero what is a hundred million times the smallest normal number (1e-30 in float32) or less.

    Where an input is 0 in all of a new task, Adam's mean fades: 0.9ᵗ is a subnormal number after 830 updates, which
    processors compute with many times slower, and rounding keeps it there for good. An update by such a mean is below
    lr · 1e-22 (with ε = 1e-8) and changes no bit of a weight that is not itself next to 0.
    """
    for tensors in memory.values():
        for tensor in tensors:
            tensor.masked_fill_(tensor.abs() <= 1e8 * torch.finfo(tensor.dtype).tiny, 0.0)


def alike(gradient: Tensor, to: Tensor) -> Tensor:
    """The gradient, lying in memory as the parameter does."""
    return gradient if gradient.stride() == to.stride() else torch.empty_like(to).copy_(gradient)


class Sgd(Optimiser):
    """Stochastic gradient descent with momentum (Sutskever et al. 2013, in torch's form, without dampening).

    b ← μ b + g;  θ ← θ − lr · b, or with Nesterov's look-ahead  θ ← θ − lr · (g + μ b).
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr, weight_decay, ("momentum",) if momentum else ())
        self.momentum = momentum
        self.nesterov = nesterov

    def update(self, parameters: Tensors, gradients: Tensors, memory: Memory, updates: list[int]) -> None:
        """See the class."""
        direction = gradients = self.decayed(parameters, gradients)
        if self.momentum:
            direction = memory["momentum"]
            torch._foreach_mul_(direction, self.momentum)
            torch._foreach_add_(direction, gradients)
            if self.nesterov:
                direction = list(torch._foreach_add(gradients, direction, alpha=self.momentum))
        torch._foreach_add_(parameters, direction, alpha=-self.lr)


class Adam(Optimiser):
    """Kingma and Ba 2015, algorithm 1, with weight decay as part of the gradient.

    m ← β₁ m + (1 − β₁) g;  v ← β₂ v + (1 − β₂) g²;  θ ← θ − lr · m / (1 − β₁ᵗ) / (√(v / (1 − β₂ᵗ)) + ε).
    """

    rule: ClassVar[Callable[..., Any]] = torch._fused_adam_

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr, weight_decay, ("mean", "square"))
        self.betas = betas
        self.eps = eps

    def update(self, parameters: Tensors, gradients: Tensors, memory: Memory, updates: list[int]) -> None:
        """See the class: all of it in one pass over the numbers."""
        counts = {n: torch.full((), n, dtype=torch.float32, device=parameters[0].device) for n in set(updates)}
        self.rule(
            parameters,
            [alike(gradient, to) for gradient, to in zip(gradients, parameters, strict=True)],
            memory["mean"],
            memory["square"],
            [],
            [counts[n] for n in updates],
            lr=self.lr,
            beta1=self.betas[0],
            beta2=self.betas[1],
            weight_decay=self.weight_decay,
            eps=self.eps,
            amsgrad=False,
            maximize=False,
        )


class AdamW(Adam):
    """Loshchilov and Hutter 2019: Adam, with decay apart from the gradient: θ ← (1 − lr · weight_decay) θ first."""

    rule = torch._fused_adamw_


class Rmsprop(Optimiser):
    """Tieleman and Hinton 2012, lecture 6.5, with torch's smoothing and momentum.

    v ← α v + (1 − α) g²;  b ← μ b + g / (√v + ε);  θ ← θ − lr · b.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        lr: float,
        momentum: float = 0.0,
        smoothing: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, lr, weight_decay, ("square", "momentum") if momentum else ("square",))
        self.momentum = momentum
        self.smoothing = smoothing
        self.eps = eps

    def update(self, parameters: Tensors, gradients: Tensors, memory: Memory, updates: list[int]) -> None:
        """See the class."""
        gradients = self.decayed(parameters, gradients)
        torch._foreach_mul_(memory["square"], self.smoothing)
        torch._foreach_addcmul_(memory["square"], gradients, gradients, 1 - self.smoothing)
        scale = torch._foreach_sqrt(memory["square"])
        torch._foreach_add_(scale, self.eps)
        if self.momentum:
            torch._foreach_mul_(memory["momentum"], self.momentum)
            torch._foreach_addcdiv_(memory["momentum"], gradients, scale)
            torch._foreach_add_(parameters, memory["momentum"], alpha=-self.lr)
        else:
            torch._foreach_addcdiv_(parameters, gradients, scale, -self.lr)


def make_optimiser(parameters: Iterable[nn.Parameter], settings: OptimiserSettings) -> Optimiser:
    """A fresh optimiser as the settings ask."""
    decay = settings.weight_decay
    match settings.optimiser:
        case "sgd":
            return Sgd(parameters, settings.lr, settings.momentum, settings.nesterov, decay)
        case "adam":
            return Adam(parameters, settings.lr, settings.betas, weight_decay=decay)
        case "adamw":
            return AdamW(parameters, settings.lr, settings.betas, weight_decay=decay)
        case "rmsprop":
            return Rmsprop(parameters, settings.lr, settings.momentum, weight_decay=decay)


def learning_rate(settings: OptimiserSettings, update: int, total: int) -> float:
    """The rate of update number `update` (from 0) out of `total`: position alone decides, so resuming needs no state.

    The rate rises linearly over `warmup` updates, reaching `lr` at the last of them. From there it stays, falls to 0
    at `total` along half a cosine (Loshchilov and Hutter 2017) or a line, or is multiplied by `step_factor` after
    every `step_every` updates.
    """
    if update < settings.warmup:
        return settings.lr * (update + 1) / settings.warmup
    done = update - settings.warmup
    fraction = min(1.0, done / max(1, total - settings.warmup))
    match settings.schedule:
        case "constant":
            return settings.lr
        case "cosine":
            return settings.lr * (1 + math.cos(math.pi * fraction)) / 2
        case "linear":
            return settings.lr * (1 - fraction)
        case "step":
            return settings.lr * settings.step_factor ** (done // settings.step_every)


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale all gradients by one factor so that their joint 2-norm is at most `max_norm` (Pascanu et al. 2013).

    Returns the norm before, 0-d; nothing waits for the device.
    """
    norm: Tensor = nn.utils.clip_grad_norm_(parameters, max_norm)
    return norm
