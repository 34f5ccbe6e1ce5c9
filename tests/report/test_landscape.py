"""What a search tried and what mattered: axes, importance against truth, pictures that say what they show."""

import numpy as np
import pytest
from fake_runs import make_run
from PIL import Image
from scipy.stats import rankdata
from sklearn.inspection import permutation_importance

from advml.report.gather import gather
from advml.report.landscape import FOLDS, SHUFFLES, axis_of, importance, landscape
from advml.report.metrics import choose
from advml.report.plots import draw, searched
from advml.report.search_pictures import ranks


class TestAxes:
    def test_numbers_that_span_much_are_on_a_log_scale(self):
        assert axis_of("lr", [0.01, 0.1, 0.001]).log
        assert not axis_of("lr", [0.01, 0.02]).log
        assert not axis_of("lr", [0.0, 1000.0]).log
        assert axis_of("lr", [0.01, 0.1, 0.001]).scaled.tolist() == pytest.approx([-2, -1, -3])

    def test_choices_are_places(self):
        axis = axis_of("x", ["b", "a", None, "b", True])
        assert axis.labels == ("a", "b", "null", "true")
        assert axis.values.tolist() == [1, 0, 2, 1, 3]

    def test_numbers_among_choices_are_ordered_by_size(self):
        assert axis_of("patience", [10, 2, "–", 2]).labels == ("–", "2", "10")

    def test_equal_values_make_none(self):
        assert axis_of("x", [1, 1.0, 1]) is None

    def test_ranks(self):
        values = np.array([3.0, 1.0, 3.0, 2.0, 7.0])
        assert ranks(values).tolist() == pytest.approx(((rankdata(values) - 1) / 4).tolist())
        assert ranks(np.array([5.0])).tolist() == [0.0]


class TestImportance:
    def inputs(self, n=80):
        return np.random.default_rng(1).random((n, 3))

    def test_what_the_results_follow_from_and_what_they_do_not(self):
        inputs = self.inputs()
        found = importance(["a", "b", "c"], inputs, 3 * inputs[:, 0] + inputs[:, 1])
        means = found.drops.mean(axis=0)
        assert found.drops.shape == (FOLDS * SHUFFLES, 3)
        assert means[0] > 3 * means[1] > 10 * abs(means[2])
        assert found.r2 > 0.8

    def test_of_noise_the_forest_explains_nothing(self):
        found = importance(["a", "b", "c"], self.inputs(), np.random.default_rng(2).random(80))
        assert found.r2 < 0.1
        assert abs(found.drops.mean(axis=0)).max() < 0.5

    def test_against_scikit_learn(self):
        """Its own permutation_importance on held-out data, for as many shuffles and folds, ranks and measures alike."""
        from sklearn.ensemble import RandomForestRegressor
        from sklearn.model_selection import KFold

        inputs = self.inputs(100)
        results = np.sin(3 * inputs[:, 0]) + 0.5 * (inputs[:, 2] > 0.5)
        drops = []
        for train, test in KFold(5, shuffle=True, random_state=3).split(inputs):
            forest = RandomForestRegressor(100, random_state=0).fit(inputs[train], results[train])
            scored = permutation_importance(forest, inputs[test], results[test], n_repeats=10, random_state=0)
            drops.append(scored.importances_mean)
        assert importance("abc", inputs, results).drops.mean(axis=0) == pytest.approx(np.mean(drops, axis=0), abs=0.15)

    def test_the_same_every_time(self):
        one, two = (importance("abc", self.inputs(20), np.arange(20.0)) for _ in range(2))
        assert (one.drops == two.drops).all()


@pytest.fixture
def search(inside):
    rng = np.random.default_rng(0)
    for number in range(12):
        lr, optimiser = 10 ** rng.uniform(-4, -1), ("sgd", "adam")[number % 2]
        make_run(inside / f"s/{number}", accuracy=0.5 + 0.1 * np.log10(lr), method__lr=lr, method__optimiser=optimiser)
    return inside / "s"


def test_a_landscape(search):
    gathered = gather([search])
    found = landscape(gathered, choose(gathered)[0])
    assert [axis.key for axis in found.axes] == ["method.lr", "method.optimiser"]
    assert (len(found.results), found.runs, found.pruned.any()) == (12, 12, False)
    assert found.results.tolist() == pytest.approx((0.5 + 0.1 * found.axes[0].scaled).tolist())


def test_pictures(search, run_cli):
    said = run_cli("plot", "s", "kind=parallel,importance")
    assert said.code == 0, said.err
    names = [name.removeprefix("s/figures/") for name in said.out.split()]
    metric = "valid_accuracy"
    assert names == [f"{kind}_{metric}.{end}" for kind in ("parallel", "importance") for end in ("png", "svg")]
    for name in names[::2]:
        Image.open(f"s/figures/{name}").verify()


def test_by_default_only_where_there_is_something_to_ask(search, inside):
    assert searched(gather([search]))
    for seed in range(9):
        make_run(inside / f"few/{seed}", seed=seed, accuracy=0.5 + seed / 100, method__lr=(0.1, 0.2)[seed % 2])
    few = gather([inside / "few"])
    assert not searched(few)
    assert set(draw(few)) >= {"bars_valid_accuracy"}
    assert not [name for name in draw(few) if name.startswith(("parallel", "importance"))]


def test_too_few_for_importance(run_cli, inside):
    for number in range(4):
        make_run(inside / f"s/{number}", accuracy=number / 10, method__lr=0.1 * (number + 1))
    said = run_cli("plot", "s", "kind=importance")
    assert said.code == 2
    assert said.err.startswith("advml: kind=importance: needs 8 configurations of one data set and view, not pruned")
    assert run_cli("plot", "s", "kind=parallel").code == 0
