"""Everything that is known of a set of runs as one HTML page, which needs no network, no script and no other file.

Nothing is computed here: tables come from `tables` and `formats`, pictures from `plots`, the rest from the folders.
Equal runs give equal bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from advml import __version__
from advml.report.formats import difference_grid, main_grid
from advml.report.gather import Gathered
from advml.report.keys import heading, shown
from advml.report.markup import Html, folded, joined, listed, table, tag
from advml.report.sections import count_of, machines, missing, numbers, pictures, published, runs, settings, work
from advml.report.shared import commands
from advml.report.style import CSS
from advml.report.tables import Comparison, compare

MARKS = {"": "", "best": "\0★", "tied": "\0☆"}
SAID = {"★": "best mean", "☆": "not distinguishable from the best"}


def page(
    gathered: Gathered, metrics: Sequence[str], against: str | None, paths: Sequence[Path], base: Path, command: str
) -> str:
    """The whole page. `paths`: what was named; `base`: the folder in which it will lie; `command`: what was typed."""
    comparison = compare(gathered, metrics, against)
    alone = len(comparison.rows) == 1 and comparison.rows[0].seeds == 1
    title = _title(comparison, alone)
    sections = {
        "Results": _results(comparison),
        "Beside what was published": published(paths),
        "All numbers": numbers(comparison.rows[0]) if alone else (),
        "Pictures": pictures(gathered, comparison, metrics, alone),
        "Runs without a result": missing(gathered, comparison, base),
        "Runs": runs(gathered, comparison, base),
        "Settings": settings(comparison),
        "Work": work(comparison),
        "Machine and versions": machines(comparison),
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
    return f"{what}: {count_of(len(comparison.rows), 'configuration')}, {count_of(done, 'run')}"


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


# --- tables -------------------------------------------------------------------------------------------------------


def _results(comparison: Comparison) -> Iterator[Html]:
    headings, body, numeric = main_grid(comparison, MARKS)
    yield table("Mean and interval over seeds", headings, [list(map(_marked, row)) for row in body], numeric)
    if (second := difference_grid(comparison)) is not None:
        yield table("Paired differences over common seeds", *second, head=1)
    if comparison.notes:
        yield listed(comparison.notes)


def _marked(cell: str) -> str:
    """A cell of the main table; what stands behind the mark is told to those who cannot see it."""
    plain, _, mark = cell.partition("\0")
    if not mark:
        return plain
    inside = [plain, " ", tag("span", mark, title=SAID[mark], role="img", aria_label=SAID[mark])]
    return tag("strong", *inside) if mark == "★" else joined(inside)
