"""Fewer classes, fewer numbers, angles: what `keep_classes`, `pca` and `normalise` make of any data set.

Principal components and ranges are those of the training examples alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from advml.contracts import Classes, Prepare, Spec, Split
from advml.data.prepare import AT_ONCE, Project, fit
from advml.errors import ConfigError

NOTHING = 1e-10  # a direction with less than this share of the greatest variance is rounding noise


def reduced_spec(spec: Spec, config: Any) -> Spec:
    """The spec of a data set with the classes and components that are asked for. Raises ConfigError where it has none.

    `config`: the data set's settings; those without the keys (task families, data sets of others) ask for nothing.
    """
    classes, pca = getattr(config, "keep_classes", None), getattr(config, "pca", None)
    if classes is not None:
        _check_classes(spec, classes)
        spec = replace(spec, target=Classes(len(classes)))
    if pca is not None:
        if len(spec.inputs) != 1 or spec.tokens or spec.drawn:
            raise ConfigError("dataset.pca: needs one input of numbers; use null")
        ((name, shape),) = spec.inputs.items()
        if pca > (size := torch.Size(shape).numel()):
            raise ConfigError(f"dataset.pca={pca}: an example has {size} numbers; use at most {size}")
        spec = replace(spec, inputs={name: (pca,)})
    return spec


def _check_classes(spec: Spec, classes: tuple[int, ...]) -> None:
    if not isinstance(spec.target, Classes) or spec.groups or spec.class_splits:
        raise ConfigError("dataset.keep_classes: needs a data set with one list of classes; use null")
    if len(set(classes)) != len(classes) or len(classes) < 2:
        raise ConfigError(f"dataset.keep_classes={list(classes)}: give two different classes or more, like [3,5]")
    if (highest := max(classes)) >= spec.target.count:
        raise ConfigError(f"dataset.keep_classes: there is no class {highest}; they are 0 to {spec.target.count - 1}")


def of_classes(examples: Split, classes: tuple[int, ...]) -> Split:
    """The examples of these classes, which become 0, 1, … in the order given."""
    wanted = torch.tensor(classes)
    match = examples.target.unsqueeze(1) == wanted
    kept = examples.take(match.any(1).nonzero().flatten())
    return replace(kept, target=match[match.any(1)].long().argmax(1))


def preparation(values: Tensor, config: Any, scale: float | None) -> tuple[Prepare, ...]:
    """What turns stored values into network input, fitted to the training examples `values` [N, ...].

    With `pca` the examples are standardised (channel by channel for images), projected on the directions of greatest
    variance, and the components normalised as `normalise` says; all of it is one affine map.
    """
    if config.pca is None:
        return (fit(values, config.normalise, scale),)
    project = principal_components(values, config.pca, scale)
    components = _in_parts(project, values)
    last = fit(components, config.normalise, None)
    factor, offset = last.factor.expand(1, config.pca)[0], last.offset.expand(1, config.pca)[0]
    return (replace(project, weight=project.weight * factor, offset=project.offset * factor + offset),)


def principal_components(values: Tensor, count: int, scale: float | None) -> Project:
    """The projection of standardised examples on the `count` eigenvectors of their covariance of largest eigenvalue.

    Each eigenvector has the sign that makes its largest entry positive, so that it is unique. In float64. Raises
    ConfigError where the examples span fewer directions: normalised, the others would be magnified rounding noise.
    """
    standard = fit(values, "standard", scale)
    size = values[0].numel()
    total, products = torch.zeros(size, dtype=torch.float64), torch.zeros(size, size, dtype=torch.float64)
    for part in values.split(max(1, AT_ONCE // size)):
        rows = standard(part).flatten(1)
        total += rows.sum(0)
        products.addmm_(rows.T, rows)
    mean = total / len(values)  # not zero where an image's pixels share the mean of their channel
    covariance = products / len(values) - mean.outer(mean)
    variances, vectors = torch.linalg.eigh(covariance)
    if count > (spanned := int((variances > NOTHING * variances[-1].clamp(min=0)).sum())):
        cure = f"use dataset.pca={spanned} or less" if spanned else "use null"
        raise ConfigError(f"dataset.pca={count}: the training examples span only {spanned} directions; {cure}")
    directions = vectors.flip(1)[:, :count]
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    directions = directions * torch.where(largest < 0, -1.0, 1.0)
    factor = standard.factor.expand(1, *values.shape[1:]).flatten().unsqueeze(1)
    offset = standard.offset.expand(1, *values.shape[1:]).flatten()
    return Project(directions * factor, (offset - mean) @ directions, tuple(values.shape[1:]))


def outside(parts: Mapping[str, Split]) -> dict[str, int]:
    """Split → how many of its examples have an angle outside of [0, π]; splits without any are left out."""
    found: dict[str, int] = {}
    for name, part in parts.items():
        count = 0
        for key, values in part.inputs.items():
            if steps := part.prepare.get(key):
                angles = _in_parts(steps[0], values).flatten(1) if len(values) else torch.zeros(0, 1)
                count += int(((angles < -1e-9) | (angles > math.pi + 1e-9)).any(1).sum())
        found |= {name: count} if count else {}
    return found


def told(outside: Mapping[str, int]) -> str:
    """The line that warns of angles outside of the range of the training examples."""
    counts = " and ".join(f"{count} {name}" for name, count in outside.items())
    return (
        f"advml: dataset.normalise=angles: {counts} examples have an angle outside [0, π], the range of the training "
        f"examples; they are kept as they are"
    )


def _in_parts(step: Prepare, values: Tensor) -> Tensor:
    """`step` of many examples, some at a time: in float64 all of them could fill the memory."""
    size = max(1, values[0].numel())
    return torch.cat([step(part) for part in values.split(max(1, AT_ONCE // size))])
