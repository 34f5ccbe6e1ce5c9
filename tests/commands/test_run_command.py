"""advml run, check, config, completion, list: what they print."""

import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hydra._internal.hydra import Hydra
from rich.console import Console

from advml.commands import show
from advml.roots import members
from advml.runner.folder import RunFolder, find

QUIET = ("progress=off", "figures=false", "threads=1", "device=cpu")


class TestRun:
    def test_the_last_line_is_the_folder(self, run_cli):
        said = run_cli("run", "dataset=iris", "method.epochs=2", *QUIET)
        assert (said.code, said.err) == (0, "")
        assert RunFolder.open(said.last).status()["state"] == "completed"

    def test_the_table(self, run_cli):
        said = run_cli("run", "dataset=breast_cancer", "method.epochs=2", *QUIET)
        result = RunFolder.open(said.last).result()
        assert "supervised on breast_cancer, seed 0" in said.out
        flat = re.sub(r"\s+", " ", said.out)
        for name, value in result["metrics"]["test"].items():
            assert re.search(rf"test {name} │ {value:.4f} │", flat), name
        assert f"samples │ {result['budget']['samples']:,}" in flat
        assert f"parameters │ {result['parameters']:,}" in flat
        assert "valid accuracy (objective, max)" in said.out

    def test_regression(self, run_cli):
        said = run_cli("run", "dataset=diabetes", "method.epochs=1", *QUIET)
        assert "valid mse (objective, min)" in said.out

    def test_stopped_early_is_said(self, run_cli):
        said = run_cli("run", "dataset=iris", "limits.steps=1", *QUIET)
        assert "stopped early: limits.steps=1 reached (1)" in said.out.splitlines()

    def test_cfg_runs_nothing(self, run_cli, inside):
        said = run_cli("run", "--cfg", "job", "dataset=iris", "method.lr=0.5")
        assert said.code == 0
        assert yaml.safe_load(said.out)["method"]["lr"] == 0.5
        assert list(inside.iterdir()) == []

    def test_it_is_composed_once(self, run_cli, monkeypatch):
        composing, composed = Hydra.compose_config, []

        def count(self, *args, **words):
            composed.append(words["overrides"])
            return composing(self, *args, **words)

        monkeypatch.setattr(Hydra, "compose_config", count)
        assert run_cli("run", "dataset=iris", "method.epochs=1", "baselines=off", *QUIET).code == 0
        assert len(composed) == 1

    def test_no_folder_but_the_runs_own(self, run_cli, inside):
        run_cli("run", "dataset=iris", "method.epochs=1", *QUIET)
        assert [path.name for path in inside.iterdir()] == ["outputs"]
        assert len(list(inside.glob("outputs/*/*/*"))) == 1


class TestSweep:
    def test_every_combination(self, run_cli, inside):
        said = run_cli("run", "-m", "seed=0,1", "model=linear,mlp", "dataset=iris", "method.epochs=1", *QUIET)
        assert said.code == 0
        runs = find(inside / "outputs")
        found = {(run.tree()["seed"], run.tree()["model"]["name"]) for run in runs}
        assert found == {(0, "linear"), (0, "mlp"), (1, "linear"), (1, "mlp")}
        assert {tuple((run / "overrides.txt").read_text().splitlines()[:2]) for run in runs} == {
            (f"seed={seed}", f"model={model}") for seed, model in found
        }  # fmt: skip

    def test_nothing_is_launched_if_one_job_is_wrong(self, run_cli, inside):
        said = run_cli("run", "-m", "method.epochs=1,2,0", "dataset=iris,wine", "model=mlp,cnn", *QUIET)
        assert said.code == 2
        assert said.err.splitlines() == [
            "advml: model=cnn: needs one image input [channels, height, width] of at least 4×4, but dataset=iris gives "
            "features [4]; try model=mlp or another data set",
            "advml: model=cnn: needs one image input [channels, height, width] of at least 4×4, but dataset=wine gives "
            "features [13]; try model=mlp or another data set",
            "advml: method.epochs: must be greater than 0, not 0",
        ]
        assert list(inside.iterdir()) == []

    def test_one_failing_job_does_not_stop_the_others(self, run_cli, inside):
        words = ("method.lr=1e30,0.1", "method.optimiser=sgd", "dataset=iris", "method.epochs=3", *QUIET)
        said = run_cli("run", "-m", *words)
        assert said.code == 1
        states = [folder.status()["state"] for folder in find(inside / "outputs")]
        assert sorted(states) == ["completed", "failed"]


