"""The baselines of a run: ordinary runs in RUN/baselines/NAME that differ from it in a few words.

A baseline is listed by overrides, as in `finetune: [method=finetune]`. Everything else is the run's: seed, data,
limits and, where another method is chosen, the settings that both methods have. Another model comes with its own,
except for those that a word `keep=model:width,depth` names: they are the run's too.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from advml.compose import compose, with_overrides
from advml.config import GROUPS, bind
from advml.errors import ConfigError
from advml.runner.fit import check_fit, learns_target
from advml.runner.folder import RunFolder
from advml.runner.identity import identity
from advml.runner.jobs import Ended, Job, finished, here
from advml.runner.pool import Watcher
from advml.runner.run import Asked
from advml.runner.world import under_torchrun


def plan(
    tree: Mapping[str, Any], options: Sequence[str] = (), note: Callable[[str], None] | None = None
) -> dict[str, dict[str, Any]]:
    """Name → configuration of each baseline of the run with the configuration `tree`, checked.

    `options`: --config-dir and its folder. One that would be the run itself is left out, and one whose method does not
    learn what the view asks for (nearest neighbours beside MAML on sine waves). Raises ConfigError with the mistakes of
    all; if there is a `note`, it is told them instead, and those baselines are left out: a saved run goes on though the
    file of a baseline is gone. Under torchrun there are none: its processes serve one run.
    """
    check_fit(bind(tree))  # a mistake of the run itself is told once, and as the run's
    if under_torchrun() is not None:
        return {}
    found: dict[str, dict[str, Any]] = {}
    mistakes = []
    for name, words in tree["baselines"].items():
        try:
            changed = _changed(tree, words, options)
            bound = bind(changed)
            if not learns_target(bound):
                continue
            check_fit(bound)
        except ConfigError as error:
            cure = "change it, or run with baselines=off" if note is None else "the run goes on without it"
            mistakes += [f"baselines.{name}: {one}; {cure}" for one in error.mistakes]
        else:
            if identity(changed) != identity(tree):
                found[name] = changed
    if mistakes and note is None:
        raise ConfigError(mistakes)
    if note is not None:
        for mistake in mistakes:
            note(mistake)
    return found


def carry_out(
    run: Path, planned: Mapping[str, Mapping[str, Any]], asked: Asked, watcher: Watcher | None = None
) -> list[Ended]:
    """Bring each baseline of the run in the folder `run` to its end; how each ended. What is finished is left alone."""
    ends = []
    for name, tree in planned.items():
        job = Job(f"baseline {name}", run / "baselines" / name, tree, asked)
        if finished(RunFolder(job.folder), tree):
            continue
        ends.append(here(job))
        if watcher is not None:
            watcher.ended(ends[-1])
        if ends[-1].state == "interrupted":
            break
    return ends


def completed(run: Path, planned: Mapping[str, Mapping[str, Any]]) -> dict[str, RunFolder]:
    """The folders of the baselines that are completed, by name."""
    folders = {name: RunFolder(run / "baselines" / name) for name in planned}
    return {name: folder for name, folder in folders.items() if finished(folder, planned[name])}


def _changed(tree: Mapping[str, Any], words: Sequence[str], options: Sequence[str]) -> dict[str, Any]:
    """The run's configuration with the baseline's choices and values."""
    choices = [word for word in words if word.partition("=")[0] in GROUPS]
    changed = {**tree, "baselines": {}}
    composed, _ = compose([*options, *choices])
    for word in choices:
        group = word.partition("=")[0]
        changed[group] = dict(composed[group])
        if group == "method":
            ours = tree["method"]
            changed[group] |= {key: ours[key] for key in composed[group] if key in ours and key != "name"}
    plain = []
    for word in words:
        if word.startswith("keep="):
            changed["model"] = _keeping(word, tree["model"], changed["model"])
        elif word not in choices:
            plain.append(word)
    return with_overrides(changed, plain)


def _keeping(word: str, ours: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The `other` model's settings with those that `keep=model:KEY,…` names as the run has them, if it has them."""
    group, _, keys = word.removeprefix("keep=").partition(":")
    named = keys.split(",")
    if group != "model" or not set(named) <= set(other) - {"name"}:
        raise ConfigError(f"{word}: names settings of the baseline's model, as in keep=model:width,depth")
    return {**other, **{key: ours[key] for key in named if key in ours}}
