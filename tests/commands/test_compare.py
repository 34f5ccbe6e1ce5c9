"""advml compare: from run folders to a table, and what is said where that cannot be."""

import csv
import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest
from fake_runs import make_run


@pytest.fixture
def sweep(inside):
    """Two rates with three seeds each in ./sweep, and a third that failed."""
    for lr, mean in ((0.1, 0.7), (0.2, 0.9)):
        for seed in range(3):
            folder = inside / f"sweep/method.lr={lr},seed={seed}"
            make_run(folder, seed=seed, accuracy=mean + 0.01 * seed, method__lr=lr)
    make_run(inside / "sweep/failed", seed=3, state="failed", method__lr=0.2)
    return inside / "sweep"


class TestRealRuns:
    def test_two_configurations_two_seeds(self, tiny, run_cli):
        folders = [tiny(f"seed={seed}", f"method.lr={lr}") for lr in (0.01, 0.1) for seed in (0, 1)]
        said = run_cli("compare", "outputs", "format=csv")
        assert said.code == 0
        rows = list(csv.DictReader(io.StringIO(said.out)))
        assert [(row["method.lr"], row["seeds"]) for row in rows] == [("0.01", "2"), ("0.1", "2")]
        for row, pair in zip(rows, (folders[:2], folders[2:]), strict=True):
            accuracies = [folder.result()["metrics"]["test"]["accuracy"] for folder in pair]
            assert float(row["test/accuracy mean"]) == pytest.approx(sum(accuracies) / 2)
            assert float(row["samples"]) == pair[0].result()["budget"]["samples"]
        assert "Each seed drew its own split of one table" in said.err
        assert "valid 0.176, test 0.294" in said.err  # 18 and 30 flowers for 102

    def test_one_run(self, tiny, run_cli):
        folder = tiny()
        said = run_cli("compare", str(folder.path))
        assert (said.code, said.err) == (0, "")
        value = folder.result()["metrics"]["test"]["accuracy"]
        assert re.search(rf"│ 1 │ +1 │ +[\d.]+ │ +{value:.4f} │", said.out)


