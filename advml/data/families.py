"""Families of functions: data sets that draw regression tasks instead of holding examples (Finn, Abbeel, Levine 2017).

A task is a row of parameters, its examples are points of its function. All is drawn and computed on the CPU in float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from advml.config import CountInt, PositiveInt, settings
from advml.contracts import Batch, Prepare, Real, Spec
from advml.data.few_shot import TaskShape
from advml.data.source import Source

Range = tuple[float, float]


class Family(Protocol):
    """Functions of real inputs, told apart by parameters."""

    def parameters(self, count: int, rng: torch.Generator) -> Tensor:
        """`count` functions drawn at random, float64 [T, P]."""
        ...

    def inputs(self, parameters: Tensor, number: int, rng: torch.Generator) -> Tensor:
        """`number` inputs for each function [T, P], float64 [T, number, D]."""
        ...

    def values(self, parameters: Tensor, x: Tensor) -> Tensor:
        """The functions [T, P] at x [T, n, D]: float64 [T, n, 1]."""
        ...

    def grid(self, parameters: Tensor, points: int) -> Tensor | None:
        """Evenly spaced inputs [points, 1] over the range of a function [P]; None where inputs are no numbers."""
        ...


@dataclass(frozen=True)
class FamilyTasks:
    """Tasks from a family, for the view of episodes: those of all splits are of the same kind."""

    family: Family
    device: torch.device
    dtype: torch.dtype

    @property
    def prepare(self) -> Mapping[str, tuple[Prepare, ...]]:
        """Inputs are given to networks as they are."""
        return {}

    def to(self, device: torch.device, dtype: torch.dtype) -> FamilyTasks:
        """The same tasks, given on a device."""
        return replace(self, device=device, dtype=dtype)

    def draw(
        self, split: str, shape: TaskShape, count: int, rng: torch.Generator
    ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """What the support and the query of `count` tasks consist of: parameters [T, P] and inputs [T, M, D]."""
        parameters = self.family.parameters(count, rng)
        x = self.family.inputs(parameters, shape.shots + shape.queries, rng)
        return (parameters, x[:, : shape.shots]), (parameters, x[:, shape.shots :])

    def batch(self, drawn: tuple[Tensor, ...]) -> Batch:
        """The points that were drawn, [T, M, D], and the values there."""
        parameters, x = drawn
        y = self.family.values(parameters, x)
        return Batch({"x": self._given(x)}, self._given(y))

    def curve(self, parameters: Tensor, points: int) -> tuple[Tensor, Tensor] | None:
        """A function [P] over its range: inputs and values, [points, 1] each."""
        x = self.family.grid(parameters, points)
        if x is None:
            return None
        y = self.family.values(parameters.unsqueeze(0), x.unsqueeze(0))[0]
        return self._given(x), self._given(y)

    def _given(self, values: Tensor) -> Tensor:
        return values.to(self.device, self.dtype, non_blocking=True)


def uniform(limits: Range, size: tuple[int, ...], rng: torch.Generator) -> Tensor:
    """Float64 numbers between the two limits, evenly distributed."""
    low, high = limits
    return low + (high - low) * torch.rand(size, generator=rng, dtype=torch.float64)


def _check_ranges(**ranges: Range) -> None:
    for name, (low, high) in ranges.items():
        if low > high:
            raise ValueError(f"{name}: goes from {low:g} to {high:g}; name the smaller number first")


@settings
class FamilySettings:
    """The key that every family has: the seed of its evaluation tasks."""

    split_seed: CountInt | None


@settings
class SinusoidSettings(FamilySettings):
    """The keys of configs/dataset/sinusoid.yaml."""

    amplitude: Range
    phase: Range
    x: Range

    def __post_init__(self) -> None:
        """The smaller number comes first."""
        _check_ranges(amplitude=self.amplitude, phase=self.phase, x=self.x)


class Sinusoid:
    """y = A · sin(x − φ), with A and φ drawn for each task (Finn, Abbeel, Levine 2017, section 5.1)."""

    settings: ClassVar[type] = SinusoidSettings

    def __init__(self, settings: SinusoidSettings) -> None:
        self.config = settings

    def spec(self) -> Spec:
        """A number → a number."""
        return Spec({"x": (1,)}, Real((1,)), drawn=True)

    def load(self, source: Source) -> Family:
        """Itself: there is nothing to read."""
        return self

    def parameters(self, count: int, rng: torch.Generator) -> Tensor:
        """Amplitude and phase, [T, 2]."""
        ranges = (self.config.amplitude, self.config.phase)
        return torch.stack([uniform(limits, (count,), rng) for limits in ranges], 1)

    def inputs(self, parameters: Tensor, number: int, rng: torch.Generator) -> Tensor:
        """Evenly distributed over the range, [T, number, 1]."""
        return uniform(self.config.x, (len(parameters), number, 1), rng)

    def values(self, parameters: Tensor, x: Tensor) -> Tensor:
        """A · sin(x − φ)."""
        amplitude, phase = (column.reshape(-1, 1, 1) for column in parameters.unbind(1))
        return amplitude * torch.sin(x - phase)

    def grid(self, parameters: Tensor, points: int) -> Tensor:
        """The whole range, the same for every task."""
        return torch.linspace(*self.config.x, points, dtype=torch.float64).unsqueeze(1)


@settings
class HarmonicsSettings(FamilySettings):
    """The keys of configs/dataset/harmonics.yaml."""

    frequency: Range
    phase: Range
    centre: Range

    def __post_init__(self) -> None:
        """The smaller number comes first."""
        _check_ranges(frequency=self.frequency, phase=self.phase, centre=self.centre)


class Harmonics:
    """y = a₁ · sin(ωx + b₁) + a₂ · sin(2ωx + b₂), seen around a centre of its own (Lacoste et al. 2018).

    a₁, a₂ ~ N(0, 1), and x ~ N(centre, 1); the distributions as read in torchmeta's `Harmonic`, without noise.
    """

    settings: ClassVar[type] = HarmonicsSettings
    reach = 2.0  # standard deviations of x on either side that `grid` shows

    def __init__(self, settings: HarmonicsSettings) -> None:
        self.config = settings

    def spec(self) -> Spec:
        """A number → a number."""
        return Spec({"x": (1,)}, Real((1,)), drawn=True)

    def load(self, source: Source) -> Family:
        """Itself: there is nothing to read."""
        return self

    def parameters(self, count: int, rng: torch.Generator) -> Tensor:
        """Two amplitudes, two phases, frequency and centre, [T, 6]."""
        amplitudes = torch.randn(count, 2, generator=rng, dtype=torch.float64)
        phases = uniform(self.config.phase, (count, 2), rng)
        others = [uniform(limits, (count, 1), rng) for limits in (self.config.frequency, self.config.centre)]
        return torch.cat([amplitudes, phases, *others], 1)

    def inputs(self, parameters: Tensor, number: int, rng: torch.Generator) -> Tensor:
        """Normally distributed around the centre of each task, [T, number, 1]."""
        spread = torch.randn(len(parameters), number, 1, generator=rng, dtype=torch.float64)
        return parameters[:, None, 5:] + spread

    def values(self, parameters: Tensor, x: Tensor) -> Tensor:
        """The sum of the two waves."""
        a1, a2, b1, b2, frequency, _ = (column.reshape(-1, 1, 1) for column in parameters.unbind(1))
        return a1 * torch.sin(frequency * x + b1) + a2 * torch.sin(2 * frequency * x + b2)

    def grid(self, parameters: Tensor, points: int) -> Tensor:
        """Two standard deviations of x around the task's centre."""
        around = torch.linspace(-self.reach, self.reach, points, dtype=torch.float64)
        return (parameters[5] + around).unsqueeze(1)


