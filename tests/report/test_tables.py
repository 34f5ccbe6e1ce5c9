"""Comparisons: cells against scipy, marks, paired differences, notes."""

import math

import numpy as np
import pytest
from scipy import stats as reference

from advml.errors import ConfigError
from advml.report.gather import gather
from advml.report.tables import compare, find_row

SCORES = {"good": [0.90, 0.92, 0.91, 0.93], "tied": [0.91, 0.91, 0.90, 0.93], "bad": [0.70, 0.73, 0.71, 0.72]}


@pytest.fixture
def methods(sweep):
    """Three methods with four seeds each. The folder."""
    for name, scores in SCORES.items():
        for seed, accuracy in enumerate(scores):
            sweep(f"{name}{seed}", seed=seed, accuracy=accuracy, method__name=name)
    return sweep


def rows_of(comparison):
    return {row.label: row for row in comparison.rows}


def said(comparison, start):
    """The notes that begin with these words."""
    return [note for note in comparison.notes if note.startswith(start)]


class TestCells:
    def test_mean_and_interval_over_seeds(self, methods):
        comparison = compare(gather([methods.path]))
        assert [row.label for row in comparison.rows] == ["bad", "good", "tied"]
        assert [metric.name for metric in comparison.metrics] == ["valid/accuracy", "test/accuracy"]
        for name, scores in SCORES.items():
            found = rows_of(comparison)[name].cells["valid/accuracy"].interval
            low, high = reference.t.interval(0.95, 3, np.mean(scores), reference.sem(scores))
            assert (found.n, found.mean, found.low, found.high) == pytest.approx((4, np.mean(scores), low, high))

    def test_seeds_that_drew_their_own_split(self, sweep):
        for seed, accuracy in enumerate(SCORES["good"]):
            sweep(str(seed), seed=seed, accuracy=accuracy, split=(90, 30, seed))
        comparison = compare(gather([sweep.path]), ["valid/accuracy", "train/loss"])
        cells = comparison.rows[0].cells
        factor = math.sqrt((1 / 4 + 1 / 3) / (1 / 4))
        assert cells["valid/accuracy"].interval.half == pytest.approx(cells["train/loss"].interval.half * factor)
        (note,) = said(comparison, "Each seed drew its own split")
        assert note.endswith("per training example: valid 0.333.")

    def test_some_rows_drew_their_examples_anew(self, sweep):
        for seed, accuracy in enumerate(SCORES["good"]):
            for name in ("moons", "wine"):
                data = {"dataset__name": name, "dataset__noise": 0.1}
                sweep(f"{name}{seed}", seed=seed, accuracy=accuracy, split=(90, 30, seed), **data)
        comparison = compare(gather([sweep.path]), ["valid/accuracy"])
        moons, wine = (rows_of(comparison)[name].cells["valid/accuracy"].interval.half for name in ("moons", "wine"))
        assert wine == pytest.approx(moons * math.sqrt((1 / 4 + 1 / 3) / (1 / 4)))
        (note,) = said(comparison, "In row 2 each seed drew its own split")
        assert note.endswith("valid 0.333.")

    def test_a_metric_that_some_seeds_lack(self, sweep):
        for seed in range(4):
            summary = {"forward": None if seed == 0 else 0.1 * seed}
            sweep(str(seed), seed=seed, result={"summary": summary})
        found = compare(gather([sweep.path]), ["forward"]).rows[0].cells["forward"].interval
        assert (found.n, found.mean) == (3, pytest.approx(0.2))

    def test_a_metric_that_a_row_lacks(self, sweep):
        sweep("a", method__name="a", result={"summary": {"only": 1.0}})
        sweep("b", method__name="b")
        comparison = compare(gather([sweep.path]), ["only"])
        assert [row.cells["only"].interval is None for row in comparison.rows] == [False, True]

    def test_seeds_are_counted_with_those_that_failed(self, methods):
        methods("failed", seed=9, state="failed", method__name="bad")
        methods("never", seed=0, state="interrupted", method__name="worse")
        comparison = compare(gather([methods.path]))
        found = {label: (row.seeds, row.asked) for label, row in rows_of(comparison).items()}
        assert found == {"bad": (4, 5), "good": (4, 4), "tied": (4, 4), "worse": (0, 1)}
        assert said(comparison, "Not completed") == ["Not completed, and not in the table: 1 failed, 1 interrupted."]

    def test_budget_columns_are_those_that_differ(self, sweep):
        for name, samples in (("a", 400), ("b", 800)):
            for seed in range(2):
                budget = {"samples": samples + 10 * seed, "updates": 40, "flops_estimate": None}
                sweep(f"{name}{seed}", seed=seed, method__name=name, result={"budget": budget, "seconds": 2.0})
        comparison = compare(gather([sweep.path]))
        assert comparison.budget == ["samples"]
        assert [row.budget["samples"] for row in comparison.rows] == [405, 805]
        assert said(comparison, "Equal in all rows") == ["Equal in all rows: updates 40, seconds 2."]

    def test_of_a_single_row_all_are_columns(self, sweep):
        sweep("a")
        assert compare(gather([sweep.path])).budget == ["samples", "updates", "gradients", "flops_estimate", "seconds"]


