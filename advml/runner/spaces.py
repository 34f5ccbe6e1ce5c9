"""What is searched: keys with the values each may take, written in Hydra's grammar of overrides.

    method.optimiser=choice(sgd,adam)     or sgd,adam           one of these
    method.batch_size=range(16,129,16)                          16, 32, …, 128: the stop is excluded, as everywhere
    method.lr=tag(log,interval(1e-4,1e-1))                      any number between, evenly on a log scale
    method.epochs=int(interval(1,20))                           any integer between, both ends included

The same texts stand in configs/search/NAME.yaml, as a flat mapping from keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep, Transformer
from hydra.errors import HydraException, OverrideParseException

from advml.errors import ConfigError, did_you_mean
from advml.roots import members

DIGITS = 6  # significant digits of a sampled number: enough for any setting, and readable
LOG = "log"


@dataclass(frozen=True)
class Dimension:
    """A key and its values: texts as one would type them ("choice"), or the numbers from `low` to `high`, inclusive.

    `step`: None = every number between; for "int" it is 1 then. `log`: evenly in the logarithm.
    """

    key: str
    kind: Literal["choice", "int", "float"]
    choices: tuple[str, ...] = ()
    low: float = 0
    high: float = 0
    step: float | None = None
    log: bool = False

    def points(self) -> list[str] | None:
        """All values as texts, in order; None for an interval, which has too many."""
        if self.kind == "choice":
            return list(self.choices)
        if self.step is None:
            return None
        count = round((self.high - self.low) / self.step) + 1
        return [self.text(self.low + number * self.step) for number in range(count)]

    def ends(self) -> list[str]:
        """Every choice; of numbers the lowest and the highest."""
        return list(self.choices) if self.kind == "choice" else [self.text(self.low), self.text(self.high)]

    def text(self, value: Any) -> str:
        """A value as one would type it: numbers to DIGITS significant digits, unless that would leave the interval."""
        if self.kind == "choice":
            return str(value)
        if self.kind == "int":
            return str(int(value))
        short = f"{value:.{DIGITS}g}"
        return short if self.low <= float(short) <= self.high else repr(float(value))

    def __str__(self) -> str:
        """Equal for equal dimensions, however they were written."""
        if self.kind == "choice":
            return f"{self.key}=choice({','.join(self.choices)})"
        ends = f"{self.low!r},{self.high!r}" + (f",step {self.step!r}" if self.step is not None else "")
        return f"{self.key}={self.kind}({ends}){' log' if self.log else ''}"


def dimension(override: Override) -> Dimension:
    """The dimension that a word with several values means. Raises ValueError, saying why it means none."""
    key, value = override.get_key_element().lstrip("+"), override.value()
    if unknown := set(getattr(value, "tags", ())) - {LOG}:
        raise ValueError(f"tag({min(unknown)},...): there is tag(log,interval(...)) only")
    log = LOG in getattr(value, "tags", ())
    if isinstance(value, IntervalSweep):
        assert value.start is not None
        assert value.end is not None
        kind: Literal["int", "float"] = "int" if isinstance(value.start, int) else "float"
        if not value.start < value.end:
            raise ValueError(f"interval({value.start:g},{value.end:g}): the second number must be the larger one")
        if log and value.start <= 0:
            raise ValueError(f"interval({value.start:g},{value.end:g}): with tag(log,...) it must begin above 0")
        return Dimension(key, kind, (), value.start, value.end, None, log)
    if log:
        raise ValueError("tag(log,...) says something of an interval only")
    if isinstance(value, RangeSweep):
        numbers = [number if isinstance(number, int) else float(f"{number:.12g}") for number in value.range()]
        if not numbers:
            raise ValueError("a range without numbers")
        if len(numbers) > 1:
            whole = all(isinstance(number, int) for number in numbers)
            first, last, step = min(numbers), max(numbers), abs(value.step)
            return Dimension(key, "int" if whole else "float", (), first, last, step)
        return Dimension(key, "choice", (str(numbers[0]),))
    chosen: Any = value.list if isinstance(value, ChoiceSweep) else value
    return Dimension(key, "choice", tuple(dict.fromkeys(Transformer.str(one) for one in chosen)))


def grid(dimensions: Sequence[Dimension]) -> list[tuple[str, ...]]:
    """All combinations, the last key changing fastest. Raises ConfigError where a key has an interval."""
    points = {one.key: one.points() for one in dimensions}
    if endless := [key for key, values in points.items() if values is None]:
        raise ConfigError(
            f"{key}: an interval has no grid; write choice(...), range(...) or another sampler" for key in endless
        )
    return list(product(*(values for values in points.values() if values is not None)))


def read_space(name: str, roots: Sequence[Path]) -> dict[str, str]:
    """configs/search/NAME.yaml as key → override. Raises ConfigError with every mistake in it."""
    known = members("search", roots)
    if name not in known:
        raise ConfigError(f"sweep.space={name}: unknown search{did_you_mean(name, known)} (see: advml list searches)")
    path = known[name]
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        why = (str(getattr(error, "problem", None) or error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{path}: cannot be read: {why}") from None
    if not isinstance(tree, Mapping) or not tree:
        raise ConfigError(f"{path}: must be a mapping from keys to values, like method.lr: interval(0.01,0.1)")
    mistakes, words = [], {}
    for key, value in tree.items():
        if isinstance(value, Mapping | list):
            mistakes.append(f"{path}: {key}: must be a text; write dotted keys, and several values as choice(a,b)")
            continue
        word = f"{key}={_typed(value)}"
        if _is_word(word):
            words[str(key)] = word
        else:
            mistakes.append(f"{path}: {word}: not an override (see: advml sweep --help)")
    if mistakes:
        raise ConfigError(mistakes)
    return words


def _typed(value: Any) -> str:
    """A YAML scalar as Hydra's grammar writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)


def _is_word(word: str) -> bool:
    try:
        return bool(OverridesParser.create().parse_override(word).key_or_group)
    except (OverrideParseException, HydraException):
        return False
