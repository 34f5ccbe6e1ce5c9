"""Small settings shared by the tests of multimodal methods."""

from dataclasses import replace

import pytest
import torch

from advml.compose import compose
from advml.config import bind
from advml.errors import ConfigError
from advml.runner.fit import check_fit

SIZES = ("model.width=8", "model.heads=2", "model.hidden=8")
PLAIN = ("method.batch_size=16", "method.lr=0.003", "method.schedule=constant", "method.warmup=0")
TINY = ("dataset.examples=120", "method.epochs=2", *PLAIN, *SIZES)
HEADS = ("model.unimodal_heads=true", "method.unimodal_weight=0.5")


def words(method, model="cross_attention", *more, data="shapes_captions"):
    """The words of a small run on shapes and captions."""
    return (f"method={method}", f"model={model}", f"dataset={data}", *TINY, *more)


def other_contents(view, name):
    """The same view, in which every split has other contents for a modality; masks and presences stay."""
    other = object.__new__(type(view))
    vars(other).update(vars(view))
    other._conditions = {}
    generator = torch.Generator().manual_seed(9)
    for part in ("train", "valid", "test"):
        split = getattr(view, part)
        rows = torch.randint(1, 20, split.inputs[name].shape, generator=generator).to(split.inputs[name])
        setattr(other, part, replace(split, inputs={**split.inputs, name: rows}))
    return other


def refused(play, *words):
    """The one line with which these words are refused, by what is declared or by the method itself."""

    def begin():
        check_fit(bind(compose(list(words))[0]))
        play(*words)

    with pytest.raises(ConfigError) as caught:
        begin()
    (line,) = caught.value.mistakes
    return line
