"""Saved configurations: read back, completed with keys born since; what a resumed run may be given anew."""

from __future__ import annotations

import copy
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from advml.compose import compose
from advml.config import GROUPS
from advml.errors import ConfigError
from advml.roots import members
from advml.runner.folder import RunFolder
from advml.runner.identity import FREE_TO_CHANGE


def complete(folder: RunFolder) -> dict[str, Any]:
    """The configuration of a run; keys that it lacks, since they came with a newer advml, are taken from today's YAML
    and reported on stderr.
    """
    saved = folder.tree()
    lacking = [group for group in GROUPS if not isinstance(saved.get(group), dict) or "name" not in saved[group]]
    if lacking:
        raise ConfigError(f"{folder / 'config.yaml'}: damaged, it says no {', '.join(lacking)}")
    environment = folder.environment()
    choices: Mapping[str, str] = environment.get("choices", {})
    groups = (*GROUPS, "experiment")
    chosen = [f"{group}={choices[group]}" for group in groups if choices.get(group) in members(group)]
    try:
        today, _ = compose(chosen)
    except ConfigError as error:  # a YAML file was broken since; what was saved is complete without it
        print(f"advml: not read: {error}", file=sys.stderr)
        return saved
    for key in _fill(saved, today, ""):
        print(f"advml: {key}: not in the saved configuration, taken from today's", file=sys.stderr)
    return saved


def _fill(saved: dict[str, Any], today: Mapping[str, Any], prefix: str) -> list[str]:
    """Add what `today` has and `saved` lacks, block by block; the dotted names of what was added.

    A group whose name changed is another choice altogether: nothing is taken from it.
    """
    added = []
    for key, value in today.items():
        if key not in saved:
            saved[key] = copy.deepcopy(value)
            added.append(f"{prefix}{key}")
        elif key != "baselines" and _same_block(saved[key], value):  # a run without baselines was asked to have none
            added += _fill(saved[key], value, f"{prefix}{key}.")
    return added


def _same_block(left: Any, right: Any) -> bool:
    return isinstance(left, dict) and isinstance(right, Mapping) and left.get("name") == right.get("name")


def allowed(overrides: Sequence[str]) -> Sequence[str]:
    """The overrides, if a resumed run may take them all."""
    keys = [word.partition("=")[0] for word in overrides]
    wrong = [key for key in keys if key.lstrip("+").partition(".")[0] not in FREE_TO_CHANGE]
    if wrong:
        raise ConfigError(
            f"{key}: would make it another run; resume takes only {', '.join(FREE_TO_CHANGE)} (new run: advml run)"
            for key in wrong
        )
    return overrides
