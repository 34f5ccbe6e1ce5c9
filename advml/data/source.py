"""What a data set is: a shape known in advance, and examples that are loaded on demand and split by key."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
from torch import Tensor

from advml.config import CountInt, Fraction, PositiveInt, settings
from advml.contracts import Prepare, Rng, Spec, Split, Stream
from advml.data.prepare import Normalise
from advml.data.reduce import of_classes, outside, preparation
from advml.errors import ConfigError


@settings
class SplitSettings:
    """The keys that every data set with examples has: configs/dataset/_base/split.yaml."""

    valid: Fraction
    test: Fraction
    limit: PositiveInt | None
    split_seed: CountInt | None
    normalise: Normalise
    pca: PositiveInt | None
    keep_classes: tuple[CountInt, ...] | None


@dataclass(frozen=True)
class Source:
    """Where a data set gets its files and its randomness from, and how it tells the user something."""

    rng: Rng
    data_dir: Path
    download: bool = False
    note: Callable[[str], None] = print


@dataclass(frozen=True)
class Loaded:
    """What a data set holds before splitting: examples, official test examples if any, and the hash of each file.

    `valid`: examples to validate on, where the data set divides them itself (speakers, pictures with several captions).
    `prompts`: inputs that describe each class, a row for each, where the data set has such: captions of the classes.
    `scale`: the largest stored value where the source fixes one (255 for pixels), otherwise None. `limited`: the source
    has applied `dataset.limit` itself. `record`: what else data.json should say. `places`: where the source drew a part
    by key (`examples`, `valid`, `test`), the number that each of its examples has in the source, int64.
    """

    examples: Split
    test: Split | None = None
    scale: float | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    limited: bool = False
    record: Mapping[str, Any] = field(default_factory=dict)
    valid: Split | None = None
    prompts: Mapping[str, Tensor] = field(default_factory=dict)
    places: Mapping[str, Tensor] = field(default_factory=dict)

    def numbers(self, part: str, index: Tensor) -> Tensor:
        """The numbers in the source of the examples at `index` of a part: what tells whether two runs had the same."""
        return self.places[part][index] if part in self.places else index

    def of_classes(self, classes: tuple[int, ...]) -> Loaded:
        """The same with the examples of these classes only, which become 0, 1, … in the order given."""
        parts = {"examples": self.examples, "valid": self.valid, "test": self.test}
        there = {name: part for name, part in parts.items() if part is not None}
        kept = {name: torch.isin(part.target, torch.tensor(classes)) for name, part in there.items()}
        places = {name: numbers[kept[name]] for name, numbers in self.places.items()}
        chosen: Any = {name: of_classes(part, classes) for name, part in there.items()}
        prompts = {name: values[list(classes)] for name, values in self.prompts.items()}
        return replace(self, **chosen, prompts=prompts, places=places)


@dataclass(frozen=True)
class ModalSplit(Split):
    """Examples whose padding, and whose missing modalities, are zero once they are prepared."""

    streams: Mapping[str, Stream] = field(default_factory=dict)

    def prepared(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Stored values → network input, and zero where there is nothing."""
        return blanked(super().prepared(inputs), self.streams)


def blanked(inputs: Mapping[str, Tensor], streams: Mapping[str, Stream]) -> dict[str, Tensor]:
    """The same with zeros where the masks and presences among the inputs (bool [B, T] and [B]) say that nothing is."""
    found = dict(inputs)
    for name, stream in streams.items():
        for helper in (stream.mask, stream.present):
            if helper is not None:
                there = inputs[helper]
                lacks = ~there.reshape(there.shape + (1,) * (found[name].dim() - there.dim()))
                found[name] = found[name].masked_fill(lacks, 0)
    return found


class Dataset(Protocol):
    """A data set, registered under a name; its YAML is configs/dataset/NAME.yaml."""

    settings: ClassVar[type]

    def __init__(self, settings: Any) -> None: ...

    def spec(self) -> Spec:
        """The shapes, without reading a file: misfits are refused before any work."""
        ...

    def load(self, source: Source) -> Loaded:
        """Read the examples. Raises AdvmlError with the remedy when files are missing or damaged."""
        ...


@dataclass(frozen=True)
class Splits:
    """Train, valid and test, prepared by a normalisation fitted on train alone; `record` goes to data.json.

    `prompts`: as in Loaded, not prepared.
    """

    train: Split
    valid: Split
    test: Split
    spec: Spec
    record: Mapping[str, Any]
    prompts: Mapping[str, Tensor] = field(default_factory=dict)


class Whole(NamedTuple):
    """A data set before any division, and its settings; for views that divide it themselves (`undivided`).

    `loaded` of a data set that draws tasks is its family of functions (advml/data/families.py).
    """

    loaded: Any
    spec: Spec
    config: Any

    def examples(self, rng: Rng) -> Split:
        """All examples, official test examples last, `dataset.limit` applied to both."""
        parts = [part for part in (self.loaded.examples, self.loaded.valid, self.loaded.test) if part is not None]
        if self.config.limit is not None and not self.loaded.limited:
            parts = [part.take(limited(part.target, self.config.limit, rng("split", "limit"))) for part in parts]
        if len(parts) == 1:  # not copied: they may fill a large part of the memory
            return Split(parts[0].inputs, parts[0].target)
        inputs = {name: torch.cat([part.inputs[name] for part in parts]) for name in parts[0].inputs}
        return Split(inputs, torch.cat([part.target for part in parts]))


