"""advml sweep [GROUP=A,B ...] [KEY=A,B ...]

Runs every combination of the values given, several at a time if asked, in outputs/sweeps/NAME. Repeating the command
runs what is missing, resumes what was cut short, leaves what is completed, and waits for what another process is at:
two terminals may work on one sweep. Every job is checked before the first begins. At the end comes a table of all
jobs; the sweep's folder is the last line printed.

  advml sweep method=finetune,ewc,joint seed=0,1,2               nine runs, one after another
  advml sweep seed=range(0,10) method.lr=0.1,0.01 sweep.jobs=4   twenty, four at a time, each a process of its own
  advml sweep dataset=choice(iris,wine) method=glob(e*)          other ways to name several values
  advml sweep seed=0,1,2 sweep.name=first                        in outputs/sweeps/first, not under the command's hash
  advml sweep seed=0,1 sweep.seconds=600 sweep.memory_mb=4000    limits for each job, in a process of its own
  advml sweep seed=0,1 sweep.fail_fast=true                      stop at the first failure
  advml sweep seed=0,1 hydra/launcher=process                    processes, one at a time

`advml run -m` is the same. Slurm, joblib, several GPUs: docs/scaling.md. Ctrl-C lets the running jobs finish their step
and save. Exit code: 0 all completed, 1 some are not, 2 wrong configuration, 130 interrupted.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from advml.commands.jobs_shown import JobsShown
    from advml.runner.jobs import Job
    from advml.runner.sweeps import Sweep

ASKING = ("--cfg", "-c", "--info", "-i", "--hydra-help", "--version", "-sc", "--shell-completion")


def main(arguments: Sequence[str]) -> int:
    """Check all jobs, run them through Hydra's sweeper and launcher, show how each ended."""
    from advml.compose import config_dirs, forced, run_hydra, separate
    from advml.errors import ConfigError

    options, overrides = separate(arguments)
    if any(re.match(r"[+~]*baselines\b", word) and word != "baselines=off" for word in overrides):
        raise ConfigError("baselines: a sweep has none; make them jobs of it: method=ewc,finetune,joint")
    prepared = [*forced(overrides, config_dirs(options), several=True), "++baselines=off"]
    if any(option in ASKING for option in options):  # questions to Hydra, which runs nothing
        run_hydra(lambda config: None, options, prepared)
        return 0

    from advml.commands.jobs_shown import JobsShown, show_jobs
    from advml.runner.jobs import look
    from advml.runner.sweeps import launcher, plan

    command = shlex.join(["advml", "sweep", *arguments])
    sweep = plan(options, overrides, prepared, command)
    words = [*prepared, *launcher(sweep.settings, prepared), f"hydra.sweep.dir={_quoted(str(sweep.folder))}"]
    sweep.begin()
    shown = JobsShown(None if sweep.jobs is None else len(sweep.jobs))
    interrupted = False
    try:
        run_hydra(SweepTask(sweep, shown), ["-m", *options], words)
    except KeyboardInterrupt:
        interrupted = True
    jobs = sweep.found() if sweep.jobs is None else sweep.jobs
    ends = [shown.ends.get(job.folder) or look(job) for job in jobs]
    show_jobs(ends)
    print(sweep.folder)
    if interrupted:
        return 130
    return 0 if all(end.state == "completed" for end in ends) else 1


class SweepTask:
    """What Hydra runs for each job: in this process, or wherever a launcher takes it. Its value is the job's
    objective, for sweepers that optimise; None for a job that did not complete.
    """

    def __init__(self, sweep: Sweep, shown: JobsShown) -> None:
        self.sweep, self.shown = sweep, shown

    def __call__(self, config: DictConfig) -> float | None:
        """Ensure one job in this process."""
        from hydra.core.hydra_config import HydraConfig

        from advml.compose import as_tree
        from advml.runner.jobs import here

        job = self.sweep.job(as_tree(config), HydraConfig.get())
        if self.sweep.settings.fail_fast and self.shown.failed:
            return None
        end = here(job)
        self.shown.ended(end)
        if end.state == "interrupted":
            raise KeyboardInterrupt  # whoever stops one job of this process means all of them
        return end.objective

    def in_processes(self, configs: Sequence[DictConfig]) -> list[float | None]:
        """Ensure many jobs, each in a child process: what the launcher `process` calls."""
        from advml.compose import as_tree
        from advml.runner.pool import Limits, run_jobs

        wanted = self.sweep.settings
        limits = Limits(wanted.jobs, wanted.seconds, wanted.memory_mb, wanted.fail_fast)
        jobs: list[Job] = [self.sweep.job(as_tree(config), config.hydra) for config in configs]
        if wanted.fail_fast and self.shown.failed:  # in an earlier batch
            return [None] * len(jobs)
        with self.shown.live():
            return [end.objective for end in run_jobs(jobs, limits, self.shown)]


def _quoted(text: str) -> Any:
    """A value for Hydra's grammar, whatever is in it."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