@settings
class LinearSettings(FamilySettings):
    """The keys of configs/dataset/linear_tasks.yaml."""

    features: PositiveInt


class LinearTasks:
    """y = a · x with a and x normally distributed: tasks whose best step is known, to test methods on."""

    settings: ClassVar[type] = LinearSettings
    reach = 3.0  # the range that `grid` shows, on either side of 0

    def __init__(self, settings: LinearSettings) -> None:
        self.config = settings

    def spec(self) -> Spec:
        """`features` numbers → a number."""
        return Spec({"x": (self.config.features,)}, Real((1,)), drawn=True)

    def load(self, source: Source) -> Family:
        """Itself: there is nothing to read."""
        return self

    def parameters(self, count: int, rng: torch.Generator) -> Tensor:
        """The slopes a, [T, features]."""
        return torch.randn(count, self.config.features, generator=rng, dtype=torch.float64)

    def inputs(self, parameters: Tensor, number: int, rng: torch.Generator) -> Tensor:
        """[T, number, features]."""
        return torch.randn(len(parameters), number, self.config.features, generator=rng, dtype=torch.float64)

    def values(self, parameters: Tensor, x: Tensor) -> Tensor:
        """a · x."""
        return x @ parameters.unsqueeze(-1)

    def grid(self, parameters: Tensor, points: int) -> Tensor | None:
        """From −3 to 3, where there is one feature."""
        if self.config.features > 1:
            return None
        return torch.linspace(-self.reach, self.reach, points, dtype=torch.float64).unsqueeze(1)
