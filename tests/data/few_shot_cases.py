"""Small data sets whose examples can be recognised, seen as few-shot tasks."""

import torch

from advml.contracts import Classes, Spec, Split
from advml.data.episodes import Episodes, EpisodesSettings
from advml.data.source import Loaded, SplitSettings, Whole
from advml.runner.randomness import KeyedRng

SIDE = 5


def settings(**changes):
    values = {
        "ways": 3, "shots": 2, "queries": 4, "train_ways": None, "train_shots": None, "train_queries": None,
        "valid_tasks": 7, "test_tasks": 11, "split": "random", "valid_classes": 4, "test_classes": 5,
        "rotations": "none",
    }  # fmt: skip
    return EpisodesSettings(**values | changes)


def numbered(target, shape=(1, SIDE, SIDE)):
    """Examples with their number in the first corner and a 1 in the corner beside it: recognised when turned."""
    stored = torch.zeros(len(target), *shape, dtype=torch.float64)
    if len(shape) == 3:
        stored[:, 0, 0, 0] = torch.arange(len(target)) + 10
        stored[:, 0, 0, -1] = 1
    else:
        stored[:, 0] = torch.arange(len(target)) + 10
    return Split({"image" if len(shape) == 3 else "features": stored}, target)


def whole(classes=15, each=8, shape=(1, SIDE, SIDE), limit=None, normalise="none", target=None, class_splits=None):
    """A data set of `classes`, `each` examples of every one, in an order that nothing relies on."""
    if target is None:
        target = torch.arange(classes).repeat(each)
    examples = numbered(target, shape)
    config = SplitSettings(
        valid=0.2, test=0.2, limit=limit, split_seed=None, normalise=normalise, pca=None, keep_classes=None
    )
    inputs = {name: tuple(values.shape[1:]) for name, values in examples.inputs.items()}
    return Whole(Loaded(examples), Spec(inputs, Classes(classes), class_splits=class_splits or {}), config)


def episodes(data=None, seed=0, **changes):
    return Episodes.of(whole() if data is None else data, settings(**changes), KeyedRng(seed))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def whose(batch):
    """The number of each example in a batch of unturned ones, [T, M]."""
    (values,) = batch.inputs.values()
    return values.flatten(2).max(-1).values.long() - 10


def turned(batch):
    """By how many quarter turns each image is rotated, counter-clockwise, [T, M], read off its corners."""
    (images,) = batch.inputs.values()
    corners = torch.stack([images[..., 0, y, x] for y, x in ((0, 0), (-1, 0), (-1, -1), (0, -1))], -1)
    first = corners.argmax(-1)
    assert torch.equal(corners.gather(-1, (first.unsqueeze(-1) - 1) % 4).squeeze(-1), torch.ones(first.shape))
    return first
