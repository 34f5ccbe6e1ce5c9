"""From what a user typed to a composed configuration, through Hydra; its errors become one line each."""

from __future__ import annotations

import copy
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import hydra
from hydra._internal.config_loader_impl import ConfigLoaderImpl, get_overrides_dirname
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from advml.config import GROUPS
from advml.errors import AdvmlError, ConfigError
from advml.overrides import config_dirs, forced, is_hydras, malformed, quoted_text, separate
from advml.roots import config_root, extra_roots

# --- from the command line ----------------------------------------------------------------------------------------


def through_hydra(task: Callable[[DictConfig], int], arguments: Sequence[str]) -> int:
    """Run `task` once as a Hydra application on the arguments of a verb; its exit code. --cfg, --config-dir, hydra.*
    and tab completion are Hydra's own.
    """
    codes = [0]
    mistakes: list[AdvmlError] = []
    broken: list[BrokenPipeError] = []

    def job(config: DictConfig) -> int:
        try:
            codes.append(task(config))
        except AdvmlError as error:  # raised inside, Hydra would print its own words around it
            mistakes.append(error)
        except BrokenPipeError as error:
            broken.append(error)
        return codes[-1]

    options, overrides = separate(arguments)
    run_hydra(job, options, forced(overrides, config_dirs(options)))
    for error in (*broken, *mistakes):
        raise error
    return codes[-1]


def run_hydra(task: Callable[[DictConfig], object], options: Sequence[str], prepared: Sequence[str]) -> None:
    """A Hydra application around `task`, for overrides that `forced` has prepared. With -m it runs once a job, by
    Hydra's sweepers and launchers.
    """
    words = ["advml", *options, *prepared, *_search_path([])]
    # Hydra composes first of all only to see whether hydra.mode asks for several jobs, which no shipped file does.
    plain = not (options or extra_roots() or any(is_hydras(word) for word in prepared))
    mode = (lambda *_, **__: None) if plain else Hydra.get_mode
    with _patched(sys, "argv", words), _patched(Hydra, "get_mode", mode), _full_errors(), one_line_errors():
        hydra.main(config_path=str(config_root()), config_name="config", version_base="1.3")(task)()


def compose(overrides: Sequence[str]) -> tuple[dict[str, Any], dict[str, str]]:
    """Compose without a Hydra application: (tree, YAML file chosen in each group). For Python and for checks.

    Of Hydra's options it takes --config-dir only.
    """
    options, values = separate(overrides)
    dirs = config_dirs(options)
    if len(options) != 2 * len(dirs):
        raise ConfigError(f"{options[0]}: only advml run takes this option")
    config = composed(forced(values, dirs), dirs)
    choices = {str(key): str(value) for key, value in config.hydra.runtime.choices.items()}
    return as_tree(config), choices


def composed(prepared: Sequence[str], dirs: Sequence[Path]) -> DictConfig:
    """The configuration that Hydra composes from prepared overrides, its own block included.

    Hydra takes 0.2 s for it, a sweep asks for hundreds. So files that were chosen before are not composed again, unless
    one was changed: values are put into a copy, by Hydra's own function. All else is left to Hydra: somebody's own
    folders, where it is not known which files matter, and words that neither choose a file nor force a value.
    """
    with one_line_errors():
        parsed = [] if extra_roots() or dirs else OverridesParser.create().parse_overrides(list(prepared))
        choices = [one for one in parsed if _chooses(one)]
        values = [one for one in parsed if one.type == OverrideType.FORCE_ADD and _is_plain(one)]
        if not parsed or len(choices) + len(values) < len(parsed):
            return _by_hydra([*prepared, *_search_path(dirs)])
        config = copy.deepcopy(_of_choices(tuple(str(one.input_line) for one in choices), _stamps(config_root())))
        ConfigLoaderImpl._apply_overrides_to_config(values, config)
        config.hydra.overrides.task = list(prepared)
        shown = config.hydra.job.config.override_dirname
        config.hydra.job.override_dirname = get_overrides_dirname(
            overrides=parsed, kv_sep=shown.kv_sep, item_sep=shown.item_sep, exclude_keys=shown.exclude_keys
        )
        config.hydra.runtime.cwd = os.getcwd()
        return config


@lru_cache(maxsize=64)
def _of_choices(choices: tuple[str, ...], stamps: object) -> DictConfig:
    return _by_hydra(choices)


def _by_hydra(words: Sequence[str]) -> DictConfig:
    outer = GlobalHydra.instance().hydra  # advml.run may be called in somebody's Hydra application
    GlobalHydra.instance().clear()
    try:
        with hydra.initialize_config_dir(str(config_root()), version_base="1.3", job_name="advml"):
            return hydra.compose("config", list(words), return_hydra_config=True)
    finally:
        GlobalHydra.instance().hydra = outer


def _chooses(override: Override) -> bool:
    """Does it choose one file of a shipped group?"""
    is_group = (config_root() / override.key_or_group).is_dir()
    single = override.type == OverrideType.CHANGE and not override.is_sweep_override()
    return is_group and single and not isinstance(override.value(), dict)


def _is_plain(override: Override) -> bool:
    """Is it one value of a key of ours, which is no group of files?"""
    line, key = str(override.input_line), override.key_or_group
    return not (is_hydras(line) or override.is_sweep_override() or (config_root() / key).is_dir())


