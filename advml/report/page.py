"""Everything that is known of a set of runs as one HTML page, which needs no network, no script and no other file.

Nothing is computed here: tables come from `tables` and `formats`, pictures from `plots`, the rest from the folders.
Equal runs give equal bytes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from advml import __version__
from advml.report.curves import AXES
from advml.report.formats import Grid, amount, difference_grid, main_grid, number
from advml.report.gather import Gathered
from advml.report.keys import heading, shown
from advml.report.layout import Picture
from advml.report.markup import Html, figure, folded, joined, link, listed, table, tag
from advml.report.plots import draw
from advml.report.shared import commands, environments, named_runs, shared, unfinished
from advml.report.style import CSS
from advml.report.tables import BUDGET, Comparison, Row, compare

MARKS = {"": "", "best": "\0★", "tied": "\0☆"}
SAID = {"★": "best mean", "☆": "not distinguishable from the best"}
MANY = 30  # lines of a table that is folded away if it has more
OWN = ("curve_",)  # pictures of a run that the page draws better


def page(
    gathered: Gathered, metrics: Sequence[str], against: str | None, paths: Sequence[Path], base: Path, command: str
) -> str:
    """The whole page. `paths`: what was named; `base`: the folder in which it will lie; `command`: what was typed."""
    comparison = compare(gathered, metrics, against)
    alone = len(comparison.rows) == 1 and comparison.rows[0].seeds == 1
    title = _title(comparison, alone)
    sections = {
        "Results": _results(comparison),
        "Beside what was published": _published(paths),
        "All numbers": _numbers(comparison.rows[0]) if alone else (),
        "Pictures": _pictures(gathered, comparison, metrics, alone),
        "Runs without a result": _missing(gathered, comparison, base),
        "Runs": _runs(gathered, comparison, base),
        "Settings": _settings(comparison),
        "Work": _work(comparison),
        "Machine and versions": _environments(comparison),
    }
    made = {name: content for name, of in sections.items() if (content := joined(of, "\n"))}
    contents = tag("nav", listed(tag("a", name, href=f"#{_anchor(name)}") for name in made), aria_label="Contents")
    body = [tag("section", tag("h2", name, id=_anchor(name)), Html("\n"), content) for name, content in made.items()]
    head = joined([tag("h1", title), *_about(gathered, comparison, paths, command)], "\n")
    return _document(title, joined([tag("header", head), contents, tag("main", joined(body, "\n"))], "\n"))


def _document(title: str, body: Html) -> str:
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # the page could not load anything
    head = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", title),
        tag("style", Html(CSS)),
    ]
    return f'<!DOCTYPE html>\n<html lang="en">\n{tag("head", joined(head, chr(10)))}\n{tag("body", body)}\n</html>\n'


def _anchor(name: str) -> str:
    return name.lower().replace(" ", "-")


# --- what it is ---------------------------------------------------------------------------------------------------


def _title(comparison: Comparison, alone: bool) -> str:
    of = {key: _values(comparison, f"{key}.name") for key in ("dataset", "method")}
    names = {key: values[0] if len(values) == 1 else f"{len(values)} {key}s" for key, values in of.items() if values}
    what = f"{names.get('method', 'runs')} on {names.get('dataset', 'no data')}"
    if alone:
        return f"{what}, seed {next(iter(comparison.rows[0].group.runs))}"
    done = sum(row.seeds for row in comparison.rows)
    return f"{what}: {_count(len(comparison.rows), 'configuration')}, {_count(done, 'run')}"


def _values(comparison: Comparison, key: str) -> list[str]:
    """The different values of a key, in the order of the rows."""
    settings = [row.group.settings for row in comparison.rows]
    return list(dict.fromkeys(shown(of[key]) for of in settings if key in of))


def _about(gathered: Gathered, comparison: Comparison, paths: Sequence[Path], command: str) -> Iterator[Html]:
    """What was compared, and the commands that it came of."""
    rows = comparison.rows
    better = {"max": "higher is better", "min": "lower is better", None: "which direction is better is not known"}
    choices = {"data set": "dataset", "view": "view", "methods": "method", "models": "model"}
    said = {name: ", ".join(_values(comparison, f"{key}.name")) for name, key in choices.items()}
    said["differing"] = "; ".join(f"{heading(key)}: {', '.join(_values(comparison, key))}" for key in comparison.keys)
    said["metrics"] = "; ".join(f"{one.name} ({better[one.mode]})" for one in comparison.metrics)
    said["seeds"] = ", ".join(map(str, sorted({seed for row in rows for seed in row.group.runs})))
    counts = [f"{sum(row.seeds for row in rows)} completed"]
    counts += [f"{len(gathered.missing)} without a result"] if gathered.missing else []
    counts += [f"{len(gathered.repeated)} replaced by newer ones"] if gathered.repeated else []
    said["runs"] = ", ".join(counts)
    ended = sorted(run.ended for row in rows for run in row.group.runs.values() if run.ended)
    if ended:
        said["ended"] = ended[0] if ended[0] == ended[-1] else f"{ended[0]} to {ended[-1]}"
    parts = [joined([tag("dt", name), tag("dd", what)]) for name, what in said.items() if what]
    yield tag("dl", joined(parts, "\n"))
    typed = commands([run.folder for row in rows for run in row.group.runs.values()])
    lines = [tag("pre", tag("code", words)) for words in typed]
    made = joined([tag("p", "The runs came of"), *lines], "\n")
    yield folded(f"The runs came of {len(lines)} commands", *lines) if len(lines) > 3 else made if lines else Html()
    yield tag("p", f"and this page, with advml {__version__}, of")
    yield tag("pre", tag("code", command))


def _count(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


# --- tables -------------------------------------------------------------------------------------------------------


def _results(comparison: Comparison) -> Iterator[Html]:
    headings, body, numeric = main_grid(comparison, MARKS)
    yield table("Mean and interval over seeds", headings, [list(map(_marked, row)) for row in body], numeric)
    if (second := difference_grid(comparison)) is not None:
        yield _grid("Paired differences over common seeds", second, head=1)
    if comparison.notes:
        yield listed(comparison.notes)


def _marked(cell: str) -> str:
    """A cell of the main table; what stands behind the mark is told to those who cannot see it."""
    plain, _, mark = cell.partition("\0")
    if not mark:
        return plain
    inside = [plain, " ", tag("span", mark, title=SAID[mark], role="img", aria_label=SAID[mark])]
    return tag("strong", *inside) if mark == "★" else joined(inside)


def _grid(caption: str, grid: Grid, head: int = 0) -> Html:
    return table(caption, *grid, head=head)


def _published(paths: Sequence[Path]) -> Iterator[Html]:
    """A study's own tables, from the study.json in its folder."""
    for path in paths:
        if not (path / "study.json").is_file():
            continue
        from advml.report import published  # it knows how studies are run

        try:
            said = json.loads((path / "study.json").read_text())
            first, second = published.main_grid(said), published.difference_grid(said)
            notes, drawn = list(published.notes(said)), published.pictures(said)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            yield tag("p", f"study.json cannot be read: {type(error).__name__}: {error}")
            continue
        yield tag("p", str(said["title"]))
        for caption, grid in (("Measured and reported", first), ("Paired differences of the study", second)):
            if grid is not None:
                yield table(caption, *grid, [place > 0 for place in range(len(grid[0]))])
        yield listed(notes)
        yield _shown(drawn)


