"""advml check [GROUP=CHOICE ...] [KEY=VALUE ...]
advml check --all

Composes, binds and fits a configuration without running it: every mistake at once. What only the examples or the built
network can tell, a run says as it starts. With --all: every method with its companions, every data set, view and model
on its own, every experiment and every run of every study (with the first of its seeds), shipped or found in plug-ins
and $ADVML_CONFIG_PATH. Exit code: 0 all is well, 2 something is wrong.

  advml check method=ewc model=cnn dataset=iris
  advml check --all
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str]) -> int:
    """Check one configuration or all."""
    from advml.compose import compose
    from advml.config import GROUPS, bind
    from advml.errors import ConfigError
    from advml.overrides import separate
    from advml.roots import members
    from advml.runner import baselines
    from advml.runner.fit import check_fit
    from advml.runner.studies import plan, read

    if "--all" not in arguments:
        tree, _ = compose(arguments)
        baselines.plan(tree, separate(arguments)[0])  # itself, and what is run beside it
        print("ok")
        return 0
    if len(arguments) > 1:
        raise ConfigError("check --all: takes no other word; one configuration: advml check GROUP=CHOICE KEY=VALUE")
    wrong = 0
    everything = [(group, name) for group in (*GROUPS, "experiment") for name in members(group)]
    for group, name in everything:
        try:
            bound = bind(compose([f"{group}={name}"])[0])
            if group in ("method", "experiment"):  # the others have to fit only what they are chosen for
                check_fit(bound)
        except ConfigError as error:
            mistakes = [mistake for mistake in error.mistakes if ": must be given" not in mistake]
            wrong += bool(mistakes)
            for mistake in mistakes:
                print(f"advml: {group}={name}: {mistake}", file=sys.stderr)
    for name in (studies := members("study")):
        try:
            plan(name, [f"seed={read(name).seeds[0]}"])
        except ConfigError as error:
            wrong += 1
            for mistake in error.mistakes:
                print(f"advml: study {name}: {mistake}", file=sys.stderr)
    everything += [("study", name) for name in studies]
    print(f"{len(everything) - wrong} of {len(everything)} configurations are well")
    return 2 if wrong else 0
