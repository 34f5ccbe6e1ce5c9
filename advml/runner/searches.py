"""A search before it begins: which keys are searched, which settings are fixed, where it lies; all of it checked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig

from advml.compose import as_tree, composed
from advml.config import Bound, SweepSettings, bind
from advml.errors import ConfigError
from advml.overrides import config_dirs, forced, is_hydras
from advml.roots import config_root, extra_roots
from advml.runner.environment import resolve_device
from advml.runner.fit import check_fit
from advml.runner.spaces import Dimension, dimension, grid, read_space
from advml.runner.sweeps import Sweep, command_hash, single_words

if TYPE_CHECKING:
    from advml.runner.search import Search

TRIALS = 20  # of a search that is not told how many
SEARCHING = ("sampler", "pruner", "sampler_seed")  # settings that tell one search from another


def searching(options: Sequence[str], prepared: Sequence[str]) -> bool:
    """Does the configuration ask for a sampler?"""
    single, _ = single_words(prepared)
    asked: Any = composed(single, config_dirs(options)).get("sweep")
    return asked is not None and asked.get("sampler") is not None


def plan_search(
    options: Sequence[str], typed: Sequence[str], prepared: Sequence[str], command: str, note: Callable[[str], None]
) -> tuple[Sweep, Search]:
    """The sweep and its search. Raises ConfigError with the mistakes in the settings, the space and each value of it.

    Words of the command win over those of the space file. What goes wrong with a combination of values only, a trial
    will tell.
    """
    if any(word.lstrip("+").startswith("hydra/sweeper") for word in prepared):
        raise ConfigError("hydra/sweeper: not with sweep.sampler, which brings its own")
    dirs = config_dirs(options)
    roots = [config_root(), *extra_roots(), *dirs]
    settings = _settings(single_words(prepared)[0], dirs)
    words = list(typed)
    if settings.space is not None:
        given = {_key(word) for word in typed}
        words += [word for key, word in read_space(settings.space, roots).items() if key not in given]
    every = forced(words, dirs, several=True)
    fixed, mistakes = single_words(every)
    dimensions = _dimensions(every, mistakes)
    if not dimensions and not mistakes:
        hint = "give a key several values, or choose a sweep.space (see: advml list searches)"
        mistakes.append(f"sweep.sampler: nothing to search; {hint}")
    if mistakes:
        raise ConfigError(mistakes)
    points = len(grid(dimensions)) if settings.sampler == "grid" else None
    bound = _checked(fixed, dimensions, dirs, settings.pruner)
    name = settings.name or _hash(options, words, dimensions, settings)
    folder = Path(bound.run.outputs).absolute() / "sweeps" / name
    sweep = Sweep(folder, settings, command, frozenset(map(_key, fixed)), None)

    from advml.runner.search import Plan, Search  # needs Optuna: not before it is clear that all the rest is right

    trials = min(points, settings.trials or points) if points is not None else settings.trials or TRIALS
    plan = Plan(str(settings.sampler), trials, settings.sampler_seed, settings.pruner, tuple(dimensions), tuple(fixed),
                tuple(dirs))  # fmt: skip
    return sweep, Search(plan, sweep, note)


def _settings(single: Sequence[str], dirs: Sequence[Path]) -> SweepSettings:
    """The sweep block, which the space cannot change."""
    tree = as_tree(composed(single, dirs))
    plain = as_tree(composed([word for word in single if _key(word).startswith("sweep.")], dirs))
    return bind({**plain, "sweep": tree["sweep"]}).run.sweep


def _dimensions(prepared: Sequence[str], mistakes: list[str]) -> list[Dimension]:
    """The searched keys, sorted, so that the order of words is of no matter."""
    found: dict[str, Dimension] = {}
    for word in prepared:
        if is_hydras(word):
            continue
        parsed = OverridesParser.create().parse_override(word)
        found.pop(_key(word), None)  # of several words for a key the last counts
        if parsed.is_sweep_override() and _key(word).partition(".")[0] not in ("sweep", "outputs"):
            try:
                found[_key(word)] = dimension(parsed)
            except ValueError as error:
                mistakes.append(f"{_key(word)}: {error}")
    return [found[key] for key in sorted(found)]


def _checked(fixed: Sequence[str], dimensions: Sequence[Dimension], dirs: Sequence[Path], pruner: str) -> Bound:
    """Bind and fit the first values of all keys, then each other choice, or end of an interval, by itself."""
    found: dict[str, None] = {}
    bound: Bound | None = None
    for config in _probes(fixed, dimensions, dirs):
        try:
            one = bind(as_tree(config))
            check_fit(one)
            resolve_device(one.run.device)
            bound = bound or one
            ranked_by = getattr(one.method.cls, "objective", None)
            if pruner != "none" and ranked_by is not None and not ranked_by.keep_best:
                found[f"sweep.pruner={pruner}: not with method={one.method.name}, whose first values say nothing about "
                      f"its last (they are of other tasks)"] = None  # fmt: skip
        except ConfigError as error:
            found.update(dict.fromkeys(error.mistakes))
    if found:
        raise ConfigError(found)
    assert bound is not None
    return bound


def _probes(fixed: Sequence[str], dimensions: Sequence[Dimension], dirs: Sequence[Path]) -> Iterator[DictConfig]:
    """Configurations in which every choice and every end of an interval occurs."""
    first = {one.key: f"{one.key}={one.ends()[0]}" for one in dimensions}
    yield composed([*fixed, *forced(list(first.values()), dirs)], dirs)
    for one in dimensions:
        for value in one.ends()[1:]:
            words = {**first, one.key: f"{one.key}={value}"}
            yield composed([*fixed, *forced(list(words.values()), dirs)], dirs)


def _hash(
    options: Sequence[str], words: Sequence[str], dimensions: Sequence[Dimension], settings: SweepSettings
) -> str:
    """Equal for commands that search the same space in the same way, for however many trials."""
    searched = {one.key for one in dimensions}
    plain = [word for word in words if _key(word) not in searched]
    search = [f"search {name}={getattr(settings, name)}" for name in SEARCHING]
    named = [word for word in options if word not in ("-m", "--multirun")]
    return command_hash(named, [*plain, *map(str, dimensions), *search])


def _key(word: str) -> str:
    return word.lstrip("+").partition("=")[0]
