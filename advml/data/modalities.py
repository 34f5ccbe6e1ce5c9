"""The modalities view: named streams, some of them left out, missing in some examples, or noisy.

A modality that an example lacks says so three times: its `present` input is False, its mask is False everywhere, its
contents are zero once prepared. Padding is zero too. So nothing of it reaches a network by another way.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar

import torch
from annotated_types import Interval
from torch import Tensor

from advml.config import CountFloat, CountInt, Fraction, settings
from advml.contracts import Prepare, Rng, Spec, Split, Stream
from advml.data.prepare import Affine
from advml.data.source import ModalSplit, Splits
from advml.errors import ConfigError

KINDS = {3: "image", 2: "frames"}
AS_IS = "as_is"


@settings
class ModalitiesSettings:
    """Which modalities, how many training examples lack each, how noisy they are."""

    use: tuple[str | CountInt, ...] | None
    drop: Mapping[str, Fraction]
    noise: Mapping[str, CountFloat]
    noisy: CountFloat
    noisy_tokens: Annotated[float, Interval(ge=0, le=1)]


def streams_of(spec: Spec) -> dict[str, Stream]:
    """The modalities of a data set: those it names, or its one input if that is an image, frames or tokens."""
    if spec.streams or len(spec.inputs) != 1:
        return dict(spec.streams)
    ((name, shape),) = spec.inputs.items()
    kind: Any = "tokens" if name in spec.tokens else KINDS.get(len(shape))
    return {} if kind is None else {name: Stream(kind)}


def seen_spec(spec: Spec, use: tuple[str | int, ...] | None) -> Spec:
    """The spec of the chosen modalities: their inputs and masks, and where there are two or more, presences.

    With one modality there is no presence, so that any network that can read the input serves. Raises ConfigError.
    """
    streams = streams_of(spec)
    if use is not None:
        places = dict(enumerate(streams))
        use = tuple(places.get(one, str(one)) if isinstance(one, int) else one for one in use)
        _known("use", use, streams)
        if not use or len(set(use)) != len(use):
            raise ConfigError(f"view.use={list(use)}: name each modality once, like [{', '.join(streams)}]; null = all")
        streams = {name: streams[name] for name in streams if name in use}
    if not streams:
        return spec
    inputs: dict[str, tuple[int, ...]] = {}
    seen: dict[str, Stream] = {}
    for name, stream in streams.items():
        inputs[name] = spec.inputs[name]
        if stream.mask is not None:
            inputs[stream.mask] = spec.inputs[stream.mask]
        seen[name] = replace(stream, present=f"{name}_present" if len(streams) > 1 else None)
    for stream in seen.values():
        inputs |= {} if stream.present is None else {stream.present: ()}
    tokens = {name: count for name, count in spec.tokens.items() if name in inputs}
    return replace(spec, inputs=inputs, tokens=tokens, streams=seen)


def _known(key: str, names: Any, streams: Mapping[str, Stream]) -> None:
    """Refuse names that are no modalities."""
    for name in names:
        if name not in streams:
            there = ", ".join(streams) or "none"
            raise ConfigError(f"view.{key}: the data set has no modality {name} to be seen (there is: {there})")


def lacking(count: int, drop: Mapping[str, float], streams: Mapping[str, Stream], rng: Rng) -> dict[str, Tensor]:
    """Modality → bool [count], the examples that lack it: `drop` of all, by a keyed draw; each keeps one modality.

    Raises ConfigError where that is impossible.
    """
    left = torch.full((count,), len(streams))
    found: dict[str, Tensor] = {}
    for name, share in drop.items():
        order = torch.randperm(count, generator=rng("view", "drop", name))
        free = order[left[order] > 1]
        wanted = round(share * count)
        if wanted > len(free):
            raise ConfigError(f"view.drop.{name}={share:g}: every example must keep a modality; use smaller shares")
        found[name] = torch.zeros(count, dtype=torch.bool).index_fill(0, free[:wanted], True)
        left -= found[name].long()
    return found


def without(part: ModalSplit, name: str, lacks: Tensor) -> ModalSplit:
    """The same where the examples `lacks` (bool [N]) have nothing of the modality: neither contents nor presence."""
    stream = part.streams[name]
    inputs = dict(part.inputs)
    for key in (name, stream.mask, stream.present):
        if key is not None:
            values = inputs[key]
            inputs[key] = values.masked_fill(lacks.reshape(-1, *(1,) * (values.dim() - 1)), 0)
    return replace(part, inputs=inputs)


def _with_any(part: ModalSplit, lacks: Mapping[str, Tensor]) -> ModalSplit:
    """The examples that have one of the split's modalities or more. Raises ConfigError where there is none."""
    if not part.streams or not all(name in lacks for name in part.streams):
        return part
    empty = torch.stack([lacks[name] for name in part.streams]).all(0)
    if not bool(empty.any()):
        return part
    if bool(empty.all()):
        raise ConfigError(f"view.drop: no training example has {' or '.join(part.streams)}; use a smaller share")
    return part.take((~empty).nonzero().flatten())