class TestOutput:
    def test_table_differences_notes_and_what_is_missing(self, sweep, run_cli):
        said = run_cli("compare", "sweep")
        assert said.code == 0
        assert re.search(r"│ 1 │ 0\.1 +│ +3 │ +0\.710 ± 0\.025 │", said.out)
        assert re.search(r"│ 2 │ 0\.2 +│ 3 of 4 │ 0\.910 ± 0\.025 ★ │", said.out)
        assert re.search(r"│ valid/accuracy │ 1 minus 2 │ +3 │ +−0\.2000 │", said.out)
        assert "Not completed, and not in the table: 1 failed." in said.out
        assert said.err == "advml: sweep/failed: failed: at step 4\n".replace("sweep", str(sweep))

    def test_no_line_is_broken_where_nobody_looks(self, sweep, run_cli):
        said = run_cli("compare", "sweep", "metric=" + ",".join(
            ["valid/accuracy", "test/accuracy", "train/loss", "valid/loss", "test/loss", "best/test/accuracy"]
        ))  # fmt: skip
        assert len([line for line in said.out.splitlines() if line.startswith("│ 1 ")]) == 1
        assert max(map(len, said.out.splitlines())) > 100

    @pytest.mark.parametrize(("form", "start"), [
        ("csv", "row,method.lr,seeds,asked,valid/accuracy n,"), ("markdown", "| # | method.lr | seeds |"),
        ("latex", "% \\usepackage{booktabs}\n\\begin{tabular}"), ("rich", "┏"),
    ])  # fmt: skip
    def test_formats(self, sweep, run_cli, form, start):
        assert run_cli("compare", "sweep", f"format={form}").out.startswith(start)

    @pytest.mark.parametrize(("name", "start"), [
        ("a.csv", "row,"), ("a.md", "| #"), ("a.tex", "% "), ("a.txt", "| #"), ("new/folder/a.md", "| #"),
    ])  # fmt: skip
    def test_into_a_file(self, sweep, run_cli, name, start):
        said = run_cli("compare", "sweep", f"out={name}")
        assert (said.code, said.out) == (0, f"{name}\n")
        assert Path(name).read_text().startswith(start)

    def test_behind_a_link(self, sweep, run_cli):
        Path("real.md").write_text("before")
        Path("link.md").symlink_to("real.md")
        assert run_cli("compare", "sweep", "out=link.md").code == 0
        assert Path("link.md").is_symlink()
        assert Path("real.md").read_text().startswith("| #")

    def test_into_a_pipe(self, sweep, run_cli, inside):
        os.mkfifo("pipe")
        with subprocess.Popen(["cat", "pipe"], stdout=subprocess.PIPE, text=True) as reader:
            assert run_cli("compare", "sweep", "out=pipe", "format=csv").code == 0
            assert reader.communicate(timeout=60)[0].startswith("row,")
        assert Path("pipe").is_fifo()

    def test_into_the_home_folder(self, sweep, run_cli, inside, monkeypatch):
        """Of a shell that leaves ~ alone behind an equals sign."""
        monkeypatch.setenv("HOME", str(inside / "home"))
        assert run_cli("compare", "sweep", "out=~/a.md").out == f"{inside}/home/a.md\n"
        assert (inside / "home/a.md").is_file()

    def test_a_rich_table_into_a_file(self, sweep, run_cli):
        run_cli("compare", "sweep", "out=new/a.txt", "format=rich")
        text = Path("new/a.txt").read_text()
        assert text.startswith("┏")
        assert "\x1b" not in text

    def test_against_and_metrics(self, sweep, run_cli):
        said = run_cli("compare", "sweep", "metric=test/loss,valid/accuracy", "against=0.1", "format=markdown")
        assert "| # | method.lr | seeds | test/loss | valid/accuracy |" in said.out
        assert "| test/loss | 2 minus 1 | 3 | −0.2000 |" in said.out
        assert "| valid/accuracy | 2 minus 1 | 3 | 0.2000 |" in said.out

    def test_a_folder_with_an_equals_sign(self, sweep, run_cli):
        one, two = (f"sweep/method.lr={lr},seed=0" for lr in (0.1, 0.2))
        said = run_cli("compare", one, two, "format=csv")
        assert [row["seeds"] for row in csv.DictReader(io.StringIO(said.out))] == ["1", "1"]

    def test_in_a_terminal(self, sweep):
        """As wide as the terminal: nothing runs out of it."""
        leader, follower = pty.openpty()
        environment = {**os.environ, "COLUMNS": "70", "TERM": "xterm"}
        child = subprocess.Popen([sys.executable, "-m", "advml", "compare", "sweep"], stdout=follower,
                                 stderr=subprocess.DEVNULL, env=environment)  # fmt: skip
        os.close(follower)
        seen = b""
        while True:
            try:
                piece = os.read(leader, 65536)
            except OSError:
                break
            if not piece:
                break
            seen += piece
        os.close(leader)
        assert child.wait() == 0
        plain = re.sub(r"\x1b\[[0-9;]*m", "", seen.decode())
        assert "★" in plain
        assert max(map(len, plain.splitlines())) <= 70


WRONG = {
    "no path": ("", ["compare: name at least one run or folder of runs (see: advml list runs)"]),
    "no such path": ("nowhere", ["nowhere: no such folder (see: advml list runs)"]),
    "unknown option": ("sweep metrics=a", ["metrics=a: unknown option; did you mean metric? (see: advml compare "]),
    "several": ("sweep frmt=a fromat=b", ["frmt=a: unknown option; did you mean format?",
                                           "fromat=b: unknown option; did you mean format?"]),
    "unknown format": ("sweep format=html", ["format=html: advml compare knows rich, csv, markdown, latex"]),
    "nothing said": ("sweep metric=", ["metric=: says nothing; write metric=VALUE"]),
    "unknown metric": ("sweep metric=test/acuracy", ["metric=test/acuracy: no run has it; did you mean test/accuracy"]),
    "unknown row": ("sweep against=7", ["against=7: no such row; name one by its number, 1 to 2, or as key=value"]),
    "a file": ("sweep/failed/config.yaml", ["sweep/failed/config.yaml: no such folder"]),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_words(sweep, run_cli, name):
    words, lines = WRONG[name]
    said = run_cli("compare", *words.split())
    assert (said.code, said.out) == (2, "")
    assert len(said.err.splitlines()) == len(lines)
    for line, start in zip(said.err.splitlines(), lines, strict=True):
        assert line.startswith(f"advml: {start}")


def test_nothing_completed(inside, run_cli):
    make_run(inside / "sweep/a", state="failed")
    said = run_cli("compare", "sweep")
    assert (said.code, said.out) == (1, "")
    assert said.err == "advml: sweep: no run is completed (1 failed); nothing to compare\n"


def test_torch_is_not_imported(sweep):
    program = ("import sys; from advml.cli import main; code = main(['compare', 'sweep']); "
               "sys.exit(code or 'torch' in sys.modules or 'matplotlib' in sys.modules)")  # fmt: skip
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0
