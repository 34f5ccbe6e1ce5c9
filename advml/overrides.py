"""The words of a command before Hydra sees them: told from its options, checked, and written as it must read them.

Group choices (`method=ewc`) are checked against the configuration folders. Value overrides (`method.lr=1`) are
force-added, so that a misspelt key reaches the binder, which then reports all mistakes at once with suggestions.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType, ValueType
from hydra.errors import HydraException, OverrideParseException

from advml.errors import ConfigError, did_you_mean
from advml.roots import config_root, extra_roots, members

# Hydra's options: those that stand alone, and those whose next word is their value, with its choices where there are.
FLAGS = ("--multirun", "-m", "--run", "-r", "--resolve", "--hydra-help", "--version")
CFG, INFO = ("job", "hydra", "all"), ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
FLAGS_WITH_VALUE: Mapping[str, Sequence[str]] = {
    "--config-dir": (), "-cd": (), "--config-name": (), "-cn": (), "--config-path": (), "-cp": (),
    "--cfg": CFG, "-c": CFG, "--info": INFO, "-i": INFO, "--shell-completion": (), "-sc": (),
}  # fmt: skip


def separate(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """(options for Hydra, each value a word of its own; overrides). Raises ConfigError for options there are not."""
    options, overrides, mistakes = [], [], []
    words = iter(arguments)
    for word in words:
        flag, joined, value = word.partition("=")
        if not word.startswith("-"):
            overrides.append(word)
        elif word in FLAGS:
            options.append(word)
        elif flag not in FLAGS_WITH_VALUE:
            hint = did_you_mean(flag, [*FLAGS, *FLAGS_WITH_VALUE])
            mistakes.append(f"{word}: unknown option{hint} (see: advml run --help)")
        else:
            value, choices = value if joined else next(words, ""), FLAGS_WITH_VALUE[flag]
            if not value or (choices and value not in choices):
                mistakes.append(f"{flag}: needs a value" + (f": {' | '.join(choices)}" if choices else ""))
            options += [flag, value]
    if mistakes:
        raise ConfigError(mistakes)
    return options, overrides


def forced(overrides: Sequence[str], more_roots: Sequence[Path] = (), several: bool = False) -> list[str]:
    """Check group choices and force-add values. Raises ConfigError with every unknown choice and malformed word.

    `several`: may a key have several values, for a job each?
    """
    roots = [config_root(), *extra_roots(), *more_roots]
    mistakes, prepared = [], []
    for word in overrides:
        try:
            parsed = OverridesParser.create().parse_override(word)
        except (OverrideParseException, HydraException):
            mistakes.append(malformed(word))
            continue
        key = parsed.key_or_group
        if not key:
            mistakes.append(f"{word}: names no key; write key=value")
        elif is_hydras(word):
            prepared.append(word)
        elif parsed.is_sweep_override() and not several:
            mistakes.append(f"{word}: several values; run them all with advml sweep, or write a list as {key}=[a,b]")
        elif parsed.value_type == ValueType.GLOB_CHOICE_SWEEP:  # Hydra's own sees no folder of $ADVML_CONFIG_PATH
            value: Any = parsed.value()
            matching = value.filter(sorted(members(key, roots)))
            if not matching:
                mistakes.append(f"{word}: matches no {key}")
            prepared.append(f"{key}={','.join(matching)}")
        elif parsed.is_range_sweep() and _steps_nowhere(parsed):
            mistakes.append(f"{word}: a range with a step of 0 never ends; give it another")
        elif key == "study" and parsed.type == OverrideType.CHANGE:
            mistakes.append(f"{word}: a study is many runs; run it with: advml study {word.partition('=')[2]}")
        elif any((root / key).is_dir() for root in roots):
            mistakes += _unknown_choices(parsed, key, members(key, roots))
            if parsed.type == OverrideType.DEL or parsed.value() is not None:
                prepared.append(word)
        elif "/" in key:
            mistakes.append(f"{word}: no such group of configuration files: {key}")
        else:
            prepared.append(f"++{word}" if parsed.type == OverrideType.CHANGE else word)
    if mistakes:
        raise ConfigError(mistakes)
    return prepared


def _steps_nowhere(parsed: Override) -> bool:
    value: Any = parsed.value()
    return bool(value.step == 0)


def several_words(prepared: Sequence[str]) -> list[str]:
    """The prepared overrides that give a key several values."""
    plain = (word for word in prepared if not is_hydras(word))
    return [word for word in plain if OverridesParser.create().parse_override(word).is_sweep_override()]


def malformed(word: str) -> str:
    """What to say of a word that Hydra's grammar does not take: the same in quotes, where that is all it lacks."""
    key, _, value = word.partition("=")
    quoted = f'{key}="{value}"' if value else word
    try:
        OverridesParser.create().parse_override(quoted)
    except (OverrideParseException, HydraException):
        return f"{word}: not an override; write key=value"
    return f"{word}: not an override; if a text is meant, quote it: {shlex.quote(quoted)}"


def quoted_text(text: str) -> str:
    """A value for Hydra's grammar that means these characters: no quote ends it, nothing in it is interpolated.

    In quotes a backslash is one, except before a quote or an interpolation.
    """
    literal = re.sub(r"(\\*)(\$\{)", r"\1\1\\\2", text)
    return "'" + re.sub(r"(\\*)('|$)", lambda found: 2 * found[1] + ("\\'" if found[2] else ""), literal) + "'"


def is_hydras(word: str) -> bool:
    """Is it an override of Hydra's own configuration?"""
    return re.match(r"[+~]*hydra[./@]", word) is not None


def _unknown_choices(parsed: Override, group: str, known: Mapping[str, Path]) -> Iterator[str]:
    """A line for each choice of a group that no YAML file offers. Only an experiment may be null: none is chosen."""
    if parsed.type == OverrideType.DEL or parsed.value_type not in (ValueType.ELEMENT, ValueType.SIMPLE_CHOICE_SWEEP):
        return
    value: Any = parsed.value()
    chosen = value.list if parsed.is_sweep_override() else [value]
    for choice in chosen:
        if str(choice) not in known and not (choice is None and group == "experiment"):
            shown = "null" if choice is None else str(choice)
            yield f"{group}={shown}: unknown {group}{did_you_mean(shown, known)} (see: advml list {group}s)"


def config_dirs(options: Sequence[str]) -> list[Path]:
    """The folders of --config-dir. Raises ConfigError where there is none."""
    found = [Path(value).absolute() for flag, value in pairwise(options) if flag in ("--config-dir", "-cd")]
    if missing := [folder for folder in found if not folder.is_dir()]:
        raise ConfigError(f"--config-dir: {folder}: no such folder" for folder in missing)
    return found
