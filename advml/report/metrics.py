"""Which final numbers a comparison shows, which direction of each is better, and what its axis is called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from advml.errors import ConfigError, did_you_mean
from advml.report.gather import Gathered, Group, overlap, split_of
from advml.report.reached import Reached, is_goal, reached
from advml.report.stats import Interval, t_interval

Mode = Literal["max", "min"]

HIGHER = ("accuracy", "f1", "r2", "auc", "transfer")
LOWER = ("loss", "mse", "mae", "rmse", "ece", "error", "forgetting", "perplexity")

UNITS = {  # errors are measured on the target as the data set prepares it, mostly standardised
    "accuracy": "fraction correct",
    "f1": "0 to 1",
    "auc": "0 to 1",
    "ece": "0 to 1",
    "mse": "squared units of the prepared target",
    "mae": "units of the prepared target",
    "transfer": "difference of accuracies",
    "forgetting": "difference of accuracies",
    "seconds": "s",
    "mb": "MB",
}


@dataclass(frozen=True)
class Metric:
    """A final number by its name; `mode` says which direction is better, None where nobody knows."""

    name: str
    mode: Mode | None


def choose(gathered: Gathered, asked: Sequence[str] = ()) -> list[Metric]:
    """The metrics asked for, perhaps with `:max` or `:min`; by default each objective and the same metric on test.

    Raises ConfigError, naming those that there are, for one that no run has.
    """
    runs = [run for group in gathered.groups for run in group.runs.values()]
    objectives: dict[tuple[str, str], Mode] = {
        (run.result["objective"]["split"], run.result["objective"]["metric"]): run.result["objective"]["mode"]
        for run in runs
    }
    modes = {metric: mode for (_, metric), mode in objectives.items()}
    goals = (name for run in runs for name in sorted(run.undefined) if is_goal(name))
    known = list(dict.fromkeys([*(name for run in runs for name in run.numbers), *goals]))
    if not asked:
        defaults = [f"{split}/{metric}" for split, metric in objectives] + [f"test/{metric}" for metric in modes]
        asked = [name for name in dict.fromkeys(defaults) if name in known] or known[:1]
    chosen: dict[str, Metric] = {}
    mistakes = []
    for word in dict.fromkeys(asked):
        name, _, direction = word.partition(":")
        if name not in known:
            mistakes.append(f"metric={name}: no run has it{did_you_mean(name, known)}; there are {', '.join(known)}")
        elif direction not in ("", "max", "min"):
            mistakes.append(f"metric={word}: after the colon comes max (higher is better) or min")
        else:
            chosen[name] = Metric(name, _mode(name, direction, modes))
    if mistakes:
        raise ConfigError(mistakes)
    return list(chosen.values())


def _mode(name: str, said: str, objectives: Mapping[str, Mode]) -> Mode | None:
    """What the user said; else what the objective of that name says; else what the name usually means."""
    if said:
        return "max" if said == "max" else "min"
    last = name.rpartition("/")[2]
    if last in objectives:
        return objectives[last]
    if is_goal(name) or any(word in LOWER for word in _words(name)):
        return "min"
    return "max" if any(word in HIGHER for word in _words(name)) else None


def reached_by(group: Group, metric: str) -> Reached | None:
    """Of a number that tells what it took to get somewhere: how many runs got there; None where all did."""
    runs = [run for run in group.runs.values() if metric in run.numbers or metric in run.undefined]
    return reached(metric, [run.numbers.get(metric) for run in runs]) if is_goal(metric) else None


def values_by_seed(group: Group, metric: str) -> dict[int, float]:
    """Seed → value, for the seeds that have one; nothing where one of them did not get somewhere: see reached.py."""
    if reached_by(group, metric) is not None:
        return {}
    return {seed: run.numbers[metric] for seed, run in group.runs.items() if metric in run.numbers}


def interval_of(group: Group, metric: str) -> Interval | None:
    """Mean and interval of a metric over the seeds of a configuration; None if no run has it."""
    values = list(values_by_seed(group, metric).values())
    return t_interval(values, overlap([group], split_of(metric))) if values else None


def spent_by(group: Group, axis: str) -> Interval | None:
    """The work of a configuration, or its network's parameters: of a search, those of what it found."""
    derived = interval_of(group, "derived_parameters") if axis == "parameters" else None
    return derived or interval_of(group, axis)


def axis_title(metric: str) -> str:
    """`valid/accuracy` → `valid accuracy (fraction correct)`: what an axis is called, with its unit if it has one."""
    words = metric.replace("/", " ").replace("_", " ")
    unit = next((unit for word, unit in UNITS.items() if word in _words(metric)), None)
    return f"{words} ({unit})" if unit else words


def _words(name: str) -> list[str]:
    return name.replace("/", "_").split("_")
