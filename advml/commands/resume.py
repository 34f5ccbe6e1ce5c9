"""advml resume RUN [KEY=VALUE ...]

Goes on with a run that was interrupted, crashed, failed or stopped by a limit, from its last checkpoint. The bits are
those of a run that was never stopped: same examples, threads and precision, same kind of device.

  advml resume outputs/ewc/digits/20261120-141502-9f3a
  advml resume outputs/ewc/digits/20261120-141502-9f3a limits.seconds=600     with another limit
  advml resume outputs/ewc/digits/20261120-141502-9f3a limits.seconds=null    without one

Only keys that do not change what is computed may be given: limits.*, progress, figures, checkpoint_seconds, data_dir,
download, tracker, tracker_uri, baselines. A completed run is left as it is; baselines that it lacks are run.
Exit code: 0 done, 1 failed, 2 wrong command or folder, 130 interrupted.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path


def main(arguments: Sequence[str]) -> int:
    """Read the run's configuration, bring it up to date, go on."""
    from advml.commands.baselines import with_baselines
    from advml.commands.saved import allowed, complete
    from advml.compose import with_overrides
    from advml.config import bind
    from advml.errors import ConfigError
    from advml.runner.baselines import completed, plan
    from advml.runner.folder import RunFolder
    from advml.runner.follower import followed
    from advml.runner.run import Asked, Outcome, resume

    if not arguments or ("=" in arguments[0] and not Path(arguments[0]).exists()):
        raise ConfigError("resume: name the run folder: advml resume RUN (see: advml list runs)")
    folder = RunFolder.open(arguments[0])
    overrides = allowed(arguments[1:])
    tree = with_overrides(complete(folder), overrides)
    bound = bind(tree)
    if followed(bound):
        return 0
    planned = plan(tree, note=lambda line: print(f"advml: {line}", file=sys.stderr))
    asked = Asked(shlex.join(["advml", "resume", *arguments]), overrides)
    status = folder.status()
    if status["state"] == "completed" and not (folder.result().get("stopped_by") and overrides):
        if len(completed(folder.path, planned)) == len(planned):
            print(f"already completed at step {status['step']}\n{folder.path}")
            return 0
        return with_baselines(Outcome(folder, "completed"), planned, asked)
    return with_baselines(resume(folder, bound), planned, asked)
