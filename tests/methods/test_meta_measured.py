"""What meta-learners measure where adaptation diverges, and the batch norms of the network that they leave."""

import json
import math
from pathlib import Path

import pytest
from runs import QUIET

SINE = ("dataset=sinusoid", "view=episodes_regression", "model=mlp", "model.hidden=[6]", "method.iterations=4",
        "method.block=2", "method.tasks=3", "view.valid_tasks=4", "view.test_tasks=6")  # fmt: skip


# --- beyond the trained steps -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "steps"), [("maml", 1), ("reptile", 5)])
def test_the_loss_is_that_after_the_trained_steps(play, method, steps):
    """A task on which further ones diverge has an infinite error; the median over tasks is not moved by how large."""
    played = play(f"method={method}", *SINE, f"method.steps={steps}", "method.eval_steps=6", "precision=float64")
    predictions, target = played.method.predictions, played.view.fixed("test", 0, 6).query.target

    def diverging(tasks):
        rows = predictions(tasks).clone()
        rows[steps + 1 :, 2] = math.nan
        return rows

    played.method.predictions = diverging
    found = played.evaluate()
    errors = (predictions(played.view.fixed("test", 0, 6)) - target).square().mean((2, 3))
    assert found["loss"] == pytest.approx(float(errors[steps].mean()), rel=1e-12)
    ranked = [value for task, value in enumerate(errors[6].tolist()) if task != 2]
    assert found["mse_median/step6"] == pytest.approx(sum(sorted([*ranked, math.inf])[2:4]) / 2, rel=1e-12)
    assert math.isnan(found["mse"])


def test_a_run_whose_long_adaptation_diverges_ends(run_cli):
    diverging = ("method.inner_lr=3", "method.eval_steps=30", "method.lr=1e-6")
    said = run_cli("run", "method=maml", *SINE, *diverging, *QUIET, "figures=true")
    assert said.code == 0, said.err
    metrics = json.loads(Path(said.last, "result.json").read_text())["metrics"]["test"]
    assert metrics["mse"] is None
    assert math.isfinite(metrics["loss"])
    assert Path(said.last, "figures/adaptation.png").exists()
