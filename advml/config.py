"""Binding: a composed YAML tree becomes frozen, checked settings, or one list of everything wrong with it.

Defaults live only in YAML; types and bounds live only in settings classes, made like this:

    @settings
    class Settings:
        lr: Annotated[float, Gt(0)]
        optimiser: Literal["sgd", "adam"]
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from difflib import get_close_matches
from typing import Annotated, Any, Literal, TypeVar, dataclass_transform, get_args, get_type_hints

from annotated_types import Ge, Gt, Interval
from pydantic import ConfigDict, StringConstraints, TypeAdapter, ValidationError

from advml import registry
from advml.errors import ConfigError, did_you_mean

PositiveInt = Annotated[int, Gt(0)]
CountInt = Annotated[int, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
CountFloat = Annotated[float, Ge(0)]
Fraction = Annotated[float, Interval(ge=0, lt=1)]
Path = Annotated[str, StringConstraints(min_length=1)]
FolderName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.+-]*$")]
Class = TypeVar("Class")


@dataclass_transform(frozen_default=True, kw_only_default=True)
def settings(cls: type[Class]) -> type[Class]:
    """Make a frozen keyword-only dataclass that refuses unknown keys, infinities and NaN."""
    frozen = dataclass(frozen=True, kw_only=True)(cls)
    frozen.__pydantic_config__ = ConfigDict(extra="forbid", allow_inf_nan=False)  # type: ignore[attr-defined]
    return frozen


@settings
class Limits:
    """Stop between two steps once a budget is used up; null = no limit. Counters: advml/runner/budget.py."""

    steps: PositiveInt | None
    seconds: PositiveFloat | None
    samples: PositiveInt | None
    updates: PositiveInt | None
    gradients: PositiveInt | None
    evaluations: PositiveInt | None
    circuits: PositiveInt | None
    bytes_up: PositiveInt | None
    bytes_down: PositiveInt | None


@settings
class SweepSettings:
    """How the jobs of a sweep are carried out; of no matter to a single run."""

    name: FolderName | None
    jobs: PositiveInt
    fail_fast: bool
    seconds: PositiveFloat | None
    memory_mb: PositiveFloat | None
    sampler: Literal["random", "grid", "tpe"] | None
    space: str | None
    trials: PositiveInt | None
    sampler_seed: CountInt
    pruner: Literal["none", "asha"]


@settings
class RunSettings:
    """The keys at the top of configs/config.yaml: how a run is carried out, whatever the method."""

    seed: CountInt
    device: Annotated[str, StringConstraints(pattern=r"^(auto|cpu|cuda(:\d+)?)$")]
    threads: Annotated[int, Interval(gt=0, le=1024)] | Literal["auto"]
    deterministic: bool | Literal["warn"]
    precision: Literal["float32", "float64", "bf16"]
    evaluate_every: PositiveInt | Literal["auto", "never"]
    checkpoint_seconds: CountFloat
    limits: Limits
    progress: Literal["auto", "rich", "plain", "off"]
    figures: bool
    baselines: Mapping[FolderName, tuple[str, ...]]
    tracker: Literal["none", "tensorboard", "mlflow"]
    tracker_uri: str | None
    outputs: Path
    data_dir: Path | None
    download: bool
    sweep: SweepSettings


GROUPS: tuple[registry.Kind, ...] = ("dataset", "view", "model", "method")
INTERFACE: Mapping[registry.Kind, tuple[str, ...]] = {
    "dataset": ("settings", "spec", "load"),
    "view": ("settings", "kind", "view_spec", "of"),
    "model": ("settings", "check"),
    "method": ("settings", "needs", "setup", "phases", "step", "evaluate", "state_dict"),
}
"""What the class behind a name must have at least, to be told from any other class."""


@dataclass(frozen=True)
class Part:
    """One choice: the name under which it is registered, the class behind it and its bound settings."""

    name: str
    cls: Any
    settings: Any


@dataclass(frozen=True)
class Bound:
    """A whole configuration, checked. `tree` is the plain data it was bound from: resolved and complete."""

    run: RunSettings
    dataset: Part
    view: Part
    model: Part
    method: Part
    tree: Mapping[str, Any]


def bind(tree: Mapping[str, Any]) -> Bound:
    """Bind a composed tree. Raises ConfigError with every mistake in it."""
    mistakes: list[str] = []
    run_keys = {field.name for field in fields(RunSettings)}
    for key in tree:
        if key == "experiment":
            mistakes.append('experiment: its file must begin with the line "# @package _global_"')
        elif key not in run_keys and key not in GROUPS:
            mistakes.append(f"{key}: unknown key{_meant(key, run_keys | set(GROUPS), tree)}")

    run = _bind_settings(RunSettings, {key: tree[key] for key in tree if key in run_keys}, "", mistakes)
    parts: dict[str, Part] = {}
    for group in GROUPS:
        part = _bind_part(group, tree.get(group), mistakes)
        if part is not None:
            parts[group] = part
    if mistakes:
        raise ConfigError(mistakes)
    assert run is not None
    if type(tree.get("seed")) is float:  # 1e3 is a seed; where runs are compared seeds are integers
        tree = {**tree, "seed": run.seed}
    return Bound(run=run, tree=tree, **parts)


def bind_settings(cls: type[Class], values: Mapping[str, Any], prefix: str) -> Class:
    """Bind settings that are no part of a run. Raises ConfigError with every mistake, each after `prefix`."""
    mistakes: list[str] = []
    bound = _bind_settings(cls, values, prefix, mistakes)
    if bound is None:
        raise ConfigError(mistakes)
    return bound


def _meant(key: str, known: set[str], tree: Mapping[str, Any]) -> str:
    """A hint for an unknown key at the top: often the block was forgotten, as in `lr=0.1`."""
    places = {name: name for name in known}
    for group in GROUPS:
        branch = tree.get(group)
        keys = [name for name in branch if name != "name"] if isinstance(branch, Mapping) else []
        places |= {name: f"{group}.{name}" for name in keys}
    near = get_close_matches(key, places, n=1, cutoff=0.5)
    return f"; did you mean {places[near[0]]}?" if near else ""


def _bind_part(group: registry.Kind, branch: Any, mistakes: list[str]) -> Part | None:
    if not isinstance(branch, Mapping) or not isinstance(branch.get("name"), str):
        key, value = (f"{group}.name", branch.get("name")) if isinstance(branch, Mapping) else (group, branch)
        what = "a name" if isinstance(branch, Mapping) else "a block with a name"
        mistakes.append(f"{key}: must be {what}, not {_shown(value)} (see: advml list {group}s)")
        return None
    name = branch["name"]
    try:
        cls = registry.resolve(group, name)
    except ConfigError as error:
        mistakes.extend(error.mistakes)
        return None
    missing = [name for name in INTERFACE[group] if not hasattr(cls, name)]
    if missing:
        mistakes.append(f"{group}={name}: is no {group}: the class lacks {', '.join(missing)} (see docs/extending.md)")
        return None
    values = {key: value for key, value in branch.items() if key != "name"}
    bound = _bind_settings(cls.settings, values, f"{group}.", mistakes)
    return None if bound is None else Part(name, cls, bound)


_adapters: dict[type, TypeAdapter[Any]] = {}  # made once for each class: making one takes most of the time of binding


def _bind_settings(cls: type[Class], values: Mapping[str, Any], prefix: str, mistakes: list[str]) -> Class | None:
    """Validate strictly, as JSON: 3 may become 3.0 and a list a tuple, but "3" is no number and true is no 1."""
    values = {name: value for name, value in values.items() if value != "???"}  # OmegaConf's "must be given"
    try:
        adapter: TypeAdapter[Class] = _adapters.get(cls) or _adapters.setdefault(cls, TypeAdapter(cls))
        return adapter.validate_json(json.dumps(_integral(values)), strict=True)
    except ValidationError as error:
        mistakes.extend(_explain(error, cls, values, prefix))
        return None
    except TypeError as error:
        mistakes.append(f"{prefix.rstrip('.') or 'configuration'}: {error}")
        return None


def _integral(value: Any) -> Any:
    """Whole floats as integers, so that 1e5 may be a count; where a float is wanted, they become floats again."""
    if isinstance(value, Mapping):
        return {key: _integral(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_integral(inner) for inner in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _explain(error: ValidationError, cls: type, values: Mapping[str, Any], prefix: str) -> Iterator[str]:
    """One line per wrong key; the alternatives of a union are joined by "or"."""
    reasons: dict[str, list[str]] = {}
    inputs: dict[str, Any] = {}
    for detail in error.errors():
        # A location ends in names of union members, which are no keys of ours.
        path = _existing(detail["loc"], values)
        key = prefix + ".".join(map(str, path))
        if (length := _wanted_length(detail)) is not None:
            at = tuple(detail["loc"][:-1]) if detail["type"] == "missing" else path
            key = prefix + ".".join(map(str, at))
            reasons[key], inputs[key] = [f"a list of {length} values"], _value_at(values, at)
        elif detail["type"] == "missing":
            key = prefix + ".".join(map(str, detail["loc"]))
            yield f"{key}: must be given, like {key}=VALUE"
        elif detail["type"] == "unexpected_keyword_argument":
            parent = prefix + "".join(f"{part}." for part in path[:-1])
            known = (field.name for field in fields(_settings_at(cls, path[:-1])))
            yield f"{key}: unknown key{did_you_mean(str(path[-1]), known, parent)}"
        elif detail["type"] == "value_error":  # a __post_init__ of settings said "KEY: what is wrong"
            yield prefix + ".".join([*map(str, path), str(detail["ctx"]["error"])])
        else:
            reason = detail["msg"].removeprefix("Input should be ").replace("a valid array", "a list")
            reason = reason.replace("an object", "a block of keys")
            if detail["type"] == "string_too_short":
                reason = "a text that is not empty"
            if detail["type"] == "string_pattern_mismatch":
                reason = f"of the form {detail['ctx']['pattern'].strip('^$')}"
            reasons.setdefault(key, []).append(reason)
            inputs[key] = _value_at(values, path)
    for key, alternatives in reasons.items():
        yield f"{key}: must be {' or '.join(alternatives)}, not {_shown(inputs[key])}"


def _wanted_length(detail: Any) -> int | None:
    """How many values a list of fixed length must have, where it has too many or too few."""
    if detail["type"] == "missing" and isinstance(detail["loc"][-1], int):
        return int(detail["loc"][-1]) + 1  # of several that are missing, the last is told last
    return int(detail["ctx"]["max_length"]) if detail["type"] == "too_long" else None


def _existing(location: tuple[int | str, ...], values: Any) -> tuple[int | str, ...]:
    for depth, part in enumerate(location):
        try:
            values = values[part]
        except (KeyError, IndexError, TypeError):
            return location[:depth]
    return location


def _value_at(values: Any, path: tuple[int | str, ...]) -> Any:
    """What the user wrote there."""
    for part in path:
        values = values[part]
    return values


def _settings_at(cls: Any, path: tuple[int | str, ...]) -> Any:
    """The settings class of a nested block; in a mapping of names to blocks, that of each."""
    for part in path:
        hint = get_type_hints(cls).get(str(part), cls)
        cls = next((option for option in (hint, *get_args(hint)) if is_dataclass(option)), hint)
    return cls


def _shown(value: Any) -> str:
    return "null" if value is None else json.dumps(value) if isinstance(value, bool | str) else str(value)
