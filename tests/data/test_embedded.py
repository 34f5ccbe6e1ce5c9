"""The data sets that need no download: what they promise is what they hold; made ones against scikit-learn's makers."""

import numpy as np
import pytest
import sklearn.datasets
import torch

from advml.compose import compose
from advml.config import bind
from advml.contracts import Classes, Real
from advml.data.embedded import (
    BreastCancer,
    Circles,
    Diabetes,
    Digits,
    Iris,
    MadeSettings,
    Moons,
    Wine,
)
from advml.data.none import NoData, NoSettings
from advml.data.source import Source, SplitSettings
from advml.errors import ConfigError
from advml.runner.randomness import KeyedRng

TABLES = {
    Digits: [178, 182, 177, 183, 181, 182, 181, 179, 174, 180],
    Iris: [50, 50, 50],
    Wine: [59, 71, 48],
    BreastCancer: [212, 357],
}


def made(cls, split_values, seed=0, **changes):
    settings = MadeSettings(**split_values | {"examples": 200, "noise": 0.0} | changes)
    return cls(settings).load(Source(KeyedRng(seed), "nowhere")).examples


@pytest.mark.parametrize("cls", [*TABLES, Diabetes, Moons, Circles])
def test_spec_is_what_load_gives(cls, split_values, tmp_path):
    more = {"examples": 31, "noise": 0.2} if cls in (Moons, Circles) else {}
    dataset = cls(cls.settings(**split_values, **more))
    loaded = dataset.load(Source(KeyedRng(0), tmp_path)).examples
    spec = dataset.spec()
    assert {name: tuple(values.shape[1:]) for name, values in loaded.inputs.items()} == dict(spec.inputs)
    if isinstance(spec.target, Classes):
        assert loaded.target.dtype == torch.int64
        assert loaded.target.unique().tolist() == list(range(spec.target.count))
    else:
        assert isinstance(spec.target, Real)
        assert loaded.target.dtype == torch.float64
        assert tuple(loaded.target.shape[1:]) == spec.target.shape
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("cls", "counts"), TABLES.items())
def test_known_counts(cls, counts, split_values, make_source, tmp_path):
    source, notes = make_source(tmp_path)  # refuses to be asked for randomness
    loaded = cls(SplitSettings(**split_values)).load(source)
    assert torch.bincount(loaded.examples.target).tolist() == counts
    assert loaded.test is None
    assert notes == []


def test_digits_are_the_published_ones(split_values, make_source, tmp_path):
    loaded = Digits(SplitSettings(**split_values)).load(make_source(tmp_path)[0])
    images = loaded.examples.inputs["image"]
    assert images.dtype == torch.uint8
    assert int(images.max()) == 16 == loaded.scale
    assert np.array_equal(images[:, 0].numpy(), sklearn.datasets.load_digits().images)


def test_diabetes_is_standardised_by_its_published_moments(split_values, make_source, tmp_path):
    loaded = Diabetes(SplitSettings(**split_values)).load(make_source(tmp_path)[0]).examples
    raw = sklearn.datasets.load_diabetes(scaled=False)
    assert np.array_equal(loaded.inputs["features"].numpy(), raw.data)
    expected = (raw.target - raw.target.mean()) / raw.target.std()
    np.testing.assert_allclose(loaded.target[:, 0].numpy(), expected, rtol=1e-12, atol=1e-12)


def test_moons_without_noise_are_scikit_learns(split_values):
    points, labels = sklearn.datasets.make_moons(200, shuffle=False)
    mine = made(Moons, split_values)
    np.testing.assert_allclose(mine.inputs["features"].numpy(), points, atol=1e-14)
    assert np.array_equal(mine.target.numpy(), labels)


def test_circles_without_noise_are_scikit_learns(split_values):
    points, labels = sklearn.datasets.make_circles(200, shuffle=False, factor=0.5)
    mine = made(Circles, split_values)
    np.testing.assert_allclose(mine.inputs["features"].numpy(), points, atol=1e-14)
    assert np.array_equal(mine.target.numpy(), labels)


@pytest.mark.parametrize("cls", [Moons, Circles])
def test_noise_has_the_deviation_asked_for(cls, split_values):
    away = made(cls, split_values, examples=4000, noise=0.3).inputs["features"]
    away = away - made(cls, split_values, examples=4000).inputs["features"]
    assert float(away.std()) == pytest.approx(0.3, rel=0.04)
    assert away.mean(0).tolist() == pytest.approx([0.0, 0.0], abs=0.02)


@pytest.mark.parametrize("cls", [Moons, Circles])
def test_made_points_are_keyed(cls, split_values):
    once, again, other = (made(cls, split_values, seed, noise=0.1).inputs["features"] for seed in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


def test_moons_and_circles_do_not_share_their_noise(split_values):
    away = [
        made(cls, split_values, noise=0.1).inputs["features"] - made(cls, split_values).inputs["features"]
        for cls in (Moons, Circles)
    ]
    assert not torch.allclose(*away)


@pytest.mark.parametrize("cls", [Moons, Circles])
@pytest.mark.parametrize(("examples", "counts"), [(2, [1, 1]), (7, [4, 3])])
def test_any_number_from_two_points(cls, examples, counts, split_values):
    points = made(cls, split_values, examples=examples)
    assert torch.bincount(points.target).tolist() == counts
    assert bool(points.inputs["features"].isfinite().all())


@pytest.mark.parametrize("name", ["moons", "circles"])
def test_one_point_is_refused(name):
    tree, _ = compose([f"dataset={name}", "dataset.examples=1"])
    with pytest.raises(ConfigError, match=r"dataset\.examples: must be greater than or equal to 2"):
        bind(tree)


def test_no_data_holds_nothing(tmp_path):
    dataset = NoData(NoSettings())
    assert dataset.spec().inputs == {}
    assert dataset.spec().outputs == 0
    with pytest.raises(ConfigError, match="holds no examples"):
        dataset.load(Source(KeyedRng(0), tmp_path))
