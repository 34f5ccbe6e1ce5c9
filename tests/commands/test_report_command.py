"""advml report: from run folders to a page, and what is said where that cannot be."""

import subprocess
import sys
from pathlib import Path

import pytest
from fake_runs import make_run


@pytest.fixture
def sweep(inside):
    for lr in (0.1, 0.2):
        for seed in range(2):
            make_run(inside / f"sweep/{lr}-{seed}", seed=seed, accuracy=lr + seed / 10, method__lr=lr)
    make_run(inside / "sweep/failed", seed=3, state="failed", method__lr=0.2)
    return inside / "sweep"


def test_real_runs(tiny, run_cli):
    for seed in (0, 1):
        folder = tiny(f"seed={seed}")
    said = run_cli("report", "outputs")
    assert (said.code, said.out, said.err) == (0, "outputs/report.html\n", "")
    html = Path("outputs/report.html").read_text()
    assert "supervised on iris: 1 configuration, 2 runs" in html
    assert f'href="{folder.path.relative_to(Path("outputs").absolute())}"' in html
    assert "advml run dataset=iris" in html
    assert f"{folder.environment()['packages']['torch']}" in html


@pytest.mark.parametrize(("words", "file"), [
    (["sweep"], "sweep/report.html"), (["sweep/0.1-0", "sweep/0.2-0"], "report.html"),
    (["sweep", "out=new/folder/a.HTM"], "new/folder/a.HTM"),
])  # fmt: skip
def test_where_the_page_goes(sweep, run_cli, words, file):
    said = run_cli("report", *words)
    assert (said.code, said.last) == (0, file)
    assert Path(file).read_text().startswith("<!DOCTYPE html>")


def test_damaged_records_are_named_and_left_out(sweep, run_cli):
    (sweep / "0.1-1/metrics.jsonl").write_text("no JSON\n")
    said = run_cli("report", "sweep")
    assert said.code == 0
    assert f"advml: {sweep}/0.1-1: damaged: metrics.jsonl: damaged" in said.err
    assert "1 damaged" in Path("sweep/report.html").read_text()


def test_missing_runs_are_named_metrics_and_rows_chosen(sweep, run_cli):
    said = run_cli("report", "sweep", "metric=test/loss:max", "against=0.1")
    assert (said.code, said.err) == (0, f"advml: {sweep}/failed: failed: at step 4\n")
    html = Path("sweep/report.html").read_text()
    assert "test/loss (higher is better)" in html
    assert "2 minus 1" in html
    assert "advml report sweep metric=test/loss:max against=0.1" in html


WRONG = {
    "no path": ("", ["report: name at least one run or folder of runs (see: advml list runs)"]),
    "no such path": ("nowhere", ["nowhere: no such folder (see: advml list runs)"]),
    "unknown option": ("sweep metrics=a", ["metrics=a: unknown option; did you mean metric? (see: advml report "]),
    "nothing said": ("sweep out=", ["out=: says nothing; write out=VALUE"]),
    "unknown metric": ("sweep metric=test/acuracy", ["metric=test/acuracy: no run has it; did you mean test/accuracy"]),
    "unknown row": ("sweep against=7", ["against=7: no such row; name one by its number, 1 to 2, or as key=value"]),
    "another format": ("sweep out=a.pdf", ["out=a.pdf: the page is HTML; name a file that ends in .html"]),
    "a folder": ("sweep out=dir.html", ["out=dir.html: is a folder; name a file in it, like out=dir.html/report.html"]),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_words(sweep, run_cli, name):
    Path("dir.html").mkdir()
    words, lines = WRONG[name]
    said = run_cli("report", *words.split())
    assert (said.code, said.out) == (2, "")
    assert len(said.err.splitlines()) == len(lines)
    for line, start in zip(said.err.splitlines(), lines, strict=True):
        assert line.startswith(f"advml: {start}")
    assert list(Path().rglob("report.html")) == []


def test_nothing_completed(inside, run_cli):
    make_run(inside / "sweep/a", state="failed")
    said = run_cli("report", "sweep")
    assert (said.code, said.out) == (1, "")
    assert said.err == "advml: sweep: no run is completed (1 failed); nothing to compare\n"


def test_torch_is_not_imported(sweep):
    program = "import sys; from advml.cli import main; sys.exit(main(['report', 'sweep']) or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0
