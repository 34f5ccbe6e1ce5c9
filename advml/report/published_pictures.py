"""Pictures of a study, made from its document (report/published.py) alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from advml.report.heat import mean_map
from advml.report.layout import STYLE, Picture, heatmaps, style_of
from advml.report.published import columns_of, found_in, title_of, words
from advml.report.reached import absent
from advml.report.stats import Interval
from advml.runner import figures

SIZES = ("derived_parameters", "parameters")  # of the network that a search found, or of the one that was trained


def pictures(said: Mapping[str, Any]) -> dict[str, Picture]:
    """NAME: rows against the published numbers. NAME_parameters: results against size, where the study counts it.
    NAME_TABLE: the mean matrix of each row, for every kept table.
    """
    made = {said["study"]: _beside_published(said)}
    if size := next((name for name in SIZES if name in said.get("counts", ())), None):
        made[f"{said['study']}_parameters"] = _against_size(said, size)
    for table in dict.fromkeys(name for row in said["rows"].values() for run in row["runs"] for name in run["tables"]):
        for column in _panels(said):
            maps = [
                mean_map(of.get("row", row), [run["tables"][table] for run in of["runs"]])
                for row, of in said["rows"].items()
                if of.get("column") == column
            ]
            if kept := [one for one in maps if one is not None]:
                name = f"{said['study']}_{table}" + (f"_{column}" if column else "")
                made[name] = heatmaps(kept, (), said["title"] + (f", {column}" if column else ""))
    return made


def _beside_published(said: Mapping[str, Any]) -> Picture:
    """One line a row, a panel a column: every seed, the mean with its interval, the published number."""
    columns = _panels(said)
    rows = list(dict.fromkeys(cell.get("row", name) for name, cell in said["rows"].items()))
    width = 6.4 if len(columns) == 1 else 1.6 + 3.2 * len(columns)
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(width, 1.5 + 0.42 * len(rows)), layout="constrained")
        panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
        for axes, column in zip(panels, columns, strict=True):
            for name, cell in said["rows"].items():
                if cell.get("column") == column:
                    _line(axes, rows.index(cell.get("row", name)), cell, said["metric"])
            axes.grid(alpha=0.3, axis="x")
            axes.set_axisbelow(True)
            axes.set_xlabel(title_of(said, said["metric"]))
            axes.set_title(said["title"] if column is None else column)
        panels[0].set_yticks(range(len(rows)), rows)
        panels[0].set_ylim(len(rows) - 0.4, -0.6)
        for axes in panels:
            axes.tick_params(axis="y", length=0)
        if columns != [None]:
            figure.suptitle(said["title"])
        named = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=3, frameon=False)
        return figures.rendered(figure)


def _against_size(said: Mapping[str, Any], size: str) -> Picture:
    """A point for each run, its network's parameters against its result: seeds of a search find networks of their own
    sizes, so that a mean would be of none of them.
    """
    columns = _panels(said)
    rows = list(dict.fromkeys(cell.get("row", name) for name, cell in said["rows"].items()))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(6.4 if len(columns) == 1 else 3.9 * len(columns), 4.6), layout="constrained")
        panels = figure.subplots(1, len(columns), sharey=True, squeeze=False)[0]
        for axes, column in zip(panels, columns, strict=True):
            for name, cell in said["rows"].items():
                points = [(run[size], run[said["metric"]]) for run in cell["runs"] if run.get(size) is not None]
                points = [point for point in points if point[1] is not None]
                if cell.get("column") == column and points:
                    row = cell.get("row", name)
                    axes.plot(*zip(*points, strict=True), ms=7, mec="black", mew=0.6, linestyle="none",
                              label=figures.plain(row), **style_of(rows.index(row)))  # fmt: skip
            axes.grid(alpha=0.3)
            axes.set_axisbelow(True)
            axes.set_xlim(left=0)
            axes.xaxis.set_major_formatter("{x:,.0f}")
            axes.set_xlabel(words(size))
            axes.set_title(said["title"] if column is None else column)
        panels[0].set_ylabel(title_of(said, said["metric"]))
        if columns != [None]:
            figure.suptitle(said["title"])
        named = {label: line for axes in panels for line, label in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(list(named.values()), list(named), loc="outside lower center", ncols=3, frameon=False)
        return figures.rendered(figure)


def _panels(said: Mapping[str, Any]) -> list[str | None]:
    """The columns, or the one of a study without."""
    return [*columns_of(said)] or [None]


def _line(axes: Axes, place: int, cell: Mapping[str, Any], metric: str) -> None:
    found = found_in(cell, metric)
    if isinstance(found, Interval):
        axes.errorbar(found.mean, place, xerr=found.half, fmt="D", ms=6, color=figures.COLOURS[0], capsize=4, zorder=3,
                      label="mean" if found.half is None else "mean, 95 % t-interval")  # fmt: skip
    else:
        axes.text(0.985, place - 0.12, f"{absent(metric)} by {found.of - found.count} of {found.of}",
                  transform=axes.get_yaxis_transform(), ha="right", va="bottom", fontsize=8)  # fmt: skip
        if found.median is not None:
            axes.plot(found.median, place, "D", ms=6, mfc="white", mew=1.4, color=figures.COLOURS[0], zorder=3,
                      label="median, not reached counts as larger")  # fmt: skip
    values = [run[metric] for run in cell["runs"] if run[metric] is not None]
    axes.plot(values, [place + 0.22] * len(values), "|", ms=9, mew=1.4, color="black", label="each seed")
    if cell["reported"] is not None:
        axes.plot(cell["reported"], place, "s", ms=9, mfc="none", mew=1.6, color=figures.COLOURS[1], zorder=4,
                  label="reported")  # fmt: skip
