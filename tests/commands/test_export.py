"""advml export: what it writes, that the program is the network bit by bit, and docs/export.md run as it stands."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from runs import QUIET, TINY

import advml
from advml.compose import compose
from advml.config import bind
from advml.contracts import Classes, Real, Spec
from advml.data.prepare import Affine, Reorder
from advml.errors import AdvmlError
from advml.models.build import build
from advml.runner.export import export, program
from advml.runner.folder import RunFolder
from advml.runner.run import load_view
from advml.runner.trained import Trained

PAGE = Path(__file__).parents[2] / "docs/export.md"
IMAGE = {"image": (1, 8, 8)}
SMALL = ("dataset.examples=80", "method.batch_size=16", "model.width=8", "model.heads=2", "model.hidden=8")
FUSIONS = ("early_fusion", "cross_attention", "bottleneck", "vision_language", "additive_cross")
RUNS = (
    *((f"model={name}", "method=fusion", "dataset=shapes_captions", "model.image=patches", *SMALL) for name in FUSIONS),
    ("method=product_of_experts", "dataset=shapes_captions", "model.image=patches", *SMALL),
    ("model=quanvolution", "dataset=digits", "dataset.limit=60", "dataset.normalise=unit"),
)
CONVOLUTIONS = (
    ("model=late_fusion", "method=fusion", "dataset=shapes_captions", "model.image=convolution", *SMALL),
    ("model=cnn", "dataset=digits", "dataset.limit=60"),
)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with everything in its network that training and prediction treat differently."""
    outputs = tmp_path_factory.mktemp("exported")
    words = ("dataset=digits", "model=mlp", "model.norm=batch", "model.dropout=0.2", "method.epochs=3")
    return advml.run(*words, "method.lr=0.01", *QUIET, f"outputs={outputs}")


@pytest.fixture(scope="module")
def exported(run):
    """RUN/export/last."""
    return export(RunFolder.open(run.folder), "last", run.folder / "export/last").folder


def test_a_network_of_several_tasks_says_whose_inputs_it_takes(tmp_path):
    words = ("view=stream_permuted", "view.tasks=2", "method.iterations=2", "baselines=off", *QUIET)
    run = advml.run("method=finetune", *words, f"outputs={tmp_path}/outputs")
    folder = export(RunFolder.open(run.folder), "last", tmp_path / "out").folder
    assert json.loads((folder / "export.json").read_text())["task"] == "task1"
    assert "as in task1 (other tasks differ from it" in (folder / "README.md").read_text()
    raw = torch.full((2, 1, 8, 8), 7.0)
    program = torch.export.load(folder / "model.pt2").module()
    assert torch.equal(program(raw), run.predict(raw, task="task1"))


class TestFiles:
    def test_what_is_there(self, exported, run):
        assert {path.name for path in exported.iterdir()} == {
            "model.safetensors", "model.pt2", "export.json", "README.md"
        }  # fmt: skip

    def test_the_weights(self, exported, run):
        from safetensors import safe_open
        from safetensors.torch import load_file

        weights, state = load_file(exported / "model.safetensors"), run.model.state_dict()
        assert set(weights) == set(state)
        for name, value in state.items():
            assert weights[name].dtype == value.dtype
            assert torch.equal(weights[name], value)
        with safe_open(exported / "model.safetensors", "pt") as file:
            assert file.metadata() == {"format": "pt", "advml": advml.__version__}

    def test_the_facts(self, exported, run):
        facts = json.loads((exported / "export.json").read_text())
        assert facts["result"] == run.result
        assert facts["recipe"]["name"] == "mlp"
        assert facts["recipe"]["settings"]["norm"] == "batch"
        assert facts["inputs"] == [{"name": "image", "shape": ["batch", 1, 8, 8], "dtype": "float32"}]
        assert facts["output"] == {"shape": ["batch", 10], "target": "Classes", "detail": 10}
        assert (facts["run"], facts["state"], facts["step"]) == (run.folder.name, "last", 3)
        assert facts["program"] == {"file": "model.pt2", "largest_difference": 0.0}
        assert facts["configuration"]["method"] == run.config["method"]
        assert facts["task"] is None
        (step,) = facts["prepare"]["image"]
        (ours,) = torch.load(run.folder / "checkpoints/model.pt", weights_only=True)["prepare"]["image"]
        assert step["kind"] == ours["kind"] == "affine"
        for name in ("factor", "offset"):
            assert torch.equal(torch.tensor(step[name], dtype=torch.float64), ours[name])

    def test_nothing_of_this_machine(self, exported, run):
        """Paths are for no one else to read; a traced program would carry those of its source lines."""
        with zipfile.ZipFile(exported / "model.pt2") as archive:
            contents = {name: archive.read(name) for name in archive.namelist()}
        contents |= {path.name: path.read_bytes() for path in exported.iterdir()}
        assert len(contents) > 4
        for name, content in contents.items():
            for path in (Path(advml.__file__).parents[1], run.folder.parents[2], Path(torch.__file__).parent):
                assert str(path).encode() not in content, name

    def test_for_a_person(self, exported, run):
        text = (exported / "README.md").read_text()
        assert "- `image`: float32 [batch, 1, 8, 8]" in text
        assert f"| accuracy | {run.result['metrics']['test']['accuracy']:.6g} |" in text
        assert "program = torch.export.load" in text
        assert max(map(len, text.splitlines())) <= 130


