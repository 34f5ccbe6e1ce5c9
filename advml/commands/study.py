"""advml study [NAME] [KEY=VALUE ...] [out=FOLDER]

Runs a published comparison, configs/study/NAME.yaml: its rows times its seeds, in outputs/studies/NAME. Repeating the
command runs what is missing and resumes what was cut short. At the end: what was measured beside what was reported.

  advml study                                        the studies there are
  advml study split_mnist download=true              run it, fetching its data
  advml study split_mnist data_dir=FOLDER sweep.jobs=2        two runs at a time, from files of your own
  advml study split_mnist method.iterations=100      a reduced study: it has a folder of its own, and says so
  advml study split_mnist seed=0                     so has one seed in the place of the study's own
  advml study split_mnist out=docs/results           also write every number to docs/results/split_mnist.json

sweep.seconds, sweep.memory_mb and sweep.fail_fast are as in advml sweep. The folder is the last line printed.
Exit code: 0 all completed, 1 some are not, 2 wrong configuration, 130 interrupted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from advml.commands.jobs_shown import JobsShown
    from advml.runner.studies import Study


def main(arguments: Sequence[str]) -> int:
    """Check all runs, run them, show the table; write the document."""
    from advml.errors import ConfigError

    out = [word.removeprefix("out=") for word in arguments if word.startswith("out=")]
    words = [word for word in arguments if not word.startswith("out=")]
    if out and (not out[-1] or (Path(out[-1]).exists() and not Path(out[-1]).is_dir())):
        raise ConfigError(f"out={out[-1]}: name a folder, like out=docs/results")
    if not words:
        from advml.commands import list as listing

        return listing.main(["studies"])
    if "=" in words[0] or words[0].startswith("-"):
        raise ConfigError("study: name the study first: advml study NAME (see: advml list studies)")

    from advml.commands.jobs_shown import JobsShown, show_jobs
    from advml.runner.jobs import look
    from advml.runner.studies import plan

    study = plan(words[0], words[1:])
    study.folder.mkdir(parents=True, exist_ok=True)
    shown = JobsShown(len(study.every_job))
    interrupted = False
    try:
        _carry_out(study, shown)
    except KeyboardInterrupt:
        interrupted = True
    ends = [shown.ends.get(job.folder) or look(job) for job in study.every_job]
    if any(end.state != "completed" for end in ends):
        show_jobs(ends)
        print(study.folder)
        return 130 if interrupted else 1
    _finish(study, Path(out[-1]) if out else None)
    return 0


def _carry_out(study: Study, shown: JobsShown) -> None:
    """In processes where the settings need them, as in a sweep; otherwise one after another in this process."""
    from advml.runner.jobs import here
    from advml.runner.pool import Limits, run_jobs

    wanted = study.sweep
    if wanted.jobs > 1 or wanted.seconds or wanted.memory_mb:
        with shown.live():
            run_jobs(study.every_job, Limits(wanted.jobs, wanted.seconds, wanted.memory_mb, wanted.fail_fast), shown)
        return
    for job in study.every_job:
        end = here(job)
        shown.ended(end)
        if end.state == "interrupted":
            raise KeyboardInterrupt
        if wanted.fail_fast and end.state != "completed":
            return


def _finish(study: Study, out: Path | None) -> None:
    """study.json and the pictures in the study's folder; the document where it was asked for; the table."""
    from datetime import UTC, datetime

    from advml.report.published import document
    from advml.report.published_pictures import pictures
    from advml.runner.files import write_atomic, write_json

    said = document(study, f"{datetime.now(UTC):%Y-%m-%d}")
    write_json(study.folder / "study.json", said)
    (study.folder / "figures").mkdir(exist_ok=True)
    for name, picture in pictures(said).items():
        for suffix, data in picture.items():
            write_atomic(study.folder / f"figures/{name}.{suffix}", data)
    _show(said)
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        write_json(out / f"{study.folder.name}.json", said)
        print(out / f"{study.folder.name}.json")
    print(study.folder)


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
