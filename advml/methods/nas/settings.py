"""Keys of searches over codes: by table, by training, by weight sharing."""

from __future__ import annotations

from typing import Literal

from advml.config import CountFloat, CountInt, Fraction, PositiveFloat, PositiveInt, settings
from advml.methods.nas.common import SearchSettings


@settings
class EstimateSettings:
    """The block `estimate`: how a candidate is scored where there is no table."""

    kind: Literal["training", "sharing"]
    epochs: PositiveInt
    lr: PositiveFloat
    momentum: Fraction
    weight_decay: CountFloat
    clip_norm: PositiveFloat | None


@settings
class SearcherSettings(SearchSettings):
    """Keys of configs/method/_base/searcher.yaml."""

    evaluations: PositiveInt
    count: Literal["raw", "unique"]
    multiply_adds: PositiveFloat | None
    draw: CountInt
    repeats: PositiveInt
    marks: tuple[PositiveInt, ...]
    estimate: EstimateSettings