def assert_equals(trained, bytes_of_program, tmp_path):
    """The program of a file gives what the network gives, bit by bit, for batches of several sizes."""
    path = tmp_path / "model.pt2"
    path.write_bytes(bytes_of_program)
    again = torch.export.load(path).module()
    shapes = trained.network.recipe["spec"]["inputs"].values()
    for size in (1, 2, 9):
        raw = [50 * torch.rand((size, *shape), dtype=trained.dtype) for shape in shapes]
        with torch.no_grad():
            assert torch.equal(again(*raw), trained(*raw)), size


class TestProgram:
    @pytest.mark.parametrize("state", ["last", "best"])
    def test_gives_what_the_run_predicts(self, state, run, exported, tmp_path):
        """On the raw test split: pixels as the data set stores them. The tolerance is none."""
        folder = exported if state == "last" else export(RunFolder.open(run.folder), state, tmp_path / "best").folder
        raw = load_view(bind(run.config), print).test.inputs["image"]
        assert raw.dtype == torch.uint8
        predicted = torch.export.load(folder / "model.pt2").module()(raw.float())
        assert torch.equal(predicted, run.predict(raw.numpy(), state))
        reported = run.result["metrics"]["test"] if state == "last" else run.result["best"]["test"]
        target = load_view(bind(run.config), print).test.target
        assert (predicted.argmax(1) == target).double().mean().item() == pytest.approx(reported["accuracy"], abs=1e-12)

    @pytest.mark.parametrize("model", ["linear", "cnn", "conv4", "conv4_stride"])
    def test_of_every_kind_of_network(self, model, tmp_path):
        part = bind(compose([f"model={model}"])[0]).model
        trained = Trained(build(part.name, part.settings, Spec(IMAGE, Classes(10)), 0).eval(), {})
        content, difference = program(trained)
        assert difference == 0.0
        assert_equals(trained, content, tmp_path)

    @pytest.mark.parametrize("words", [*RUNS, *CONVOLUTIONS], ids=lambda words: words[0].split("=")[1])
    def test_of_a_run_of_every_kind_of_network(self, words, tmp_path):
        """Called as export.json says, on raw test examples; filters lie in another order in a program."""
        run = advml.run(*words, "method.epochs=1", "baselines=off", *QUIET, f"outputs={tmp_path}")
        exported = export(RunFolder.open(run.folder), "last", tmp_path / "out")
        assert exported.problem is None
        facts = json.loads((exported.folder / "export.json").read_text())
        assert facts["program"]["largest_difference"] == 0.0
        again = torch.export.load(exported.folder / "model.pt2").module()
        test = load_view(bind(run.config), lambda line: None).test
        for size in (1, 2, 9):
            raw = {one["name"]: test.inputs[one["name"]][:size] for one in facts["inputs"]}
            assert all(len(values) == size for values in raw.values())
            predicted = again(*(raw[one["name"]].to(getattr(torch, one["dtype"])) for one in facts["inputs"]))
            off = 1e-6 if words in CONVOLUTIONS else 0.0
            torch.testing.assert_close(predicted.detach(), run.predict(raw), rtol=0.0, atol=off)

    def test_of_two_inputs_in_float64(self, tmp_path):
        part = bind(compose(["model=linear"])[0]).model
        network = build(part.name, part.settings, Spec({"b": (3,), "a": (2, 2)}, Real((2,))), 0).double().eval()
        prepare = {
            "a": [Reorder(torch.tensor([3, 1, 0, 2])), Affine(torch.full((1, 2, 1), 0.1), torch.ones(1))],
            "b": [Affine(torch.tensor([[2.0, 3.0, 4.0]]), torch.zeros(()))],
        }
        prepare = {name: [step.state() for step in steps] for name, steps in prepare.items()}
        trained = Trained(network, prepare)
        assert (trained.names, trained.dtype) == (("b", "a"), torch.float64)
        content, _ = program(trained)
        assert_equals(trained, content, tmp_path)
        b, a = torch.tensor([[1.0, 10.0, 100.0]]).double(), torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]).double()
        ready = torch.tensor([[2.0, 30.0, 400.0, 1.4, 1.2, 1.1, 1.3]]).double()
        weight, bias = network.head.weight, network.head.bias
        torch.testing.assert_close(trained(b, a), ready @ weight.T + bias, rtol=0, atol=1e-6)

    def test_refuses_what_is_of_another_shape_or_type(self, exported):
        again = torch.export.load(exported / "model.pt2").module()
        with pytest.raises((RuntimeError, AssertionError), match=r"size\(\)"):
            again(torch.zeros(2, 1, 9, 8))
        with pytest.raises((RuntimeError, AssertionError), match="dtype mismatch"):
            again(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))

    def test_one_that_is_not_the_same_is_not_written(self):
        """A network that the trace does not tell the truth about: here, one that changes as it is used."""
        part = bind(compose(["model=linear"])[0]).model

        class Restless(type(build(part.name, part.settings, Spec(IMAGE, Classes(10)), 0))):
            times = 1.0

            def features(self, inputs):
                Restless.times *= 1.5
                return super().features(inputs) * Restless.times

        network = build(part.name, part.settings, Spec(IMAGE, Classes(10)), 0).eval()
        network.__class__ = Restless
        with pytest.raises(AdvmlError, match="differs from the trained one by"):
            program(Trained(network, {}))


