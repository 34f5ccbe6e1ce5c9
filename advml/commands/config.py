"""advml config [GROUP=CHOICE ...] [KEY=VALUE ...]
advml config --diff LEFT [RIGHT]

Shows the complete configuration that `advml run` with the same words would use, checked; or how two differ.

  advml config method=ewc                      every key of a method, with its default
  advml config --diff RUN                      what a run changed from today's defaults of its choices
  advml config --diff RUN_A RUN_B              how two runs differ
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any


def main(arguments: Sequence[str]) -> int:
    """Print YAML or differences."""
    from advml.compose import compose
    from advml.config import bind
    from advml.runner.fit import check_fit
    from advml.runner.run import as_yaml

    if "--diff" in arguments:
        return _diff([word for word in arguments if word != "--diff"])
    tree, _ = compose(arguments)
    check_fit(bind(tree))
    print(as_yaml(tree), end="")
    return 0


def _diff(runs: Sequence[str]) -> int:
    from advml.compose import compose
    from advml.config import GROUPS
    from advml.errors import ConfigError
    from advml.roots import members
    from advml.runner.environment import differences
    from advml.runner.folder import RunFolder

    if len(runs) not in (1, 2):
        raise ConfigError("config --diff: name one or two run folders (see: advml list runs)")
    trees: list[Mapping[str, Any]] = [RunFolder.open(run).tree() for run in runs]
    if len(runs) == 1:
        choices = RunFolder.open(runs[0]).environment().get("choices", {})
        today, _ = compose([f"{group}={choices[group]}" for group in GROUPS if choices.get(group) in members(group)])
        trees = [today, *trees]
    left, right = trees
    lines = list(differences(left, right))
    print("\n".join(lines) if lines else "no difference")
    return 0
