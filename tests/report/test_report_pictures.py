"""Pictures of many runs: what is written in them, that lines differ in grey, and which kinds are drawn for what."""

import io
import re

import numpy as np
import pytest
from PIL import Image

from advml.errors import ConfigError
from advml.report.gather import gather
from advml.report.layout import style_of
from advml.report.metrics import spent_by
from advml.report.plots import draw
from advml.runner import figures


def texts(picture):
    """What is written in a picture."""
    return re.findall(r"<!-- (.*?) -->", picture["svg"].decode())


def records(final, phases=1):
    steps = 6 * phases
    rising = [{"step": step, "phase": "x", "split": "valid", "accuracy": final * step / steps}
              for step in range(steps + 1)]  # fmt: skip
    loss = [{"step": step, "phase": f"task{-(-step * phases // steps)}", "split": "train", "loss": 2.0 / step}
            for step in range(1, steps + 1)]  # fmt: skip
    return rising + loss


@pytest.fixture
def grid(sweep):
    """Two methods × two rates × three seeds that differ in work."""
    for name, more in (("adam", 0.1), ("sgd", 0.0)):
        for lr in (0.1, 0.2):
            for seed in range(3):
                final = 0.5 + more + lr + 0.01 * seed
                budget = {"steps": 6, "samples": 100 if name == "sgd" else 900, "updates": 6}
                sweep(f"{name}{lr}-{seed}", seed=seed, accuracy=final, records=records(final, 2), method__name=name,
                      method__lr=lr, result={"budget": budget})  # fmt: skip
    return sweep


def test_what_makes_sense_is_drawn_by_default(grid, monkeypatch):
    monkeypatch.setattr("advml.runner.figures.rendered", lambda figure: {})
    assert list(draw(gather([grid.path]))) == [
        "curves_valid_accuracy", "curves_train_loss", "bars_valid_accuracy", "bars_test_accuracy",
        "heatmap_valid_accuracy", "heatmap_test_accuracy", "budget_valid_accuracy_samples",
        "budget_valid_accuracy_seconds", "budget_test_accuracy_samples", "budget_test_accuracy_seconds",
    ]  # fmt: skip


def test_one_of_each_kind(grid):
    gathered = gather([grid.path])
    made = draw(gathered, ["curves"]) | draw(gathered, ["bars", "heatmap", "budget"], ["test/accuracy"])
    for name, picture in made.items():
        image = Image.open(io.BytesIO(picture["png"]))
        assert min(image.size) > 200, name
        assert len(image.convert("RGB").getcolors(10**6)) > 20, name
    curves, loss, bars = (made[name] for name in ("curves_valid_accuracy", "curves_train_loss", "bars_test_accuracy"))
    assert {"step", "valid accuracy (fraction correct)", "adam, method.lr=0.1"} <= set(texts(curves))
    assert "line: mean of 3 seeds, band: 95 % t-interval" in texts(curves)
    assert {"digits · mlp", "task1", "task2", "train loss"} <= set(texts(loss))
    assert {"adam, method.lr=0.1", "0.700 ± 0.025", "test accuracy (fraction correct)"} <= set(texts(bars))
    heat = texts(made["heatmap_test_accuracy"])
    assert {"adam", "sgd", "method", "method.lr", "0.700", "0.800", "0.600", "mean over 3 seeds"} <= set(heat)
    assert {"training examples processed", "sgd, method.lr=0.1"} <= set(texts(made["budget_test_accuracy_samples"]))
    assert "training time (s)" in texts(made["budget_test_accuracy_seconds"])


def test_equal_runs_give_equal_bytes(grid):
    first, second = (draw(gather([grid.path]), ["curves"], ["valid/accuracy"]) for _ in range(2))
    assert first == second


