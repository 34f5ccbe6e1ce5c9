"""Studies: their files read, their runs planned; and `advml study` with real runs, killed and repeated."""

import json
import re
import signal
import time

import pytest

from advml.compose import compose
from advml.config import bind
from advml.errors import ConfigError
from advml.report.published import as_markdown
from advml.report.recorded import from_documents
from advml.roots import config_root, members
from advml.runner.fit import check_fit
from advml.runner.folder import RunFolder
from advml.runner.identity import identity
from advml.runner.studies import plan, read

TINY = ("threads=1", "progress=off", "figures=false")
STUDY = """\
# Two networks on iris.
title: Two networks on iris
source: nobody 2020
hypothesis: a hidden layer helps
chosen: nothing was
budget: two epochs
metric: test/accuracy
scale: 100
unit: "%"
also: [test/loss]
counts: [parameters]
tables: [confusion_matrix]
against: linear
seeds: [0, 1, 2]
settings: [dataset=iris, method.epochs=2]
rows:
  linear: {run: [model=linear], reported: 90.0}
  mlp: {run: [model=mlp, "model.hidden=[8]"]}
"""


CROSSED = (
    STUDY.replace("rows:\n", "columns:\n  short: [method.epochs=1]\n  long: [method.epochs=3]\nrows:\n")
    .replace(", reported: 90.0", ", columns: {short: {reported: 90.0}, long: {run: [method.lr=0.1]}}")
    .replace('hidden=[8]"]', 'hidden=[8]"], columns: {long: {}}')
)


@pytest.fixture
def studied(inside, monkeypatch):
    """studied(text): a study `mine` in a folder of configurations of one's own."""
    (inside / "own/study").mkdir(parents=True)
    monkeypatch.setenv("ADVML_CONFIG_PATH", str(inside / "own"))

    def written(text=STUDY):
        (inside / "own/study/mine.yaml").write_text(text)

    written()
    return written


@pytest.mark.parametrize("name", sorted(members("study", [config_root()])))
def test_a_shipped_study_fits(name):
    """Every row in a column, every column with a row, the first seed; `advml check --all` takes all of them."""
    study = read(name)
    rows, columns = set(), set()
    for cell in study.cells.values():
        if cell.row in rows and cell.column in columns:
            continue
        rows.add(cell.row), columns.add(cell.column)
        check_fit(bind(compose([*study.settings, *cell.run, f"seed={study.seeds[0]}", "baselines=off"])[0]))
    assert rows == set(study.rows)


class TestRead:
    @pytest.mark.parametrize(("old", "new", "said"), [
        ("metric: test/accuracy\n", "", "study mine: metric: must be given"),
        ("seeds: [0, 1, 2]", "seeds: [0, 0]", "study mine: seeds: one of them is there twice"),
        ("counts: [parameters]", "counts: [test/loss]", "counts: test/loss is there already"),
        ("seeds: [0, 1, 2]", "seeds: []", "study mine: seeds: must be"),
        ("against: linear", "against: lineer", "against: no row is called lineer; did you mean linear?"),
        ("unit:", "units:", "study mine: units: unknown key; did you mean study mine: unit?"),
        ("rows:", "rows: 3\nx:", "study mine: rows: must be"),
        ("{run: [model=linear]", "{runs: [model=linear]", "runs: unknown key"),
        (STUDY, "- 1", "holds no study"),
        (STUDY, "a: [", "cannot be read"),
    ])  # fmt: skip
    def test_mistakes(self, old, new, said, studied):
        studied(STUDY.replace(old, new))
        with pytest.raises(ConfigError, match=r".") as caught:
            read("mine")
        assert said in str(caught.value)

    def test_unknown(self, inside):
        with pytest.raises(ConfigError, match="study split_mnits: unknown study; did you mean split_mnist"):
            read("split_mnits")


