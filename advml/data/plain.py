"""The plain view: train, valid and test, nothing more."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch

from advml.config import settings
from advml.contracts import Prepare, Rng, Spec, Split
from advml.data.source import Splits


@settings
class PlainSettings:
    """Nothing to set."""


class Plain:
    """The whole data set at once: `train`, `valid`, `test`."""

    kind: ClassVar[str] = "plain"
    settings: ClassVar[type] = PlainSettings

    def __init__(self, train: Split, valid: Split, test: Split, spec: Spec, record: Mapping[str, Any]) -> None:
        self.train, self.valid, self.test, self.spec, self.record = train, valid, test, spec, record

    @staticmethod
    def view_spec(spec: Spec, settings: PlainSettings) -> Spec:
        """Networks see the data set's own spec."""
        return spec

    @classmethod
    def of(cls, splits: Splits, settings: PlainSettings, rng: Rng) -> Plain:
        """The view of divided examples."""
        return cls(splits.train, splits.valid, splits.test, splits.spec, splits.record)

    def split(self, name: str) -> Split:
        """`train`, `valid` or `test` by name."""
        return {"train": self.train, "valid": self.valid, "test": self.test}[name]

    @property
    def prepare(self) -> Mapping[str, tuple[Prepare, ...]]:
        """The normalisation fitted on train."""
        return self.train.prepare

    def to(self, device: torch.device, dtype: torch.dtype) -> Plain:
        """All examples on a device."""
        train, valid, test = (part.to(device, dtype) for part in (self.train, self.valid, self.test))
        return Plain(train, valid, test, self.spec, self.record)

    def describe(self) -> Mapping[str, Any]:
        """Sizes, classes and hashes."""
        return self.record
