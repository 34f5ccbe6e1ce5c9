"""Artifacts on disk: CSV, text and JSON under artifacts/, pictures under figures/."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advml.artifacts import Artifact, Curve, Drawing, Graph, Heatmap, Histogram, Json, Table
from advml.runner import files
from advml.runner.folder import RunFolder

if TYPE_CHECKING:  # contracts are torch's, which takes seconds; who only reads artifacts does without
    from advml.contracts import Objective, Record


def write(folder: RunFolder, made: Mapping[str, Artifact], draw: bool) -> None:
    """Write each artifact as data, and draw those that have a picture."""
    for name, artifact in made.items():
        (folder / "artifacts").mkdir(exist_ok=True)
        if isinstance(artifact, Json):
            files.write_json(folder / f"artifacts/{name}.json", artifact.value)
        elif isinstance(artifact, Drawing):
            files.write_text(folder / f"artifacts/{name}.txt", artifact.text + "\n")
        else:
            files.write_text(folder / f"artifacts/{name}.csv", _csv(_rows(artifact)))
    drawn = Heatmap | Curve | Histogram | Graph | Drawing
    pictures = {name: artifact for name, artifact in made.items() if isinstance(artifact, drawn)}
    if draw and pictures:
        from advml.runner import figures  # matplotlib costs over half a second: only when something is drawn

        (folder / "figures").mkdir(exist_ok=True)
        for name, picture in pictures.items():
            for suffix, data in figures.draw(picture).items():
                files.write_atomic(folder / f"figures/{name}.{suffix}", data)


def learning_curves(records: Sequence[Record], objective: Objective) -> dict[str, Artifact]:
    """The loss and the objective's metric over steps, one line a split."""
    curves: dict[str, Artifact] = {}
    for metric in dict.fromkeys(("loss", objective.metric)):
        seen = [r for r in records if r["split"] in ("train", "valid") and r.get(metric) is not None]
        if len(seen) < 3:
            continue
        steps = sorted({record["step"] for record in seen})
        at = {step: place for place, step in enumerate(steps)}
        lines: dict[str, list[float | None]] = {}
        for record in seen:
            line = lines.setdefault(record["split"], [None] * len(steps))
            line[at[record["step"]]] = record[metric]
        curves[f"curve_{metric}"] = Curve(steps, lines, "step", metric.replace("_", " "))
    return curves


def read_csv(path: Path) -> list[list[str]]:
    """The rows of an artifact, header first."""
    with open(path, newline="") as file:
        return list(csv.reader(file))


def _rows(artifact: Table | Heatmap | Curve | Histogram | Graph) -> list[Sequence[Any]]:
    match artifact:
        case Table():
            return [artifact.columns, *artifact.rows]
        case Heatmap():
            corner = f"{artifact.row_title} \\ {artifact.column_title}" if artifact.row_title else ""
            body = [[label, *row] for label, row in zip(artifact.rows, artifact.values, strict=True)]
            return [[corner, *artifact.columns], *body]
        case Graph():
            named = [(name, nodes, artifact.edges[name]) for name, nodes in artifact.nodes.items()]
            rows = [[name, nodes[one], nodes[other], label] for name, nodes, of in named for one, other, label in of]
            return [["graph", "from", "to", "label"], *rows]
        case Histogram():
            bins = zip(artifact.edges[:-1], artifact.edges[1:], *artifact.counts.values(), strict=True)
            return [[f"{artifact.x_title} from", "to", *artifact.counts], *bins]
        case Curve():
            points = zip(artifact.x, *artifact.lines.values(), strict=True)
            return [[artifact.x_title, *artifact.lines], *points]


def _csv(rows: Sequence[Sequence[Any]]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)  # None becomes an empty field
    return buffer.getvalue()