class TestCurves:
    def words(self, sweep, axis=None):
        return " ".join(texts(draw(gather([sweep.path]), ["curves"], ["valid/accuracy"], axis).popitem()[1]))

    def test_two_seeds_reach_from_minimum_to_maximum(self, sweep):
        for seed in range(2):
            sweep(str(seed), seed=seed, records=records(0.5 + 0.1 * seed))
        assert "line: mean of 2 seeds, band: minimum to maximum" in self.words(sweep)

    def test_one_seed_has_no_band(self, sweep):
        sweep("0", records=records(0.5))
        assert "one seed" in self.words(sweep)
        assert "band" not in self.words(sweep)

    def test_seeds_are_counted_where_they_differ(self, sweep):
        for name, count in (("a", 3), ("b", 2)):
            for seed in range(count):
                sweep(f"{name}{seed}", seed=seed, records=records(0.5 + 0.1 * seed), method__name=name)
        words = self.words(sweep)
        assert "a (n = 3)" in words
        assert "b (n = 2)" in words
        assert "mean of 2 to 3 seeds, band: 95 % t-interval, minimum to maximum where n = 2" in words

    def test_overlapping_splits_are_said(self, sweep):
        for seed in range(3):
            sweep(str(seed), seed=seed, records=records(0.5), split=(80, 20, seed))
        assert "(corrected for overlapping splits)" in self.words(sweep).replace("\n", " ")

    def test_over_work_and_time(self, sweep):
        for seed in range(3):
            timing = [{"step": step, "total": step * (1 + seed)} for step in range(1, 7)]
            sweep(str(seed), seed=seed, records=records(0.5 + 0.1 * seed), timing=timing)
        assert "training time (s)" in self.words(sweep, "seconds")
        assert "optimiser updates" in self.words(sweep, "updates")
        assert list(draw(gather([sweep.path]), ["curves"], ["valid/accuracy"], "updates")) == [
            "curves_valid_accuracy_updates"
        ]

    def test_more_lines_than_colours_become_panels(self, sweep):
        for name in ("a", "b", "c", "d"):
            for lr in (1, 2):
                sweep(f"{name}{lr}", records=records(0.5), method__name=name, method__lr=lr)
        words = texts(draw(gather([sweep.path]), ["curves"], ["valid/accuracy"])["curves_valid_accuracy"])
        assert words.count("method.lr=1") == words.count("method.lr=2") == 1
        assert [words.count(name) for name in "abcd"] == [1, 1, 1, 1]  # one legend for both


class TestBars:
    def words(self, sweep):
        return texts(draw(gather([sweep.path]), ["bars"], ["valid/accuracy"])["bars_valid_accuracy"])

    @pytest.mark.parametrize(("scores", "from_zero"), [((0.2, 0.9), True), ((0.90, 0.95), False)])
    def test_begin_at_zero_or_say_that_they_do_not(self, sweep, scores, from_zero):
        for lr, accuracy in enumerate(scores):
            sweep(str(lr), accuracy=accuracy, method__lr=lr)
        words = self.words(sweep)
        assert ("one seed; the axis does not begin at zero" in words) != from_zero
        assert ("0.0" in words) == from_zero

    def test_negative_numbers(self, sweep):
        for lr in (1, 2):
            sweep(str(lr), method__lr=lr, result={"summary": {"transfer": -0.5 / lr}})
        words = texts(draw(gather([sweep.path]), ["bars"], ["transfer"])["bars_transfer"])
        assert "−0.5000" in words


class TestKindsAskedFor:
    def test_that_cannot_be_drawn(self, sweep):
        sweep("a")
        with pytest.raises(ConfigError) as raised:
            draw(gather([sweep.path]), ["heatmap", "curves"])
        assert raised.value.mistakes == (
            "kind=heatmap: needs two differing keys that make a grid, or runs with an accuracy matrix",
            "kind=curves: no run measured this metric at three places or more",
        )

    def test_an_unknown_metric(self, sweep):
        sweep("a")
        with pytest.raises(ConfigError, match="metric=acuracy: no run has it"):
            draw(gather([sweep.path]), [], ["acuracy"])

    def test_accuracy_matrices(self, sweep):
        for name in ("ewc", "finetune"):
            folder = sweep(name, method__name=name)
            (folder / "artifacts").mkdir()
            text = "trained up to \\ tested on,task1,task2\nafter task1,0.91,0.52\nafter task2,0.33,0.94\n"
            (folder / "artifacts/accuracy_matrix.csv").write_text(text)
        made = draw(gather([sweep.path]), ["heatmap"])
        assert list(made) == ["accuracy_matrices"]
        words = texts(made["accuracy_matrices"])
        assert {"ewc (1 seed)", "finetune (1 seed)", "0.33", "test accuracy (fraction)", "tested on"} <= set(words)
        assert words.count("after task2") == 1  # the second matrix stands beside the first


