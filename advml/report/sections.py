"""The parts of the page: pictures, runs, settings, work, machines. Each is a run of HTML pieces, or nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from advml.report.curves import AGAINST
from advml.report.formats import amount, number
from advml.report.gather import Gathered
from advml.report.keys import shown
from advml.report.layout import Picture
from advml.report.markup import Html, figure, folded, joined, link, listed, table, tag
from advml.report.plots import draw
from advml.report.shared import environments, named_runs, shared, unfinished
from advml.report.tables import BUDGET, Comparison, Row

MANY = 30  # lines of a table that is folded away if it has more
OWN = ("curve_",)  # pictures of a run that the page draws better


def count_of(count: int, what: str) -> str:
    """`1 run`, `2 runs`."""
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


# --- tables -------------------------------------------------------------------------------------------------------


def published(paths: Sequence[Path]) -> Iterator[Html]:
    """A study's own tables, from the study.json in its folder."""
    for path in paths:
        if not (path / "study.json").is_file():
            continue
        from advml.report import published as study  # it knows how studies are run
        from advml.report.published_pictures import pictures as drawings_of

        try:
            said = json.loads((path / "study.json").read_text())
            first, second = study.main_grid(said), study.difference_grid(said)
            notes, drawn = list(study.notes(said)), drawings_of(said)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            yield tag("p", f"study.json cannot be read: {type(error).__name__}: {error}")
            continue
        yield tag("p", str(said["title"]))
        for caption, grid in (("Measured and reported", first), ("Paired differences of the study", second)):
            if grid is not None:
                yield table(caption, *grid, [place > 0 for place in range(len(grid[0]))])
        yield listed(notes)
        yield _shown(drawn)


def numbers(row: Row) -> Iterator[Html]:
    """All that a single run has measured."""
    (run,) = row.group.runs.values()
    body = [[name, number(value, None)] for name, value in run.numbers.items()]
    rows = table("Every number of result.json", ["name", "value"], body, [False, True])
    yield folded(f"{len(body)} numbers", rows) if len(body) > MANY else rows


def work(comparison: Comparison) -> Iterator[Html]:
    """Counters of work and size, mean over the seeds of a row."""
    names = [name for name in BUDGET if any(name in row.budget for row in comparison.rows)]
    sizes = [_parameters(row) for row in comparison.rows]
    headings = ["#", "configuration", *(name.replace("flops_estimate", "FLOPs (est.)") for name in names), "parameters"]
    body = [
        [str(row.number), row.label, *(amount(name, row.budget.get(name)) for name in names), size]
        for row, size in zip(comparison.rows, sizes, strict=True)
    ]
    yield table("Work of a run, mean over seeds", headings, body, [True, False, *[True] * (len(names) + 1)])


def _parameters(row: Row) -> str:
    counts = sorted({int(run.numbers["parameters"]) for run in row.group.runs.values() if "parameters" in run.numbers})
    return " to ".join(f"{count:,}" for count in dict.fromkeys((*counts[:1], *counts[-1:]))) or "–"


# --- pictures -----------------------------------------------------------------------------------------------------


def pictures(gathered: Gathered, comparison: Comparison, metrics: Sequence[str], alone: bool) -> Iterator[Html]:
    """Those of `advml plot`; of a run that stands alone its curves, and what it drew itself."""
    if alone:  # a bar for each of one is no picture; a run has drawn its own
        (run,) = comparison.rows[0].group.runs.values()
        drawn = {name: one for name, one in draw(gathered, (), metrics).items() if name.startswith("curves_")}
        for path in sorted(run.folder.path.glob("figures/*.svg")):
            if not path.stem.startswith(OWN):
                drawn[path.stem] = {"svg": path.read_bytes()}
    else:
        drawn = draw(gathered, (), metrics)
    yield _shown(drawn)


def _shown(drawn: Mapping[str, Picture]) -> Html:
    captions = {name: _caption(name) for name in drawn}
    about = "The numbers are in the tables of this page."
    made = [figure(picture, captions[name], f"{captions[name]}. {about}") for name, picture in drawn.items()]
    return tag("div", joined(made, "\n"), class_="pictures") if made else Html()


