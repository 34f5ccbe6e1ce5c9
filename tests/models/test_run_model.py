"""A finished run as a model: the same network, a kept or a new head, and no tie to the run it came from."""

import shutil

import pytest
import torch

import advml
from advml.compose import compose
from advml.config import bind
from advml.contracts import Classes, Spec
from advml.errors import ConfigError
from advml.models.build import build, load_bundle
from advml.models.run import FromRun, FromRunSettings
from advml.runner.run import load_view

QUIET = ("device=cpu", "threads=1", "progress=off", "figures=false")
SMALL = ("method=supervised", "dataset=iris", "method.epochs=3", "method.lr=0.05", *QUIET)
STREAM = ("method=finetune", "view=stream_permuted", "view.tasks=2", "view.scenario=task", "method.iterations=4")
IRIS = Spec({"features": (4,)}, Classes(3))
OTHER = Spec({"features": (4,)}, Classes(5))


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A finished run with batch norm, whose best state differs from its last."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("first"))
        run = advml.run(*SMALL, "model.norm=batch", "method.lr=0.3", "method.epochs=6", "method.optimiser=sgd")
        assert run.result["best"]["step"] < 6
        return advml.load(run.folder.resolve())


def settings(run, **changes):
    return FromRunSettings(**{"path": str(run.folder), "state": "last", "head": "auto"} | changes)


def inputs():
    generator = torch.Generator().manual_seed(0)
    return {"features": torch.randn(20, 4, generator=generator)}


def outputs(network):
    with torch.no_grad():
        return network.eval()(inputs())


def made(run, spec=IRIS, seed=0, **changes):
    chosen = settings(run, **changes)
    assert FromRun.check(spec, chosen) is None
    return build("run", chosen, spec, seed)


@pytest.mark.parametrize("state", ["last", "best"])
@pytest.mark.parametrize("head", ["auto", "keep"])
def test_same_outputs_as_the_saved_network(first, state, head):
    assert torch.equal(outputs(made(first, state=state, head=head)), outputs(first.network(state)))
    assert not torch.equal(outputs(made(first, state="best")), outputs(made(first, state="last")))


def test_it_is_ready_to_be_trained(first):
    network = made(first)
    assert all(module.training for module in network.modules())
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize(("spec", "head"), [(IRIS, "new"), (OTHER, "new"), (OTHER, "auto")])
def test_a_new_head_on_the_old_body(first, spec, head):
    network, old = made(first, spec, head=head), first.network()
    assert outputs(network).shape == (20, spec.outputs)
    network.eval()
    assert torch.equal(network.features(inputs()), old.features(inputs()))
    if spec == IRIS:
        assert not torch.equal(network.head.weight, old.head.weight)


