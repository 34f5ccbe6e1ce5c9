"""What a person sees at the end of a run."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from advml.runner.run import Outcome


def show_outcome(outcome: Outcome, baselines: Mapping[str, Mapping[str, Any]] = {}) -> None:
    """The result table of a completed run, or the one line that says why there is none; the folder comes last.

    `baselines`: name → result of each run beside it.
    """
    if outcome.state == "completed":
        show_result(outcome.folder.result(), baselines)
    elif outcome.message:
        print(f"advml: {outcome.message}", file=sys.stderr)
    print(outcome.folder.path)


def show_result(result: Mapping[str, Any], baselines: Mapping[str, Mapping[str, Any]] = {}) -> None:
    """Objective first, then test metrics, budget, parameters and seconds; a column for each baseline's last state."""
    table = Table(title=f"{result['method']} on {result['dataset']}, seed {result['seed']}", title_justify="left")
    best = result["best"]
    table.add_column("", overflow="fold")  # a name cut short might be another
    table.add_column("last state", justify="right", overflow="fold")
    if best:
        table.add_column(f"best state\n(step {best['step']})", justify="right", overflow="fold")
    beside = []
    for name, other in baselines.items():
        table.add_column(f"baseline\n{name}", justify="right", overflow="fold")
        beside.append({row: last for row, last, _ in _rows(other)})
    for name, last, of_best in _rows(result):
        table.add_row(name, last, *([of_best] if best else []), *(column.get(name, "") for column in beside))
    Console().print(table)
    if result["stopped_by"]:
        print(f"stopped early: {result['stopped_by']}")


def _rows(result: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    objective, best = result["objective"], result["best"] or {}
    metric, split = objective["metric"], objective["split"]
    yield f"{split} {metric} (objective, {objective['mode']})", _number(objective["value"]), _number(best.get(metric))
    for name, value in result["metrics"]["test"].items():
        yield f"test {name}", _number(value), _number(best.get("test", {}).get(name))
    for name, value in result["summary"].items():
        if name.removeprefix("test_") in result["metrics"]["test"]:
            continue  # the same number
        yield name, _number(value), ""
    for name, value in result["budget"].items():
        if value is not None:
            shown = f"{value:.2e}" if name == "flops_estimate" else f"{value:,}"
            yield "FLOPs (estimate)" if name == "flops_estimate" else name, shown, ""
    if result["parameters"] is not None:
        yield "parameters", f"{result['parameters']:,}", ""
    yield "seconds of training", f"{result['seconds']:.1f}", ""


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4f}" if value == 0 or 0.001 <= abs(value) < 1000 else f"{value:.4g}"
