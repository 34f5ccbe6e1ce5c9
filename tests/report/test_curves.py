"""Learning curves as numbers: points, axes, bands, panels and grids."""

import numpy as np
import pytest
from scipy import stats as reference

from advml.report.curves import band, band_of, boundaries, points, seconds, series
from advml.report.gather import gather
from advml.report.heat import accuracy_maps, metric_maps
from advml.report.metrics import Metric
from advml.report.panels import panels, two_keys

ACCURACY = Metric("valid/accuracy", "max")


def curve(values, split="valid", steps=None):
    """Records of a run that was measured at these steps."""
    steps = range(len(values)) if steps is None else steps
    return [{"step": step, "phase": "train", "split": split, "accuracy": value}
            for step, value in zip(steps, values, strict=True)]  # fmt: skip


def only_group(sweep):
    (group,) = gather([sweep.path]).groups
    return group


class TestPoints:
    def test_of_one_split_and_the_last_state(self):
        records = [
            {"step": 0, "split": "valid", "accuracy": 0.1}, {"step": 1, "split": "train", "accuracy": 0.9},
            {"step": 2, "split": "valid", "accuracy": None}, {"step": 4, "split": "valid", "accuracy": float("nan")},
            {"step": 3, "split": "valid", "accuracy": 0.3},
            {"step": 3, "split": "test", "state": "last", "accuracy": 0.4},
            {"step": 3, "split": "test", "state": "best", "accuracy": 0.5},
        ]  # fmt: skip
        assert points(records, "valid/accuracy") == {0: 0.1, 3: 0.3}
        assert points(records, "test/accuracy") == {3: 0.4}
        assert points(records, "valid/loss") == {}

    def test_names_with_a_slash(self):
        assert points([{"step": 1, "split": "test", "accuracy/task1": 0.5}], "test/accuracy/task1") == {1: 0.5}


class TestSeries:
    def test_work_is_spread_over_the_steps(self, sweep):
        sweep("a", records=curve([0.1, 0.2, 0.4], steps=[0, 2, 4]))  # 400 samples, 40 updates, 4 steps
        run = only_group(sweep).runs[0]
        assert series(run, "valid/accuracy", "step") == [(0, 0.1), (2, 0.2), (4, 0.4)]
        assert series(run, "valid/accuracy", "samples") == [(0, 0.1), (200, 0.2), (400, 0.4)]
        assert series(run, "valid/accuracy", "updates") == [(0, 0.1), (20, 0.2), (40, 0.4)]

    def test_work_that_was_not_counted(self, sweep):
        sweep("a", records=curve([0.1, 0.2]), result={"budget": {"steps": 4}})
        assert series(only_group(sweep).runs[0], "valid/accuracy", "gradients") == []

    def test_seconds_of_the_last_attempt_at_a_step(self, sweep):
        timing = [{"attempt": 1, "step": 1, "total": 1.0}, {"attempt": 1, "step": 2, "total": 9.0},
                  {"attempt": 2, "step": 2, "total": 2.5}]  # fmt: skip
        folder = sweep("a", records=curve([0.1, 0.2, 0.4]), timing=timing)
        with open(folder / "timing.jsonl", "a") as file:
            file.write('{"attempt": 2, "ste')  # cut off by a crash
        run = only_group(sweep).runs[0]
        assert seconds(run) == {0: 0.0, 1: 1.0, 2: 2.5}
        assert series(run, "valid/accuracy", "seconds") == [(0.0, 0.1), (1.0, 0.2), (2.5, 0.4)]

    def test_no_clock_at_all(self, sweep):
        (sweep("a", records=curve([0.1, 0.2])) / "timing.jsonl").unlink()
        assert series(only_group(sweep).runs[0], "valid/accuracy", "seconds") == [(0.0, 0.1)]


