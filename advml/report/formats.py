"""A comparison as text: for the terminal (rich), as CSV, Markdown and LaTeX."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Callable, Mapping, Sequence
from statistics import median_low
from typing import TYPE_CHECKING, Any

from advml.report.keys import heading, shown
from advml.report.ranking import Difference
from advml.report.reached import Reached, said
from advml.report.stats import Interval
from advml.report.tables import BUDGET, Cell, Comparison, Row

if TYPE_CHECKING:
    from rich.console import Group

UNDEFINED = "–"
STARS = {"": "", "best": " ★", "tied": " ☆"}

Grid = tuple[list[str], list[list[str]], list[bool]]
"""Headings, rows of texts, and which columns are numbers."""


# --- numbers ------------------------------------------------------------------------------------------------------


def decimals(intervals: Sequence[Interval]) -> int | None:
    """Digits after the point for a column: two significant ones of its median interval, 4 where there is none.

    None for numbers too large or too small to be read that way.
    """
    halves = [interval.half for interval in intervals if interval.half]
    largest = max((abs(interval.mean) for interval in intervals), default=0.0)
    if largest >= 1e6 or 0 < largest < 1e-3:
        return None
    if halves:
        return min(max(1 - math.floor(math.log10(median_low(halves))), 0), 6)
    return 4 - min(max(math.floor(math.log10(largest or 1)), 0), 4)


def decimals_of(found: Sequence[Interval | Reached | None]) -> int | None:
    """`decimals` of a column in which some have no mean; a median by itself is a number without an interval."""
    medians = [one.median for one in found if isinstance(one, Reached) and one.median is not None]
    means = [one for one in found if isinstance(one, Interval)]
    return decimals([*means, *(Interval(1, value, None, None) for value in medians)])


def number(value: float | None, places: int | None) -> str:
    """A number with fixed decimals; in four significant digits where there are none."""
    if value is None:
        return UNDEFINED
    text = f"{value:.4g}" if places is None else f"{value:.{places}f}"
    return text.replace("-", "−")


def plus_minus(interval: Interval | None, places: int | None) -> str:
    """`0.942 ± 0.013`; a single number without an interval."""
    if interval is None or interval.half is None:
        return number(interval.mean if interval else None, places)
    return f"{number(interval.mean, places)} ± {number(interval.half, places)}"


def amount(name: str, value: float | None) -> str:
    """A budget counter."""
    if value is None:
        return UNDEFINED
    if name == "flops_estimate":
        return f"{value:.2e}"
    return f"{value:,.1f}" if name == "seconds" else f"{value:,.0f}"


def probability(p: float | None) -> str:
    """A p-value: 0.031, < 0.001."""
    return UNDEFINED if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


# --- the two tables, as texts -------------------------------------------------------------------------------------


def main_grid(comparison: Comparison, stars: Mapping[str, str]) -> Grid:
    """One row a configuration. `stars`: mark → what is written behind a cell."""
    metrics = [metric.name for metric in comparison.metrics]
    places = {name: _places([row.cells[name] for row in comparison.rows]) for name in metrics}
    counters = [f"{name.replace('flops_estimate', 'FLOPs (est.)')}" for name in comparison.budget]
    headings = ["#", *map(heading, comparison.keys), "seeds", *metrics, *counters]
    body = []
    for row in comparison.rows:
        cells = []
        for name in metrics:
            cell = row.cells[name]
            fewer = cell.interval is not None and cell.interval.n < row.seeds
            few = f" (n = {cell.interval.n})" if cell.interval is not None and fewer else ""
            text = plus_minus(cell.interval, places[name]) + few + stars[cell.mark]
            if cell.reached is not None:
                text = said(name, cell.reached, number(cell.reached.median, places[name]))
            cells.append(text)
        body.append([
            str(row.number), *map(shown, row.values.values()), seeds(row), *cells,
            *(amount(name, row.budget.get(name)) for name in comparison.budget),
        ])  # fmt: skip
    texts = len(comparison.keys)
    return headings, body, [True, *[False] * texts, *[True] * (len(headings) - 1 - texts)]


def _places(cells: Sequence[Cell]) -> int | None:
    """Decimals of a column; medians count where there is no interval."""
    return decimals_of([cell.interval or cell.reached for cell in cells])


def seeds(row: Row) -> str:
    """How many seeds the numbers stand on: `5`, or `3 of 5` where runs are missing."""
    return str(row.seeds) if row.asked == row.seeds else f"{row.seeds} of {row.asked}"


def difference_grid(comparison: Comparison) -> Grid | None:
    """Paired differences, one row each; None where no two rows share a seed, or where they are not to be listed."""
    shared = [one for one in comparison.differences if one.paired is not None]
    if not shared or not comparison.listed:
        return None
    headings = ["metric", "rows", "seeds", "difference", "95 % interval", "p", "p (Holm)"]
    body = []
    for metric in dict.fromkeys(one.metric for one in shared):
        of = [one for one in shared if one.metric == metric]
        places = decimals([one.paired.interval for one in of if one.paired])
        body += [[metric, *_difference(one, places)] for one in of]
    return headings, body, [False, False, True, True, True, True, True]


def _difference(one: Difference, places: int | None) -> list[str]:
    assert one.paired is not None
    interval = one.paired.interval
    tested = one.p_holm is not None  # with fewer seeds there is an interval, but it says next to nothing
    ends = f"{number(interval.low, places)} to {number(interval.high, places)}" if tested else "n too small"
    p = probability(one.paired.p if tested else None)
    where = f"{one.row} minus {one.reference}"
    return [where, str(one.seeds), number(interval.mean, places), ends, p, probability(one.p_holm)]


# --- formats ------------------------------------------------------------------------------------------------------


def as_rich(comparison: Comparison) -> Group:
    """Both tables and the notes, to be printed by a rich console."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    def table(grid: Grid) -> Table:
        drawn = Table(title_justify="left")
        for name, right in zip(grid[0], grid[2], strict=True):
            drawn.add_column(Text(name), justify="right" if right else "left")
        for row in grid[1]:
            drawn.add_row(*(Text(text, style="bold" if text.endswith("★") else "") for text in row))
        return drawn

    second = difference_grid(comparison)
    tables = [table(main_grid(comparison, STARS)), *([table(second)] if second else [])]
    return Group(*tables, *(Text(note) for note in comparison.notes))


