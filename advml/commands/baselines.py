"""The end of `advml run` and `advml resume`: the baselines of a completed run, then one table of all."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from shlex import quote
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from advml.runner.run import Asked, Outcome


def with_baselines(outcome: Outcome, planned: Mapping[str, Mapping[str, Any]], asked: Asked) -> int:
    """Run what is missing of the baselines, if the run itself is completed; show the result. The exit code of all."""
    from advml.commands.jobs_shown import JobsShown
    from advml.commands.show import show_outcome
    from advml.runner.baselines import carry_out, completed

    if outcome.state != "completed" or not planned:
        show_outcome(outcome)
        return outcome.exit_code
    run = outcome.folder.path
    silent = outcome.folder.tree()["progress"] == "off"
    try:
        if outcome.asked:  # to stop, when the run itself had nothing left to stop
            raise KeyboardInterrupt
        states = {end.state for end in carry_out(run, planned, asked, None if silent else JobsShown(len(planned)))}
    except KeyboardInterrupt:
        states = {"interrupted"}
    done = completed(run, planned)
    show_outcome(outcome, {name: folder.result() for name, folder in done.items()})
    if "interrupted" in states and len(done) < len(planned):
        print(f"advml: stopped before all baselines had run; to go on: advml resume {quote(str(run))}", file=sys.stderr)
        return 130
    return 1 if states - {"completed", "interrupted"} else 0