class TestStyles:
    def test_forty_nine_differ_in_colour_or_marker(self):
        styles = [style_of(number) for number in range(49)]
        assert len({(style["color"], style["marker"]) for style in styles}) == 49
        assert len({style["marker"] for style in styles[:7]}) == len({style["color"] for style in styles[:7]}) == 7

    def test_two_lines_can_be_told_apart_in_grey(self, sweep):
        """The same numbers drawn with the first two styles do not give the same grey picture."""
        for lr in (1, 2):
            sweep(str(lr), records=records(0.4 * lr), method__lr=lr)
        png = draw(gather([sweep.path]), ["curves"], ["valid/accuracy"])["curves_valid_accuracy"]["png"]
        legend = np.asarray(Image.open(io.BytesIO(png)).convert("L"))[-60:]  # both handles stand in the last rows
        dark = np.flatnonzero((legend < 200).any(0))
        gaps = np.flatnonzero(np.diff(dark) > 25)
        left, right = legend[:, dark[0] : dark[gaps[0]]], legend[:, dark[gaps[0] + 1] : dark[-1]]
        assert np.count_nonzero(left < 200) != np.count_nonzero(right[:, : left.shape[1]] < 200)


class TestReadable:
    def test_steps_are_whole(self, sweep):
        for seed in range(2):
            short = [{"step": step, "phase": "x", "split": "valid", "accuracy": 0.1 * step} for step in range(4)]
            sweep(str(seed), seed=seed, records=short)
        written = texts(draw(gather([sweep.path]), ["curves"], ["valid/accuracy"])["curves_valid_accuracy"])
        assert written[: written.index("step")] == ["0", "1", "2", "3"]

    def test_curves_of_few_points_are_shown_whole(self, sweep):
        def caption(points):
            steep = [{"step": step, "phase": "x", "split": "valid", "accuracy": min(0.8, 0.5 * step) + 0.001 * step}
                     for step in range(points)]  # fmt: skip
            sweep(str(points), method__epochs=points, records=steep)
            return " ".join(texts(draw(gather([sweep.path / str(points)]), ["curves"])["curves_valid_accuracy"]))

        assert "run out of the frame" not in caption(6)
        assert "run out of the frame" in caption(40)

    def test_no_axis_promises_more_than_all(self, sweep):
        for seed, accuracy in enumerate((0.99, 0.8)):
            sweep(str(seed), seed=seed, accuracy=accuracy)
        written = texts(draw(gather([sweep.path]), ["bars"], ["valid/accuracy"])["bars_valid_accuracy"])
        ticks = [float(text) for text in written[: written.index("valid accuracy (fraction correct)")]]
        assert max(ticks) <= 1.0

    def test_work_is_not_drawn_for_one_or_where_only_problems_differ_in_it(self, sweep):
        sweep("a", method__name="a")
        sweep("b", method__name="b", state="failed")
        assert not any(name.startswith("budget") for name in draw(gather([sweep.path])))
        sweep("c", method__name="a", dataset__name="wine", result={"budget": {"samples": 900}})
        assert not any(name.endswith("samples") for name in draw(gather([sweep.path]), ["budget"]))

    def test_the_size_is_that_of_what_was_found(self, sweep):
        for name, found in (("darts", 700), ("random", 900)):
            sweep(name, method__name=name, result={"parameters": 5000, "summary": {"derived_parameters": found}})
        drawn = spent_by(gather([sweep.path]).groups[0], "parameters")
        assert drawn.mean == 700
        assert "budget_test_accuracy_parameters" in draw(gather([sweep.path]))
        sweep("plain", method__name="plain", result={"parameters": 5000})
        assert spent_by(gather([sweep.path / "plain"]).groups[0], "parameters").mean == 5000

    def test_the_best_of_many_have_different_colours(self, sweep):
        for number in range(12):
            sweep(str(number), accuracy=0.5 + 0.03 * (number % 7), method__lr=0.001 * 2**number)
        made = draw(gather([sweep.path]), ["budget"], ["valid/accuracy"], "seconds")
        svg = made["budget_valid_accuracy_seconds"]["svg"].decode()
        assert {f"fill: {colour.lower()}" in svg for colour in figures.COLOURS[:-1]} == {True}

    def test_dollars_are_no_formula(self, sweep):
        for number, name in enumerate(("$HOME/$x", r"$\cmd{$", "a$b")):
            for lr in (0.1, 0.2):
                sweep(f"{number}-{lr}", method__name=name, method__lr=lr, dataset__name=r"$\no$")
        made = draw(gather([sweep.path]), ["bars", "heatmap", "budget"], ["valid/accuracy"])
        for picture in made.values():
            written = " ".join(texts(picture))
            assert "$HOME/$x" in written.replace(r"\$", "$")
            assert r"$\cmd{$" in written.replace(r"\$", "$")