class TestBand:
    def test_t_interval_at_each_place(self):
        columns = np.random.default_rng(0).normal(0.5, 0.1, (5, 3))
        found = band_of([0, 1, 2], columns.tolist())
        low, high = reference.t.interval(0.95, 4, columns.mean(0), reference.sem(columns))
        assert (found.n, found.kind) == (5, "t")
        assert found.mean == pytest.approx(columns.mean(0))
        assert found.low == pytest.approx(low)
        assert found.high == pytest.approx(high)

    def test_two_runs_reach_from_minimum_to_maximum(self):
        found = band_of([0, 1], [[0.1, 0.6], [0.3, 0.2]])
        assert (found.kind, found.mean, found.low, found.high) == ("range", pytest.approx([0.2, 0.4]), [0.1, 0.2],
                                                                  [0.3, 0.6])  # fmt: skip

    def test_one_run_has_no_band(self):
        found = band_of([0, 1], [[0.1, 0.6]])
        assert (found.kind, found.mean, found.low, found.high) == ("none", [0.1, 0.6], [0.1, 0.6], [0.1, 0.6])

    def test_where_all_seeds_were_measured(self, sweep):
        """One stopped early: the mean of the others alone would jump where it ends."""
        for seed, length in enumerate((5, 3, 5)):
            sweep(str(seed), seed=seed, records=curve([0.1 * (seed + 1) * step for step in range(length)]))
        found = band(only_group(sweep), "valid/accuracy", "step")
        assert found.x == [0, 1, 2]
        assert found.mean == pytest.approx([0, 0.2, 0.4])

    def test_over_seconds_runs_are_interpolated_to_the_end_of_the_shortest(self, sweep):
        for seed, pace in enumerate((1.0, 2.0)):
            timing = [{"step": step, "total": pace * step} for step in (1, 2)]
            sweep(str(seed), seed=seed, records=curve([0.0, 0.5, 1.0]), timing=timing)
        found = band(only_group(sweep), "valid/accuracy", "seconds")
        assert (found.x[0], found.x[-1]) == (0.0, 2.0)
        assert found.high == pytest.approx([0.5 * x for x in found.x])
        assert found.low == pytest.approx([0.25 * x for x in found.x])

    def test_overlapping_splits_widen_held_out_curves_only(self, sweep):
        for seed in range(3):
            records = curve([0.1, 0.3 + 0.1 * seed]) + curve([0.1, 0.3 + 0.1 * seed], split="train")
            sweep(str(seed), seed=seed, split=(60, 40, seed), records=records)
        group = only_group(sweep)
        held_out, seen = (band(group, f"{split}/accuracy", "step") for split in ("valid", "train"))
        width = [found.high[1] - found.mean[1] for found in (held_out, seen)]
        assert width[0] == pytest.approx(width[1] * np.sqrt((1 / 3 + 2 / 3) / (1 / 3)))

    def test_nothing_measured(self, sweep):
        sweep("a", records=curve([0.1, 0.2]))
        assert band(only_group(sweep), "test/accuracy", "step") is None


def test_boundaries_of_phases(sweep):
    def records(steps):
        return [{"step": step, "phase": f"task{1 + step // 3}", "split": "train", "loss": 1.0} for step in range(steps)]

    sweep("a", seed=0, records=records(6))
    sweep("b", seed=1, records=records(6))
    assert boundaries(only_group(sweep)) == [("task1", 2), ("task2", 5)]
    sweep("c", seed=2, records=records(5))
    assert boundaries(only_group(sweep)) == []


class TestPanels:
    def test_few_configurations_share_one(self, sweep):
        for lr in (0.1, 0.01):
            sweep(str(lr), method__lr=lr)
        (panel,) = panels(gather([sweep.path]), ACCURACY)
        assert (panel.title, [line.label for line in panel.lines]) == ("", ["method.lr=0.01", "method.lr=0.1"])
        assert [line.style for line in panel.lines] == [0, 1]

    def test_data_sets_have_their_own_and_equal_labels_equal_styles(self, sweep):
        for dataset in ("wine", "digits"):
            for name in ("b", "a") if dataset == "wine" else ("b",):
                sweep(f"{dataset}{name}", dataset__name=dataset, method__name=name)
        digits, wine = panels(gather([sweep.path]), ACCURACY)
        assert (digits.title, wine.title) == ("digits", "wine")
        styles = {line.label: line.style for line in wine.lines}
        assert [(line.label, line.style) for line in digits.lines] == [("b", styles["b"])]
        assert styles["a"] != styles["b"]

    def test_many_are_split_by_the_key_that_gives_fewest_panels(self, sweep):
        for name in ("a", "b", "c", "d"):
            for lr in (1, 2, 3):
                sweep(f"{name}{lr}", method__name=name, method__lr=lr)
        found = panels(gather([sweep.path]), ACCURACY)
        assert [panel.title for panel in found] == ["method.lr=1", "method.lr=2", "method.lr=3"]
        assert [[line.label for line in panel.lines] for panel in found] == [["a", "b", "c", "d"]] * 3

    @pytest.mark.parametrize(("mode", "kept"), [("max", range(3, 10)), ("min", range(7))])
    def test_of_too_many_the_best_are_drawn(self, sweep, mode, kept):
        for lr in range(10):
            sweep(str(lr), accuracy=0.5 + 0.01 * lr, method__lr=lr)
        (panel,) = panels(gather([sweep.path]), Metric("valid/accuracy", mode))
        assert [line.label for line in panel.lines] == [f"method.lr={lr}" for lr in kept]
        assert panel.left_out == 3

    def test_a_label_names_only_what_differs_in_its_panel(self, sweep):
        for dataset, hidden in (("digits", [64]), ("wine", [32])):
            for lr in (1, 2):
                sweep(f"{dataset}{lr}", dataset__name=dataset, model__hidden=hidden, method__lr=lr)
        found = panels(gather([sweep.path]), ACCURACY)
        assert [[line.label for line in panel.lines] for panel in found] == [["method.lr=1", "method.lr=2"]] * 2