class TestNumbers:
    @pytest.mark.parametrize(("value", "shown"), [
        (None, "–"), (0.0, "0.0000"), (0.98765, "0.9877"), (-0.5, "-0.5000"), (123.456, "123.4560"), (3.0, "3.0000"),
        (8970, "8,970"), (12345.6, "1.235e+04"), (0.000123456, "0.0001235"), (1e-12, "1e-12"),
    ])  # fmt: skip
    def test_keep_four_figures(self, value, shown):
        assert show._number(value) == shown

    def test_a_table_without_best_and_parameters(self, capsys):
        result = {
            "method": "m", "dataset": "d", "seed": 0, "best": None, "stopped_by": None, "parameters": None,
            "objective": {"metric": "energy", "split": "valid", "mode": "min", "value": -1.137},
            "metrics": {"test": {}}, "summary": {"error": None}, "seconds": 1.25,
            "budget": {"steps": 3, "circuits": 12345, "flops_estimate": None},
        }  # fmt: skip
        show.show_result(result)
        out = re.sub(r"\s+", " ", capsys.readouterr().out)
        for text in ("valid energy (objective, min) │ -1.1370", "error │ –", "circuits │ 12,345",
                     "seconds of training │ 1.2 "):  # fmt: skip
            assert text in out
        assert "FLOPs" not in out
        assert "best state" not in out

    @pytest.mark.parametrize("width", [40, 80, 200])
    def test_fits_the_terminal(self, width, monkeypatch, tiny):
        result, screen = tiny().result(), io.StringIO()
        monkeypatch.setattr(show, "Console", lambda: Console(width=width, file=screen))
        show.show_result(result)
        lines = screen.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        assert len(lines) == 18 or width == 40  # nothing is wrapped but the head


class TestCheckAndConfig:
    def test_a_good_one(self, run_cli, inside):
        said = run_cli("check", "method=supervised", "dataset=wine", "model=linear")
        assert (said.code, said.out, said.err) == (0, "ok\n", "")
        assert list(inside.iterdir()) == []

    @pytest.mark.slow  # tests/test_config_files.py and tests/runner/test_studies.py look at most of it
    def test_all_that_is_shipped(self, run_cli):
        said = run_cli("check", "--all")
        assert (said.code, said.err) == (0, "")
        total = sum(len(members(group)) for group in ("method", "dataset", "view", "model", "experiment", "study"))
        assert said.out == f"{total} of {total} configurations are well\n"

    def test_config_is_what_run_saves(self, run_cli, inside):
        words = ("dataset=iris", "method.epochs=1", "seed=3", *QUIET)
        shown = run_cli("config", *words)
        assert (shown.code, shown.err) == (0, "")
        saved = (RunFolder.open(run_cli("run", *words).last) / "config.yaml").read_text()
        assert shown.out == saved


class TestList:
    def test_everything(self, run_cli):
        out = run_cli("list").out
        for kind in ("methods:", "datasets:", "views:", "models:", "experiments:"):
            assert kind in out.splitlines()
        assert "  supervised" in out
        assert "1,797 handwritten digits" in out

    @pytest.mark.parametrize("group", ["method", "dataset", "view", "model", "experiment"])
    def test_one_kind(self, group, run_cli):
        lines = run_cli("list", f"{group}s").out.splitlines()
        assert [line.split()[0] for line in lines] == sorted(members(group))
        assert all(len(line.split()) > 3 for line in lines)

    def test_several(self, run_cli):
        out = run_cli("list", "views", "models").out.splitlines()
        assert out[0] == "views:"
        assert "models:" in out


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash on this machine")
class TestCompletion:
    """The script as bash would use it, with the real command behind it."""

    @pytest.fixture
    def complete(self, inside):
        command = inside / "bin/advml"
        command.parent.mkdir()
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -m advml "$@"\n')
        command.chmod(0o755)

        def ask(*lines):
            script = ['eval "$(advml completion bash)"', "compopt() { :; }"]
            for line in lines:
                words = line.split(" ")
                quoted = " ".join(f"'{word}'" for word in words)
                script += [
                    f"COMP_LINE='{line}'; COMP_POINT=${{#COMP_LINE}}; COMP_WORDS=({quoted})",
                    f"COMP_CWORD={len(words) - 1}",
                    'COMPREPLY=(); _advml; echo "${COMPREPLY[@]}"',
                ]
            environment = {"PATH": f"{command.parent}:/usr/bin:/bin", "HOME": str(inside)}
            shell = ["bash", "-c", "\n".join(script)]
            ended = subprocess.run(shell, capture_output=True, text=True, env=environment, check=True)
            return [answer.split() for answer in ended.stdout.splitlines()]

        return ask

    def test_choices_and_keys(self, complete):
        choice, choices, key, method_key = complete(
            "advml run method=su", "advml run dataset=", "advml run dataset=iris method.label",
            "advml run method=ewc method.fisher_b",
        )  # fmt: skip
        assert choice == ["method=supervised"]
        assert {"dataset=iris", "dataset=wine"} <= set(choices)
        assert key == ["method.label_smoothing="]
        assert method_key == ["method.fisher_batch_size="]

    def test_verbs_kinds_and_folders(self, complete, inside):
        (inside / "outputs/ewc").mkdir(parents=True)
        assert complete("advml re", "advml list exp", "advml data ver", "advml resume outputs/e") == [
            ["resume", "reproduce", "report"], ["experiments"], ["verify"], ["outputs/ewc"]
        ]  # fmt: skip

    def test_bash_can_read_it(self, run_cli):
        subprocess.run(["bash", "-n", "-c", run_cli("completion", "bash").out], check=True)


def test_a_run_from_a_checkout_without_installing(inside):
    """cli.py at the top needs no installation."""
    top = Path(__file__).parents[2] / "cli.py"
    words = [sys.executable, str(top), "config", "dataset=iris"]
    ended = subprocess.run(words, capture_output=True, text=True, check=True, cwd=inside)
    assert yaml.safe_load(ended.stdout)["dataset"]["name"] == "iris"
