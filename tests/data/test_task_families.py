"""Families of functions: their ranges and values, and that they are seen as tasks like those of examples."""

import math

import pytest
import torch

from advml.config import bind, bind_settings
from advml.contracts import Real, Spec
from advml.data.families import Harmonics, LinearTasks, Sinusoid
from advml.errors import ConfigError
from advml.runner.run import load_view

CPU = torch.device("cpu")
NAMES = ["sinusoid", "harmonics", "linear_tasks"]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def family(tree):
    """family("sinusoid", "dataset.x=[0,1]"): as configured."""

    def made(name, *overrides):
        part = bind(tree(f"dataset={name}", "view=episodes_regression", *overrides, base=[])).dataset
        return part.cls(part.settings)

    return made


@pytest.fixture
def shown(tree):
    def view(name, *overrides, dtype=torch.float64):
        bound = bind(tree(f"dataset={name}", "view=episodes_regression", *overrides, base=[]))
        return load_view(bound, print).to(CPU, dtype)

    return view


def even(values, low, high):
    """Uniform on [low, high]: extremes, mean and variance (5 standard deviations of their estimates)."""
    count, width = values.numel(), high - low
    assert low <= float(values.min()) < low + 0.01 * width
    assert high - 0.01 * width < float(values.max()) <= high
    assert abs(float(values.mean()) - (low + high) / 2) < 5 * width / math.sqrt(12 * count)
    assert abs(float(values.var()) - width**2 / 12) < 5 * width**2 / math.sqrt(180 * count)


def normal(values, mean=0.0):
    count = values.numel()
    assert abs(float(values.mean()) - mean) < 5 / math.sqrt(count)
    assert abs(float(values.var()) - 1) < 5 * math.sqrt(2 / count)


# --- the functions ------------------------------------------------------------------------------------------------


def test_sine_waves_of_finn(family):
    waves = family("sinusoid")
    parameters = waves.parameters(20_000, generator())
    even(parameters[:, 0], 0.1, 5.0)
    even(parameters[:, 1], 0.0, math.pi)
    assert abs(float(torch.corrcoef(parameters.T)[0, 1])) < 0.04
    x = waves.inputs(parameters[:2_000], 10, generator(1))
    assert x.shape == (2_000, 10, 1)
    even(x, -5.0, 5.0)
    y = waves.values(parameters[:3], x[:3])
    assert y.shape == (3, 10, 1)
    for task in range(3):
        amplitude, phase = parameters[task].tolist()
        expected = [amplitude * math.sin(value - phase) for value in x[task].flatten().tolist()]
        assert y[task].flatten().tolist() == pytest.approx(expected, abs=1e-12)


def test_sums_of_two_waves_of_lacoste(family):
    waves = family("harmonics")
    parameters = waves.parameters(20_000, generator())
    normal(parameters[:, 0])
    normal(parameters[:, 1])
    even(parameters[:, 2:4], 0.0, 2 * math.pi)
    even(parameters[:, 4], 5.0, 7.0)
    even(parameters[:, 5], -4.0, 4.0)
    x = waves.inputs(parameters[:2_000], 10, generator(1))
    normal(x - parameters[:2_000, None, 5:])
    y = waves.values(parameters[:3], x[:3])
    assert y.shape == (3, 10, 1)
    for task in range(3):
        a1, a2, b1, b2, omega, _ = parameters[task].tolist()
        expected = [
            a1 * math.sin(omega * value + b1) + a2 * math.sin(2 * omega * value + b2)
            for value in x[task].flatten().tolist()
        ]
        assert y[task].flatten().tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("features", [1, 3])
def test_linear_functions(family, features):
    lines = family("linear_tasks", f"dataset.features={features}")
    assert lines.spec() == Spec({"x": (features,)}, Real((1,)))
    parameters = lines.parameters(5_000, generator())
    normal(parameters)
    x = lines.inputs(parameters, 4, generator(1))
    normal(x)
    y = lines.values(parameters, x)
    assert y.shape == (5_000, 4, 1)
    assert torch.allclose(y[..., 0], (x * parameters[:, None]).sum(-1), rtol=0, atol=1e-12)


def test_ranges_of_ones_own(family):
    waves = family("sinusoid", "dataset.amplitude=[2,2]", "dataset.phase=[-1,0]", "dataset.x=[0,1]")
    parameters = waves.parameters(2_000, generator())
    assert (parameters[:, 0] == 2).all()
    even(parameters[:, 1], -1.0, 0.0)
    assert waves.grid(parameters[0], 3).tolist() == [[0.0], [0.5], [1.0]]


