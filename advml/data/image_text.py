"""Pictures with texts, and labels if there are any: a folder of pictures and a table in CSV or JSON lines.

A row has `image` (a path below the table's folder) and `text`; `label` and `split` (train, valid, test) if wanted. One
picture may have several rows. Texts become words of a plain vocabulary, made from the training texts alone.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple

import torch
from annotated_types import Ge, MinLen
from torch import Tensor

from advml.config import Path as FilePath
from advml.config import PositiveInt, settings
from advml.contracts import Classes, Nothing, Spec, Split, Stream
from advml.data.decoded import Decoded, cached
from advml.data.pictures import MANNER, read
from advml.data.source import Loaded, Source, SplitSettings
from advml.errors import AdvmlError, ConfigError

PADDING, UNKNOWN = "<padding>", "<unknown>"
PARTS = ("train", "valid", "test")
_WORD = re.compile(r"\w+(?:['’]\w+)*|[^\w\s]")


@settings
class ImageTextSettings(SplitSettings):
    """Where the table is and what is in it: it must be known before it is read."""

    path: FilePath
    labels: Annotated[tuple[str, ...], MinLen(2)] | None
    size: PositiveInt
    words: Annotated[int, Ge(3)]
    length: PositiveInt


class Row(NamedTuple):
    """A line of the table; label and split are empty where there is none. `line`: its number, for complaints."""

    line: int
    image: str
    text: str
    label: str
    split: str


def words_of(text: str) -> list[str]:
    """The words and the punctuation marks of a text in small letters: “A dog's bowl.” → a, dog's, bowl, "."."""
    return _WORD.findall(text.casefold())


def vocabulary(texts: Iterable[str], size: int) -> tuple[str, ...]:
    """<padding>, <unknown>, and the `size` − 2 most frequent words; of equally frequent ones the first by alphabet."""
    counts = Counter(word for text in texts for word in words_of(text))
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return (PADDING, UNKNOWN, *ranked[: size - 2])


def encode(texts: Sequence[str], words: Sequence[str], length: int) -> Tensor:
    """Tokens int32 [N, length]: place in the vocabulary, 1 for a word that is not in it, 0 after the last word."""
    place = {word: number for number, word in enumerate(words)}
    tokens = torch.zeros(len(texts), length, dtype=torch.int32)
    for row, text in zip(tokens, texts, strict=True):
        said = [place.get(word, 1) for word in words_of(text)[:length]]
        row[: len(said)] = torch.tensor(said, dtype=torch.int32)
    return tokens


def read_table(path: Path) -> tuple[list[Row], str]:
    """The rows of a .csv or .jsonl file and its SHA-256. Raises AdvmlError with the line that is wrong."""
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8-sig")
    except OSError as error:
        cure = "dataset.path must name a .csv or .jsonl file"
        raise _wrong(path, f"cannot be read ({error.strerror}); {cure}") from error
    except UnicodeDecodeError as error:
        raise _wrong(path, "is no text in UTF-8; save it so") from error
    if path.suffix.lower() not in (".csv", ".jsonl"):
        raise _wrong(path, "is neither .csv nor .jsonl; dataset.path must name such a file")
    lines = _csv_lines(path, text) if path.suffix.lower() == ".csv" else _json_lines(path, text)
    rows = [_row(path, number, fields) for number, fields in lines]
    if not rows:
        raise _wrong(path, "has no rows; each needs an image and a text")
    return rows, hashlib.sha256(raw).hexdigest()


def _csv_lines(path: Path, text: str) -> list[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        found: list[tuple[int, Mapping[str, Any]]] = [(reader.line_num, fields) for fields in reader]
    except csv.Error as error:
        raise _wrong(path, f"line {reader.line_num}: is no CSV ({error}); mend it") from error
    if missing := [name for name in ("image", "text") if name not in (reader.fieldnames or ())]:
        raise _wrong(path, f"has no column {' and no column '.join(missing)}; its first line must name image and text")
    return found


def _json_lines(path: Path, text: str) -> list[tuple[int, Mapping[str, Any]]]:
    found: list[tuple[int, Mapping[str, Any]]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                fields = json.loads(line)
            except ValueError:
                fields = None
            if not isinstance(fields, dict):
                cure = 'write like {"image": "a.png", "text": "a dog"}'
                raise _wrong(path, f"line {number}: is no JSON object; {cure}")
            found.append((number, fields))
    return found


def _row(path: Path, number: int, fields: Mapping[str, Any]) -> Row:
    """A line, checked; labels may be numbers in JSON."""
    values = {name: fields.get(name) for name in ("image", "text", "label", "split")}
    image, text = values["image"], values["text"]
    for name, value in (("image", image), ("text", text)):
        if not isinstance(value, str) or not value.strip():
            raise _wrong(path, f"line {number}: has no {name}; every line needs an image and a text")
    if None in fields:
        raise _wrong(path, f"line {number}: has more fields than the first line; put texts with commas into quotes")
    split = values["split"] or ""
    if split not in ("", *PARTS):
        raise _wrong(path, f"line {number}: the split {split!r} is none of train, valid, test; leave it empty or out")
    label = "" if values["label"] is None else str(values["label"])
    return Row(number, str(image), str(text), label, split)


def read_pictures(table: Path, rows: Sequence[Row], size: int) -> Tensor:
    """The pictures of the rows, uint8 [N, 3, size, size], each as `read` gives it."""
    images = torch.empty(len(rows), 3, size, size, dtype=torch.uint8)
    for number, row in enumerate(rows):
        try:
            images[number] = read(table.parent / row.image, size)
        except ConfigError as error:
            raise ConfigError(f"image_text: {table}, line {row.line}: the picture {row.image} {error}") from None
        except FileNotFoundError as error:
            fault = f"there is no picture {table.parent / row.image}"
            raise _wrong(table, f"line {row.line}: {fault}; mend the path") from error
        except Exception as error:  # readers of pictures fail in many ways
            fault = f"the picture {row.image} cannot be read ({type(error).__name__})"
            raise _wrong(table, f"line {row.line}: {fault}; put a whole picture there") from error
    return images


def looked_at(table: Path, rows: Sequence[Row]) -> tuple[str, str]:
    """(names, sizes and times of the pictures, by which decoded ones are known; names and sizes, for the record)."""
    known, sizes = [], []
    for row in rows:
        try:
            found = (table.parent / row.image).stat()
        except OSError:
            continue  # read_pictures tells the user
        known.append(f"{row.image} {found.st_size} {found.st_mtime_ns}")
        sizes.append(f"{row.image} {found.st_size}")
    return "\n".join(known), "\n".join(sizes)


class ImageText:
    """Pictures with texts. The target is the label; without labels it is the number of the picture.

    All rows of a picture are in the same part: so no picture is trained on and tested on. The group of an example is
    the number of its picture too.
    """

    settings: ClassVar[type] = ImageTextSettings
    by_hand: ClassVar[str] = "reads files of your own, which dataset.path names"

    def __init__(self, settings: ImageTextSettings) -> None:
        self.config = settings

    def spec(self) -> Spec:
        """A colour picture and words → one of the labels; without labels there is nothing to predict."""
        config = self.config
        inputs = {"image": (3, config.size, config.size), "text": (config.length,), "text_mask": (config.length,)}
        streams = {"image": Stream("image"), "text": Stream("tokens", "text_mask")}
        target = Nothing() if config.labels is None else Classes(len(config.labels))
        return Spec(inputs, target, tokens={"text": config.words}, streams=streams)

    def load(self, source: Source) -> Loaded:
        """Read table and pictures. The vocabulary is that of the training texts; it goes to data.json."""
        config = self.config
        table = Path(config.path).expanduser().absolute()
        rows, sha256 = read_table(table)
        numbers = {name: number for number, name in enumerate(dict.fromkeys(row.image for row in rows))}
        picture = torch.tensor([numbers[row.image] for row in rows])
        target = picture if config.labels is None else self._targets(table, rows, config.labels)
        first = {row.image: row for row in reversed(rows)}
        listed = [first[name] for name in numbers]
        known, sizes = looked_at(table, listed)
        key = f"image_text {config.size} {MANNER}\n{known}"
        decoded = cached(
            table.parent, "image_text", key, lambda: Decoded(read_pictures(table, listed, config.size), ()), source.note
        )
        parts = self._parts(table, rows, picture, source)
        said = vocabulary((rows[place].text for place in parts["train"].tolist()), config.words)
        text = encode([row.text for row in rows], said, config.length)
        whole = Split(
            {"image": decoded.images[picture], "text": text, "text_mask": text != 0}, target, picture, meaning=picture
        )
        made = {part: whole.take(index) for part, index in parts.items()}
        prompts = {}
        if config.labels is not None:
            named = encode(config.labels, said, config.length)
            prompts = {"text": named, "text_mask": named != 0}
        unknown = {part: int((examples.inputs["text"] == 1).sum()) for part, examples in made.items()}
        record = {"vocabulary": list(said), "unknown_words": unknown, "pictures": len(numbers)}
        files = {table.name: sha256, "pictures": hashlib.sha256(sizes.encode()).hexdigest()}
        places = {"examples": parts["train"], "valid": parts["valid"], "test": parts["test"]}
        return Loaded(made["train"], made["test"], scale=255, files=files, record=record, valid=made["valid"],
                      prompts=prompts, places=places)  # fmt: skip

    @staticmethod
    def _targets(table: Path, rows: Sequence[Row], labels: Sequence[str]) -> Tensor:
        place = {label: number for number, label in enumerate(labels)}
        for row in rows:
            if row.label not in place:
                found = f"the label {row.label!r} is not in dataset.labels" if row.label else "has no label"
                raise _wrong(table, f"line {row.line}: {found}; mend it, or set dataset.labels")
        return torch.tensor([place[row.label] for row in rows])

    def _parts(self, table: Path, rows: Sequence[Row], picture: Tensor, source: Source) -> dict[str, Tensor]:
        """Part → its rows: as the table says, or by a keyed draw of pictures, `test` of all, `valid` of the rest."""
        if any(row.split for row in rows):
            where: dict[str, str] = {}
            for row in rows:
                if not row.split:
                    raise _wrong(table, f"line {row.line}: has no split, and others have; name it in all lines or none")
                if where.setdefault(row.image, row.split) != row.split:
                    raise _wrong(table, f"line {row.line}: the picture {row.image} is in {where[row.image]} and in "
                                        f"{row.split}; put it into one")  # fmt: skip
            parts = {part: [at for at, row in enumerate(rows) if row.split == part] for part in PARTS}
            found = {part: torch.tensor(places, dtype=torch.int64) for part, places in parts.items()}
        else:
            count = int(picture.max()) + 1
            order = torch.randperm(count, generator=source.rng("data", "image_text", "parts"))
            test = round(self.config.test * count)
            valid = round(self.config.valid * (count - test))
            drawn = order.split([test, valid, count - test - valid])
            chosen = dict(zip(("test", "valid", "train"), drawn, strict=True))
            found = {part: torch.isin(picture, chosen[part]).nonzero().flatten() for part in PARTS}
        if not len(found["train"]):
            raise ConfigError("dataset: no training example is left after dataset.test and dataset.valid")
        return found


def _wrong(path: Path, fault: str) -> AdvmlError:
    return AdvmlError(f"image_text: {path} {fault}" if not fault.startswith("line") else f"image_text: {path}, {fault}")
