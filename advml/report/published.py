"""A study's numbers as one document (docs/results/NAME.json), and the tables that are made from it alone."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from advml.errors import AdvmlError
from advml.report.formats import decimals_of, number, plus_minus, probability
from advml.report.gather import Group, Run, overlap, settings_of, split_of
from advml.report.metrics import Metric
from advml.report.ranking import ENOUGH, differences_from
from advml.report.reached import Reached, absent, reached
from advml.report.reached import said as in_words
from advml.report.recorded import Recorded, entry, from_folder
from advml.report.stats import Interval, t_interval
from advml.runner.jobs import Job
from advml.runner.studies import Study

FEW = 5  # seeds whose numbers a table shows one by one
STAR = 0.05  # p-values that a table of differences marks are below
LARGE = 1000.0  # counts from here on are written whole


# --- from runs to the document ------------------------------------------------------------------------------------


def document(study: Study, reused: Mapping[Path, Recorded] | None = None) -> dict[str, Any]:
    """Every number of a completed study, as plain data. Raises AdvmlError for a run that has none.

    `reused`: runs taken from other documents, by the folder that their job would have. The date is the last run's.
    """
    asked = study.asked
    found = {cell: [_found(study, job, reused or {}) for job in jobs] for cell, jobs in study.jobs.items()}
    runs = {cell: [one.run for one in of] for cell, of in found.items()}
    every = [run for of in runs.values() for run in of]
    for key, names in (("also", asked.also), ("counts", asked.counts)):
        if unknown := [name for name in names if not any(name in {*run.numbers, *run.undefined} for run in every)]:
            there = ", ".join(every[0].numbers)
            raise AdvmlError(f"study {study.name}: {key}: no run has {', '.join(unknown)}; there are {there}")
    environments: list[Mapping[str, Any]] = []  # the different ones, mostly one: machine, versions, threads, commit
    rows = {cell: _row(study, cell, of, environments) for cell, of in found.items()}
    return {
        "study": study.name,
        "title": asked.title,
        "source": asked.source,
        "hypothesis": asked.hypothesis,
        "chosen": asked.chosen,
        "budget": asked.budget,
        "command": study.command,
        "changed": list(study.changed),
        "date": max(run.ended for run in every),
        "environments": environments,
        "metric": asked.metric,
        "mode": asked.mode,
        "scale": asked.scale,
        "unit": asked.unit,
        "also": list(asked.also),
        **({"counts": list(asked.counts)} if asked.counts else {}),
        "against": asked.against,
        "seeds": [run.seed for run in next(iter(runs.values()))],
        "rows": rows,
        "differences": _differences(study, runs),
    }


def unfinished(study: Study, done: Container[Path], reused: Mapping[Path, Recorded]) -> dict[str, Any]:
    """The runs of a study that there are, those in the folders `done` and the `reused`; no more than what `reuse=`
    needs to go on elsewhere.
    """
    environments: list[Mapping[str, Any]] = []
    rows = {
        cell: {"runs": [entry(_found(study, job, reused), environments) for job in jobs
                        if job.folder in done or job.folder in reused]}
        for cell, jobs in study.jobs.items()
    }  # fmt: skip
    return {"study": study.name, "command": study.command, "environments": environments, "rows": rows}


def _found(study: Study, job: Job, reused: Mapping[Path, Recorded]) -> Recorded:
    return reused.get(job.folder) or from_folder(job, study.asked.metric, study.asked.tables)


def _row(study: Study, cell: str, found: Sequence[Recorded], environments: list[Mapping[str, Any]]) -> dict[str, Any]:
    asked = study.asked.cells[cell]
    runs = [one.run for one in found]
    group = Group(settings_of(runs[0].tree), {run.seed: run for run in runs}, ())
    shared = overlap([group], split_of(study.asked.metric))  # all are measured on the same split
    scaled = {name: [_scaled(study, name, run) for run in runs] for name in _names(study, runs)}
    return {
        "overrides": [*study.asked.settings, *asked.run],
        "reported": asked.reported,
        **({} if asked.column is None else {"row": asked.row, "column": asked.column}),
        **({"overlap": shared} if shared else {}),
        **{name: _summary(name, values, shared) for name, values in scaled.items()},
        "runs": [
            {"seed": one.run.seed, **{name: of[place] for name, of in scaled.items()}, **entry(one, environments)}
            for place, one in enumerate(found)
        ],
    }


def _names(study: Study, runs: Sequence[Run]) -> tuple[str, ...]:
    """The study's metric, and of the others those that these runs have: not every method measures all."""
    named = [{*run.numbers, *run.undefined} for run in runs]
    further = (*study.asked.also, *study.asked.counts)
    return (study.asked.metric, *(name for name in further if all(name in there for there in named)))