# --- as tasks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_view_of_a_family(shown, name):
    view = shown(name, "view.train_shots=3", "view.train_queries=5", "view.valid_tasks=4", "view.test_tasks=9")
    assert view.spec == Spec({"x": (1,)}, Real((1,)))
    assert (view.ways, view.shots, view.queries) == (None, 10, 10)
    assert (view.count("valid"), view.count("test")) == (4, 9)
    assert view.describe() == {"valid": {"tasks": 4}, "test": {"tasks": 9}}
    assert view.base is None
    assert view.base_spec is None
    assert view.prepare == {}
    support, query = view.draw(6, generator())
    assert support.inputs["x"].shape == support.target.shape == (6, 3, 1)
    assert query.inputs["x"].shape == query.target.shape == (6, 5, 1)
    assert support.mask is None
    fixed = view.fixed("test", 0, 9)
    assert fixed.support.inputs["x"].shape == fixed.query.target.shape == (9, 10, 1)


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_tasks_are_known_by_their_number(shown, name):
    view, more = shown(name, "view.test_tasks=9"), shown(name, "view.test_tasks=12")
    at_once = view.fixed("test", 0, 9)
    parts = [view.fixed("test", 0, 4), view.fixed("test", 4, 5), view.fixed("test", 5, 9)]
    for of_all, of_more, *of_parts in zip(at_once, more.fixed("test", 0, 9), *parts, strict=True):
        assert torch.equal(of_all.target, of_more.target)
        assert torch.equal(of_all.target, torch.cat([part.target for part in of_parts]))
        assert torch.equal(of_all.inputs["x"], torch.cat([part.inputs["x"] for part in of_parts]))
    other = shown(name, "view.test_tasks=9", "seed=1").fixed("test", 0, 9)
    held = shown(name, "view.test_tasks=9", "seed=1", "dataset.split_seed=0").fixed("test", 0, 9)
    assert not torch.equal(at_once.query.target, other.query.target)
    assert torch.equal(at_once.query.target, held.query.target)
    assert len(at_once.query.target[:, 0].unique()) == 9
    assert not torch.equal(view.fixed("valid", 0, 9).query.target, at_once.query.target)


@pytest.mark.parametrize("name", NAMES)
def test_draws_follow_from_the_generator_alone(shown, name):
    view = shown(name)
    first, again, other = (view.draw(5, generator(seed)) for seed in (1, 1, 2))
    for one, same, another in zip(first, again, other, strict=True):
        assert torch.equal(one.inputs["x"], same.inputs["x"])
        assert torch.equal(one.target, same.target)
        assert not torch.equal(one.target, another.target)
    assert not set(first.support.inputs["x"].flatten().tolist()) & set(first.query.inputs["x"].flatten().tolist())


@pytest.mark.parametrize("name", NAMES)
def test_the_curve_goes_through_the_points(shown, name):
    """The true function of an evaluation task, where it has examples and on a grid over its range."""
    view = shown(name)
    for number in (0, 7):
        x, y = view.curve("test", number, 20_001)
        assert x.shape == y.shape == (20_001, 1)
        assert (x.diff(dim=0) > 0).all()
        task = view.fixed("test", number, number + 1).query
        inside = [
            (float(at), float(value))
            for at, value in zip(task.inputs["x"].flatten(), task.target.flatten(), strict=True)
            if float(x[0]) <= at <= float(x[-1])
        ]
        assert len(inside) >= 5
        for at, value in inside:
            nearest = int((x[:, 0] - at).abs().argmin())
            assert float(y[nearest]) == pytest.approx(value, abs=0.02)


def test_no_curve_of_several_inputs(shown):
    assert shown("linear_tasks", "dataset.features=2").curve("test", 0, 10) is None


@pytest.mark.parametrize("name", NAMES)
def test_tasks_come_in_the_type_of_the_run(shown, name):
    double, single = shown(name), shown(name, dtype=torch.float32)
    for exact, rounded in zip(double.draw(3, generator()), single.draw(3, generator()), strict=True):
        assert rounded.target.dtype == rounded.inputs["x"].dtype == torch.float32
        assert torch.equal(exact.target.float(), rounded.target)
        assert torch.equal(exact.inputs["x"].float(), rounded.inputs["x"])
    assert single.curve("valid", 0, 4)[1].dtype == torch.float32


# --- what is refused ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cls", "values", "words"),
    [
        (Sinusoid, {"amplitude": [5, 1], "phase": [0, 1], "x": [0, 1]}, "amplitude: goes from 5 to 1; name the small"),
        (Sinusoid, {"amplitude": [0, 1], "phase": [0, 1], "x": [1, 0]}, "x: goes from 1 to 0"),
        (Sinusoid, {"amplitude": [0, 1, 2], "phase": [0, 1], "x": [0, 1]}, "amplitude: must be a list of 2 values"),
        (Harmonics, {"frequency": [5, 7], "phase": [0, 1], "centre": [4, -4]}, "centre: goes from 4 to -4"),
        (LinearTasks, {"features": 0}, "features: must be"),
    ],
)
def test_refused_in_one_line(cls, values, words):
    with pytest.raises(ConfigError) as caught:
        bind_settings(cls.settings, {"split_seed": None, **values}, "dataset.")
    assert f"dataset.{words}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_series_of_families_is_none(tree):
    from advml.runner.fit import check_fit

    with pytest.raises(ConfigError, match="sinusoid"):
        check_fit(bind(tree("dataset=series", "dataset.parts=[moons,sinusoid]", base=[])))