def noisy(part: ModalSplit, name: str, amount: float, count: int | None, generator: torch.Generator) -> ModalSplit:
    """The same with noise on a modality, drawn on the CPU.

    Numbers: Gaussian, of standard deviation `amount` in units of the prepared input. Tokens, out of `count`: each is
    replaced with probability `amount` by any other than padding (0, where there is a mask).
    """
    values, stream = part.inputs[name], part.streams[name]
    if count is not None:
        lowest = 0 if stream.mask is None else 1
        other = torch.randint(lowest, count, values.shape, generator=generator).to(values)
        hit = (torch.rand(values.shape, generator=generator) < amount).to(values.device)
        changed = torch.where(hit, other, values)
    else:
        step = _affine(part, name)
        blur = torch.randn(values.shape, generator=generator).to(values.device)
        wide = values.to(torch.promote_types(values.dtype, torch.float32))
        # Stored values are prepared later: x · f + o with x + σ ε / f is what is wanted, x · f + o + σ ε.
        changed = wide + amount * blur / step.factor.to(wide)
    return replace(part, inputs={**part.inputs, name: changed})


def _affine(part: Split, name: str) -> Affine:
    steps = part.prepare.get(name, ())
    if len(steps) != 1 or not isinstance(steps[0], Affine):
        raise ConfigError(f"view.noise.{name}: its preparation is no plain normalisation; use dataset.pca=null")
    return steps[0]