class TestMetrics:
    def test_unknown_ones_are_named_at_once(self, methods):
        with pytest.raises(ConfigError) as raised:
            compare(gather([methods.path]), ["test/acuracy", "nothing", "test/loss:up"])
        first, second, third = raised.value.mistakes
        assert first.startswith("metric=test/acuracy: no run has it; did you mean test/accuracy?; there are train/l")
        assert second.startswith("metric=nothing: no run has it; there are ")
        assert third == "metric=test/loss:up: after the colon comes max (higher is better) or min"

    @pytest.mark.parametrize(("name", "mode"), [
        ("test/accuracy", "max"), ("valid/loss", "min"), ("score", None), ("score:min", "min"),
        ("test/loss:max", "max"), ("test_forgetting", "min"), ("backward_transfer", "max"), ("samples", None),
    ])  # fmt: skip
    def test_which_direction_is_better(self, sweep, name, mode):
        sweep("a", result={"summary": {"score": 1.0, "test_forgetting": 0.1, "backward_transfer": 0.1}})
        (metric,) = compare(gather([sweep.path]), [name]).metrics
        assert (metric.name, metric.mode) == (name.partition(":")[0], mode)

    def test_the_objective_says_it_for_a_name_of_its_own(self, sweep):
        objective = {"metric": "regret", "split": "valid", "mode": "min", "value": 1.0}
        metrics = {"valid": {"regret": 1.0}, "test": {"regret": 2.0}}
        sweep("a", result={"objective": objective, "metrics": metrics})
        comparison = compare(gather([sweep.path]))
        assert [(metric.name, metric.mode) for metric in comparison.metrics] == [
            ("valid/regret", "min"), ("test/regret", "min"),
        ]  # fmt: skip


