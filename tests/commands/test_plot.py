"""advml plot: from run folders to files."""

import subprocess
import sys
from pathlib import Path

import pytest
from fake_runs import make_run
from PIL import Image


@pytest.fixture
def sweep(inside):
    for lr in (0.1, 0.2):
        for seed in range(2):
            make_run(inside / f"sweep/{lr}-{seed}", seed=seed, accuracy=lr + seed / 10, method__lr=lr)
    return inside / "sweep"


def test_real_runs(tiny, run_cli):
    for seed in (0, 1):
        tiny(f"seed={seed}")
    said = run_cli("plot", "outputs", "kind=curves,bars")
    assert (said.code, said.err) == (0, "")
    names = ["curves_valid_accuracy", "curves_train_loss", "bars_valid_accuracy", "bars_test_accuracy"]
    assert said.out.splitlines() == [f"outputs/figures/{name}.{end}" for name in names for end in ("png", "svg")]
    for line in said.out.splitlines():
        if line.endswith("png"):
            Image.open(line).verify()
        else:
            assert "<svg" in Path(line).read_text()
    assert "one seed" not in Path("outputs/figures/curves_train_loss.svg").read_text()


@pytest.mark.parametrize(("words", "folder"), [
    (["sweep"], "sweep/figures"), (["sweep/0.1-0", "sweep/0.2-0"], "figures"), (["sweep", "out=a/b"], "a/b"),
])  # fmt: skip
def test_where_pictures_go(sweep, run_cli, words, folder):
    said = run_cli("plot", *words, "kind=bars", "metric=test/loss")
    assert said.out == f"{folder}/bars_test_loss.png\n{folder}/bars_test_loss.svg\n"
    assert sorted(path.name for path in Path(folder).iterdir()) == ["bars_test_loss.png", "bars_test_loss.svg"]


def test_axes(sweep, run_cli):
    said = run_cli("plot", "sweep", "kind=budget", "x=updates", "metric=test/loss")
    assert said.out.splitlines()[0] == "sweep/figures/budget_test_loss_updates.png"
    assert "optimiser updates" in Path("sweep/figures/budget_test_loss_updates.svg").read_text()
    said = run_cli("plot", "sweep", "x=parameters", "metric=test/loss")
    assert said.out.splitlines()[0] == "sweep/figures/budget_test_loss_parameters.png"
    assert "parameters of the network" in Path("sweep/figures/budget_test_loss_parameters.svg").read_text()


def test_missing_runs_are_named(sweep, run_cli):
    make_run(sweep / "broken", seed=7, state="interrupted")
    said = run_cli("plot", "sweep", "kind=bars", "metric=test/loss")
    assert said.code == 0
    assert said.err == f"advml: {sweep}/broken: interrupted: at step 4\n"


def test_damaged_records_are_named_and_left_out(sweep, run_cli):
    (sweep / "0.1-1/metrics.jsonl").write_text("no JSON\n")
    said = run_cli("plot", "sweep", "kind=bars", "metric=test/loss")
    assert said.code == 0
    assert said.err.startswith(f"advml: {sweep}/0.1-1: damaged: metrics.jsonl: damaged")


WRONG = {
    "no path": ("", ["plot: name at least one run or folder of runs (see: advml list runs)"]),
    "unknown kind": ("sweep kind=bar", ["kind=bar: advml plot knows curves, bars, heatmap, budget, parallel, "
                     "importance; did you mean "]),
    "unknown axis": ("sweep x=second", ["x=second: advml plot knows step, samples, updates, gradients, seconds, "
                                        "parameters; did you mean seconds?"]),
    "no curve over sizes": ("sweep kind=curves x=parameters", ["x=parameters: does not change along a curve; use "
                                                               "kind=budget"]),
    "unknown option": ("sweep y=loss", ["y=loss: unknown option (see: advml plot --help)"]),
    "unknown metric": ("sweep metric=los", ["metric=los: no run has it"]),
    "cannot be drawn": ("sweep kind=heatmap", ["kind=heatmap: needs two differing keys that make a grid"]),
    "no curve": ("sweep kind=curves", ["kind=curves: no run measured this metric at three places or more"]),
    "no folder": ("sweep out=sweep/0.1-0/config.yaml", ["out=sweep/0.1-0/config.yaml: is no folder"]),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_wrong_words(sweep, run_cli, name):
    words, lines = WRONG[name]
    said = run_cli("plot", *words.split())
    assert (said.code, said.out) == (2, "")
    assert len(said.err.splitlines()) == len(lines)
    for line, start in zip(said.err.splitlines(), lines, strict=True):
        assert line.startswith(f"advml: {start}")
    assert not Path("sweep/figures").exists()


def test_torch_is_not_imported(sweep):
    program = "import sys; from advml.cli import main; sys.exit(main(['plot', 'sweep']) or 'torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0
