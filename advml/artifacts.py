"""What a method leaves beside its records: tables, matrices, curves as data. The runner writes and draws them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Table:
    """Rows under named columns → artifacts/NAME.csv."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


@dataclass(frozen=True)
class Heatmap:
    """A matrix with labelled rows and columns → artifacts/NAME.csv and figures/NAME.{png,svg}.

    A value of None is not defined. `limits`: what the ends of the colour scale mean; by default the extreme values.
    """

    values: Sequence[Sequence[float | None]]
    rows: Sequence[str]
    columns: Sequence[str]
    row_title: str = ""
    column_title: str = ""
    title: str = ""
    unit: str = ""
    decimals: int = 3
    limits: tuple[float, float] | None = None


@dataclass(frozen=True)
class Curve:
    """Named lines (those in `points`: points) over a common axis → artifacts/NAME.csv and figures/NAME.{png,svg}.

    `log`: y on a logarithmic axis, where all that is drawn is positive.
    """

    x: Sequence[float]
    lines: Mapping[str, Sequence[float | None]]
    x_title: str
    y_title: str
    title: str = ""
    points: Sequence[str] = ()
    log: bool = False


@dataclass(frozen=True)
class Histogram:
    """How many values lie in which bin, a row of bars for each group → artifacts/NAME.csv and figures/NAME.{png,svg}.

    `edges` of the bins, n + 1; `counts`: group → n; a value on an inner edge belongs above it.
    """

    edges: Sequence[float]
    counts: Mapping[str, Sequence[int]]
    x_title: str
    y_title: str
    title: str = ""


@dataclass(frozen=True)
class Graph:
    """Directed graphs side by side → artifacts/NAME.csv (their edges) and figures/NAME.{png,svg}.

    `nodes`: graph → names of its nodes, in an order in which every edge points forward; `edges`: graph → (from, to,
    label) by the nodes' numbers. Edges of one label have one colour; `quiet` labels are not written.
    """

    nodes: Mapping[str, Sequence[str]]
    edges: Mapping[str, Sequence[tuple[int, int, str]]]
    title: str = ""
    quiet: Sequence[str] = ("",)


@dataclass(frozen=True)
class Drawing:
    """A picture that another library draws → artifacts/NAME.txt, the same in letters, and figures/NAME.{png,svg}.

    `figure` makes it, a matplotlib Figure, when it is to be drawn.
    """

    text: str
    figure: Callable[[], Any]


@dataclass(frozen=True)
class Json:
    """Plain data → artifacts/NAME.json."""

    value: Any


Artifact = Table | Heatmap | Curve | Histogram | Graph | Drawing | Json
