"""The end of `advml run` and `advml resume`: the baselines of a completed run, then one table of all."""

from __future__ import annotations

from collections.abc import Mapping
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
    ends = carry_out(run, planned, asked, None if silent else JobsShown(len(planned)))
    show_outcome(outcome, {name: folder.result() for name, folder in completed(run, planned).items()})
    states = {end.state for end in ends}
    return 130 if "interrupted" in states else 1 if states - {"completed"} else 0