class TestPlan:
    def test_rows_times_seeds_row_by_row_within_a_seed(self, studied):
        study = plan("mine", [])
        assert [job.name for job in study.every_job] == [
            f"{row}, seed {seed}" for seed in (0, 1, 2) for row in ("linear", "mlp")
        ]
        assert all(job.tree["baselines"] == {} for job in study.every_job)
        assert (study.changed, study.command) == ((), "advml study mine")
        assert study.folder.parts[-3:] == ("outputs", "studies", "mine")

    def test_what_changes_no_result_changes_no_folder(self, studied, inside):
        study = plan("mine", ["sweep.jobs=2", "data_dir=/x", "progress=off", "threads=1"])
        assert (study.folder.name, study.command) == ("mine", "advml study mine")

    def test_what_changes_results_has_a_folder_of_its_own_and_says_so(self, studied):
        study = plan("mine", ["method.epochs=1", "seed=4,5"])
        assert study.folder.name.startswith("mine-")
        assert study.changed == ("method.epochs=1", "seed=4,5")
        assert study.command == "advml study mine method.epochs=1 seed=4,5"
        assert [job.tree["seed"] for job in study.every_job] == [4, 4, 5, 5]

    def test_other_seeds_are_another_study(self, studied):
        study = plan("mine", ["seed=0,1"])
        assert (study.changed, study.command) == (("seed=0,1",), "advml study mine seed=0,1")
        assert study.folder.name.startswith("mine-")
        assert plan("mine", ["seed=1,0"]).folder == study.folder
        assert plan("mine", ["seed=2,1,0"]).folder.name == "mine"

    def test_options_are_part_of_the_command(self, studied, inside):
        study = plan("mine", ["--config-dir", "own"])
        assert (study.folder.name, study.command) == ("mine", "advml study mine --config-dir own")

    @pytest.mark.parametrize(
        "words",
        [
            ["seed=x"],
            ["seed=1,1"],
            ["seed=1,01"],
            ["seed=0, 0"],
            ["seed=1,"],
            ["sweep.name=a"],
            ["method.epoch=1"],
            ["epochs"],
        ],
    )
    def test_mistakes(self, words, studied):
        with pytest.raises(ConfigError) as caught:
            plan("mine", words)
        assert len(caught.value.mistakes) == 1


class TestColumns:
    def test_cells(self, studied):
        studied(CROSSED)
        study = plan("mine", ["seed=0"])
        assert [job.name for job in study.every_job] == [
            "linear, short, seed 0",
            "linear, long, seed 0",
            "mlp, long, seed 0",
        ]
        epochs = [job.tree["method"]["epochs"] for job in study.every_job]
        assert epochs == [1, 3, 3]
        assert study.every_job[1].tree["method"]["lr"] == 0.1
        assert [cell.reported for cell in study.asked.cells.values()] == [90.0, None, None]

    def test_a_column_that_is_none(self, studied):
        studied(CROSSED.replace("columns: {long: {}}", "columns: {lang: {}}"))
        with pytest.raises(ConfigError, match=r"rows\.mlp: no column is called lang; did you mean long\?"):
            read("mine")

    def test_document_and_table(self, studied, run_cli, inside):
        studied(CROSSED)
        said = run_cli("study", "mine", *TINY, "out=res")
        assert said.code == 0, said.err
        document = json.loads((inside / "res/mine.json").read_text())
        assert [(one["row"], one["against"]) for one in document["differences"]] == [("mlp, long", "linear, long")]
        shown = as_markdown(document)
        assert "| test accuracy (%) | short | long |" in shown
        assert re.search(r"\| linear \| \S+ ± \S+ \[90\] \| \S+ ± \S+ \|", shown)
        assert re.search(r"\| mlp \| n/a \| \S+ ± \S+ \|", shown)
        names = {path.stem for path in inside.glob("outputs/studies/mine/figures/*.png")}
        assert names == {"mine", "mine_parameters", "mine_confusion_matrix_short", "mine_confusion_matrix_long"}