def _scaled(study: Study, name: str, run: Run) -> float | None:
    value = run.numbers.get(name)
    return value if value is None or name in study.asked.counts else study.asked.scale * value


def _summary(name: str, values: Sequence[float | None], shared: float) -> dict[str, Any]:
    """Mean and interval, `shared` as `overlap` in `t_interval`; of a number that not all runs have, how many do, and
    the median of all.
    """
    there = [value for value in values if value is not None]
    short = reached(name, values)
    if short is not None:
        return {"n": short.count, "of": short.of, "median": short.median}
    found = t_interval(there, shared)
    return {"n": found.n, "mean": found.mean, "sd": found.sd, "half": found.half}


def _differences(study: Study, runs: Mapping[str, Sequence[Run]]) -> list[dict[str, Any]]:
    """Each cell minus the reference in the same column, seed by seed; Holm's correction counts a column's tests.

    Cells are left out where a seed has no number: over the others alone a difference would flatter.
    """
    reference, cells = study.asked.against, study.asked.cells
    metric, found = Metric(study.asked.metric, study.asked.mode), []
    for column in dict.fromkeys(cell.column for cell in cells.values()):
        names = [
            name
            for name, cell in cells.items()
            if cell.column == column and all(metric.name in run.numbers for run in runs[name])
        ]
        if reference not in (rows := [cells[name].row for name in names]):
            continue
        groups = {
            number: Group(settings_of(runs[name][0].tree), {run.seed: run for run in runs[name]}, ())
            for number, name in enumerate(names)
        }
        for one in differences_from(groups, metric, rows.index(reference)):
            assert one.paired is not None
            interval = one.paired.interval
            ends = {"mean": interval.mean, "half": interval.half}
            scaled = {name: None if value is None else value * study.asked.scale for name, value in ends.items()}
            p_values = {"p": one.paired.p if one.seeds >= ENOUGH else None, "p_holm": one.p_holm}
            against = names[rows.index(reference)]
            shared = overlap([groups[one.row], groups[one.reference]], split_of(metric.name))
            corrected = {"overlap": shared} if shared else {}
            named = {"row": names[one.row], "against": against, "n": one.seeds}
            found.append({**named, **scaled, **p_values, **corrected})
    return found


# --- from the document to text ------------------------------------------------------------------------------------

Grid = tuple[list[str], list[list[str]]]


def main_grids(said: Mapping[str, Any]) -> list[Grid]:
    """One table; of a study with columns a table rows × columns for each metric."""
    if not columns_of(said):
        return [main_grid(said)]
    return [crossed_grid(said, name) for name in _all(said)]


def columns_of(said: Mapping[str, Any]) -> list[str]:
    """The columns of a study that has some."""
    return list(dict.fromkeys(row["column"] for row in said["rows"].values() if "column" in row))


def crossed_grid(said: Mapping[str, Any], metric: str) -> Grid:
    """Mean with interval and, of the study's own metric, the published number in brackets; n/a where there is none."""
    columns = columns_of(said)
    cells = {(cell["row"], cell["column"]): cell for cell in said["rows"].values()}
    places = _places(said, metric)
    title = title_of(said, metric)

    def shown(row: str, column: str) -> str:
        cell = cells.get((row, column))
        if cell is None or metric not in cell:
            return "n/a"
        measured = _measured(said, cell, metric, places)
        published = cell["reported"] is not None and metric == said["metric"]
        return f"{measured} [{cell['reported']:g}]" if published else measured

    body = [[row, *(shown(row, column) for column in columns)] for row in dict.fromkeys(row for row, _ in cells)]
    return [title, *columns], body


