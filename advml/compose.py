"""From what a user typed to a composed configuration, through Hydra; its errors become one line each.

Group choices (`method=ewc`) are checked against the configuration folders first. Value overrides (`method.lr=1`) are
force-added, so that a misspelt key reaches the binder, which then reports all mistakes at once with suggestions.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, ValueType
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from advml.errors import AdvmlError, ConfigError, did_you_mean
from advml.roots import config_root, extra_roots, members

# Hydra's options that take a value of their own: the word after them is no override.
FLAGS_WITH_VALUE = ("--config-dir", "-cd", "--config-name", "-cn", "--config-path", "-cp", "--cfg", "-c", "--package",
                    "-p", "--info", "-i", "--experimental-rerun", "--shell-completion", "-sc")  # fmt: skip


# --- from the command line ----------------------------------------------------------------------------------------


def through_hydra(task: Callable[[DictConfig], int], arguments: Sequence[str]) -> int:
    """Run `task` as a Hydra application on the arguments of a verb; the exit code is the task's (of several jobs, the
    worst). Multirun, sweepers, launchers, --cfg, --config-dir, hydra.* and tab completion are Hydra's own."""
    codes = [0]
    mistakes: dict[str, None] = {}

    def job(config: DictConfig) -> int:
        try:
            codes.append(task(config))
        except AdvmlError as error:  # raised inside, Hydra would print its own words around it
            mistakes.update(dict.fromkeys(str(error).splitlines()))
            codes.append(error.exit_code)
        return codes[-1]

    options, overrides = separate(arguments)
    prepared = [*options, *forced(overrides, _config_dirs(options)), *_search_path()]
    with _patched(sys, "argv", ["advml", *prepared]), _full_errors(), one_line_errors():
        hydra.main(config_path=str(config_root()), config_name="config", version_base="1.3")(job)()
    if mistakes:
        raise ConfigError(mistakes) if max(codes) == ConfigError.exit_code else AdvmlError("\n".join(mistakes))
    return max(codes)


def compose(overrides: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Compose without a Hydra application: (tree, YAML file chosen in each group). For Python and for checks."""
    prepared = forced(list(overrides), [])
    with one_line_errors():
        GlobalHydra.instance().clear()
        with hydra.initialize_config_dir(str(config_root()), version_base="1.3", job_name="advml"):
            config = hydra.compose("config", [*prepared, *_search_path()], return_hydra_config=True)
    choices = {str(key): str(value) for key, value in config.hydra.runtime.choices.items()}
    return as_tree(config), choices


def as_tree(config: DictConfig) -> dict[str, Any]:
    """Plain, resolved data without Hydra's own keys."""
    with one_line_errors():
        # Resolved as a whole first: our keys may point at each other, Hydra's own block is dropped unresolved.
        ours = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        tree = OmegaConf.to_container(ours, resolve=True, throw_on_missing=False)
    assert isinstance(tree, dict)
    return {str(key): value for key, value in tree.items()}


# --- overrides ----------------------------------------------------------------------------------------------------


def separate(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(options for Hydra, overrides)."""
    options: list[str] = []
    overrides: list[str] = []
    words = iter(arguments)
    for word in words:
        if not word.startswith("-"):
            overrides.append(word)
            continue
        options.append(word)
        if word in FLAGS_WITH_VALUE:
            options += [next(words, "")]
    return options, overrides


def forced(overrides: Sequence[str], more_roots: Sequence[Path]) -> list[str]:
    """Check group choices and force-add values. Raises ConfigError with every unknown choice and malformed word."""
    roots = [config_root(), *extra_roots(), *more_roots]
    mistakes, prepared = [], []
    for word in overrides:
        try:
            parsed = OverridesParser.create().parse_override(word)
        except (OverrideParseException, HydraException):
            mistakes.append(f"{word}: not an override; write key=value, and quote values with special characters")
            continue
        key = parsed.key_or_group
        if key.startswith("hydra") or "/" in key:
            prepared.append(word)
        elif any((root / key).is_dir() for root in roots):
            mistakes += _unknown_choices(parsed, key, members(key, roots))
            prepared.append(word)
        elif parsed.type == OverrideType.CHANGE:
            prepared.append(f"++{word}")
        else:
            prepared.append(word)
    if mistakes:
        raise ConfigError(mistakes)
    return prepared


def _unknown_choices(parsed: Override, group: str, known: Mapping[str, Path]) -> Iterator[str]:
    """A line for each choice of a group that no YAML file offers."""
    if parsed.type == OverrideType.DEL or parsed.value_type not in (ValueType.ELEMENT, ValueType.SIMPLE_CHOICE_SWEEP):
        return
    value: Any = parsed.value()
    chosen = value.list if parsed.is_sweep_override() else [value]
    for choice in chosen:
        if choice is not None and str(choice) not in known and str(choice) != "null":
            yield f"{group}={choice}: unknown {group}{did_you_mean(str(choice), known)} (see: advml list {group}s)"


def _config_dirs(options: Sequence[str]) -> list[Path]:
    return [Path(value) for flag, value in pairwise(options) if flag in ("--config-dir", "-cd")]


def _search_path() -> list[str]:
    roots = extra_roots()
    return [f"hydra.searchpath=[{','.join(f'file://{root}' for root in roots)}]"] if roots else []


# --- errors -------------------------------------------------------------------------------------------------------


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Hydra's and OmegaConf's own errors as ConfigError."""
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise ConfigError(lines[0] if lines else type(error).__name__) from None


@contextmanager
def _full_errors() -> Iterator[None]:
    """Let hydra.main raise instead of printing and exiting."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        os.environ.pop("HYDRA_FULL_ERROR", None)
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


@contextmanager
def _patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
