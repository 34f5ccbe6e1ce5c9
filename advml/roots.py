"""Where configuration files lie: shipped, from plug-ins, from $ADVML_CONFIG_PATH. Standard library only."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from importlib.metadata import EntryPoints, entry_points
from importlib.util import find_spec
from pathlib import Path

from advml.errors import ConfigError


def config_root() -> Path:
    """The shipped configuration: inside the installed package, or at the top of the checkout."""
    package = Path(__file__).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def extra_roots() -> list[Path]:
    """Configuration folders of plug-ins (entry points `advml.configs`, each a package) and of $ADVML_CONFIG_PATH."""
    roots = [Path(folder) for folder in os.environ.get("ADVML_CONFIG_PATH", "").split(os.pathsep) if folder]
    if missing := [root for root in roots if not root.is_dir()]:
        raise ConfigError(f"ADVML_CONFIG_PATH: {root}: no such folder" for root in missing)
    for point in _plugins(tuple(sys.path)):
        with suppress(ImportError):  # half a plug-in: its names will say so when they are used
            found = find_spec(point.value)
            roots += [Path(folder) for folder in (found.submodule_search_locations or [])] if found else []
    return [root.absolute() for root in roots]


@cache
def _plugins(path: tuple[str, ...]) -> EntryPoints:
    """Looked for once: it takes as long as reading all files of a configuration. `path` is sys.path, for the cache."""
    return entry_points(group="advml.configs")


def members(group: str, roots: Sequence[Path] | None = None) -> dict[str, Path]:
    """The YAML files of a configuration group, by name; earlier folders win."""
    found: dict[str, Path] = {}
    for root in roots or [config_root(), *extra_roots()]:
        for path in sorted((root / group).glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def description(path: Path) -> str:
    """The comment on a YAML file's first line, or the first one after a `# @package` line."""
    lines: list[str] = []
    with suppress(OSError):  # a link to nowhere: whoever chooses it is told so
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for line in lines:
        if not line.startswith("#"):
            break
        text = line.lstrip("# ").strip()
        if text and not text.startswith("@package"):
            return text
    return ""