def split(loaded: Loaded, spec: Spec, config: SplitSettings, rng: Rng) -> Splits:
    """Divide what was loaded, by class where targets are classes. Official valid and test splits stay whole."""
    examples, valid = loaded.examples, loaded.valid
    kept, test, held_out = hold_out(loaded, config, rng)
    if valid is None:
        train_index, valid_index = divide(examples.target, kept, config.valid, rng("split", "valid"))
        valid = examples.take(valid_index)
    else:
        limit = None if loaded.limited else config.limit
        train_index, valid_index = kept, limited(valid.target, limit, rng("split", "limit"))
        valid = valid.take(valid_index)
    if not len(train_index):
        raise ConfigError("dataset: no training example is left after dataset.test, dataset.valid and dataset.limit")

    train = examples.take(train_index)
    prepare = {name: input_preparation(train, name, spec, config, loaded.scale) for name in train.inputs}
    parts = {"train": train, "valid": valid, "test": test}
    indices = {"train": train_index, "valid": valid_index, "test": held_out}
    own = {"valid": loaded.valid, "test": loaded.test}
    record = {"files": dict(loaded.files), **loaded.record} | {
        name: describe(part, loaded.numbers("examples" if own.get(name) is None else name, indices[name]))
        for name, part in parts.items()
    }
    parts = {name: prepared_by(part, prepare, spec) for name, part in parts.items()}
    if config.normalise == "angles":
        record["angles_outside"] = outside(parts)
    train, valid, test = parts.values()
    return Splits(train, valid, test, spec, record, loaded.prompts)


def prepared_by(part: Split, prepare: Mapping[str, tuple[Prepare, ...]], spec: Spec) -> Split:
    """The same examples with a preparation; where something may be padding, that stays zero."""
    if any(stream.mask is not None for stream in spec.streams.values()):
        return ModalSplit(part.inputs, part.target, part.group, prepare, part.meaning, spec.streams)
    return replace(part, prepare=prepare)


def input_preparation(
    train: Split, name: str, spec: Spec, config: SplitSettings, scale: float | None
) -> tuple[Prepare, ...]:
    """How an input is prepared: tokens and masks not at all; of what is padded only the real frames are fitted."""
    values = train.inputs[name]
    if name in spec.tokens or values.dtype == torch.bool:
        return ()
    mask = spec.streams[name].mask if name in spec.streams else None
    return preparation(values if mask is None or config.pca else values[train.inputs[mask]], config, scale)


def hold_out(loaded: Loaded, config: SplitSettings, rng: Rng) -> tuple[Tensor, Split, Tensor]:
    """(examples left to train and validate on, the test split, which examples it holds), the limit applied to both.

    Indices are into what was loaded: the official test examples where there are some, otherwise all examples.
    """
    examples, official = loaded.examples, loaded.test
    limit = None if loaded.limited else config.limit
    kept = limited(examples.target, limit, rng("split", "limit"))
    if official is None:
        kept, held_out = divide(examples.target, kept, config.test, rng("split", "test"))
        return kept, examples.take(held_out), held_out
    held_out = limited(official.target, limit, rng("split", "limit"))
    return kept, official.take(held_out), held_out


def divide(target: Tensor, index: Tensor, fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Split `index` into (kept, taken), `taken` holding about `fraction` of it and of every class; both ascending.

    `target` int64 [N] is divided class by class, floating targets as a whole.
    """
    groups = _by_class(target, index[torch.randperm(len(index), generator=generator)])
    taken = [group[: round(fraction * len(group))] for group in groups]
    kept = [group[round(fraction * len(group)) :] for group in groups]
    return torch.cat(kept).sort().values, torch.cat(taken).sort().values


def limited(target: Tensor, limit: int | None, generator: torch.Generator) -> Tensor:
    """The indices of exactly `limit` examples (all if None), ascending, in which each class keeps its share."""
    if limit is None or limit >= len(target):
        return torch.arange(len(target))
    return interleaved(target, generator)[:limit].sort().values


def interleaved(target: Tensor, generator: torch.Generator) -> Tensor:
    """The indices of all examples, shuffled so that each class is spread evenly: any first few hold it by its share.

    The k-th of the n shuffled examples of a class stands at (k + ½) / n: the first few have so many of each class as
    Sainte-Laguë's method gives seats.
    """
    shuffled = torch.randperm(len(target), generator=generator)
    place = torch.empty(len(target), dtype=torch.float64)
    for group in _by_class(target, shuffled):
        place[group] = (torch.arange(len(group), dtype=torch.float64) + 0.5) / len(group)
    return shuffled[place[shuffled].argsort(stable=True)]


def _by_class(target: Tensor, index: Tensor) -> list[Tensor]:
    """`index` in parts of one class each; as a whole where targets are real numbers or there is no example."""
    if target.is_floating_point() or not len(index):
        return [index]
    labels = target[index]
    return [index[labels == label] for label in labels.unique()]


def describe(part: Split, index: Tensor) -> dict[str, Any]:
    """Size, examples per class and a hash of which of the loaded examples they are."""
    described: dict[str, Any] = {"examples": len(part)}
    if not part.target.is_floating_point():
        described["per_class"] = torch.bincount(part.target).tolist()
    described["index_sha256"] = hashlib.sha256(index.numpy().tobytes()).hexdigest()
    return described
