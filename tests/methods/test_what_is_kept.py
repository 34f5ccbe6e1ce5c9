"""The network that a run keeps is the one that was measured; where that cannot be, no other is given out for it."""

import json

import pytest
import torch
from multimodal_words import words

import advml
from advml.config import bind
from advml.errors import ConfigError
from advml.runner.run import load_view

QUIET = ("device=cpu", "threads=1", "progress=off", "figures=false", "baselines=off")


@pytest.mark.parametrize("never", ["image", "text"])
def test_a_modality_that_training_never_shows(inside, never):
    run = advml.run(*words("fusion", "late_fusion", f"method.modality_dropout={{{never}: 1.0}}"), *QUIET)
    test = load_view(bind(run.config), print).test
    for state, found in (("last", run.result["metrics"]["test"]), ("best", run.result["best"]["test"])):
        predicted = run.predict(test.inputs, state)
        assert (predicted.argmax(1) == test.target).double().mean().item() == pytest.approx(found["accuracy"])
    other = {**test.inputs, never: torch.randint(1, 20, test.inputs[never].shape).to(test.inputs[never])}
    assert torch.equal(run.predict(other), run.predict(test.inputs))
    again = advml.load(run.folder).network()
    assert sum(parameter.numel() for parameter in again.parameters()) == run.result["parameters"]


@pytest.mark.parametrize("shrunk", ["method.pool=2", "method.pad=1"])
def test_a_search_of_shrunk_images_alone_leaves_no_network(inside, shrunk):
    small = ("method.epochs=1", "method.retrain.epochs=0", "dataset.limit=60", "model.cells=2", "model.channels=2")
    run = advml.run("method=darts", shrunk, *small, *QUIET)
    assert json.loads((run.folder / "artifacts/genotype.json").read_text())
    assert run.result["parameters"] is None
    with pytest.raises(ConfigError, match="holds no trained network"):
        run.predict(torch.zeros(1, 1, 8, 8))


def test_a_head_that_learnt_nothing(inside, capsys):
    pytest.importorskip("safetensors")
    from advml.cli import main

    run = advml.run(*words("contrastive", "clip", data="shapes_captions_retrieve"), *QUIET)
    raw = load_view(bind(run.config), print).test.inputs
    with pytest.raises(ConfigError, match="has learnt no outputs, its head is as it was drawn"):
        run.predict(raw)
    assert main(["export", str(run.folder)]) == 0
    assert "no model.pt2: the network has learnt no outputs" in capsys.readouterr().out
    assert json.loads((run.folder / "export/last/export.json").read_text())["recipe"]["untrained"] == "head"
    on = advml.run(*words("fusion", "run", data="shapes_captions_retrieve")[:4], "method.epochs=1",
                   f"model.path={run.folder}", *QUIET)  # fmt: skip
    assert on.predict(raw).shape == (len(next(iter(raw.values()))), 128)