class Modalities:
    """Train, valid and test with the chosen modalities; only training examples lack some or get noise of `noise`.

    `conditions` gives valid or test as it is and with one modality missing, or noisy, in all examples. `prompts`:
    inputs that describe each class (text, its mask and presence), one row a class; empty where there are none.
    """

    kind: ClassVar[str] = "modalities"
    settings: ClassVar[type] = ModalitiesSettings

    def __init__(
        self,
        parts: Mapping[str, ModalSplit],
        spec: Spec,
        record: Mapping[str, Any],
        config: ModalitiesSettings,
        rng: Rng,
        prompts: Mapping[str, Tensor],
    ) -> None:
        self.train, self.valid, self.test = parts["train"], parts["valid"], parts["test"]
        self.spec, self.record, self.config, self.rng, self.prompts = spec, record, config, rng, prompts
        self._conditions: dict[str, dict[str, Split]] = {}

    @staticmethod
    def view_spec(spec: Spec, settings: ModalitiesSettings) -> Spec:
        """The chosen modalities."""
        seen, streams = seen_spec(spec, settings.use), streams_of(spec)
        for key, names in (("drop", settings.drop), ("noise", settings.noise)):
            _known(key, names, streams)
        if settings.drop and len(streams) < 2:
            raise ConfigError("view.drop: with one modality none can be missing; use {}")
        for name in set(settings.noise) & set(spec.tokens):
            if settings.noise[name] > 1:
                raise ConfigError(f"view.noise.{name}: of tokens it is the share that is replaced; use at most 1")
        return seen

    @classmethod
    def of(cls, splits: Splits, settings: ModalitiesSettings, rng: Rng) -> Modalities:
        """The view of divided examples.

        What is missing and noisy does not depend on `use`: training examples that lack all of the chosen modalities are
        left out, so that one modality alone is trained on what of it the others have beside theirs.
        """
        spec = cls.view_spec(splits.spec, settings)
        parts = {name: _modal(getattr(splits, name), spec) for name in ("train", "valid", "test")}
        count = len(parts["train"])
        lacks = lacking(count, settings.drop, streams_of(splits.spec), rng)
        for name, amount in settings.noise.items():
            if name in spec.streams:
                draw = rng("view", "noise", name)
                parts["train"] = noisy(parts["train"], name, amount, spec.tokens.get(name), draw)
        for name, which in lacks.items():
            if name in spec.streams:
                parts["train"] = without(parts["train"], name, which)
        parts["train"] = _with_any(parts["train"], lacks)
        seen: dict[str, Any] = {"streams": list(spec.streams), "noise": dict(settings.noise)}
        seen["lacking"] = {
            name: {"examples": int(which.sum()), "sha256": hashlib.sha256(which.numpy().tobytes()).hexdigest()}
            for name, which in lacks.items()
        }
        if left_out := count - len(parts["train"]):
            seen["left_out"] = left_out
        described = {name: values for name, values in splits.prompts.items() if name in spec.inputs}
        for name in set(spec.streams) & set(described):
            if (present := spec.streams[name].present) is not None:
                described[present] = torch.ones(len(described[name]), dtype=torch.bool)
        return cls(parts, spec, {**splits.record, "modalities": seen}, settings, rng, described)

    def split(self, name: str) -> ModalSplit:
        """`train`, `valid` or `test` by name."""
        return {"train": self.train, "valid": self.valid, "test": self.test}[name]

    def conditions(self, name: str) -> Mapping[str, Split]:
        """Condition → the examples of a split under it: `as_is`, `without_NAME` and `noisy_NAME` for each modality.

        With one modality there is none to be missing. The noise is keyed by the split and the modality, so that every
        method meets the same; it is drawn once. A condition of strength 0 is left out.
        """
        if name not in self._conditions:
            self._conditions[name] = self._make_conditions(name)
        return self._conditions[name]

    def _make_conditions(self, split: str) -> dict[str, Split]:
        part = self.split(split)
        found: dict[str, Split] = {AS_IS: part}
        if len(self.spec.streams) > 1:
            everywhere = torch.ones(len(part), dtype=torch.bool, device=part.device)
            found |= {f"without_{name}": without(part, name, everywhere) for name in self.spec.streams}
        for name in self.spec.streams:
            count = self.spec.tokens.get(name)
            amount = self.config.noisy if count is None else self.config.noisy_tokens
            if amount:
                draw = self.rng("view", "noisy", split, name)
                found[f"noisy_{name}"] = noisy(part, name, amount, count, draw)
        return found

    @property
    def prepare(self) -> Mapping[str, tuple[Prepare, ...]]:
        """The normalisation fitted on train."""
        return self.train.prepare

    def to(self, device: torch.device, dtype: torch.dtype) -> Modalities:
        """All examples on a device."""
        parts = {name: self.split(name).to(device, dtype) for name in ("train", "valid", "test")}
        prompts = {name: values.to(device) for name, values in self.prompts.items()}
        return Modalities(parts, self.spec, self.record, self.config, self.rng, prompts)

    def describe(self) -> Mapping[str, Any]:
        """Sizes, classes, hashes, and which modalities are seen."""
        return self.record


def _modal(part: Split, spec: Spec) -> ModalSplit:
    """The inputs of the spec; presences are all True."""
    everywhere = torch.ones(len(part), dtype=torch.bool)
    inputs = {name: part.inputs.get(name, everywhere) for name in spec.inputs}
    prepare = {name: part.prepare.get(name, ()) for name in spec.inputs}
    return ModalSplit(inputs, part.target, part.group, prepare, part.meaning, spec.streams)