def main_grid(said: Mapping[str, Any]) -> Grid:
    """Row, its numbers by seed where they are few, mean with interval, further metrics, the published number."""
    seeds = said["seeds"]
    shown = len(seeds) if 1 < len(seeds) <= FEW else 0
    reported = any(row["reported"] is not None for row in said["rows"].values())
    headings = ["", *(f"seed {seed}" for seed in seeds[:shown]), *(title_of(said, name) for name in _all(said))]
    headings += ["reported"] * reported
    places = {name: _places(said, name) for name in _all(said)}
    body = []
    for name, row in said["rows"].items():
        values = [run[said["metric"]] for run in row["runs"][:shown]]
        own = [absent(said["metric"]) if one is None else number(one, places[said["metric"]]) for one in values]
        means = [_measured(said, row, each, places[each]) if each in row else "n/a" for each in places]
        published = ["–" if row["reported"] is None else f"{row['reported']:g}"] * reported
        body.append([name, *own, *means, *published])
    return headings, body


def difference_grid(said: Mapping[str, Any]) -> Grid | None:
    """Paired differences from the reference row, of a study with columns as a table like the others; None where there
    are none.
    """
    if not said["differences"]:
        return None
    if columns_of(said):
        return _crossed_differences(said)
    places = _places(said, said["metric"])
    unit = f" ({said['unit']})" if said["unit"] else ""
    headings = ["difference" + unit, "seeds", "mean", "95 % interval", "p", "p (Holm)"]
    body = []
    for one in said["differences"]:
        enough = one["p_holm"] is not None
        low, high = (one["mean"] - one["half"], one["mean"] + one["half"]) if enough else (None, None)
        ends = f"{number(low, places)} to {number(high, places)}" if enough else "n too small"
        body.append([f"{one['row']} minus {one['against']}", str(one["n"]), number(one["mean"], places), ends,
                     probability(one["p"]), probability(one["p_holm"])])  # fmt: skip
    return headings, body


def _crossed_differences(said: Mapping[str, Any]) -> Grid:
    """Mean and interval in each column; a star where it is told from none."""
    columns, places = columns_of(said), _places(said, said["metric"])
    cells = {(said["rows"][one["row"]]["row"], said["rows"][one["row"]]["column"]): one for one in said["differences"]}
    unit = f" ({said['unit']})" if said["unit"] else ""

    def shown(row: str, column: str) -> str:
        one = cells.get((row, column))
        if one is None:
            return "n/a"
        mean = number(one["mean"], places)
        if one["p_holm"] is None:
            return mean
        ends = (number(one["mean"] + side * one["half"], places) for side in (-1, 1))
        return f"{mean} ({' to '.join(ends)}){'*' if one['p_holm'] < STAR else ''}"

    body = [[row, *(shown(row, column) for column in columns)] for row in dict.fromkeys(row for row, _ in cells)]
    return [f"minus {said['against']}{unit}", *columns], body


def beside_reported(said: Mapping[str, Any]) -> list[list[str]]:
    """(row, measured, reported) of the rows beside which a published number stands."""
    places, metric = _places(said, said["metric"]), said["metric"]
    rows = {name: row for name, row in said["rows"].items() if row["reported"] is not None}
    return [[name, _measured(said, row, metric, places), f"{row['reported']:g}"] for name, row in rows.items()]