def as_markdown(comparison: Comparison) -> str:
    """Both tables and the notes."""
    bold = {"": "", "best": " ★", "tied": " ☆"}
    second = difference_grid(comparison)
    parts = [_markdown(main_grid(comparison, bold)), *([_markdown(second)] if second else [])]
    return "\n\n".join([*parts, *comparison.notes]) + "\n"


def _markdown(grid: Grid) -> str:
    headings, body, numeric = grid
    cells = [[text.replace("|", "\\|") for text in row] for row in [headings, *body]]
    rule = ["---:" if right else "---" for right in numeric]
    return "\n".join(f"| {' | '.join(row)} |" for row in [cells[0], rule, *cells[1:]])


def as_latex(comparison: Comparison) -> str:
    """Both tables for LaTeX with the package booktabs; the notes as comments below."""
    stars = {"": "", "best": "\0best", "tied": "\0tied"}
    second = difference_grid(comparison)
    parts = [_latex(main_grid(comparison, stars)), *([_latex(second)] if second else [])]
    symbols = {"★": "bold with a star", "☆": "a circle"}
    notes = [_in_words(note, symbols) for note in comparison.notes]
    apart = "\n\n\\medskip\\noindent\n"  # otherwise the rules of the two tables touch
    return "% \\usepackage{booktabs}\n" + apart.join(parts) + "\n" + "".join(f"% {note}\n" for note in notes)


