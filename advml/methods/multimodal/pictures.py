"""Pictures of multimodal runs, and the same in letters: bars, attention, retrieval, confusion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any

import torch
from torch import Tensor

from advml.artifacts import Drawing, Heatmap
from advml.contracts import Split
from advml.nn.metrics import confusion_matrix

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")  # Okabe and Ito
RIGHT, WRONG = "#009E73", "#D55E00"


def confusion(predicted: Tensor, target: Tensor, classes: int) -> Heatmap:
    """Which class was taken for which; predicted, target int64 [N]."""
    counts = confusion_matrix(predicted, target, classes)
    names = [str(label) for label in range(classes)]
    title = "Confusion on the test split"
    limits = (0.0, float(counts.max()))  # the colour of no examples is the same in all pictures
    return Heatmap(counts.tolist(), names, names, "true class", "predicted class", title, "examples", 0, limits)


def bars(heights: Mapping[str, float | None], unit: str, title: str, line: float | None = None) -> Drawing:
    """One bar a name; `line`: what chance gives, dashed. A height of None has no bar."""
    width = max(map(len, heights))
    known = {name: "–" if value is None else f"{value:.4f}" for name, value in heights.items()}
    text = "\n".join([f"{unit}", *(f"{name:{width}}  {value}" for name, value in known.items())])
    if line is not None:
        text += f"\n{'chance':{width}}  {line:.4f}"

    def figure() -> Any:
        from matplotlib.figure import Figure

        made = Figure(figsize=(1.4 + 0.9 * len(heights), 3.2))
        axes = made.add_subplot()
        for place, (name, value) in enumerate(heights.items()):
            if value is not None:
                axes.bar(place, value, color=_colour_of(name), width=0.7)
                axes.text(place, value, f"{value:.3f}", ha="center", va="bottom", fontsize=8)
        if line is not None:
            axes.axhline(line, color="black", linestyle="--", linewidth=0.8)
        axes.set_xticks(range(len(heights)), [name.replace("_", "\n") for name in heights], fontsize=8)
        axes.set_ylabel(unit)
        axes.set_title(title)
        return made

    return Drawing(text, figure)


def _colour_of(name: str) -> str:
    """By kind of condition: as it is, missing, noisy, anything else."""
    kinds = ("without", "noisy")
    return COLOURS[next((place + 1 for place, kind in enumerate(kinds) if name.startswith(kind)), 0)]


@dataclass(frozen=True)
class Seen:
    """An example in a picture: inputs [name → stored values], what its words are, and what it is called."""

    inputs: Mapping[str, Tensor]
    spoken: Mapping[str, Sequence[str]]
    title: str


def seen(data: Any, split: Split, place: int, title: str, names: Sequence[str] | None = None) -> Seen:
    """Example `place` of a split of a modalities view: all its modalities, or those named."""
    inputs, spoken = {}, {}
    for name, stream in data.spec.streams.items():
        if names is not None and name not in names:
            continue
        values = as_cpu(split.inputs[name][place])
        real = None if stream.mask is None else as_cpu(split.inputs[stream.mask][place])
        if name in data.spec.tokens:
            known: Sequence[str] = data.describe().get("vocabulary", ())
            numbers = (values if real is None else values[real]).tolist()
            spoken[name] = [known[number] if number < len(known) else str(number) for number in numbers]
        inputs[name] = values if real is None or name in data.spec.tokens else values[real]
    return Seen(inputs, spoken, title)


def shown(axes: Any, example: Seen, name: str) -> None:
    """An input drawn: images [C, H, W], frames [T, mels] with time to the right, tokens as words."""
    axes.set_xticks([])
    axes.set_yticks([])
    values = example.inputs[name]
    if name in example.spoken:
        words = fill(" ".join(example.spoken[name]), 16)
        axes.text(0.5, 0.5, words, ha="center", va="center", fontsize=8, transform=axes.transAxes)
    elif values.dim() == 3:
        picture = values.double().movedim(0, -1)
        picture = (picture - picture.amin()) / (picture.amax() - picture.amin()).clamp(min=1e-9)
        if picture.shape[-1] not in (3, 4):
            picture = picture[..., :1].expand(*picture.shape[:2], 3)
        axes.imshow(picture.numpy())
    else:
        axes.imshow(values.double().reshape(len(values), -1).T.numpy(), aspect="auto", origin="lower", cmap="cividis")


def attention_picture(examples: Sequence[Seen], maps: Mapping[str, Tensor], title: str) -> Drawing:
    """Where tokens of one modality look in another: maps "image→audio" → [examples, Tq, Tk], heads averaged.

    One row an example: its inputs, then a matrix a direction, queries down and keys across; rows sum to 1. Place 0 is
    the modality's own token; what is padding is NaN and stays grey.
    """
    lines = []
    for number, example in enumerate(examples):
        lines.append(f"example {number}: {example.title}")
        lines += [f"  {name}: {' '.join(words)}" for name, words in example.spoken.items()]
        for name, weights in maps.items():
            lines.append(f"  {name}")
            for row in weights[number].tolist():
                lines.append("    " + " ".join("-" if value != value else f"{value:.3f}" for value in row))

    def figure() -> Any:
        from matplotlib.figure import Figure

        inputs = list(examples[0].inputs)
        made = Figure(figsize=(2.4 * (len(inputs) + len(maps)), 2.3 * len(examples) + 0.6), layout="constrained")
        places = made.subplots(len(examples), len(inputs) + len(maps), squeeze=False)
        for row, example in enumerate(examples):
            for axes, name in zip(places[row], inputs, strict=False):
                shown(axes, example, name)
                axes.set_title(name if row == 0 else "", fontsize=9)
            places[row][0].set_ylabel(example.title, fontsize=8)
            for axes, (name, weights) in zip(places[row][len(inputs) :], maps.items(), strict=True):
                axes.set_facecolor("#cccccc")
                axes.imshow(weights[row].double().numpy(), aspect="auto", cmap="cividis", vmin=0)
                axes.set_title(name if row == 0 else "", fontsize=9)
                query, _, key = name.partition("→")
                axes.set_ylabel(query, fontsize=8)
                axes.set_xlabel(key, fontsize=8)
                _words_on(axes.xaxis, example.spoken.get(key), weights.shape[2], 90)
                _words_on(axes.yaxis, example.spoken.get(query), weights.shape[1], 0)
        made.suptitle(title, fontsize=10)
        return made

    return Drawing("\n".join(lines), figure)


def _words_on(axis: Any, words: Sequence[str] | None, places: int, turn: int) -> None:
    """Name the places of an axis by words, where there is a word a place after the modality's own token."""
    axis.set_tick_params(labelsize=6)
    if words is not None and len(words) < places:
        axis.set_ticks(range(len(words) + 1), ["·", *words], rotation=turn)


