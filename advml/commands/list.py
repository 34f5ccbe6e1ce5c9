"""advml list [methods|datasets|views|models|experiments|studies|searches|runs] [outputs=FOLDER]

  advml list               everything that a run can be made of
  advml list methods       one kind: its names, each with its first line of documentation
  advml list runs          the runs below ./outputs, newest last: state, step, objective (more: advml runs --help)
  advml list runs outputs=/data/runs

What a name of these stands for, key by key: advml config method=NAME.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

KINDS = ("methods", "datasets", "views", "models", "experiments", "studies", "searches")
SINGULAR = {"studies": "study", "searches": "search"}


def main(arguments: Sequence[str]) -> int:
    """Print names with their descriptions, from the YAML files alone; or the runs."""
    from advml.errors import ConfigError, did_you_mean

    outputs = [word.removeprefix("outputs=") for word in arguments if word.startswith("outputs=")]
    kinds = [word for word in arguments if not word.startswith("outputs=")]
    for kind in kinds:
        if kind not in (*KINDS, "runs"):
            raise ConfigError(
                f"list {kind}: unknown kind{did_you_mean(kind, [*KINDS, 'runs'])}; there are {', '.join(KINDS)}, runs"
            )
    if "runs" in kinds and kinds != ["runs"]:
        raise ConfigError("list runs: runs are listed alone: advml list runs")
    if outputs and kinds != ["runs"]:
        raise ConfigError("list outputs: only runs lie there: advml list runs outputs=FOLDER")
    if kinds == ["runs"]:
        from advml.commands.runs import Asked, show_list

        return show_list(Asked(outputs=Path(outputs[-1] if outputs else "outputs")))
    for kind in kinds or KINDS:
        if len(kinds) != 1:
            print(f"{kind}:")
        _members(SINGULAR.get(kind, kind.removesuffix("s")))
    return 0


def _members(group: str) -> None:
    from advml.roots import description, members

    found = members(group)
    width = max(map(len, found), default=0)
    for name, path in sorted(found.items()):
        print(f"  {name:<{width}}  {description(path)}")
