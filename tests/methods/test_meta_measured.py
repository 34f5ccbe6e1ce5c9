"""What meta-learners measure where adaptation diverges, and the batch norms of the network that they leave."""

import json
import math
from pathlib import Path

import pytest
import torch
from meta_words import few_shot
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


@pytest.mark.slow
def test_a_run_whose_long_adaptation_diverges_ends(run_cli):
    diverging = ("method.inner_lr=3", "method.eval_steps=30", "method.lr=1e-6")
    said = run_cli("run", "method=maml", *SINE, *diverging, *QUIET, "figures=true")
    assert said.code == 0, said.err
    metrics = json.loads(Path(said.last, "result.json").read_text())["metrics"]["test"]
    assert metrics["mse"] is None
    assert math.isfinite(metrics["loss"])
    assert Path(said.last, "figures/adaptation.png").exists()


# --- the network that is left -------------------------------------------------------------------------------------


def few(play, method, model):
    words = ("dataset=digits", "view=episodes", "method.iterations=4", "method.block=2", "precision=float64")
    return play(*few_shot(method, model, *words)).go()


@pytest.mark.parametrize(("method", "model"), [("maml", "conv4"), ("maml_pp", "batch"), ("reptile", "batch")])
def test_its_batch_norms_have_averages_over_training_tasks(play, same, method, model):
    played = few(play, method, model)
    before, left = played.weights(), played.method.result().eval()
    assert same(before, played.weights())
    assert same(left.state_dict(), played.method.result().state_dict())
    kept = {name for name in before if "running" not in name and "tracked" not in name}
    assert same({name: before[name] for name in kept}, {name: left.state_dict()[name] for name in kept})
    tasks = played.view.draw(100, torch.Generator().manual_seed(7))  # others than those that were averaged over
    images = torch.cat([part.inputs["image"] for part in tasks], 1)
    norm = next(module for module in left.modules() if hasattr(module, "running_mean"))
    norm.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    seen = []
    with torch.no_grad():
        [left({"image": each}) for each in images]
    rows = [values.movedim(1, -1).flatten(0, -2) for values in seen]
    torch.testing.assert_close(norm.running_mean, torch.stack([row.mean(0) for row in rows]).mean(0), rtol=0, atol=0.1)
    torch.testing.assert_close(norm.running_var, torch.stack([row.var(0) for row in rows]).mean(0), rtol=0.1, atol=0.1)


def test_only_batch_norms_have_averages(play):
    played = few(play, "maml", "mlp")
    assert played.method.result() is played.method.network
