"""Targets that some runs never reached: nothing is averaged over the others alone."""

import csv
import io
import re

import pytest

from advml.report import formats
from advml.report.gather import gather
from advml.report.plots import draw
from advml.report.reached import Reached, is_goal, reached, said
from advml.report.tables import compare

GOAL = "rounds_to_0.9"


@pytest.mark.parametrize(("values", "found"), [
    ([1.0, 2.0], None),
    ([None, 2.0, 1.0], Reached(2, 3, 2.0)),
    ([None, None, 1.0], Reached(1, 3, None)),
    ([None, 1.0], Reached(1, 2, None)),  # the middle of 1 and of nothing is nothing
    ([None, 3.0, 1.0, 2.0], Reached(3, 4, 2.5)),
    ([None], Reached(0, 1, None)),
])  # fmt: skip
def test_the_median_counts_those_that_did_not_as_larger(values, found):
    assert reached(GOAL, values) == found


def test_only_goals_are_not_reached():
    assert [is_goal(name) for name in (GOAL, "test/rounds_to_target", "one_to_two/loss")] == [True, True, False]
    assert reached("test/loss", [1.0, None, 2.0]) == Reached(2, 3, None)
    assert said("test/loss", Reached(2, 3, None), "–") == "undefined (there is 2 of 3)"


@pytest.fixture
def runs(sweep):
    """A row that got there with all seeds, one with two of three (and would have the best mean), one with none."""
    for name, values in {"all": (50, 51, 52), "some": (20, None, 30), "none": (None, None, None)}.items():
        for seed, value in enumerate(values):
            sweep(f"{name}{seed}", seed=seed, method__name=name, result={"summary": {GOAL: value}})
    return gather([sweep.path])


class TestComparison:
    def test_no_mean_over_the_quick_ones_alone(self, runs):
        comparison = compare(runs, [GOAL])
        cells = {row.label: row.cells[GOAL] for row in comparison.rows}
        assert (cells["all"].interval.mean, cells["all"].reached) == (51, None)
        assert (cells["some"].interval, cells["some"].reached) == (None, Reached(2, 3, 30))
        assert cells["none"].reached == Reached(0, 3, None)
        assert [cell.mark for cell in cells.values()] == ["", "", ""]
        assert all(one.paired is None for one in comparison.differences)

    def test_what_is_written(self, runs):
        comparison = compare(runs, [GOAL])
        text = formats.as_markdown(comparison)
        for words in ("51.0 ± 2.5 |", "30.0 median (reached by 2 of 3)", "not reached (0 of 3)"):
            assert words in text
        assert any("counts those that did not as larger" in note for note in comparison.notes)
        rows = {row["method.name"]: row for row in csv.DictReader(io.StringIO(formats.as_csv(comparison)))}
        assert [rows[name][f"{GOAL} n"] for name in ("all", "some", "none")] == ["3", "2", "0"]
        assert [rows[name][f"{GOAL} median of all"] for name in ("all", "some", "none")] == ["", "30", ""]

    def test_pictures_say_what_is_not_in_them(self, runs):
        (picture,) = draw(runs, ["bars"], [GOAL]).values()
        comments = re.findall(r"<!-- (.*?) -->", picture["svg"].decode())
        assert any("not all seeds" in words for words in comments)
        assert "reached it: 2" in " ".join(comments)

    def test_nobody_got_there(self, sweep):
        for seed in range(2):
            sweep(str(seed), seed=seed, result={"summary": {GOAL: None}})
        found = gather([sweep.path])
        assert "not reached (0 of 2)" in formats.as_markdown(compare(found, [GOAL]))
        assert draw(found, (), [GOAL]) == {}