def notes(said: Mapping[str, Any]) -> Iterator[str]:
    """What must be known to read the tables, one sentence each."""
    if changed := [word for word in said["changed"] if not word.startswith("device=")]:
        yield f"Not the published setting: changed by {', '.join(changed)}."
    if len(said["seeds"]) > 1:
        yield f"Mean ± half of the 95 % t-interval over {len(said['seeds'])} seeds{_corrected(said)}."
    if any("of" in row.get(name, ()) for row in said["rows"].values() for name in _all(said)):
        yield (
            "Where not all seeds have a number (a target was not reached) there is neither a mean nor a difference; "
            "the median counts those that did not reach it as larger than any."
        )
    if len(said["seeds"]) == 3:
        yield "With 3 seeds that is 2.5 standard deviations: a description, not a ranking."
    if columns_of(said) and any(one["p_holm"] is not None for one in said["differences"]):
        yield f"Differences are paired by seed, with their 95 % interval; *: p < {STAR:g}, by Holm for a column's rows."
    published = any(row["reported"] is not None for row in said["rows"].values())
    label = "Source" if not published else "[Reported]" if columns_of(said) else "Reported"
    yield f"{label}: {said['source']}."
    sources = {(one.get("source") or {}).get("commit") for one in said["environments"]}
    commits = ", ".join(sorted(str(commit)[:10] for commit in sources if commit)) or "no checkout"
    dirty = any((one.get("source") or {}).get("dirty") for one in said["environments"])
    yield f"Measured {said['date']} at {commits}{' with changes' if dirty else ''}: `{said['command']}`."


def _corrected(said: Mapping[str, Any]) -> str:
    """Which intervals are wider, if any: those of all rows, or of some columns, or of some rows."""
    wider = [name for name, row in said["rows"].items() if "overlap" in row]
    if not wider:
        return ""
    *most, last = dict.fromkeys(said["rows"][name].get("column", name) for name in wider)
    places = f"{', '.join(most)} and {last}" if most else last
    where = "" if len(wider) == len(said["rows"]) else f" in {places}"
    return f", corrected{where} for the examples that splits share (Nadeau and Bengio 2003)"


def as_markdown(said: Mapping[str, Any]) -> str:
    """Both tables and the notes."""
    second = difference_grid(said)
    tables = [*map(_markdown, main_grids(said)), *([_markdown(second)] if second else [])]
    return "\n\n".join([*tables, " ".join(notes(said))]) + "\n"


def _markdown(grid: Grid) -> str:
    headings, body = grid
    rule = ["---", *["---:"] * (len(headings) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [headings, rule, *body])


def _all(said: Mapping[str, Any]) -> list[str]:
    return [said["metric"], *said["also"], *said.get("counts", ())]


def title_of(said: Mapping[str, Any], name: str) -> str:
    """`test accuracy (%)`; a count has no unit."""
    return words(name) + (f" ({said['unit']})" if said["unit"] and name not in said.get("counts", ()) else "")


def _places(said: Mapping[str, Any], name: str) -> int | None:
    return _fewer(decimals_of([found_in(row, name) for row in said["rows"].values() if name in row]))


def found_in(row: Mapping[str, Any], name: str) -> Interval | Reached:
    """A metric of a row over its seeds."""
    summary = row[name]
    if "of" in summary:
        return Reached(summary["n"], summary["of"], summary["median"])
    return Interval(**summary)


def _measured(said: Mapping[str, Any], row: Mapping[str, Any], name: str, places: int | None) -> str:
    """`60.1 ± 3.2`, `not reached (2 of 5)`; of a large count `51,818 ± 4,300`."""
    found = found_in(row, name)
    if isinstance(found, Interval):
        if name in said.get("counts", ()) and found.mean >= LARGE:
            return f"{found.mean:,.0f}" + ("" if found.half is None else f" ± {found.half:,.0f}")
        return plus_minus(found, places)
    return in_words(name, found, number(found.median, places))


def _fewer(places: int | None) -> int | None:
    """Two decimals are enough for percentages and the like; more would pretend."""
    return None if places is None else min(places, 2) if places < 4 else places


def words(name: str) -> str:
    """`test_accuracy` → `test accuracy`."""
    return name.replace("/", " ").replace("_", " ")
