"""advml sweep [GROUP=A,B ...] [KEY=A,B ...]

Runs every combination of the values given, several at a time if asked, in outputs/sweeps/NAME. Repeating the command
runs what is missing, resumes what was cut short, leaves what is completed, and waits for what another process is at:
two terminals may work on one sweep. Every job is checked before the first begins. At the end comes a table of all
jobs; the sweep's folder is the last line printed.

  advml sweep method=finetune,ewc,joint seed=0,1,2               nine runs, one after another
  advml sweep 'seed=range(0,10)' method.lr=0.1,0.01 sweep.jobs=4 twenty, four at a time, each a process of its own
  advml sweep 'dataset=choice(iris,wine)' 'method=glob(e*)'      other ways to name several values
  advml sweep seed=0,1,2 sweep.name=first                        in outputs/sweeps/first, not under the command's hash
  advml sweep seed=0,1 sweep.seconds=600 sweep.memory_mb=4000    limits for each job, in a process of its own
  advml sweep seed=0,1 sweep.fail_fast=true                      stop at the first failure
  advml sweep seed=0,1 hydra/launcher=process                    processes, one at a time

With sweep.sampler=random, grid or tpe (Optuna) not all combinations are run, but sweep.trials of them, chosen by the
sampler; intervals are allowed then. More trials: raise sweep.trials. Spaces, pruning, several machines: docs/search.md.

  advml sweep sweep.sampler=tpe sweep.space=training dataset=wine           a space from configs/search/, 20 trials
  advml sweep sweep.sampler=random sweep.trials=50 'method.lr=tag(log,interval(1e-4,1e-1))' method.optimiser=sgd,adam
  advml sweep sweep.sampler=tpe sweep.space=training sweep.pruner=asha      stopping early what is not promising

`advml run -m` is the same. Slurm, joblib, several GPUs: docs/scaling.md. Ctrl-C lets the running jobs finish their step
and save. Exit code: 0 all completed, 1 some are not, 2 wrong configuration, 130 interrupted.
"""

from __future__ import annotations

import os
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from omegaconf import DictConfig

    from advml.commands.jobs_shown import JobsShown
    from advml.runner.jobs import Job
    from advml.runner.search import Search, Trial
    from advml.runner.sweeps import Sweep

SHOWING = ("--cfg", "-c", "--info", "-i")
ASKING = ("--cfg", "-c", "--info", "-i", "--hydra-help", "--version", "-sc", "--shell-completion")


def main(arguments: Sequence[str]) -> int:
    """Check all jobs, run them through Hydra's sweeper and launcher, show how each ended."""
    from advml.compose import run_hydra
    from advml.errors import ConfigError
    from advml.overrides import config_dirs, forced, quoted_text, separate, several_words

    options, overrides = separate(arguments)
    if any(re.match(r"[+~]*baselines\b", word) and word != "baselines=off" for word in overrides):
        raise ConfigError("baselines: a sweep has none; make them jobs of it: method=ewc,finetune,joint")
    overrides = [*(word for word in overrides if word != "baselines=off"), "baselines=off"]
    prepared = forced(overrides, config_dirs(options), several=True)
    if any(option in ASKING for option in options):  # questions to Hydra, which runs nothing
        if any(option in SHOWING for option in options) and (several := several_words(prepared)):
            shown_of = "a configuration is shown of one job; give one value"
            raise ConfigError(f"{word.lstrip('+')}: {shown_of}" for word in several)
        run_hydra(lambda config: None, options, prepared)
        return 0

    from advml.commands.jobs_shown import JobsShown, show_jobs
    from advml.runner.jobs import look, nothing_left
    from advml.runner.searches import searching
    from advml.runner.sweeps import launcher, plan

    command = shlex.join(["advml", "sweep", *arguments])
    if searching(options, prepared):
        return search_main(options, overrides, prepared, command)
    sweep = plan(options, overrides, prepared, command)
    words = [*prepared, *launcher(sweep.settings, prepared), f"hydra.sweep.dir={quoted_text(str(sweep.folder))}"]
    sweep.begin()
    shown = JobsShown(None if sweep.jobs is None else len(sweep.jobs))
    interrupted = False
    task = SweepTask(sweep, shown)
    try:
        if sweep.jobs is None or not all(map(nothing_left, sweep.jobs)):
            run_hydra(task, ["-m", *options], words)
        for job in task.held:
            task.ensure(job)
    except KeyboardInterrupt:
        interrupted = True
    jobs = sweep.found() if sweep.jobs is None else sweep.jobs
    ends = [shown.ends.get(job.folder) or look(job) for job in jobs]
    show_jobs(ends)
    print(sweep.folder)
    if interrupted:
        return 130
    return 0 if all(end.state == "completed" for end in ends) else 1


