"""A study's document: its numbers against scipy, its table, and that the pages in docs/ say what it says."""

import json
import math
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
from scipy import stats as reference

import advml
from advml.errors import AdvmlError
from advml.report.published import as_markdown, crossed_grid, difference_grid, document, main_grid, notes
from advml.report.published_pictures import pictures
from advml.report.recorded import from_folder
from advml.runner.jobs import Job
from advml.runner.run import Asked
from advml.runner.studies import RowSettings, Study, StudySettings

ROOT = Path(advml.__file__).parents[1]
DOCUMENTS = sorted((ROOT / "docs/results").glob("*.json"))


def load(path):
    return json.loads(path.read_text())


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
class TestShipped:
    def test_nothing_is_corrected_where_examples_are_drawn_anew(self, path):
        of = [load(path)["rows"][one] for one in load(path)["rows"] if one.endswith((", moons", ", circles"))]
        assert not any("overlap" in row for row in of)

    def test_means_and_intervals_are_those_of_the_runs(self, path):
        said = load(path)
        for row in said["rows"].values():
            assert [run["seed"] for run in row["runs"]] == said["seeds"]
            found = row[said["metric"]]
            there = [run["numbers"][said["metric"]] for run in row["runs"] if said["metric"] in run["numbers"]]
            if "of" in found:
                assert (found["n"], found["of"]) == (len(there), len(row["runs"]))
                assert found["n"] < found["of"]
                continue
            values = [said["scale"] * value for value in there]
            if len(values) == 1:
                assert (found["mean"], found["sd"], found["half"]) == (pytest.approx(values[0]), None, None)
                continue
            spread = statistics.stdev(values) * math.sqrt(1 / len(values) + row.get("overlap", 0))
            low = high = found["mean"]
            if spread:  # SciPy has no interval without one: a method that draws nothing is alike under all seeds
                low, high = reference.t.interval(0.95, len(values) - 1, found["mean"], spread)
            assert found["mean"] == pytest.approx(sum(values) / len(values))
            assert (found["mean"] - found["half"], found["mean"] + found["half"]) == pytest.approx((low, high))

    def test_differences_are_paired(self, path):
        said = load(path)
        for one in said["differences"]:
            ours, theirs = ([run["numbers"][said["metric"]] for run in said["rows"][row]["runs"]]
                            for row in (one["row"], one["against"]))  # fmt: skip
            if len(ours) == 1:
                assert (one["mean"], one["p"]) == (pytest.approx(said["scale"] * (ours[0] - theirs[0])), None)
                continue
            if len(ours) == 2:  # too few for a test, says docs/comparing.md
                apart = [said["scale"] * (our - their) for our, their in zip(ours, theirs, strict=True)]
                low, high = reference.t.interval(0.95, 1, sum(apart) / 2, statistics.stdev(apart) / math.sqrt(2))
                assert (one["mean"] - one["half"], one["mean"] + one["half"]) == pytest.approx((low, high))
                assert one["p"] is None
                continue
            found = reference.ttest_rel(ours, theirs)
            wider = math.sqrt(1 + len(ours) * one.get("overlap", 0))  # examples that the splits share
            expected = 2 * reference.t.sf(abs(found.statistic) / wider, len(ours) - 1)
            assert one["p"] == pytest.approx(expected if found.statistic == found.statistic else 1.0)

    def test_it_names_a_commit_without_changes_and_no_folder(self, path):
        said = load(path)
        assert all(len(one["source"]["commit"]) == 40 and not one["source"]["dirty"] for one in said["environments"])
        assert "data_dir" not in path.read_text()

    def test_the_pages_say_what_it_says(self, path):
        assert f"<!-- study {path.stem} -->" in "".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))