class TestStudy:
    def test_run_written_repeated(self, studied, run_cli, inside):
        said = run_cli("study", "mine", *TINY, "out=res")
        assert said.code == 0, said.err
        assert said.last == str(inside / "outputs/studies/mine")
        document = json.loads((inside / "res/mine.json").read_text())
        assert document == json.loads((inside / "outputs/studies/mine/study.json").read_text())
        assert document["rows"]["linear"]["reported"] == 90.0
        assert [run["seed"] for run in document["rows"]["mlp"]["runs"]] == [0, 1, 2]
        for row in document["rows"].values():
            values = [100 * run["numbers"]["test/accuracy"] for run in row["runs"]]
            assert row["test/accuracy"]["mean"] == pytest.approx(sum(values) / 3)
            assert row["runs"][0]["tables"]["confusion_matrix"][0]
        assert document["rows"]["linear"]["parameters"]["mean"] == 15.0  # 4 × 3 + 3, not a hundred times as many
        assert (inside / "outputs/studies/mine/figures/mine.png").stat().st_size > 5000
        files = {path: path.stat().st_mtime_ns for path in inside.glob("outputs/studies/mine/*/result.json")}
        assert len(files) == 6
        assert run_cli("study", "mine", *TINY, "sweep.jobs=2").code == 0
        assert {path: path.stat().st_mtime_ns for path in inside.glob("outputs/studies/mine/*/result.json")} == files

    @pytest.mark.slow
    def test_killed_and_repeated(self, studied, forks, inside):
        words = ("study", "mine", "--config-dir", "own", *TINY, "checkpoint_seconds=0", "seed=0,1")
        died = forks.run("cli", *words, cwd=inside, fault={"kind": "die", "point": "last.pt: renamed", "nth": 3})
        assert died.code == 9, died.err
        ended = forks.run("cli", *words, cwd=inside)
        assert ended.code == 0, ended.err
        runs = [RunFolder.open(path.parent) for path in inside.glob("outputs/studies/mine-*/*/config.yaml")]
        assert sorted(run.status()["attempt"] for run in runs) == [1, 1, 1, 2]

    def test_a_run_that_fails_gives_no_document(self, studied, run_cli, inside):
        said = run_cli("study", "mine", *TINY, "method.lr=1e30", "method.optimiser=sgd", "out=res")
        assert said.code == 1
        assert "mlp, seed 0: failed, " in said.err
        assert not list(inside.glob("res/*.json"))

    def test_ctrl_c(self, studied, forks, inside):
        words = ("study", "mine", "--config-dir", "own", *TINY, "checkpoint_seconds=0", "method.epochs=20000")
        process = forks.start("cli", *words, cwd=inside)
        end = time.monotonic() + 60
        while not list(inside.glob("outputs/studies/*/*/checkpoints/last.pt")):
            assert time.monotonic() < end
            time.sleep(0.01)
        process.send(signal.SIGINT)
        ended = process.wait()
        assert ended.code == 130
        assert "linear, seed 0: interrupted" in ended.err
        assert "not started" in ended.out

    @pytest.mark.parametrize(("words", "said"), [
        (("mien",), "study mien: unknown study; did you mean mine?"),
        (("seed=0",), "study: name the study first"),
        (("mine", "out="), "out=: name a folder"),
        (("mine", "metod.lr=1"), "metod"),
    ])  # fmt: skip
    def test_wrong_commands(self, words, said, studied, run_cli, inside):
        answer = run_cli("study", *words)
        assert (answer.code, answer.err.count("\n")) == (2, 1)
        assert said in answer.err
        assert not (inside / "outputs").exists()

    def test_without_a_name_the_studies_there_are(self, studied, run_cli):
        said = run_cli("study")
        assert said.code == 0
        assert "Two networks on iris." in said.out
        assert "split_mnist" in said.out