class TestGrids:
    def test_the_fullest_pair_of_keys_longer_one_across(self):
        rows = [{"a": a, "b": b, "c": a} for a in range(3) for b in range(2)]
        assert two_keys(rows, ["a", "b", "c"]) == ("b", "a")

    def test_no_grid(self):
        assert two_keys([{"a": 1}, {"a": 2}], ["a"]) is None
        assert two_keys([{"a": x, "b": x} for x in range(5)], ["a", "b"]) is None  # a diagonal
        assert two_keys([{"a": x, "b": "–"} for x in range(5)] + [{"a": 1, "b": 2}], ["a", "b"]) is None

    def test_means_over_seeds_and_holes(self, sweep):
        for name in ("b", "a"):
            for lr in (10, 2, 0.5):
                for seed in range(2):
                    if (name, lr) != ("a", 2):
                        sweep(f"{name}{lr}-{seed}", seed=seed, accuracy=0.01 * lr + seed * 0.02, method__name=name,
                              method__lr=lr)  # fmt: skip
        (found,) = metric_maps(gather([sweep.path]), ACCURACY)
        assert (found.rows, found.columns) == (["a", "b"], ["0.5", "2", "10"])
        assert found.values[1] == pytest.approx([0.015, 0.03, 0.11])
        assert found.values[0][1] is None
        assert found.limits == pytest.approx((0.015, 0.11))

    def test_a_map_for_each_choice_of_the_other_keys(self, sweep):
        for dataset in ("digits", "wine"):
            for name in ("a", "b"):
                for lr in (1, 2, 3):
                    sweep(f"{dataset}{name}{lr}", dataset__name=dataset, method__name=name, method__lr=lr)
        found = metric_maps(gather([sweep.path]), ACCURACY)
        assert [(one.title, one.row_title, one.column_title) for one in found] == [
            ("digits", "method", "method.lr"), ("wine", "method", "method.lr"),
        ]  # fmt: skip


class TestAccuracyMatrices:
    HEAD = "trained up to \\ tested on,task1 (0/1),task2 (2/3)\n"

    def write(self, folder, text):
        (folder / "artifacts").mkdir()
        (folder / "artifacts/accuracy_matrix.csv").write_text(text)

    def test_mean_over_seeds(self, sweep):
        for seed in range(2):
            self.write(sweep(str(seed), seed=seed), f"{self.HEAD}before,0.{seed},\nafter task1,0.9,0.{seed + 4}\n")
        (found,) = accuracy_maps(gather([sweep.path]))
        assert found.values[0] == [pytest.approx(0.05), None]
        assert found.values[1] == pytest.approx([0.9, 0.45])
        assert (found.rows, found.columns) == (["before", "after task1"], ["task1 (0/1)", "task2 (2/3)"])
        assert (found.title, found.row_title, found.column_title, found.limits) == (
            "supervised (2 seeds)", "trained up to", "tested on", (0.0, 1.0),
        )  # fmt: skip

    def test_tasks_that_differ_between_seeds_keep_their_numbers(self, sweep):
        self.write(sweep("0", seed=0), f"{self.HEAD}after task1,0.9,0.5\n")
        self.write(sweep("1", seed=1), f"{self.HEAD.replace('0/1', '4/7')}after task1,0.9,0.5\n")
        assert accuracy_maps(gather([sweep.path]))[0].columns == ["task1", "task2 (2/3)"]

    @pytest.mark.parametrize("text", ["", "a,b\n", "a,b\nc,much\n", "a,b\nc,0.5\nd\n", "\x00\xff"])
    def test_damaged_ones_are_left_out(self, sweep, text):
        self.write(sweep("0", seed=0), f"{self.HEAD}after task1,0.9,0.5\n")
        self.write(sweep("1", seed=1), text)
        (found,) = accuracy_maps(gather([sweep.path]))
        assert found.title == "supervised (1 seed)"

    def test_matrices_of_different_size_have_no_mean(self, sweep):
        self.write(sweep("0", seed=0), f"{self.HEAD}after task1,0.9,0.5\n")
        self.write(sweep("1", seed=1), f"{self.HEAD}after task1,0.9,0.5\nafter task2,0.9,0.5\n")
        assert accuracy_maps(gather([sweep.path])) == []
