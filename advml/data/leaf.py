"""Data sets in the format of LEAF, a benchmark for federated learning (Caldas et al. 2018): examples by user, as JSON.

Below `dataset.path` lie train/*.json and test/*.json, each {"users": [name, …], "num_samples": [count, …],
"user_data": {name: {"x": [input, …], "y": [target, …]}}}. An input is a list of numbers (FEMNIST) or a text of one
length (Shakespeare); a target is the number of a class, or the character after the text.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import torch
from annotated_types import Ge, MinLen
from torch import Tensor

from advml.config import Path as FolderPath
from advml.config import PositiveInt, settings
from advml.contracts import Classes, Spec, Split
from advml.data.source import Loaded, Source, SplitSettings
from advml.errors import AdvmlError


@settings
class LeafSettings(SplitSettings):
    """Where the files are, and what is in them: it must be known before they are read."""

    path: FolderPath
    shape: Annotated[tuple[PositiveInt, ...], MinLen(1)]
    classes: Annotated[int, Ge(2)] | None
    alphabet: Annotated[str, MinLen(2)] | None

    def __post_init__(self) -> None:
        """Either numbers and classes, or text."""
        if (self.classes is None) == (self.alphabet is None):
            raise ValueError("classes: give either classes (of inputs that are numbers) or alphabet (of texts)")
        if self.alphabet is not None:
            if len(self.shape) != 1:
                raise ValueError("shape: of texts it is their length, like [80]")
            if len(set(self.alphabet)) != len(self.alphabet):
                raise ValueError("alphabet: names a character twice")


class User(NamedTuple):
    """What a file says about one user."""

    name: str
    x: Sequence[Any]
    y: Sequence[Any]


class Leaf:
    """Examples by user; the group is the user, numbered in the order of the files, those for training first."""

    settings = LeafSettings

    def __init__(self, settings: LeafSettings) -> None:
        self.config = settings

    def spec(self) -> Spec:
        """What the settings say: numbers → a class, or a text → the next character."""
        config = self.config
        if config.alphabet is None:
            assert config.classes is not None
            return Spec({"features" if len(config.shape) == 1 else "image": config.shape}, Classes(config.classes))
        count = len(config.alphabet)
        return Spec({"text": config.shape}, Classes(count), tokens={"text": count})

    def load(self, source: Source) -> Loaded:
        """Numbers float32 [N, *shape] or text uint8 [N, length], with the test examples as LEAF has divided them."""
        root = Path(self.config.path).expanduser()
        numbers: dict[str, int] = {}
        files: dict[str, str] = {}
        train, test = (self._part(root / part, numbers, files) for part in ("train", "test"))
        return Loaded(train, test, files=files, record={"users": list(numbers)})

    def _part(self, folder: Path, numbers: dict[str, int], files: dict[str, str]) -> Split:
        """The examples of all files of a folder; adds to the users' `numbers` and to the hashes of the `files`."""
        paths = sorted(folder.glob("*.json"))
        if not paths:
            raise AdvmlError(
                f"leaf: no JSON file in {folder}; dataset.path must name the folder with train/ and test/ of LEAF"
            )
        inputs, targets, groups = [], [], []
        for path in paths:
            for user in _users(path, files):
                where = f"{path}, user {user.name}"
                inputs.append(self._inputs(user.x, where))
                targets.append(self._targets(user.y, where))
                groups.append(torch.full((len(user.y),), numbers.setdefault(user.name, len(numbers))))
        if not sum(map(len, targets)):
            raise AdvmlError(f"leaf: the files in {folder} hold no example")
        name = next(iter(self.spec().inputs))
        return Split({name: torch.cat(inputs)}, torch.cat(targets), torch.cat(groups))

    def _inputs(self, x: Sequence[Any], where: str) -> Tensor:
        shape, alphabet = self.config.shape, self.config.alphabet
        size = torch.Size(shape).numel()
        if alphabet is not None:
            if any(not isinstance(text, str) or len(text) != size for text in x):
                raise AdvmlError(f"leaf: {where}: an input is no text of {size} characters (dataset.shape)")
            rows = [_places(text, alphabet, where) for text in x]
            return torch.tensor(rows, dtype=torch.int64).reshape(len(rows), size).to(_smallest(len(alphabet)))
        try:
            values = torch.tensor(x, dtype=torch.float32)
        except (TypeError, ValueError, RuntimeError):
            raise AdvmlError(f"leaf: {where}: inputs are no numbers, or not equally many") from None
        if values.numel() != len(x) * size:
            each = values.numel() // max(1, len(x))
            raise AdvmlError(f"leaf: {where}: inputs of {each} numbers do not make {list(shape)} (dataset.shape)")
        if not bool(values.isfinite().all()):
            raise AdvmlError(f"leaf: {where}: an input is not finite")
        return values.reshape(len(x), *shape)

    def _targets(self, y: Sequence[Any], where: str) -> Tensor:
        alphabet, classes = self.config.alphabet, self.config.classes
        if alphabet is not None:
            if any(not isinstance(character, str) or len(character) != 1 for character in y):
                raise AdvmlError(f"leaf: {where}: a target is not one character")
            return torch.tensor(_places("".join(y), alphabet, where), dtype=torch.int64)
        assert classes is not None
        if wrong := [label for label in y if type(label) is not int or not 0 <= label < classes]:
            raise AdvmlError(f"leaf: {where}: the target {wrong[0]!r} is none of 0 to {classes - 1} (dataset.classes)")
        return torch.tensor(y, dtype=torch.int64)


def _users(path: Path, files: dict[str, str]) -> Iterator[User]:
    """The users of a file, checked for what the format promises; adds the hash of the file."""
    try:
        raw = path.read_bytes()
        content = json.loads(raw)
    except OSError as error:
        raise AdvmlError(f"leaf: {path} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise AdvmlError(f"leaf: {path} is no JSON ({str(error).splitlines()[0]})") from error
    files[f"{path.parent.name}/{path.name}"] = hashlib.sha256(raw).hexdigest()
    try:
        found = [User(name, content["user_data"][name]["x"], content["user_data"][name]["y"])
                 for name in content["users"]]  # fmt: skip
        counts = list(content["num_samples"])
        lengths = [(len(user.x), len(user.y)) for user in found]
    except (KeyError, TypeError) as error:
        raise AdvmlError(f"leaf: {path} is not in LEAF's format ({type(error).__name__}: {error})") from error
    if len(counts) != len(found):
        raise AdvmlError(f"leaf: {path} names {len(found)} users and has {len(counts)} num_samples")
    for user, count, (inputs, targets) in zip(found, counts, lengths, strict=True):
        if not inputs == targets == count:
            raise AdvmlError(
                f"leaf: {path}, user {user.name}: {inputs} inputs and {targets} targets, and num_samples says {count}"
            )
        yield user


def _places(text: str, alphabet: str, where: str) -> list[int]:
    """The place of each character in the alphabet."""
    place = {character: number for number, character in enumerate(alphabet)}
    try:
        return [place[character] for character in text]
    except KeyError as error:
        raise AdvmlError(f"leaf: {where}: {error.args[0]!r} is not in dataset.alphabet") from None


def _smallest(count: int) -> torch.dtype:
    """The type that holds so many different tokens in the fewest bytes."""
    return torch.uint8 if count <= 256 else torch.int32