KINDS = {
    "curves": "{} as training goes on",
    "bars": "{}: mean, interval and each seed",
    "heatmap": "{} over two settings",
    "budget": "{} against work",
}


def _caption(name: str) -> str:
    kind, _, rest = name.partition("_")
    words = rest.replace("_", " ")
    axis = next((axis for axis in AGAINST if kind == "budget" and rest.endswith(f"_{axis}")), None)
    if axis is not None:
        return f"{words.removesuffix(axis).strip().capitalize()} against {AGAINST[axis]}"
    text = KINDS[kind].format(words) if kind in KINDS else name.replace("_", " ")
    return text[:1].upper() + text[1:]


# --- runs, settings, machines -------------------------------------------------------------------------------------


def missing(gathered: Gathered, comparison: Comparison, base: Path) -> Iterator[Html]:
    """Failed, interrupted, running, crashed and damaged runs, with the reason."""
    body = [
        [row, seed, one.state, one.reason, link(one.folder.path, base)]
        for row, seed, one in unfinished(gathered, comparison.rows)
    ]
    if body:
        headings = ["row", "seed", "state", "reason", "folder"]
        yield table("Runs that are not in the tables", headings, body, [True, True, False, False, False], head=4)


def runs(gathered: Gathered, comparison: Comparison, base: Path) -> Iterator[Html]:
    """Every completed run with its own numbers, linked; and older runs that do not count."""
    metrics = [metric.name for metric in comparison.metrics]
    body = [
        [str(row.number), str(seed), *(number(run.numbers.get(name), None) for name in metrics),
         amount("seconds", run.numbers.get("seconds")), link(run.folder.path, base)]
        for row in comparison.rows for seed, run in row.group.runs.items()
    ]  # fmt: skip
    headings = ["row", "seed", *metrics, "seconds", "folder"]
    rows = table("Completed runs", headings, body, [*[True] * (len(headings) - 1), False], head=len(headings) - 1)
    yield folded(count_of(len(body), "completed run"), rows) if len(body) > MANY else rows
    if gathered.repeated:
        older = listed(link(folder.path, base) for folder in gathered.repeated)
        yield folded(f"{len(gathered.repeated)} replaced by newer ones with the same configuration and seed", older)


def settings(comparison: Comparison) -> Iterator[Html]:
    """What each row has of its own, and once what all share."""
    apart = shared([row.group.settings for row in comparison.rows])
    if len(comparison.rows) > 1:
        body = [
            [str(row.number), row.label, joined((tag("code", one) for one in _lines(own)), " ")]
            for row, own in zip(comparison.rows, apart.own, strict=True)
        ]
        yield table("What each row has of its own", ["#", "configuration", "settings"], body, [True, False, False])
    if apart.common:
        count = count_of(len(apart.common), "setting")
        of = "of the run" if len(comparison.rows) == 1 else "that all rows share"
        yield folded(f"{count} {of}", tag("pre", tag("code", "\n".join(_lines(apart.common)))))
    yield tag("p", "Settings that change no result (where runs are stored, how they are shown) are left out.")


def _lines(settings: Mapping[str, Any]) -> list[str]:
    return [f"{key}={shown(value)}" for key, value in settings.items()]


def machines(comparison: Comparison) -> Iterator[Html]:
    """Devices, versions, threads and commits: once what is equal, and by run what is not."""
    runs = named_runs(comparison.rows)
    found = environments(runs)
    if found.different:
        body = [
            [key, value, "all others" if 2 * len(which) > len(runs) else "; ".join(which)]
            for key, values in found.different.items() for value, which in values.items()
        ]  # fmt: skip
        yield table("What differs between runs", ["what", "value", "runs"], body, [False] * 3)
    if found.common:
        body = [[key, value] for key, value in found.common.items()]
        yield table("The same for all runs" if len(runs) > 1 else "Of the run", ["what", "value"], body, [False] * 2)
    if found.unknown:
        yield tag("p", f"Without a readable environment.json: {'; '.join(found.unknown)}.")