UNTRACEABLE = '''
"""A network whose way depends on the data."""

from advml.config import settings
from advml.contracts import Network
from advml.models.mlp import Linear


@settings
class Settings:
    """Nothing to set."""


class Branching(Linear):
    settings = Settings

    def features(self, inputs):
        rows = super().features(inputs)
        return rows if rows.sum() > 0 else -rows
'''


class TestCommand:
    def test_says_what_it_wrote(self, run, run_cli, inside):
        said = run_cli("export", str(run.folder), "state=best", "out=some/where")
        assert (said.code, said.err) == (0, "")
        lines = said.out.splitlines()
        written = [line.split()[-1] for line in lines]
        assert written == ["model.pt2", "model.safetensors", "README.md", "export.json", "some/where"]
        facts = json.loads((inside / "some/where/export.json").read_text())
        assert (facts["state"], facts["step"]) == ("best", run.result["best"]["step"])
        accuracy = run.result["best"]["test"]["accuracy"]
        assert f"| accuracy | {accuracy:.6g} |" in (inside / "some/where/README.md").read_text()

    def test_a_network_that_cannot_be_traced(self, run_cli, inside, monkeypatch):
        (inside / "branching.py").write_text(UNTRACEABLE)
        (inside / "mine/model").mkdir(parents=True)
        (inside / "mine/model/branching.yaml").write_text("# Branches.\nname: branching:Branching\n")
        monkeypatch.setattr(sys, "path", list(sys.path))
        words = [word for word in TINY if not word.startswith("model=")]
        said = run_cli("run", "--config-dir", "mine", "model=branching", *words, *QUIET)
        assert said.code == 0, said.err
        folder = Path(said.last)
        (folder / "export/last").mkdir(parents=True)
        for name in ("export.json", "model.pt2"):  # an earlier export, of when it could be traced
            (folder / "export/last" / name).write_text("{}")
        said = run_cli("export", str(folder))
        sys.modules.pop("branching")
        assert (said.code, said.err) == (0, "")
        lines = said.out.splitlines()
        assert lines[-2].startswith("no model.pt2: torch.export cannot trace this network: ")
        assert len(lines) == 5
        assert lines[-1] == str(folder / "export/last")
        assert {path.name for path in (folder / "export/last").iterdir()} == {
            "model.safetensors", "export.json", "README.md"
        }  # fmt: skip
        assert json.loads((folder / "export/last/export.json").read_text())["program"] is None
        assert "There is no `model.pt2`: torch.export cannot" in (folder / "export/last/README.md").read_text()

    @pytest.mark.parametrize("change", [
        {"parameters": None}, {"budget": {}}, {"metrics": {}}, {"method": ...},
    ])  # fmt: skip
    def test_a_damaged_result(self, change, run, run_cli, inside):
        pytest.importorskip("safetensors")
        copy = shutil.copytree(run.folder, inside / "copy")
        result = {**json.loads((copy / "result.json").read_text()), **change}
        result = {key: value for key, value in result.items() if value is not ...}
        (copy / "result.json").write_text(json.dumps(result))
        said = run_cli("export", "copy", "out=x")
        assert (said.code, said.out) == (2, "")
        assert said.err.startswith(f"advml: {copy}/result.json: damaged (")
        assert len(said.err.splitlines()) == 1
        assert not (inside / "x").exists()

    def test_mistakes(self, run, run_cli, inside, monkeypatch):
        (inside / "full").mkdir()
        (inside / "full/precious").write_text("here")
        (inside / "file").write_text("here")
        path = str(run.folder)
        for words, message in {
            (): "export: name one run folder: advml export RUN (see: advml runs)",
            (path, path): "export: name one run folder: advml export RUN (see: advml runs)",
            (path, "state=worst"): "state=worst: must be last or best",
            (path, "stat=last"): "stat=last: unknown option; did you mean state?; there are state and out",
            (path, "out=full"): "out=full: is there already and holds no export; choose another folder",
            (path, "out=file"): "out=file: is there already and holds no export; choose another folder",
            ("nothing",): "nothing: no such folder (see: advml list runs)",
        }.items():
            said = run_cli("export", *words)
            assert (said.code, said.out, said.err) == (2, "", f"advml: {message}\n")
        said = run_cli("export", path, "out=file/below")
        assert said.code == 1
        assert said.err == "advml: file/below: cannot be written: Not a directory; choose another with out=FOLDER\n"
        assert sorted(one.name for one in inside.iterdir()) == ["file", "full"]
        monkeypatch.setitem(sys.modules, "safetensors.torch", None)
        said = run_cli("export", path, "out=new")
        assert (said.code, said.out) == (2, "")
        assert said.err == 'advml: export: needs safetensors: pip install "advml[export]"\n'
        assert not (inside / "new").exists()

    def test_a_run_without_a_network(self, run, run_cli, inside):
        """As one that was interrupted is."""
        folder = shutil.copytree(run.folder, inside / "run", ignore=shutil.ignore_patterns("export", "model.pt"))
        said = run_cli("export", str(folder))
        assert (said.code, said.out) == (2, "")
        assert "holds no trained network" in said.err
        assert not (folder / "export").exists()

    def test_a_state_that_was_not_kept(self, run_cli):
        said = run_cli("run", *TINY, *QUIET, "dataset.valid=0.0")
        said = run_cli("export", said.last, "state=best")
        assert (said.code, said.err) == (2, "advml: state=best: the run keeps only last\n")


