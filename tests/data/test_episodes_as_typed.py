"""Few-shot tasks as a run would see them: what words give, and which are refused."""

import pytest
import torch

from advml.contracts import Classes
from advml.errors import ConfigError


@pytest.fixture
def shown(tree):
    """shown("dataset=digits", "view=episodes"): the view that a run would see."""
    from advml.config import bind
    from advml.runner.run import load_view

    return lambda *overrides: load_view(bind(tree(*overrides, base=[])), print)


def test_digits_as_shipped(shown):
    view = shown("dataset=digits", "view=episodes")
    assert (view.ways, view.shots, view.queries) == (5, 1, 15)
    assert [len(view.describe()[name]["classes"]) for name in ("train", "valid", "test")] == [5, 2, 3]
    assert view.fixed("test", 0, 3).query.inputs["image"].shape == (3, 75, 1, 8, 8)
    assert view.base_spec.target == Classes(20)
    assert view.tasks.examples.inputs["image"].dtype == torch.uint8


def test_the_seed_of_the_division_may_be_held(shown):
    first, same, other = (
        shown("dataset=digits", "view=episodes", "view.test_tasks=2", *seeds)
        for seeds in (["seed=3"], ["seed=4", "dataset.split_seed=3"], ["seed=4"])
    )
    assert first.describe() == same.describe()
    assert first.describe() != other.describe()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["dataset=diabetes", "view=episodes"], "needs a data set with classes or one that draws tasks"),
        (["dataset=iris", "view=episodes"], "view.rotations=classes: needs square images; use view.rotations=none"),
        (["dataset=digits", "view=episodes_regression"], "view.ways=null: this data set has classes"),
        (["dataset=sinusoid", "view=episodes"], "view.ways=5: tasks of this data set have no classes; use view="),
        (
            ["dataset=sinusoid", "view=episodes_regression", "view.valid_classes=3"],
            "view.valid_classes=3: tasks of this data set have no classes",
        ),
        (
            ["dataset=sinusoid", "view=episodes_regression", "view.split=dataset"],
            "view.split=dataset: this data set has no split",
        ),
        (["dataset=sinusoid", "view=episodes_regression", "view.rotations=augment"], "view.rotations=augment: needs"),
        (["dataset=digits", "view=episodes", "view.ways=1"], "view.ways: must be"),
        (["dataset=digits", "view=episodes", "view.test_classes=1.5"], "view.test_classes: must be"),
    ],
)
def test_refused_as_typed(shown, overrides, words):
    with pytest.raises(ConfigError) as caught:
        shown(*overrides)
    assert words in str(caught.value)


def test_data_sets_that_draw_tasks_are_no_plain_ones(run_cli):
    said = run_cli("check", "method=supervised", "dataset=sinusoid")
    assert said.code != 0
    assert "dataset=sinusoid: draws tasks, which method=supervised cannot read; use another data set" in said.err
