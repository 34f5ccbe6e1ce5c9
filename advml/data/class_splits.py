"""Which classes are for training, for validation and for testing: a class is in one of them with all its examples."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from advml.config import PositiveInt, settings
from advml.contracts import Classes, Rng, Spec
from advml.errors import ConfigError

SPLITS = ("train", "valid", "test")
Share = Annotated[float, Interval(gt=0, lt=1)]


@settings
class ClassSplitSettings:
    """The keys of configs/view/episodes.yaml that say which classes are for what."""

    split: Literal["random", "dataset"]
    valid_classes: PositiveInt | Share | None
    test_classes: PositiveInt | Share | None


def split_counts(spec: Spec, config: ClassSplitSettings) -> dict[str, int]:
    """How many classes train, valid and test have. Raises ConfigError where they cannot be divided so."""
    assert isinstance(spec.target, Classes)
    if config.split == "dataset":
        if not spec.class_splits:
            raise ConfigError(
                "view.split=dataset: this data set has no official split of its classes; use view.split=random"
            )
        return {name: len(spec.class_splits[name]) for name in SPLITS}
    total = spec.target.count
    counts = {}
    for name, wanted in (("valid", config.valid_classes), ("test", config.test_classes)):
        if wanted is None:
            raise ConfigError(
                f"view.{name}_classes=null: with view.split=random, give a number or a fraction of classes"
            )
        counts[name] = round(wanted * total) if isinstance(wanted, float) else wanted
    rest = total - sum(counts.values())
    if rest < 1:
        raise ConfigError(
            f"view.valid_classes, view.test_classes: {counts['valid']} and {counts['test']} of {total} classes leave "
            f"none to train on; use smaller ones"
        )
    return {"train": rest, **counts}


def divide_classes(spec: Spec, config: ClassSplitSettings, rng: Rng) -> dict[str, Tensor]:
    """The classes of train, valid and test, ascending: official ones, or dealt at random."""
    counts = split_counts(spec, config)
    if config.split == "dataset":
        return {name: torch.tensor(spec.class_splits[name]).sort().values for name in SPLITS}
    order = torch.randperm(sum(counts.values()), generator=rng("split", "classes"))
    parts = order.split([counts[name] for name in ("test", "valid", "train")])  # test: whatever valid_classes says
    return {name: part.sort().values for name, part in zip(("test", "valid", "train"), parts, strict=True)}