class TestMarks:
    def test_best_and_what_is_not_distinguishable(self, methods):
        comparison = compare(gather([methods.path]))
        marks = {label: row.cells["valid/accuracy"].mark for label, row in rows_of(comparison).items()}
        assert marks == {"good": "best", "tied": "tied", "bad": ""}

    @pytest.mark.parametrize(("metric", "marks"), [
        ("valid/loss", ["", "best", "tied"]), ("valid/loss:max", ["best", "", ""]),
        ("valid/accuracy:min", ["best", "", ""]),
    ])  # fmt: skip
    def test_lower_may_be_better(self, methods, metric, marks):
        comparison = compare(gather([methods.path]), [metric])
        assert [cell.mark for row in comparison.rows for cell in row.cells.values()] == marks

    def test_holm_is_what_decides(self, sweep):
        """p = 0.03 against the best is a difference alone, and none among four such comparisons."""
        best = [0.80, 0.82, 0.81, 0.83, 0.84]
        worse = [score - shift for score, shift in zip(best, [0.02, 0.0, 0.03, 0.01, 0.02], strict=True)]
        p = reference.ttest_rel(worse, best).pvalue
        assert 0.0125 < p < 0.05
        for count, mark in ((1, ""), (4, "tied")):
            folder = sweep.path / str(count)
            for number, scores in enumerate([best, *[worse] * count]):
                for seed, accuracy in enumerate(scores):
                    sweep(f"{count}/{number}-{seed}", seed=seed, accuracy=accuracy, method__lr=float(number))
            comparison = compare(gather([folder]), ["valid/accuracy"])
            assert [row.cells["valid/accuracy"].mark for row in comparison.rows] == ["best", *[mark] * count]
            assert [one.p_holm for one in comparison.differences] == pytest.approx([min(1, p * count)] * count)

    def test_too_few_seeds_to_rank(self, sweep):
        for name, mean in (("a", 0.5), ("b", 0.9)):
            for seed in range(2):
                sweep(f"{name}{seed}", seed=seed, accuracy=mean + 0.01 * seed, method__name=name)
        comparison = compare(gather([sweep.path]))
        assert not any(cell.mark for row in comparison.rows for cell in row.cells.values())
        assert said(comparison, "n too small") == [
            "n too small to rank (fewer than 3 common seeds): valid/accuracy, test/accuracy."
        ]

    def test_a_row_with_too_few_is_not_ranked_and_stops_nobody(self, methods):
        methods("lucky", seed=0, accuracy=0.99, method__name="lucky")
        comparison = compare(gather([methods.path]), ["valid/accuracy"])
        marks = {row.label: row.cells["valid/accuracy"].mark for row in comparison.rows}
        assert marks["lucky"] == ""
        assert "best" in marks.values()
        (note,) = said(comparison, "n too small")
        assert note.endswith("valid/accuracy, rows 3.")
        assert [row.label for row in comparison.rows][2] == "lucky"

    def test_three_seeds_are_a_description(self, sweep):
        for name, mean in (("a", 0.5), ("b", 0.9)):
            for seed in range(3):
                sweep(f"{name}{seed}", seed=seed, accuracy=mean + 0.01 * seed, method__name=name)
        comparison = compare(gather([sweep.path]))
        assert [row.cells["valid/accuracy"].mark for row in comparison.rows] == ["", "best"]
        assert said(comparison, "With 3 seeds")

    def test_too_few_seeds_in_common(self, sweep):
        for name, first in (("a", 0), ("b", 2)):
            for seed in range(first, first + 4):
                sweep(f"{name}{seed}", seed=seed, accuracy=0.5 + 0.01 * seed, method__name=name)
        comparison = compare(gather([sweep.path]), ["valid/accuracy"])
        assert [(one.seeds, one.p_holm) for one in comparison.differences] == [(2, None)]
        assert not any(row.cells["valid/accuracy"].mark for row in comparison.rows)
        assert said(comparison, "n too small") == ["n too small to rank (fewer than 3 common seeds): valid/accuracy."]

    def test_no_seed_in_common(self, sweep):
        for name, first in (("a", 0), ("b", 10)):
            for seed in range(first, first + 4):
                sweep(f"{name}{seed}", seed=seed, accuracy=0.5 + 0.01 * seed, method__name=name)
        comparison = compare(gather([sweep.path]), ["valid/accuracy"])
        (one,) = comparison.differences
        assert (one.seeds, one.paired, one.p_holm) == (0, None, None)
        assert not any(row.cells["valid/accuracy"].mark for row in comparison.rows)
        assert said(comparison, "The rows do not all have the same seeds")

    def test_data_sets_are_not_compared_with_each_other(self, sweep):
        for dataset, mean in (("digits", 0.9), ("wine", 0.5)):
            for name, more in (("a", 0.0), ("b", 0.05)):
                for seed in range(4):
                    sweep(f"{dataset}-{name}{seed}", seed=seed, accuracy=mean + more + 0.001 * seed**2 * (1 + more),
                          dataset__name=dataset, method__name=name)  # fmt: skip
        comparison = compare(gather([sweep.path]), ["valid/accuracy"])
        marks = {row.label: row.cells["valid/accuracy"].mark for row in comparison.rows}
        assert marks == {"digits, a": "", "digits, b": "best", "wine, a": "", "wine, b": "best"}
        assert {(one.row, one.reference) for one in comparison.differences} == {(1, 2), (3, 4)}
        assert said(comparison, "Only rows with the same data set and view")

    def test_views_are_not_either(self, sweep):
        for scenario in ("task", "class"):
            for seed in range(3):
                sweep(f"{scenario}{seed}", seed=seed, view__name="stream", view__scenario=scenario)
        assert compare(gather([sweep.path])).differences == []

    @pytest.mark.parametrize(("key", "values", "comparable"), [
        ("dataset__noise", (0.0, 0.5), False),
        ("dataset__keep_classes", ([0, 1], [3, 8]), False),
        ("dataset__limit", (None, 100), False),  # limits the test examples too
        ("dataset__normalise", ("unit", "angles"), True),
        ("dataset__valid", (0.1, 0.3), True),
        ("dataset__pca", (None, ...), True),  # a key that the older runs lack
        ("dataset__later", (None, ...), True),
    ])  # fmt: skip
    def test_settings_of_the_data(self, sweep, key, values, comparable):
        for number, value in enumerate(values):
            for seed in range(3):
                sweep(f"{number}-{seed}", seed=seed, accuracy=0.5 + 0.1 * number + 0.01 * seed, **{key: value})
        comparison = compare(gather([sweep.path]), ["valid/accuracy"])
        assert len(comparison.rows) == 2
        assert bool(comparison.differences) is comparable
        assert any(row.cells["valid/accuracy"].mark for row in comparison.rows) is comparable

    def test_an_unknown_direction(self, sweep):
        for lr in (1, 2):
            for seed in range(3):
                sweep(f"{lr}{seed}", seed=seed, method__lr=lr, result={"summary": {"score": lr + seed**2}})
        comparison = compare(gather([sweep.path]), ["score"])
        assert comparison.differences == []
        assert said(comparison, "Which direction of score is better is not known")


