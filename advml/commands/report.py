"""advml report RUN|FOLDER|SWEEP ... [metric=NAME,...] [against=ROW] [out=FILE]

Writes one HTML page of everything: the tables of advml compare, the pictures of advml plot, runs without a result,
settings, machines, versions and work. It needs no network, no script and no file beside it, so it can be sent as it is.

  advml report outputs/sweeps/digits                       into outputs/sweeps/digits/report.html
  advml report outputs metric=test/accuracy,test/loss      with metrics of your choice; the names are in result.json
  advml report outputs against=finetune                    differences from one row: by value, key=value or number
  advml report RUN                                         a single run, with its own pictures
  advml report RUN_A RUN_B out=two.html                    without out= several folders go into ./report.html

The page links to the run folders by relative paths: they work as long as it lies where it was written.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

SUFFIXES = (".html", ".htm")


def main(arguments: Sequence[str]) -> int:
    """Gather, compare, draw, write; the file is the last line printed."""
    from advml.commands.paths import paths_and_options
    from advml.errors import ConfigError

    paths, given = paths_and_options("report", arguments, ("metric", "against", "out"))
    out = Path(given["out"]) if "out" in given else Path("report.html") if len(paths) > 1 else paths[0] / "report.html"
    if out.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"out={out}: the page is HTML; name a file that ends in .html")
    if out.is_dir():
        raise ConfigError(f"out={out}: is a folder; name a file in it, like out={out / 'report.html'}")

    from advml.report.gather import gather
    from advml.report.page import page
    from advml.runner.files import write_out

    gathered = gather(paths, curves=True)
    metrics = [name for name in given.get("metric", "").split(",") if name]
    command = shlex.join(["advml", "report", *arguments])
    html = page(gathered, metrics, given.get("against"), paths=paths, base=out.parent, command=command)
    for one in gathered.missing:
        print(f"advml: {one.folder.path}: {one.state}: {one.reason}", file=sys.stderr)
    write_out(out, html)
    print(out)
    return 0
