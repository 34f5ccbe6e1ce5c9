"""advml plot RUN|FOLDER ... [kind=KIND,...] [metric=NAME,...] [x=AXIS] [out=FOLDER]

Draws runs as PNG and SVG, one line or bar for each configuration, with intervals over its seeds. A folder stands for
all runs below it. Pictures go to FOLDER/figures, or to ./figures where several folders are named.

  advml plot outputs                                       every kind that makes sense
  advml plot outputs kind=curves metric=train/loss         one kind, of a metric of your choice
  advml plot outputs kind=curves x=seconds                 over training time instead of steps
  advml plot outputs kind=budget x=samples                 results against the work they took
  advml plot outputs x=parameters                          results against the size of the network (that was found)
  advml plot RUN_A RUN_B out=pictures                      two runs, into a folder of your choice
  advml plot outputs/sweeps/first kind=parallel,importance which settings were tried, what came out, which mattered

Kinds: curves (with bands), bars, heatmap (a metric over two keys; accuracy matrices), budget (work against result);
of a search parallel (an axis for each key, a line for each configuration) and importance (of each key).
Axes: step, samples, updates, gradients, seconds; for budget also parameters.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

KINDS = ("curves", "bars", "heatmap", "budget", "parallel", "importance")


def main(arguments: Sequence[str]) -> int:
    """Gather, draw, write; the files that were written are printed."""
    from advml.commands.paths import one_of, paths_and_options

    paths, given = paths_and_options("plot", arguments, ("kind", "metric", "x", "out"))
    kinds = [one_of("plot", {"kind": kind}, "kind", KINDS, "") for kind in given.get("kind", "").split(",") if kind]
    from advml.errors import ConfigError
    from advml.report.curves import AGAINST, AXES
    from advml.report.gather import gather
    from advml.report.plots import draw
    from advml.runner.files import write_atomic

    axis = one_of("plot", given, "x", tuple(AGAINST), "step") if "x" in given else None
    kinds = kinds if kinds or axis is None or axis in AXES else ["budget"]
    out = Path(given["out"]) if "out" in given else Path("figures") if len(paths) > 1 else paths[0] / "figures"
    if out.exists() and not out.is_dir():
        raise ConfigError(f"out={out}: is no folder")
    gathered = gather(paths, curves=True)
    for one in gathered.missing:
        print(f"advml: {one.folder.path}: {one.state}: {one.reason}", file=sys.stderr)
    metrics = [name for name in given.get("metric", "").split(",") if name]
    pictures = draw(gathered, kinds, metrics, axis)
    out.mkdir(parents=True, exist_ok=True)
    written = []
    for name, picture in pictures.items():
        for suffix, data in picture.items():
            written.append(out / f"{name}.{suffix}")
            write_atomic(written[-1], data)
    print("\n".join(map(str, written)))
    return 0
