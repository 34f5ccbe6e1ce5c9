"""advml study [NAME] [KEY=VALUE ...] [out=FOLDER] [reuse=FILE,...]

Runs a published comparison, configs/study/NAME.yaml: its rows times its seeds, in outputs/studies/NAME. Repeating the
command runs what is missing and resumes what was cut short. At the end: what was measured beside what was reported.

  advml study                                        the studies there are
  advml study split_mnist download=true              run it, fetching its data
  advml study split_mnist data_dir=FOLDER sweep.jobs=2        two runs at a time, from files of your own
  advml study split_mnist method.iterations=100      a reduced study: it has a folder of its own, and says so
  advml study split_mnist seed=0                     so has one seed in the place of the study's own
  advml study split_mnist out=docs/results           also write every number to docs/results/split_mnist.json
  advml study split_mnist reuse=split_mnist.json     take the runs that this document has from it, make the others

If it ends early, out=FOLDER writes what there is to FOLDER/unfinished/NAME.json, for reuse= elsewhere.

sweep.seconds, sweep.memory_mb and sweep.fail_fast are as in advml sweep. The folder is the last line printed.
Exit code: 0 all completed, 1 some are not, 2 wrong configuration, 130 interrupted.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from advml.commands.jobs_shown import JobsShown
    from advml.report.recorded import Recorded
    from advml.runner.jobs import Job
    from advml.runner.studies import Study


def main(arguments: Sequence[str]) -> int:
    """Check all runs, run them, show the table; write the document."""
    from advml.errors import ConfigError

    words = [word for word in arguments if not word.startswith(("out=", "reuse="))]
    out = _out([word.removeprefix("out=") for word in arguments if word.startswith("out=")])
    if not words:
        from advml.commands import list as listing

        return listing.main(["studies"])
    if "=" in words[0] or words[0].startswith("-"):
        raise ConfigError("study: name the study first: advml study NAME (see: advml list studies)")

    from advml.commands.jobs_shown import JobsShown, show_jobs
    from advml.runner.jobs import look
    from advml.runner.studies import plan

    study = plan(words[0], words[1:])
    reused = _reused(study, [word.removeprefix("reuse=") for word in arguments if word.startswith("reuse=")])
    jobs = [job for job in study.every_job if job.folder not in reused]
    study.folder.mkdir(parents=True, exist_ok=True)
    shown = JobsShown(len(jobs))
    interrupted = False
    try:
        _carry_out(study, jobs, shown)
    except KeyboardInterrupt:
        interrupted = True
    ends = [shown.ends.get(job.folder) or look(job) for job in jobs]
    done = {end.job.folder for end in ends if end.state == "completed"}
    if len(done) == len(jobs):
        _finish(study, reused, out)
        return 0
    show_jobs(ends)
    if out is not None:
        from advml.report.published import unfinished

        _write(out / "unfinished", study, unfinished(study, done, reused))
    print(study.folder)
    return 130 if interrupted else 1


def _out(said: Sequence[str]) -> Path | None:
    from advml.errors import ConfigError

    if not said:
        return None
    if not said[-1] or (Path(said[-1]).exists() and not Path(said[-1]).is_dir()):
        raise ConfigError(f"out={said[-1]}: name a folder, like out=docs/results")
    return Path(said[-1])


def _reused(study: Study, said: Sequence[str]) -> dict[Path, Recorded]:
    """The runs that need not be made, by the folders they would have; says on stderr how many there are."""
    if not said:
        return {}
    from advml.report.recorded import from_documents

    files = [Path(file) for word in said for file in word.split(",")]
    found = from_documents(files, study.every_job, study.asked.metric, study.asked.tables)
    print(f"{len(found)} of {len(study.every_job)} runs are in {', '.join(map(str, files))}", file=sys.stderr)
    return found


def _carry_out(study: Study, jobs: Sequence[Job], shown: JobsShown) -> None:
    """In processes where the settings need them, as in a sweep; otherwise one after another in this process."""
    from advml.runner.jobs import here
    from advml.runner.pool import Limits, run_jobs

    wanted = study.sweep
    if wanted.jobs > 1 or wanted.seconds or wanted.memory_mb:
        with shown.live():
            run_jobs(jobs, Limits(wanted.jobs, wanted.seconds, wanted.memory_mb, wanted.fail_fast), shown)
        return
    for job in jobs:
        end = here(job)
        shown.ended(end)
        if end.state == "interrupted":
            raise KeyboardInterrupt
        if wanted.fail_fast and end.state != "completed":
            return


def _finish(study: Study, reused: Mapping[Path, Recorded], out: Path | None) -> None:
    """study.json and the pictures in the study's folder; the document where it was asked for; the table."""
    from advml.report.published import document
    from advml.report.published_pictures import pictures
    from advml.runner.files import write_atomic, write_json

    said = document(study, reused)
    write_json(study.folder / "study.json", said)
    (study.folder / "figures").mkdir(exist_ok=True)
    for name, picture in pictures(said).items():
        for suffix, data in picture.items():
            write_atomic(study.folder / f"figures/{name}.{suffix}", data)
    _show(said)
    if out is not None:
        _write(out, study, said)
    print(study.folder)


def _write(out: Path, study: Study, said: Mapping[str, Any]) -> None:
    from advml.runner.files import write_json

    out.mkdir(parents=True, exist_ok=True)
    write_json(out / f"{study.folder.name}.json", said)
    print(out / f"{study.folder.name}.json")


def _show(said: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from advml.report.published import difference_grid, main_grids, notes

    console = Console()
    for number, grid in enumerate((*main_grids(said), difference_grid(said))):
        if grid is not None:
            table = Table(title=None if number else said["title"], title_justify="left")
            for place, heading in enumerate(grid[0]):
                table.add_column(Text(heading), justify="right" if place else "left", overflow="fold")
            for row in grid[1]:
                table.add_row(*map(Text, row))
            console.print(table)
    for note in notes(said):
        console.print(Text(note), soft_wrap=not console.is_terminal)
