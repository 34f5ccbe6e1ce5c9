"""Words of commands that read runs: `RUN… name=value…`, where a folder's own name may hold an equals sign."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from advml.errors import ConfigError, did_you_mean


def paths_and_options(verb: str, words: Sequence[str], options: Collection[str]) -> tuple[list[Path], dict[str, str]]:
    """(folders, option → value). A word is an option if it begins with a known name and `=` and no such folder exists.

    Raises ConfigError for unknown options, and where no folder is named.
    """
    paths: list[Path] = []
    given: dict[str, str] = {}
    mistakes = []
    for word in words:
        name, equals, value = word.partition("=")
        if Path(word).exists() or not equals or "/" in name:
            paths.append(Path(word))
        elif name not in options:
            mistakes.append(f"{word}: unknown option{did_you_mean(name, options)} (see: advml {verb} --help)")
        elif not value:
            mistakes.append(f"{word}: says nothing; write {name}=VALUE")
        else:
            given[name] = value
    if not paths and not mistakes:
        mistakes.append(f"{verb}: name at least one run or folder of runs (see: advml list runs)")
    if mistakes:
        raise ConfigError(mistakes)
    return paths, given


def one_of(verb: str, given: Mapping[str, str], option: str, choices: Sequence[str], default: str) -> str:
    """The value of an option that takes one of a few words. Raises ConfigError for any other."""
    value = given.get(option, default)
    if value not in choices:
        raise ConfigError(f"{option}={value}: advml {verb} knows {', '.join(choices)}{did_you_mean(value, choices)}")
    return value
