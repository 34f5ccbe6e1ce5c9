"""A series: several data sets as one, each with classes of its own (MNIST, then Fashion-MNIST, then KMNIST)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from advml import registry
from advml.config import INTERFACE, bind_settings, settings
from advml.contracts import Classes, Spec, Split
from advml.data.embedded import MadeSettings
from advml.data.omniglot import OmniglotSettings
from advml.data.source import Dataset, Loaded, Source, describe, hold_out
from advml.errors import AdvmlError, ConfigError


@settings
class SeriesSettings(MadeSettings, OmniglotSettings):
    """Which data sets, and the keys that one or another of them has."""

    parts: tuple[str, ...]

    def __post_init__(self) -> None:
        """At least two, each once."""
        if len(self.parts) < 2:
            raise ValueError("parts: name two data sets or more, like [mnist,fashion_mnist]")
        if twice := [name for name in self.parts if self.parts.count(name) > 1]:
            raise ValueError(f"parts: {twice[0]} is named twice; name each data set once")


class Series:
    """The examples of `parts` one after another. Classes of a part follow those of the part before it, and the part's
    number is the group of its examples.
    """

    settings = SeriesSettings

    def __init__(self, settings: SeriesSettings) -> None:
        self.config = settings
        self.parts = {name: _part(name, settings) for name in settings.parts}

    def spec(self) -> Spec:
        """The inputs that all parts share → the classes of all. Raises ConfigError where the inputs differ."""
        specs = {name: part.spec() for name, part in self.parts.items()}
        groups = {name: classes_of(name, spec) for name, spec in specs.items()}
        (first, one), *others = specs.items()
        for name, other in others:
            if (other.inputs, other.tokens) != (one.inputs, one.tokens):
                raise ConfigError(
                    f"dataset.parts: all need inputs of one shape, but {first} has {_shown(one)} and {name} "
                    f"{_shown(other)}"
                )
        return Spec(one.inputs, Classes(sum(groups.values())), groups, tokens=one.tokens, streams=one.streams)

    def load(self, source: Source) -> Loaded:
        """Each part limited and, where it has no official test split, divided as it would be alone."""
        examples, tests, record = [], [], []
        places: dict[str, list[Tensor]] = {"examples": [], "test": []}
        files: dict[str, str] = {}
        scales: dict[str, float | None] = {}
        first = 0
        for number, (name, part) in enumerate(self.parts.items()):
            try:
                loaded = part.load(source)
            except AdvmlError as error:
                raise AdvmlError(f"series: {error}") from error
            if loaded.valid is not None:
                raise ConfigError(f"dataset.parts: {name} divides its examples itself; leave it out")
            kept, test, held_out = hold_out(loaded, self.config, source.rng)
            remaining, classes = loaded.examples.take(kept), classes_of(name, part.spec())
            examples.append(_placed(remaining, number, first))
            tests.append(_placed(test, number, first))
            scales[name] = loaded.scale
            files |= {f"{name}/{file}": sha256 for file, sha256 in loaded.files.items()}
            counts = {"examples": describe(remaining, kept), "test": describe(test, held_out)}
            record.append({"name": name, "first_class": first, "classes": classes, **counts})
            places["examples"].append(kept)
            places["test"].append(held_out)
            first += classes
        if len(set(scales.values())) > 1:
            shown = " and ".join(f"{name} {'any' if scale is None else f'{scale:g}'}" for name, scale in scales.items())
            raise ConfigError(f"dataset.parts: the largest stored values differ ({shown}), so that one would be faint")
        scale = next(iter(scales.values()))
        numbers = {name: torch.cat(of) for name, of in places.items()}
        return Loaded(_joined(examples), _joined(tests), scale, files, limited=True, record={"parts": record},
                      places=numbers)  # fmt: skip


def classes_of(name: str, spec: Spec) -> int:
    """How many classes a part has. Raises ConfigError where it has none."""
    if not isinstance(spec.target, Classes):
        raise ConfigError(f"dataset.parts: {name} has no classes (see: advml list datasets)")
    return spec.target.count


def _part(name: str, config: SeriesSettings) -> Dataset:
    """A data set with those settings of the series that it has."""
    try:
        cls: Any = registry.resolve("dataset", name)
    except ConfigError as error:
        raise ConfigError(f"dataset.parts: {error}") from None
    if missing := [key for key in INTERFACE["dataset"] if not hasattr(cls, key)]:
        raise ConfigError(f"dataset.parts: {name} is no dataset: it lacks {', '.join(missing)} (see docs/extending.md)")
    if issubclass(cls, Series):
        raise ConfigError(f"dataset.parts: {name} is a series itself; name its parts instead")
    wanted = [field.name for field in fields(cls.settings)]
    if lacking := [key for key in wanted if not hasattr(config, key)]:
        raise ConfigError(f"dataset.parts: {name} needs {', '.join(lacking)}, which a series does not have")
    dataset: Dataset = cls(bind_settings(cls.settings, {key: getattr(config, key) for key in wanted}, "dataset."))
    return dataset


def _placed(part: Split, number: int, first: int) -> Split:
    """The examples as group `number`, their classes counted from `first`."""
    return replace(part, target=part.target + first, group=torch.full((len(part),), number))


def _joined(parts: Sequence[Split]) -> Split:
    inputs = {name: torch.cat([part.inputs[name] for part in parts]) for name in parts[0].inputs}
    groups = [part.group for part in parts if part.group is not None]
    return Split(inputs, torch.cat([part.target for part in parts]), torch.cat(groups))


def _shown(spec: Spec) -> str:
    return ", ".join(f"{name} {list(shape)}" for name, shape in spec.inputs.items()) or "none"