class TestDifferences:
    def test_against_a_row(self, methods):
        comparison = compare(gather([methods.path]), ["test/accuracy"], against="bad")
        assert [(one.row, one.reference, one.seeds) for one in comparison.differences] == [(2, 1, 4), (3, 1, 4)]
        for one, name in zip(comparison.differences, ("good", "tied"), strict=True):
            test = reference.ttest_rel(SCORES[name], SCORES["bad"])
            assert one.paired.p == pytest.approx(test.pvalue)
            interval = test.confidence_interval()
            assert (one.paired.interval.low, one.paired.interval.high) == pytest.approx((interval.low, interval.high))
        p_values = [one.paired.p for one in comparison.differences]
        assert [one.p_holm for one in comparison.differences] == pytest.approx(
            [2 * min(p_values), max(max(p_values), 2 * min(p_values))]
            if p_values[0] < p_values[1] else [max(max(p_values), 2 * min(p_values)), 2 * min(p_values)]
        )  # fmt: skip

    def test_over_the_seeds_that_both_have(self, sweep):
        scores = {"a": {0: 0.5, 1: 0.6, 2: 0.55, 7: 0.1}, "b": {2: 0.7, 0: 0.8, 1: 0.65, 9: 0.2}}
        for name, by_seed in scores.items():
            for seed, accuracy in by_seed.items():
                sweep(f"{name}{seed}", seed=seed, accuracy=accuracy, method__name=name)
        (one,) = compare(gather([sweep.path]), ["valid/accuracy"], against="a").differences
        assert one.seeds == 3
        assert one.paired.p == pytest.approx(reference.ttest_rel([0.8, 0.65, 0.7], [0.5, 0.6, 0.55]).pvalue)

    def test_many_are_not_listed_unless_asked_for(self, sweep):
        for lr in range(30):
            for seed in range(3):
                sweep(f"{lr}-{seed}", seed=seed, accuracy=0.5 + 0.001 * lr * seed, method__lr=lr / 10)
        gathered = gather([sweep.path])
        unasked, asked = compare(gathered), compare(gathered, against="1")
        assert (unasked.listed, asked.listed) == (False, True)
        assert [len(said(one, "Differences from the best")) for one in (unasked, asked)] == [1, 0]


class TestFindRow:
    ROWS = ({"method.name": "ewc", "method.lr": 0.1}, {"method.name": "ewc", "method.lr": 0.01},
            {"method.name": "finetune", "method.lr": 0.1})  # fmt: skip

    @pytest.mark.parametrize(("word", "number"), [
        ("1", 1), ("3", 3), ("finetune", 3), ("0.01", 2), ("method=ewc,method.lr=0.1", 1), ("ewc,0.01", 2),
        ("method.name=finetune", 3),
    ])  # fmt: skip
    def test_by_number_value_or_key(self, word, number):
        assert find_row(self.ROWS, word) == number

    @pytest.mark.parametrize(("word", "line"), [
        ("ewc", "against=ewc: fits rows 1, 2; name one by its number"),
        ("fintune", "against=fintune: no such row; did you mean finetune?; name one by its number, 1 to 3, or as "
                    "key=value"),
        ("4", "against=4: no such row; name one by its number, 1 to 3, or as key=value"),
        ("method.lr=3", "against=method.lr=3: no such row; did you mean method.lr=0.1?; name one by its number, 1 to "
                        "3, or as key=value"),
    ])  # fmt: skip
    def test_in_vain(self, word, line):
        with pytest.raises(ConfigError) as raised:
            find_row(self.ROWS, word)
        assert raised.value.mistakes == (line,)


def test_keys_that_follow_from_a_choice_are_named(sweep):
    for name, lr in (("a", 0.1), ("b", 0.2)):
        sweep(name, method__name=name, method__lr=lr)
    comparison = compare(gather([sweep.path]))
    assert comparison.keys == ["method.name"]
    assert said(comparison, "Following from a choice") == ["Following from a choice, these differ too: method.lr."]