def test_a_new_head_is_keyed_by_the_seed(first):
    weights = [made(first, OTHER, seed).head.weight for seed in (1, 1, 2)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_building_leaves_the_global_generator_alone(first):
    before = torch.get_rng_state()
    made(first, OTHER)
    assert torch.equal(torch.get_rng_state(), before)


# --- misfits ------------------------------------------------------------------------------------------------------


def refused(*overrides):
    """The lines that a run is refused with, before it has a folder."""
    with pytest.raises(ConfigError) as caught:
        advml.run(*overrides, *QUIET)
    return caught.value.mistakes


def test_other_inputs_are_refused_in_one_line(inside, first):
    (line,) = refused("model=run", f"model.path={first.folder}", "dataset=digits")
    assert "needs the inputs of the run at model.path, features [4], but dataset=digits gives image [1, 8, 8]" in line


def test_a_head_of_another_size_cannot_be_kept(inside, first):
    (line,) = refused("model=run", f"model.path={first.folder}", "model.head=keep", "dataset=iris", *STREAM)
    assert "3 outputs to keep the head" in line
    assert "model.head=new" in line


def test_no_path_is_refused_in_one_line(inside):
    assert refused("model=run") == ("model.path: must be given, like model.path=VALUE",)


def test_no_run_there_is_refused_in_one_line(inside):
    (line,) = refused("model=run", "model.path=nowhere")
    assert line == f"{inside / 'nowhere'}: holds no trained network (checkpoints/model.pt); is the run completed?"


@pytest.mark.parametrize("damage", [b"", b"not a network", b"PK\x03\x04 half an archive"])
def test_a_damaged_network_is_refused_in_one_line(inside, damage):
    path = inside / "broken/checkpoints/model.pt"
    path.parent.mkdir(parents=True)
    path.write_bytes(damage)
    (line,) = refused("model=run", "model.path=broken", "dataset=iris")
    assert "model.pt: cannot be read" in line
    assert "\n" not in line


def test_a_state_that_was_not_kept_is_refused(inside):
    run = advml.run("method=finetune", "dataset.limit=100", "view.tasks=2", "method.iterations=4", *QUIET)
    (line,) = refused("model=run", f"model.path={run.folder}", "model.state=best", "dataset=digits")
    assert line == "model.state=best: the run keeps only last"


def test_a_relative_path_is_found_from_another_folder_too(inside, first, run_cli, monkeypatch):
    """What is saved names the run from the root, so that an interrupted run goes on wherever its owner stands."""
    monkeypatch.chdir(first.folder.parent)
    run = advml.run(*SMALL, "model=run", f"model.path={first.folder.name}", f"outputs={inside}", "limits.steps=1")
    assert run.config["model"]["path"] == str(first.folder)
    monkeypatch.chdir(inside)
    done = run_cli("resume", str(run.folder), "limits.steps=null")
    assert done.code == 0, done.err
    assert advml.load(run.folder).records[-1]["step"] == 3


# --- a run that starts from another -------------------------------------------------------------------------------


def test_a_run_goes_on_where_another_ended(inside, first):
    """At the first evaluation, before any step, it is as good as the other was at its end."""
    run = advml.run(*SMALL, "model=run", f"model.path={first.folder}")
    start = next(record for record in run.records if record["split"] == "valid")
    assert start["step"] == 0
    assert {name: start[name] for name in ("loss", "accuracy")} == pytest.approx(
        {name: first.result["metrics"]["valid"][name] for name in ("loss", "accuracy")}
    )
    assert run.result["metrics"]["train"]["loss"] < first.records[1]["loss"]


@pytest.mark.parametrize("chosen", [SMALL, (*SMALL, "model.head=new"), (*STREAM, "dataset=iris")])
def test_it_does_not_depend_on_the_other_afterwards(inside, chosen):
    before = advml.run(*SMALL, "model.norm=batch")
    after = advml.run(*chosen, *QUIET, "model=run", f"model.path={before.folder}")
    expected, raw = outputs(after.model), inputs()["features"]
    task = "task1" if "view=stream_permuted" in chosen else None
    predicted = after.predict(raw, task=task)
    shutil.rmtree(before.folder)
    assert torch.equal(outputs(after.model), expected)
    assert torch.equal(after.predict(raw, task=task), predicted)
    assert load_bundle(after.folder)["recipe"]["name"] == "mlp"
    third = advml.run(*SMALL, "model=run", f"model.path={after.folder}")  # and may be started from in turn
    assert third.model.head.out_features == 3


# --- heads beside the head ----------------------------------------------------------------------------------------

GENOTYPE = ("method=supervised", "model=genotype", "model.auxiliary=true", "model.cells=3", "model.channels=4",
            "dataset.limit=60", "method.epochs=1")  # fmt: skip
HEADS = ("method=fusion", "model=late_fusion", "model.unimodal_heads=true", "method.unimodal_weight=1",
         "model.width=8", "model.hidden=8", "dataset.examples=300", "method.epochs=1", "baselines=off")  # fmt: skip
MATCHES, MEANINGS = "dataset=shapes_captions", "dataset=shapes_captions_retrieve"


@pytest.mark.parametrize(("method", "start", "then"), [
    (GENOTYPE[:1], ("dataset=digits", *GENOTYPE[1:]), ("dataset=digits", *GENOTYPE[5:], "dataset.keep_classes=[1,2]")),
    (HEADS[:1], (MATCHES, *HEADS[1:]), (MEANINGS, *HEADS[3:4], *HEADS[6:])),
    (HEADS[:1], (MEANINGS, *HEADS[1:]), (MATCHES, *HEADS[3:4], *HEADS[6:])),
])  # fmt: skip
def test_they_are_new_where_the_outputs_are_others(inside, method, start, then):
    """All of them: a run whose auxiliary heads stayed as they were could not be read again, or learnt another loss."""
    before = advml.run(*method, *start, *QUIET)
    after = advml.run(*method, *then, *QUIET, "model=run", f"model.path={before.folder}")
    raw = load_view(bind(after.config), print).test.inputs
    predicted = after.predict(raw).argmax(1)
    target = load_view(bind(after.config), print).test.target
    assert (predicted == target).double().mean().item() == pytest.approx(after.result["metrics"]["test"]["accuracy"])
    old, new = before.model.state_dict(), after.model.state_dict()
    assert old.keys() == new.keys()
    others = {name.split(".")[0] for name in old if old[name].shape != new[name].shape}
    assert others <= {"head", "heads", "auxiliary"}
    assert len(others) == 2
    third = advml.run(*method, *then, *QUIET, "model=run", f"model.path={after.folder}")
    assert third.result["parameters"] == after.result["parameters"]


def test_all_else_is_kept_to_the_bit(inside):
    before = advml.run(MATCHES, *HEADS, *QUIET)
    bound = bind(compose([MEANINGS, "model=run", f"model.path={before.folder}", "view=modalities"])[0])
    network = build("run", bound.model.settings, load_view(bound, print).spec, 0)
    for name, value in before.model.state_dict().items():
        assert name.startswith(("head.", "heads.")) or torch.equal(value, network.state_dict()[name]), name


def test_a_body_that_depends_on_the_outputs_is_refused(inside):
    before = advml.run(*SMALL, "model=mlp_equal", "model.layers=6")
    with pytest.raises(
        ConfigError, match=r"^model.path: mlp_equal cannot be given another head: .* use as many outputs"
    ):
        advml.run(*SMALL, "dataset.keep_classes=[0,1]", "model=run", f"model.path={before.folder}")