def test_the_page_as_it_stands(run_cli, inside):
    """Its commands, then each example in a Python of its own that cannot import advml."""
    page = PAGE.read_text()
    (commands,) = re.findall(r"```sh\n(.*?)```", page, re.DOTALL)
    examples = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert page.count("```") == 2 * (1 + len(examples))
    assert len(examples) == 2
    folder = None
    for line in commands.splitlines():
        _, verb, *words = line.split()
        said = run_cli(verb, *(folder if word == "RUN" else word for word in words), *(QUIET if verb == "run" else ()))
        assert said.code == 0, said.err
        folder = folder or said.last
    for number, example in enumerate(examples):
        assert len([line for line in example.splitlines() if line]) <= 10
        only_torch = "import sys; sys.modules['advml'] = None\n" + (
            "sys.modules['safetensors'] = None\n" if "safetensors" not in example else ""
        )
        keep = f"\ntorch.save((pixels, logits.detach()), 'said{number}.pt')\n"
        one_thread = os.environ | {"OMP_NUM_THREADS": "1"}  # as in this process: bits depend on it
        ended = subprocess.run([sys.executable, "-c", only_torch + example + keep], capture_output=True, text=True,
                               cwd=inside, env=one_thread, check=False)  # fmt: skip
        assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr
        pixels, logits = torch.load(inside / f"said{number}.pt")
        assert torch.equal(logits, advml.load(folder).predict(pixels))


def test_nothing_of_torchs_compiler_is_loaded_for_other_verbs(inside):
    """torch.export costs seconds to import."""
    text = "import sys, advml.cli, advml.api, advml.runner.export; print('torch._dynamo' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert ended.stdout == "False\n"
