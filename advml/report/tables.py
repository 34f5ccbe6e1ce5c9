"""A comparison: configurations against final metrics, with intervals, marks and paired differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from advml.errors import ConfigError, did_you_mean
from advml.report.gather import Gathered, Group, overlap, split_of, states
from advml.report.keys import ABSENT, differing, heading, ordered, shown
from advml.report.metrics import Metric, choose, interval_of, reached_by, values_by_seed
from advml.report.ranking import ENOUGH, Difference, Mark, best_row, by_problem, differences_from, marks
from advml.report.reached import Reached
from advml.report.stats import Interval
from advml.runner.observers import was_pruned

MANY = 24  # differences that are listed without being asked for
BUDGET = ("samples", "updates", "gradients", "flops_estimate", "seconds")


@dataclass(frozen=True)
class Cell:
    """A metric of a configuration over its seeds; None where no run has it, or where not all got there: `reached`."""

    interval: Interval | None
    mark: Mark = ""
    reached: Reached | None = None


@dataclass(frozen=True)
class Row:
    """A configuration: its number, the values of the differing keys, seeds done and asked for, metrics, mean budget."""

    number: int
    group: Group
    values: Mapping[str, Any]
    cells: Mapping[str, Cell]
    budget: Mapping[str, float]

    @property
    def seeds(self) -> int:
        """Runs that are completed."""
        return len(self.group.runs)

    @property
    def asked(self) -> int:
        """Seeds that were started, completed or not."""
        return len({*self.group.runs, *(one.tree["seed"] for one in self.group.missing if one.tree is not None)})

    @property
    def label(self) -> str:
        """Its values in one line: `ewc, method.strength=10`."""
        return label_of(self.group, self.values)


@dataclass(frozen=True)
class Comparison:
    """Everything a table shows. `notes`: what must be known to read it, one sentence each.

    `listed`: whether people are shown the differences too; many that nobody asked for are left to the CSV.
    """

    keys: Sequence[str]
    metrics: Sequence[Metric]
    budget: Sequence[str]
    rows: Sequence[Row]
    differences: Sequence[Difference]
    listed: bool
    notes: Sequence[str]


def compare(gathered: Gathered, metrics: Sequence[str] = (), against: str | None = None) -> Comparison:
    """The comparison of everything gathered.

    `metrics`: names, perhaps with `:max` or `:min`; by default each objective and the same metric on the test split.
    `against`: the row that differences are taken from; by default, for each metric, the best one.
    """
    labelled, keys, following = labelled_groups(gathered)
    chosen = choose(gathered, metrics)
    numbered = {number: group for number, (group, _) in enumerate(labelled, start=1)}
    reference = None if against is None else find_row([values for _, values in labelled], against)
    found: dict[tuple[int, str], Mark] = {}
    differences: list[Difference] = []
    unranked: dict[str, list[int]] = {}
    for metric in chosen:
        for members in by_problem(numbered):
            best = best_row(members, metric)
            from_best = [] if best is None else differences_from(members, metric, best)
            marked = marks(from_best)
            found |= {(number, metric.name): mark for number, mark in marked.items()}
            differences += from_best if reference is None else []
            if reference is not None and reference in members:
                differences += differences_from(members, metric, reference)
            measured = [number for number, group in members.items() if values_by_seed(group, metric.name)]
            if metric.mode is not None and len(measured) > 1:
                ranked = {one.row for one in from_best if one.p_holm is not None} | marked.keys()
                unranked.setdefault(metric.name, []).extend(number for number in measured if number not in ranked)
    rows = [
        Row(number, group, values, _cells(number, group, chosen, found), _budget(group))
        for number, (group, values) in enumerate(labelled, start=1)
    ]
    budget, equal = _budget_columns(rows)
    notes = [*_about_intervals(rows, chosen), *_about_ranks(rows, chosen, unranked)]
    if equal:
        notes.append(f"Equal in all rows: {equal}.")
    notes += _about_rows(gathered, rows, following)
    listed = reference is not None or len(differences) <= MANY
    if not listed:
        notes.append("Differences from the best rows are in the CSV; against=ROW lists those from one row.")
    return Comparison(keys, chosen, budget, rows, differences, listed, notes)


def labelled_groups(gathered: Gathered) -> tuple[list[tuple[Group, dict[str, Any]]], list[str], list[str]]:
    """Groups with the values of the differing keys, sorted by these; the keys; the keys that follow from a choice."""
    keys, following = differing([group.settings for group in gathered.groups])
    rows = [(group, {key: group.settings.get(key, ABSENT) for key in keys}) for group in gathered.groups]
    rows.sort(key=lambda row: [ordered(value) for value in row[1].values()])
    return rows, keys, following


def label_of(group: Group, values: Mapping[str, Any]) -> str:
    """The values of the differing keys in one line; of a configuration that stands alone, its method."""
    words = [
        shown(value) if key.endswith(".name") else f"{key}={shown(value)}"
        for key, value in values.items()
        if value != ABSENT
    ]
    return ", ".join(words) or shown(group.settings.get("method.name", "run"))


def find_row(rows: Sequence[Mapping[str, Any]], word: str) -> int:
    """The number of the row that `word` names: its number, `key=value,…`, or a value that only one row has."""
    if word.isdecimal() and 1 <= int(word) <= len(rows):
        return int(word)
    texts = {
        number: {heading(key): shown(value) for key, value in values.items()}
        for number, values in enumerate(rows, start=1)
    }
    found = list(texts)
    for part in word.split(","):
        key, equals, value = part.strip().partition("=")
        if equals:
            found = [number for number in found if texts[number].get(heading(key)) == value]
        else:
            found = [number for number in found if key in texts[number].values()]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"against={word}: fits rows {', '.join(map(str, found))}; name one by its number")
    known = [text for values in texts.values() for key, value in values.items() for text in (value, f"{key}={value}")]
    by = f"name one by its number, 1 to {len(rows)}, or as key=value"
    raise ConfigError(f"against={word}: no such row{did_you_mean(word, known)}; {by}")


def _cells(number: int, group: Group, metrics: Sequence[Metric], found: Mapping[Any, Mark]) -> dict[str, Cell]:
    return {
        name: Cell(interval_of(group, name), found.get((number, name), ""), reached_by(group, name))
        for name in (metric.name for metric in metrics)
    }


def _budget(group: Group) -> dict[str, float]:
    spent = {name: list(values_by_seed(group, name).values()) for name in BUDGET}
    return {name: sum(values) / len(values) for name, values in spent.items() if values}


def _budget_columns(rows: Sequence[Row]) -> tuple[list[str], str]:
    """The counters that differ between rows, and the others in words; all are columns where there is one row."""
    counted = [name for name in BUDGET if any(name in row.budget for row in rows)]
    done = [row for row in rows if row.seeds]
    varying = [name for name in counted if len(done) == 1 or len({row.budget.get(name) for row in done}) > 1]
    equal = {name: done[0].budget[name] for name in counted if name not in varying}
    return varying, ", ".join(f"{name.replace('_', ' ')} {amount:,.6g}" for name, amount in equal.items())


# --- what must be known to read it --------------------------------------------------------------------------------


def _about_intervals(rows: Sequence[Row], metrics: Sequence[Metric]) -> list[str]:
    notes = []
    if any(row.seeds > 1 for row in rows):
        notes.append("±: half of the 95 % t-interval of the mean over seeds.")
    splits = dict.fromkeys(split_of(metric.name) for metric in metrics)
    ratios = {split: overlap([row.group for row in rows], split) for split in splits}
    if any(cell.reached for row in rows for cell in row.cells.values()):
        notes.append(
            "Where not all seeds reached a target there is neither a mean nor a test; the median counts those that did "
            "not as larger than any."
        )
    if corrected := [f"{split} {ratio:.3f}" for split, ratio in ratios.items() if ratio]:
        drawn = [str(row.number) for row in rows if any(overlap([row.group], split) for split in splits)]
        each = "Each" if len(drawn) == len(rows) else f"In row{'s' * (len(drawn) > 1)} {', '.join(drawn)} each"
        notes.append(
            f"{each} seed drew its own split of one table, so intervals and tests are corrected for the examples that "
            f"runs share (Nadeau and Bengio 2003); per training example: {', '.join(corrected)}."
        )
    if len({row.group.problem for row in rows}) > 1:
        notes.append("Only rows with the same data set and view are compared with each other.")
    if len({tuple(row.group.runs) for row in rows if row.seeds}) > 1:
        notes.append("The rows do not all have the same seeds; tests use those that two rows share.")
    return notes


def _about_ranks(rows: Sequence[Row], metrics: Sequence[Metric], unranked: Mapping[str, Sequence[int]]) -> list[str]:
    notes = []
    cells = [cell for row in rows for cell in row.cells.values() if cell.mark and cell.interval is not None]
    if cells:
        notes.append(
            "★ best mean; ☆ not distinguishable from it (paired t-test over common seeds, Holm-corrected, p ≥ 0.05)."
        )
    if any(cell.interval is not None and cell.interval.n == ENOUGH for cell in cells):
        notes.append("With 3 seeds ± is 2.5 standard deviations: a description, not a ranking.")
    left = {name: tuple(numbers) for name, numbers in unranked.items() if numbers}
    for numbers in dict.fromkeys(left.values()):
        of = [name for name in left if left[name] == numbers]
        which = "" if len(numbers) == len(rows) else f", rows {', '.join(map(str, numbers))}"
        notes.append(f"n too small to rank (fewer than {ENOUGH} common seeds): {', '.join(of)}{which}.")
    unknown = [metric.name for metric in metrics if metric.mode is None]
    if unknown and len(rows) > 1:
        notes.append(f"Which direction of {', '.join(unknown)} is better is not known: write metric=NAME:max or :min.")
    return notes


def _about_rows(gathered: Gathered, rows: Sequence[Row], following: Sequence[str]) -> list[str]:
    notes = []
    if following:
        notes.append(f"Following from a choice, these differ too: {', '.join(following)}.")
    runs = [run for group in gathered.groups for run in group.runs.values()]
    if pruned := sum(was_pruned(run.result.get("stopped_by")) for run in runs):
        notes.append(f"{pruned} of {len(runs)} runs were pruned: their numbers are of where they stopped.")
    if gathered.repeated:
        notes.append(f"Left out, since a newer run has the same configuration and seed: {len(gathered.repeated)}.")
    if gathered.missing:
        counts = ", ".join(f"{count} {state}" for state, count in states(gathered.missing).items())
        notes.append(f"Not completed, and not in the table: {counts}.")
    return notes