def test_tables_in_docs_are_up_to_date():
    done = subprocess.run([sys.executable, ROOT / "docs/generate.py", "--check"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def interval(*values):
    mean = sum(values) / len(values)
    return {"n": len(values), "mean": mean, "sd": 1.0 if len(values) > 1 else None,
            "half": 2.5 if len(values) > 1 else None}  # fmt: skip


def said(seeds=(0, 1, 2), reported=97.0, differences=(), changed=()):
    runs = [{"seed": seed, "test/accuracy": 90.0 + seed, "numbers": {}, "tables": {}} for seed in seeds]
    row = {"reported": reported, "runs": runs, "test/accuracy": interval(*(90.0 + seed for seed in seeds))}
    return {"study": "s", "title": "S", "source": "nobody 2020", "metric": "test/accuracy", "unit": "%", "also": [],
            "seeds": list(seeds), "rows": {"ours": row}, "differences": list(differences), "changed": list(changed),
            "environments": [{"source": None}], "date": "2026-01-01", "command": "advml study s"}  # fmt: skip


@pytest.mark.parametrize(("overlaps", "words"), [
    ({}, "over 3 seeds."),
    ({"a, iris": 0.25, "b, iris": 0.25}, "corrected in iris for the examples that splits share (Nadeau and"),
    ({"a, iris": 0.25, "a, moons": 0.1}, "corrected in iris and moons for"),
    ({"a, iris": 0.25, "b, iris": 0.25, "a, moons": 0.1}, "corrected for the examples"),
])  # fmt: skip
def test_which_intervals_are_corrected(overlaps, words):
    document = said()
    names = ["a, iris", "b, iris", "a, moons"]
    document["rows"] = {
        name: {**document["rows"]["ours"], "row": name[0], "column": name[3:],
               **({"overlap": overlaps[name]} if name in overlaps else {})}
        for name in names
    }  # fmt: skip
    assert words in as_markdown(document)


SCORES = {"quick": [50.0, 60.0, 55.0], "slow": [90.0, None, 70.0], "never": [None, 80.0, None]}


class TestNotReached:
    """Rounds to a target that some seeds never reached: no mean, and a median over all of them."""

    @pytest.fixture
    def said(self, sweep):
        jobs = {}
        for name, values in SCORES.items():
            for seed, value in enumerate(values):
                result = {"summary": {"rounds_to_0.9": value, "rounds_to_target": value}, "identity": "i"}
                folder = sweep(f"{name}{seed}", seed=seed, method__name=name, result=result)
                (folder / "environment.json").write_text(json.dumps({"device": "cpu", "threads": 1}))
                jobs.setdefault(name, []).append(Job(name, folder, {}, Asked("", [], {})))
        asked = StudySettings(title="T", source="S", hypothesis="H", chosen="C", budget="B", metric="rounds_to_target",
                              mode="min", also=("rounds_to_0.9",), against="quick", seeds=(0, 1, 2),
                              rows={name: RowSettings(run=("seed=0",)) for name in SCORES})  # fmt: skip
        return document(Study("s", sweep.path, asked, "advml study s", (), None, jobs))

    def test_what_the_document_holds(self, said):
        assert json.loads(json.dumps(said, allow_nan=False)) == said
        quick, slow, never = (said["rows"][name]["rounds_to_target"] for name in SCORES)
        assert (quick["n"], quick["mean"]) == (3, 55.0)
        assert slow == {"n": 2, "of": 3, "median": 90.0}
        assert never == {"n": 1, "of": 3, "median": None}
        assert [run["rounds_to_target"] for run in said["rows"]["slow"]["runs"]] == SCORES["slow"]
        assert said["differences"] == []

    def test_the_table(self, said):
        _, (quick, slow, never) = main_grid(said)
        assert quick == ["quick", "50", "60", "55", "55 ± 12", "55 ± 12"]
        assert slow == ["slow", "90", "not reached", "70", *["90 median (reached by 2 of 3)"] * 2]
        assert never == ["never", "not reached", "80", "not reached", *["not reached (1 of 3)"] * 2]
        assert "counts those that did not reach it as larger than any" in as_markdown(said)
        assert "than any" not in as_markdown({**said, "rows": {"quick": said["rows"]["quick"]}})

    def test_the_picture(self, said):
        words = pictures(said)["s"]["svg"].decode()
        assert all(text in words for text in ("not reached by 1 of 3", "not reached by 2 of 3", "counts as larger"))

    def test_a_number_that_a_run_lacks_altogether_is_an_error(self, said, sweep):
        (folder,) = sweep.path.glob("never0")
        result = json.loads((folder / "result.json").read_text())
        (folder / "result.json").write_text(json.dumps(result | {"summary": {}}))
        with pytest.raises(AdvmlError, match="has no rounds_to_target"):
            from_folder(Job("", folder, {}, Asked("", [], {})), "rounds_to_target", ())


class TestTable:
    def test_seeds_mean_and_published(self):
        headings, body = main_grid(said())
        assert headings == ["", "seed 0", "seed 1", "seed 2", "test accuracy (%)", "reported"]
        assert body == [["ours", "90.0", "91.0", "92.0", "91.0 ± 2.5", "97"]]

    def test_nothing_was_published(self):
        assert main_grid(said(reported=None))[0][-1] == "test accuracy (%)"

    def test_many_seeds_are_not_listed(self):
        assert main_grid(said(seeds=range(6)))[0] == ["", "test accuracy (%)", "reported"]

    def test_too_few_seeds_for_a_test(self):
        one = {"row": "ours", "against": "theirs", "n": 2, "mean": 1.0, "half": 12.7, "p": None, "p_holm": None}
        _, body = difference_grid(said(differences=[one]))
        assert body == [["ours minus theirs", "2", "1.0", "n too small", "–", "–"]]

    def test_a_changed_study_says_so_first(self):
        first = next(notes(said(changed=["method.epochs=1"])))
        assert first == "Not the published setting: changed by method.epochs=1."
        assert "no checkout" in as_markdown(said())

    def test_a_row_need_not_have_every_further_metric(self):
        document = said(reported=None)
        document["also"] = ["test/recall"]
        ours = document["rows"]["ours"]
        document["rows"] = {"ours": {**ours, "test/recall": interval(40.0, 41.0, 42.0)}, "theirs": ours}
        headings, body = main_grid(document)
        assert headings[-1] == "test recall (%)"
        assert [row[-1] for row in body] == ["41.0 ± 2.5", "n/a"]
        for name, row in document["rows"].items():
            row |= {"row": name, "column": "digits"}
        assert crossed_grid(document, "test/recall")[1] == [["ours", "41.0 ± 2.5"], ["theirs", "n/a"]]
        assert "over 3 seeds" in as_markdown(document)

    def test_differences_of_a_study_with_columns(self):
        document = said(seeds=(0, 1, 2))
        rows = document["rows"]
        document["rows"] = {
            f"{name}, {column}": {**row, "row": name, "column": column}
            for column in ("left", "right") for name, row in rows.items()
        }  # fmt: skip
        document["against"] = "theirs"
        far = {"n": 20, "mean": -12.34, "half": 2.0, "p": 0.001, "p_holm": 0.012}
        near = {"n": 20, "mean": 0.25, "half": 1.0, "p": 0.3, "p_holm": 0.6}
        few = {"n": 2, "mean": 0.25, "half": 1.0, "p": None, "p_holm": None}
        for pair, shown in ((far, near), ["-12.3 (-14.3 to -10.3)*", "0.2 (-0.8 to 1.2)"]), ((far, few), None):
            document["differences"] = [
                {"row": f"ours, {column}", "against": f"theirs, {column}", **one}
                for column, one in zip(("left", "right"), pair, strict=True)
            ]
            headings, body = difference_grid(document)
            assert headings == ["minus theirs (%)", "left", "right"]
            if shown:
                assert [cell.replace("\N{MINUS SIGN}", "-") for cell in body[0]] == ["ours", *shown]
                assert "*: p < 0.05, by Holm" in " ".join(notes(document))
            else:
                assert body[0][2] == "0.2"

    def test_counts_have_no_unit_and_a_picture(self):
        document = said()
        document["counts"] = ["skips", "parameters"]
        row = document["rows"]["ours"]
        row |= {"skips": interval(1.0, 3.0), "parameters": interval(51818.0, 60000.0)}
        for run in row["runs"]:
            run["parameters"] = 50000.0 + run["seed"]
        headings, body = main_grid(document)
        assert headings[4:] == ["test accuracy (%)", "skips", "parameters", "reported"]
        assert body[0][4:] == ["91.0 ± 2.5", "2.0 ± 2.5", "55,909 ± 2", "97"]
        against = pictures(document)["s_parameters"]["svg"].decode()
        assert "50,000" in against
        assert "<!-- parameters -->" in against
        assert "s_parameters" not in pictures({**document, "counts": ["skips"]})

    @pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
    def test_pictures(self, seeds):
        (picture,) = pictures(said(seeds=seeds)).values()
        assert picture["png"].startswith(b"\x89PNG")
        assert b"reported" not in pictures(said(seeds=seeds, reported=None))["s"]["svg"]