def _in_words(note: str, symbols: Mapping[str, str]) -> str:
    for symbol, words in symbols.items():
        note = note.replace(f"{symbol} ", f"{words}: ")
    return note


def _latex(grid: Grid) -> str:
    headings, body, numeric = grid
    lines = [
        f"\\begin{{tabular}}{{{''.join('r' if right else 'l' for right in numeric)}}}",
        "\\toprule",
        " & ".join(map(latex_escaped, headings)) + " \\\\",
        "\\midrule",
        *(" & ".join(map(_latex_cell, row, numeric)) + " \\\\" for row in body),
        "\\bottomrule",
        "\\end{tabular}",
    ]
    return "\n".join(lines)


def _latex_cell(text: str, numeric: bool) -> str:
    """Marks take no width, so that the numbers of a column stay below each other."""
    plain, _, mark = text.partition("\0")
    cell = latex_escaped(plain)
    if numeric:
        cell = POWER.sub(_power, cell)
    if mark == "best":
        mean, sign, half = cell.partition(" $\\pm$ ")
        return f"\\textbf{{{mean}}}{sign}{half}\\rlap{{$^\\star$}}"
    return f"{cell}\\rlap{{$^\\circ$}}" if mark == "tied" else cell


POWER = re.compile(r"(?<=\d)e(\+|-|\$-\$)0*(\d+)\b")


def _power(found: re.Match[str]) -> str:
    """2.5e+09 is what a computer prints."""
    return f"$\\times10^{{{'' if found[1] == '+' else '-'}{found[2]}}}$"


LATEX: dict[str, str] = {
    "\\": "\\textbackslash{}", "{": "\\{", "}": "\\}", "_": "\\_", "%": "\\%", "&": "\\&", "#": "\\#", "$": "\\$",
    "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", "<": "$<$", ">": "$>$", "±": "$\\pm$", "−": "$-$", "–": "--",
    "|": "\\textbar{}", '"': "\\char34{}",
}  # fmt: skip


def latex_escaped(text: str) -> str:
    """Text in which nothing is a command of LaTeX."""
    return "".join(LATEX.get(letter, letter) for letter in text)


def as_csv(comparison: Comparison) -> str:
    """One line a configuration, every number in full: metrics with interval and mark, differences, budget."""
    differences = {(one.metric, one.row): one for one in comparison.differences}
    parts = ("n", "mean", "sd", "low", "high", "median of all", "mark")
    against = ("reference", "common seeds", "difference", "difference low", "difference high", "p", "p holm")
    names = [metric.name for metric in comparison.metrics]
    headings = ["row", *comparison.keys, "seeds", "asked"]
    headings += [f"{name} {part}" for name in names for part in (*parts, *against)] + list(BUDGET)
    lines: list[list[Any]] = [headings]
    for row in comparison.rows:
        line: list[Any] = [row.number, *map(shown, row.values.values()), row.seeds, row.asked]
        for name in names:
            cell, one = row.cells[name], differences.get((name, row.number))
            found = cell.interval
            line += [found.n, found.mean, found.sd, found.low, found.high] if found else [_count(cell), *[None] * 4]
            line += [cell.reached.median if cell.reached else None, cell.mark, *_csv_difference(one)]
        lines.append(line + [row.budget.get(name) for name in BUDGET])
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(lines)
    return buffer.getvalue()


def _count(cell: Cell) -> int:
    """How many runs have a number that has no mean."""
    return cell.reached.count if cell.reached else 0


def _csv_difference(one: Difference | None) -> list[Any]:
    if one is None or one.paired is None:
        return [None] * 7
    found = one.paired.interval
    return [one.reference, one.seeds, found.mean, found.low, found.high, one.paired.p, one.p_holm]


WRITERS: Mapping[str, Callable[[Comparison], str]] = {"csv": as_csv, "markdown": as_markdown, "latex": as_latex}
"""Format → what writes it; `rich` is for terminals and is no text."""