def retrieval_picture(
    queries: Sequence[Seen], found: Sequence[Sequence[Seen]], right: Sequence[Sequence[bool]], title: str
) -> Drawing:
    """One row a query: the query itself, then what was found, best first, framed by whether it means the same."""
    lines = []
    for query, row, good in zip(queries, found, right, strict=True):
        lines.append(f"query: {_named(query)}")
        lines += [f"  {'+' if yes else '-'} {_named(one)}" for one, yes in zip(row, good, strict=True)]

    def figure() -> Any:
        from matplotlib.figure import Figure

        columns = 1 + max(map(len, found))
        made = Figure(figsize=(1.5 * columns, 1.6 * len(queries) + 0.6), layout="constrained")
        places = made.subplots(len(queries), columns, squeeze=False)
        for row, query in enumerate(queries):
            cells = [(query, None), *zip(found[row], right[row], strict=True)]
            for column, (one, yes) in enumerate(cells):
                axes = places[row][column]
                shown(axes, one, next(iter(one.inputs)))
                axes.set_xlabel(one.title, fontsize=6)
                for spine in axes.spines.values():
                    spine.set(visible=True, color="black" if yes is None else RIGHT if yes else WRONG, linewidth=2.5)
            for axes in places[row][len(cells) :]:
                axes.set_axis_off()
        places[0][0].set_title("query", fontsize=9)
        made.suptitle(title, fontsize=10)
        return made

    return Drawing("\n".join(lines), figure)


def _named(example: Seen) -> str:
    """What an example is called, and its words."""
    return " | ".join([example.title, *(" ".join(words) for words in example.spoken.values())])


def as_cpu(values: Tensor) -> Tensor:
    """For drawing: no gradient, on the CPU."""
    return values.detach().to(torch.device("cpu"))