def search_main(options: Sequence[str], overrides: Sequence[str], prepared: Sequence[str], command: str) -> int:
    """Run the trials of a search through the launcher; show them, and how to run the best of them again."""
    from advml.commands.jobs_shown import JobsShown, show_jobs
    from advml.compose import run_hydra
    from advml.overrides import is_hydras, quoted_text
    from advml.runner.searches import plan_search
    from advml.runner.sweeps import launcher

    sweep, search = plan_search(options, overrides, prepared, command, _note)
    chosen = launcher(sweep.settings, prepared)
    sweep.begin()
    search.begin()
    interrupted = False
    try:
        shown = JobsShown(search.plan.trials)
        shown.ends |= {end.job.folder: end for end in search.ends() if end.state in ("completed", "pruned")}
        hydras = [word for word in prepared if is_hydras(word)]
        words = [*search.plan.fixed, *hydras, *chosen, "hydra/sweeper=advml_search",
                 f"hydra.sweep.dir={quoted_text(str(sweep.folder))}"]  # fmt: skip
        run_hydra(SearchTask(sweep, shown, search), ["-m", *options], words)
    except KeyboardInterrupt:
        interrupted = True
    finally:
        search.close()
    ends = search.ends()
    show_jobs(ends)
    best = search.best()
    if best is not None:
        fixed = [word.lstrip("+") for word in search.plan.fixed]
        again = [word for word in (*fixed, *search.words(best)) if not word.startswith(("sweep.", "baselines="))]
        kept = [word for word in options if word not in ("-m", "--multirun")]
        objective = best.user_attrs["objective"]
        said = f"{objective['split']} {objective['metric']} {objective['value']:.4g} (trial {best.number})"
        print(f"best: {said}: {shlex.join(['advml', 'run', *kept, *again])}")
    print(sweep.folder)
    if interrupted:
        return 130
    return 0 if ends and all(end.state in ("completed", "pruned") for end in ends) else 1


def _note(text: str) -> None:
    print(f"advml: {text}", file=sys.stderr)


class SweepTask:
    """What Hydra runs for each job: in this process, or wherever a launcher takes it. Its value is the job's
    objective, for sweepers that optimise; None for a job that did not complete.
    """

    def __init__(self, sweep: Sweep, shown: JobsShown) -> None:
        self.sweep, self.shown = sweep, shown
        self.held: list[Job] = []
        self._process = os.getpid()

    def job(self, tree: Mapping[str, Any], hydra: Any) -> Job:
        """The job with this configuration."""
        return self.sweep.job(tree, hydra)

    def __call__(self, config: DictConfig) -> float | None:
        """Ensure one job in this process. One that another process is at is put off until the others have ended."""
        from hydra.core.hydra_config import HydraConfig

        from advml.compose import as_tree
        from advml.runner.folder import RunFolder

        job = self.job(as_tree(config), HydraConfig.get())
        planned = self.sweep.jobs is not None and os.getpid() == self._process  # whoever invents jobs wants a value
        if planned and RunFolder(job.folder).locked_elsewhere():
            self.held.append(job)
            return None
        return self.ensure(job)

    def ensure(self, job: Job) -> float | None:
        """Bring a job to its end in this process; its objective."""
        from advml.runner.jobs import here

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
        jobs: list[Job] = [self.job(as_tree(config), config.hydra) for config in configs]
        if wanted.fail_fast and self.shown.failed:  # in an earlier batch
            return [None] * len(jobs)
        with self.shown.live():
            return [end.objective for end in run_jobs(jobs, limits, self.shown)]


class SearchTask(SweepTask):
    """What Hydra runs for each trial, and where its sweeper gets them from."""

    def __init__(self, sweep: Sweep, shown: JobsShown, search: Search) -> None:
        super().__init__(sweep, shown)
        self.search = search
        self._batch: list[Trial] = []

    def job(self, tree: Mapping[str, Any], hydra: Any) -> Job:
        """The job with this configuration, watched by the pruner if there is one."""
        return self.search.watching(super().job(tree, hydra))

    def ask(self) -> list[tuple[str, ...]]:
        """The overrides of the next trials; none if there are no more."""
        wanted = self.sweep.settings
        self._batch = [] if wanted.fail_fast and self.shown.failed else self.search.ask(wanted.jobs)
        return [trial.words for trial in self._batch]

    def tell(self) -> None:
        """Tell the sampler how the trials asked for last have ended."""
        from advml.runner.jobs import look

        for trial in self._batch:
            end = self.shown.ends.get(trial.job.folder) or look(trial.job)
            if end.state != "not started" or not self.sweep.settings.fail_fast:
                self.search.tell(trial, end)
