"""advml compare RUN|FOLDER ... [metric=NAME,...] [against=ROW] [format=rich|csv|markdown|latex] [out=FILE]

Sets the keys in which runs differ against their final metrics: mean and 95 % interval over seeds, the best marked,
the budget, and paired tests where configurations share seeds. A folder stands for all runs below it.

  advml compare outputs                                    every run below ./outputs
  advml compare outputs metric=test/accuracy,test/loss     with metrics of your choice; the names are in result.json
  advml compare outputs metric=test/my_score:max           saying that more of it is better
  advml compare outputs against=finetune                   differences from one row: by value, key=value or number
  advml compare RUN_A RUN_B format=markdown                two runs, as Markdown
  advml compare outputs out=table.tex                      into a file; .csv, .md and .tex say the format

★ marks the best mean, ☆ what cannot be distinguished from it. With fewer than 3 common seeds nothing is marked.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from advml.report.tables import Comparison

FORMATS = ("rich", "csv", "markdown", "latex")
SUFFIXES = {".csv": "csv", ".md": "markdown", ".tex": "latex"}


def main(arguments: Sequence[str]) -> int:
    """Gather, compare, write. Runs without a result are named on stderr."""
    from advml.commands.paths import one_of, paths_and_options
    from advml.report.gather import gather
    from advml.report.tables import compare
    from advml.runner.files import write_out

    paths, given = paths_and_options("compare", arguments, ("metric", "against", "format", "out"))
    out = Path(given["out"]) if "out" in given else None
    default = SUFFIXES.get(out.suffix, "markdown") if out else "rich"
    form = one_of("compare", given, "format", FORMATS, default)
    metrics = [name for name in given.get("metric", "").split(",") if name]
    gathered = gather(paths)
    comparison = compare(gathered, metrics, given.get("against"))
    for one in gathered.missing:
        print(f"advml: {one.folder.path}: {one.state}: {one.reason}", file=sys.stderr)
    if form == "rich":
        _show(comparison, out)
        return 0
    from advml.report.formats import WRITERS

    text = WRITERS[form](comparison)
    if out is None:
        print(text, end="")
        if form == "csv":  # a table for machines carries no sentences
            print("\n".join(f"advml: {note}" for note in comparison.notes), file=sys.stderr)
    else:
        write_out(out, text)
        print(out)
    return 0


def _show(comparison: Comparison, out: Path | None) -> None:
    """Print with rich; where nobody's terminal limits the width, no cell is broken into lines."""
    from rich.console import Console
    from rich.table import Table

    from advml.report.formats import as_rich
    from advml.runner.files import write_out

    shown = as_rich(comparison)
    buffer = io.StringIO()
    console = Console() if out is None else Console(file=buffer)
    if not console.is_terminal:
        wide = Console(width=10_000)
        needed = [wide.measure(part).maximum for part in shown.renderables if isinstance(part, Table)]
        console = Console(file=console.file, width=max(80, *needed))
    console.print(shown)
    if out is not None:
        write_out(out, buffer.getvalue())
        print(out)