def _numbers(row: Row) -> Iterator[Html]:
    (run,) = row.group.runs.values()
    body = [[name, number(value, None)] for name, value in run.numbers.items()]
    rows = table("Every number of result.json", ["name", "value"], body, [False, True])
    yield folded(f"{len(body)} numbers", rows) if len(body) > MANY else rows


def _work(comparison: Comparison) -> Iterator[Html]:
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


def _pictures(gathered: Gathered, comparison: Comparison, metrics: Sequence[str], alone: bool) -> Iterator[Html]:
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
    axis = next((axis for axis in AXES if kind == "budget" and rest.endswith(f"_{axis}")), None)
    if axis is not None:
        return f"{words.removesuffix(axis).strip().capitalize()} against {AXES[axis]}"
    text = KINDS[kind].format(words) if kind in KINDS else name.replace("_", " ")
    return text[:1].upper() + text[1:]


# --- runs, settings, machines -------------------------------------------------------------------------------------


def _missing(gathered: Gathered, comparison: Comparison, base: Path) -> Iterator[Html]:
    body = [
        [row, seed, one.state, one.reason, link(one.folder.path, base)]
        for row, seed, one in unfinished(gathered, comparison.rows)
    ]
    if body:
        headings = ["row", "seed", "state", "reason", "folder"]
        yield table("Runs that are not in the tables", headings, body, [True, True, False, False, False], head=4)


def _runs(gathered: Gathered, comparison: Comparison, base: Path) -> Iterator[Html]:
    metrics = [metric.name for metric in comparison.metrics]
    body = [
        [str(row.number), str(seed), *(number(run.numbers.get(name), None) for name in metrics),
         amount("seconds", run.numbers.get("seconds")), link(run.folder.path, base)]
        for row in comparison.rows for seed, run in row.group.runs.items()
    ]  # fmt: skip
    headings = ["row", "seed", *metrics, "seconds", "folder"]
    rows = table("Completed runs", headings, body, [*[True] * (len(headings) - 1), False], head=len(headings) - 1)
    yield folded(_count(len(body), "completed run"), rows) if len(body) > MANY else rows
    if gathered.repeated:
        older = listed(link(folder.path, base) for folder in gathered.repeated)
        yield folded(f"{len(gathered.repeated)} replaced by newer ones with the same configuration and seed", older)


def _settings(comparison: Comparison) -> Iterator[Html]:
    apart = shared([row.group.settings for row in comparison.rows])
    if len(comparison.rows) > 1:
        body = [
            [str(row.number), row.label, joined((tag("code", one) for one in _lines(own)), " ")]
            for row, own in zip(comparison.rows, apart.own, strict=True)
        ]
        yield table("What each row has of its own", ["#", "configuration", "settings"], body, [True, False, False])
    if apart.common:
        count = _count(len(apart.common), "setting")
        of = "of the run" if len(comparison.rows) == 1 else "that all rows share"
        yield folded(f"{count} {of}", tag("pre", tag("code", "\n".join(_lines(apart.common)))))
    yield tag("p", "Settings that change no result (where runs are stored, how they are shown) are left out.")


def _lines(settings: Mapping[str, Any]) -> list[str]:
    return [f"{key}={shown(value)}" for key, value in settings.items()]


def _environments(comparison: Comparison) -> Iterator[Html]:
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
