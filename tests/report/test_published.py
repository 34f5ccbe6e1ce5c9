"""A study's document: its numbers against scipy, its table, and that the pages in docs/ say what it says."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from scipy import stats as reference

import advml
from advml.report.published import as_markdown, crossed_grid, difference_grid, main_grid, notes, pictures

ROOT = Path(advml.__file__).parents[1]
DOCUMENTS = sorted((ROOT / "docs/results").glob("*.json"))


def load(path):
    return json.loads(path.read_text())


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.stem)
class TestShipped:
    def test_means_and_intervals_are_those_of_the_runs(self, path):
        said = load(path)
        for row in said["rows"].values():
            values = [said["scale"] * run["numbers"][said["metric"]] for run in row["runs"]]
            assert [run["seed"] for run in row["runs"]] == said["seeds"]
            found = row[said["metric"]]
            low, high = reference.t.interval(0.95, len(values) - 1, found["mean"], reference.sem(values))
            assert found["mean"] == pytest.approx(sum(values) / len(values))
            assert (found["mean"] - found["half"], found["mean"] + found["half"]) == pytest.approx((low, high))

    def test_differences_are_paired(self, path):
        said = load(path)
        for one in said["differences"]:
            ours, theirs = ([run["numbers"][said["metric"]] for run in said["rows"][row]["runs"]]
                            for row in (one["row"], one["against"]))  # fmt: skip
            assert one["p"] == pytest.approx(reference.ttest_rel(ours, theirs).pvalue)

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

    @pytest.mark.parametrize("seeds", [(0,), (0, 1, 2)])
    def test_pictures(self, seeds):
        (picture,) = pictures(said(seeds=seeds)).values()
        assert picture["png"].startswith(b"\x89PNG")
        assert b"reported" not in pictures(said(seeds=seeds, reported=None))["s"]["svg"]
