"""Small few-shot settings, shared by the tests of meta-learners."""

import pytest

from advml.compose import compose
from advml.config import bind
from advml.errors import ConfigError
from advml.runner.fit import check_fit

TASKS = ("dataset.limit=600", "view.valid_tasks=8", "view.test_tasks=8", "view.queries=4")
MODELS = {
    "mlp": ("model=mlp", "model.hidden=[16]"),
    "batch": ("model=mlp", "model.hidden=[16]", "model.norm=batch"),
    "conv4": ("model=conv4", "model.channels=4", "model.blocks=2"),
    "group": ("model=conv4", "model.channels=4", "model.blocks=2", "model.norm=group", "model.groups=2"),
    "cnn": ("model=cnn", "model.channels=[2, 3]", "model.hidden=6"),
    "linear": ("model=linear",),
}


def few_shot(method, model="mlp", *more):
    """The words of a small run on digits, their quarter turns being classes."""
    return (f"method={method}", *TASKS, *MODELS[model], *more)


def refused(play, *words):
    """The one line with which these words are refused, by what is declared or by the method itself."""

    def begin():
        check_fit(bind(compose(list(words))[0]))
        play(*words)

    with pytest.raises(ConfigError) as caught:
        begin()
    (line,) = caught.value.mistakes
    return line
