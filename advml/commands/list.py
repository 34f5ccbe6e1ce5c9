"""advml list [methods|datasets|views|models|experiments|runs] [outputs=FOLDER]

  advml list               everything that a run can be made of
  advml list methods       one kind: its names, each with its first line of documentation
  advml list runs          the runs below ./outputs, newest last: state, step, objective
  advml list runs outputs=/data/runs
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

KINDS = ("methods", "datasets", "views", "models", "experiments")


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
    if kinds == ["runs"]:
        _runs(Path(outputs[-1] if outputs else "outputs"))
        return 0
    for kind in kinds or KINDS:
        if len(kinds) != 1:
            print(f"{kind}:")
        _members(kind.removesuffix("s"))
    return 0


def _members(group: str) -> None:
    from advml.roots import description, members

    found = members(group)
    width = max(map(len, found), default=0)
    for name, path in sorted(found.items()):
        print(f"  {name:<{width}}  {description(path)}")


def _runs(root: Path) -> None:
    from advml.errors import AdvmlError
    from advml.runner.folder import find

    folders = find(root)
    if not folders:
        print(f"no runs below {root}")
    for folder in folders:
        try:
            status = folder.status()
            line = f"{status['state']:<12}step {status['step']:<7}"
            if status["state"] == "completed":
                objective = folder.result()["objective"]
                value = "–" if objective["value"] is None else f"{objective['value']:.4g}"
                line += f"{objective['split']} {objective['metric']} {value}"
        except AdvmlError as error:
            line = f"{'corrupt':<12}{str(error).removeprefix(f'{folder.path}/')}"
        except (KeyError, TypeError, ValueError):
            line = f"{'corrupt':<12}result.json: damaged"
        print(f"{folder.path.relative_to(root.absolute())}  {line}")