class TestReuse:
    """Runs that a document has are not made again."""

    def test_in_two_pieces_as_in_one(self, studied, run_cli, inside):
        studied(STUDY.replace("seeds: [0, 1, 2]", "seeds: [0, 1]"))
        assert run_cli("study", "mine", *TINY, "out=whole").code == 0
        first = run_cli("study", "mine", *TINY, "seed=1", "outputs=elsewhere", "out=pieces")
        assert first.code == 0, first.err
        (piece,) = inside.glob("pieces/mine-*.json")
        then = run_cli("study", "mine", *TINY, f"reuse={piece}", "outputs=third", "out=pieces")
        assert then.code == 0, then.err
        assert f"2 of 4 runs are in {piece}" in then.err
        assert len(list(inside.glob("third/studies/mine/*/result.json"))) == 2
        whole, pieced = (json.loads((inside / name / "mine.json").read_text()) for name in ("whole", "pieces"))
        for document in (whole, pieced):
            for row in document["rows"].values():
                for run in row["runs"]:
                    for clock in [name for name in run["numbers"] if "seconds" in name or "memory" in name]:
                        del run["numbers"][clock]
        assert "overlap" in whole["rows"]["linear"]
        assert pieced == whole

    def test_of_an_unfinished_one_only_the_rest_is_run(self, studied, run_cli, inside):
        text = STUDY.replace("seeds: [0, 1, 2]", "seeds: [0]")
        studied(text.replace('hidden=[8]"]', 'hidden=[8]", method.lr=1e30, method.optimiser=sgd]'))
        said = run_cli("study", "mine", *TINY, "out=res")
        assert said.code == 1
        file = inside / "res/unfinished/mine.json"
        assert str(file.relative_to(inside)) in said.out
        assert {name: len(row["runs"]) for name, row in json.loads(file.read_text())["rows"].items()} == {
            "linear": 1, "mlp": 0,
        }  # fmt: skip
        studied(text)
        then = run_cli("study", "mine", *TINY, f"reuse={file}", "outputs=other", "out=res")
        assert then.code == 0, then.err
        assert "1 of 2 runs are in" in then.err
        assert len(list(inside.glob("other/studies/mine/*/result.json"))) == 1

    def test_which_runs_of_a_document_serve(self, studied, inside):
        """Not those of other settings, without the study's metric or tables, or of shared splits without names."""
        study = plan("mine", TINY)
        said = {"numbers": {"test/accuracy": 0.9}, "tables": {"confusion_matrix": [["a"]]}}
        runs = [{**said, "identity": identity(job.tree), "test/loss": None} for job in study.jobs["linear"]]
        row, alone = {"runs": runs}, [{"device": "cpu"}]

        def found(changed=(), metric="test/accuracy", tables=("confusion_matrix",), **document):
            (inside / "file.json").write_text(json.dumps({"date": "2025-12-31", "environments": alone, **document}))
            return from_documents([inside / "file.json"], plan("mine", [*TINY, *changed]).every_job, metric, tables)

        first, *_ = served = list(found(rows={"a": row}).values())
        assert [one.run.seed for one in served] == [0, 1, 2]
        assert (first.run.numbers, first.run.undefined) == ({"test/accuracy": 0.9}, {"test/loss"})
        assert (first.run.ended, first.environments) == ("2025-12-31", ({"device": "cpu"},))
        assert len(found(rows={"a": row}, changed=["seed=1"])) == 1
        assert not found(rows={"a": row}, changed=["method.epochs=9"])
        assert not found(rows={"a": row}, tables=["confusion_matrix", "other"])
        assert len(found(rows={"a": row}, metric="test/loss")) == 3  # null: looked for, not there
        assert not found(rows={"a": row}, metric="test/ece")
        assert not found(rows={"a": {**row, "overlap": 0.5}})
        for one in runs:
            one["splits"] = {"train": [120, "f00"]}
        named = found(rows={"a": {**row, "overlap": 0.5}})
        assert [one.run.splits for one in named.values()] == [{"train": (120, "f00")}] * 3
        for damaged in ({"environments": [1]}, {"splits": {"train": 5}}, {"numbers": 3}, {"tables": None}):
            with pytest.raises(ConfigError, match="no study's document"):
                found(rows={"a": {"runs": [{**runs[0], **damaged}]}})

    @pytest.mark.parametrize(("text", "said"), [
        (None, "No such file"),
        ("{", "no study's document"),
        ('{"rows": []}', "no study's document"),
        ('{"rows": {"a": {"runs": [{"identity": "x"}]}}, "environments": []}', "no study's document"),
    ])  # fmt: skip
    def test_no_document(self, text, said, studied, run_cli, inside):
        if text is not None:
            (inside / "file.json").write_text(text)
        answer = run_cli("study", "mine", *TINY, "reuse=file.json")
        assert (answer.code, answer.err.count("\n")) == (2, 1)
        assert f"reuse=file.json: {said}" in answer.err
        assert not (inside / "outputs").exists()