def _stamps(root: Path) -> tuple[tuple[str, int], ...]:
    """Each file below `root`, and when it was changed."""
    found = []
    for path in (os.path.join(folder, name) for folder, _, names in os.walk(root) for name in names):
        with suppress(OSError):  # an editor's: a link to nowhere, or gone by now
            found.append((path, os.stat(path).st_mtime_ns))
    return tuple(sorted(found))


def each_job(prepared: Sequence[str], dirs: Sequence[Path]) -> Iterator[DictConfig]:
    """The configuration of each job of a multirun by Hydra's own sweeper, in its order."""
    with one_line_errors():
        parsed = OverridesParser.create().parse_overrides([word for word in prepared if not is_hydras(word)])
        (jobs,) = BasicSweeper.split_arguments(parsed, max_batch_size=None)
    for job in jobs:
        yield composed(job, dirs)


def as_tree(config: DictConfig) -> dict[str, Any]:
    """Plain, resolved data without Hydra's own keys."""
    with one_line_errors():
        # Resolved as a whole first: our keys may point at each other, Hydra's own block is dropped unresolved.
        ours = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        tree = OmegaConf.to_container(ours, resolve=True, throw_on_missing=False)
    assert isinstance(tree, dict)
    return _with_baselines(_with_paths(tree))


def _with_paths(tree: Mapping[Any, Any]) -> dict[str, Any]:
    """The tree with every ~ and every path of a block spelt out."""
    spelt = {str(key): _found_from_anywhere(value) for key, value in tree.items()}
    if isinstance(spelt.get("outputs"), str):
        spelt["outputs"] = os.path.expanduser(spelt["outputs"])
    return spelt


def _found_from_anywhere(block: Any) -> Any:
    """The file or folder that a block's key `path` names, from the root: a run is resumed from other folders too."""
    path = block.get("path") if isinstance(block, dict) else None
    if not isinstance(path, str) or path in ("", "???"):  # OmegaConf's "must be given"
        return block
    return {**block, "path": str(Path(path).expanduser().absolute())}


def _with_baselines(tree: dict[str, Any]) -> dict[str, Any]:
    """A method's file lists its baselines; they belong to the run, which may want none: auto or off."""
    method, wanted = tree.get("method"), tree.get("baselines")
    listed = method.pop("baselines", None) if isinstance(method, dict) else None
    if wanted in ("auto", True):
        tree["baselines"] = listed or {}
    elif wanted in ("off", False):
        tree["baselines"] = {}
    return tree


def _search_path(more_roots: Sequence[Path]) -> list[str]:
    roots = [*extra_roots(), *more_roots]
    quoted = (quoted_text(f"file://{root}") for root in roots)
    return [f"hydra.searchpath=[{','.join(quoted)}]"] if roots else []


def with_overrides(tree: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of a composed `tree` with `key=value` words applied.

    Raises ConfigError for words that are none, and for group choices: a composed tree holds values, no choices.
    """
    changed = copy.deepcopy(dict(tree))
    mistakes = []
    for word in overrides:
        try:
            parsed = OverridesParser.create().parse_override(word)
        except HydraException:
            mistakes.append(malformed(word))
            continue
        key = parsed.key_or_group
        if key in GROUPS or parsed.is_sweep_override() or parsed.type == OverrideType.DEL:
            mistakes.append(f"{word}: a saved configuration takes single values only, like method.lr=0.1")
            continue
        *path, leaf = key.split(".")
        block: Any = changed
        for part in path:
            block = block.get(part) if isinstance(block, dict) else None
        if isinstance(block, dict):
            block[leaf] = parsed.value()
        else:
            mistakes.append(f"{key}: unknown key")
    if mistakes:
        raise ConfigError(mistakes)
    if changed.get("baselines") in ("off", False):  # auto: a saved configuration knows no more which were listed
        changed["baselines"] = {}
    return _with_paths(changed)


# --- errors -------------------------------------------------------------------------------------------------------


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Hydra's, OmegaConf's and YAML's own errors as ConfigError."""
    try:
        yield
    except OmegaConfBaseException as error:
        key = f"{error.full_key}: " if error.full_key else ""
        raise ConfigError(key + (str(error).splitlines() or [type(error).__name__])[0]) from None
    except (HydraException, YAMLError) as error:
        said = str(error).partition("Config search path:")[0]
        if said.startswith("Error merging override") and error.__cause__ is not None:
            said = f"{said.partition('override ')[2].lstrip('+')}: {(str(error.__cause__).splitlines() or [''])[0]}"
        raise ConfigError(" ".join((said or str(error.__cause__ or type(error).__name__)).split())) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"a configuration file is not UTF-8 ({error}); save it as such") from None
    except ValueError as error:
        if not {"hydra", "omegaconf"} & set(Path(traceback.extract_tb(error.__traceback__)[-1].filename).parts):
            raise  # of a run
        raise ConfigError(" ".join(str(error).split())) from None


@contextmanager
def _full_errors() -> Iterator[None]:
    """Let hydra.main raise instead of printing and exiting."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        os.environ.pop("HYDRA_FULL_ERROR", None)
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


@contextmanager
def _patched(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
