"""Every mistake gets one helpful line on stderr and exit code 2; no traceback, and nothing is left behind."""

import json
import os
import subprocess
import sys
import threading

import pytest
import torch

needs_no_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")

# The command, and for each line that must come a part of it.
WRONG = {
    "unknown verb": ("rnu", ["rnu: unknown verb; did you mean run?"]),
    "option for a verb": ("--fast run", ["--fast: unknown verb"]),
    "several unknown keys": (
        "run sed=3 method.epcohs=2 model.hiden=[8]",
        [
            "sed: unknown key; did you mean seed?",
            "method.epcohs: unknown key; did you mean method.epochs?",
            "model.hiden: unknown key; did you mean model.hidden?",
        ],
    ),
    "a forgotten block": ("run lr=0.1", ["lr: unknown key; did you mean method.lr?"]),
    "unknown key of a block": ("run limits.stesp=3", ["limits.stesp: unknown key; did you mean limits.steps?"]),
    "several wrong types": (
        "run seed=one method.epochs=2.5 figures=3 method.lr=high",
        [
            'seed: must be a valid integer, not "one"',
            "method.epochs: must be a valid integer, not 2.5",
            "figures: must be a valid boolean, not 3",
            'method.lr: must be a valid number, not "high"',
        ],
    ),
    "text for a number": ("run seed='3'", ['seed: must be a valid integer, not "3"']),
    "out of range": (
        "run seed=-1 method.epochs=0 method.lr=-0.1 dataset.valid=1 model.dropout=1.0",
        [
            "seed: must be greater than or equal to 0, not -1",
            "method.epochs: must be greater than 0, not 0",
            "method.lr: must be greater than 0, not -0.1",
            "dataset.valid: must be less than 1, not 1",
            "model.dropout: must be less than 1, not 1",
        ],
    ),
    "no folder for outputs": ("run outputs=", ["outputs: must be a text that is not empty, not"]),
    "a sweep by way of Hydra": ("run hydra.mode=MULTIRUN", ["hydra.mode: for several runs write advml sweep"]),
    "more threads than any machine has": ("run threads=100000", ["threads: must be less than or equal to 1024"]),
    "more tasks than memory": (
        "run method=finetune view.tasks=1e9",
        ["view.tasks: must be less than or equal to 10000, not 1000000000"],
    ),
    "infinite": ("run method.lr=inf", ["method.lr: must be a finite number, not inf"]),
    "not one of": ("run precision=float16", ["precision: must be 'float32', 'float64' or 'bf16', not \"float16\""]),
    "a list of wrong members": ("run model.hidden=[8,0]", ["model.hidden.1: must be greater than 0, not 0"]),
    "a list too short, a list too long": (
        "run method.betas=[0.9] model=cnn model.channels=[1,2,3]",
        [
            "method.betas: must be a list of 2 values, not [0.9]",
            "model.channels: must be a list of 2 values, not [1, 2, 3]",
        ],
    ),
    "an empty list": ("run method.betas=[]", ["method.betas: must be a list of 2 values, not []"]),
    "a block for a list": ("run model.hidden={a:1}", ["model.hidden={a:1}: "]),
    "a study as a group": ("run study=split_mnist", ["run it with: advml study split_mnist"]),
    "Hydra's rerun": ("run --experimental-rerun job.pickle", ["--experimental-rerun: unknown option"]),
    "help for nothing": ("help rnu", ["rnu: unknown verb; did you mean run?"]),
    "runs among kinds": ("list runs methods", ["list runs: runs are listed alone"]),
    "kinds in a folder": ("list methods outputs=here", ["list outputs: only runs lie there"]),
    "check all and one": ("check --all method=ewc", ["check --all: takes no other word"]),
    "no list": ("run model.hidden=8", ["model.hidden: must be a list, not 8"]),
    "no block": ("run limits=3", ["limits: must be a block of keys, not 3"]),
    "a key below a value": ("run method.lr.first=1", ["method.lr: must be a valid number"]),
    "YAML's no": ("run progress=no", ["progress: must be 'auto', 'rich', 'plain' or 'off', not \"no\""]),
    "unknown method": ("run method=supervisd", ["method=supervisd: unknown method; did you mean supervised?"]),
    "unknown choices": (
        "run dataset=digit view=plan model=mpl experiment=none_such",
        [
            "dataset=digit: unknown dataset; did you mean digits?",
            "view=plan: unknown view; did you mean plain?",
            "model=mpl: unknown model; did you mean mlp?",
            "experiment=none_such: unknown experiment",
        ],
    ),
    "choices and malformed words at once": (
        "run method=supervisd seed",
        ["method=supervisd: unknown method", "seed: not an override; write key=value"],
    ),
    "a null group": ("run model=null", ["model=null: unknown model"]),
    "a removed group": ("run ~model", ["model: must be a block with a name, not null (see: advml list models)"]),
    "a removed key": ("run ~method.lr", ["method.lr: must be given, like method.lr=VALUE"]),
    "a name of its own": ("run method.name=mine", ["method=mine: unknown method"]),
    "a name that is none": (
        "run method.name=null model.name=3",
        ["method.name: must be a name, not null (see: advml list methods)", "model.name: must be a name, not 3 ("],
    ),
    "a module that is not there": ("run method.name=my_module:Mine", ["cannot load my_module:Mine"]),
    "a class that is none": ("run method.name=json:JSONEncoder", ["method=json:JSONEncoder: is no method"]),
    "unknown group": ("run colour/red=1", ["colour/red=1: no such group of configuration files: colour/red"]),
    "model does not fit data": (
        "run model=cnn dataset=iris",
        [
            "model=cnn: needs one image input",
        ],
    ),
    "a mistake that the baselines share": (
        "run method=ewc view=stream view.tasks=11",
        ["view.tasks=11: the task scenario needs tasks of 2 or more classes, and there are 10; use view.tasks=2 to 5"],
    ),
    "method needs data": ("run dataset=none", ["dataset=none: method=supervised needs data"]),
    "method needs a model": ("run model=none", ["model=none: method=supervised trains a network"]),
    "method needs another view": (
        "run method=supervised view=stream",
        ["view=stream: method=supervised reads a plain or modalities view, not stream; use view=plain or modalities"],
    ),
    "method cannot learn the target": (
        "run method=finetune dataset=diabetes",
        ["view=stream: needs a data set with classes"],
    ),
    "loss does not fit the target": ("run method.loss=mse", ["method.loss: mse does not fit"]),
    "no such device": ("run device=tpu", ["device: must be of the form (auto|cpu|cuda"]),
    "bad syntax": ("run model.hidden=[8", ["model.hidden=[8: not an override"]),
    "characters that need quotes": ("run outputs=/tmp/ü", ["quote it: 'outputs=\"/tmp/ü\"'"]),
    "no key": ("run =3", ["=3: names no key"]),
    "an interpolation to nowhere": ("run method.lr=${nowhere}", ["method.lr: Interpolation key 'nowhere' not found"]),
    "a mandatory value": ("run method.lr=???", ["method.lr: must be given"]),
    "several values without -m": ("run seed=0,1", ["seed=0,1: several values; "]),
    "a wrong job in a sweep": ("run -m method.epochs=1,no", ['method.epochs: must be a valid integer, not "no"']),
    "a sweep over keys and choices": ("run -m model=mlp,mlpp", ["model=mlpp: unknown model; did you mean mlp?"]),
    "unknown option": ("run --multirn seed=0,1", ["--multirn: unknown option; did you mean --multirun?"]),
    "option without value": ("run --config-dir", ["--config-dir: needs a value"]),
    "option with a wrong value": ("run --cfg everything", ["--cfg: needs a value: job | hydra | all"]),
    "no such configuration folder": ("run --config-dir nowhere", ["nowhere"]),
    "Hydra's own keys": ("run hydra.nonsense=1", ["Could not override 'hydra.nonsense'"]),
    "Hydra's own groups": ("run hydra/launcher=rocket", ["hydra/launcher/rocket"]),
    "resume without a run": ("resume", ["resume: name the run folder"]),
    "resume nothing": ("resume outputs/nothing", ["outputs/nothing: no such folder (see: advml list runs)"]),
    "resume what is no run": ("resume .", [".: not a run folder, it has no config.yaml"]),
    "reproduce without a run": ("reproduce seed=1", ["reproduce: name the run folder"]),
    "reproduce nothing": ("reproduce nothing", ["nothing: no such folder"]),
    "list what there is not": ("list metods", ["list metods: unknown kind; did you mean methods?"]),
    "config with a mistake": ("config method.epochs=0", ["method.epochs: must be greater than 0"]),
    "config of three runs": ("config --diff a b c", ["config --diff: name one or two run folders"]),
    "an option that config has not": ("config -m seed=0,1", ["-m: only advml run takes this option"]),
    "check with a mistake": ("check model=cnn dataset=wine", ["model=cnn: needs one image input"]),
    "completion for another shell": ("completion fish", ["completion: there is one for bash"]),
}


def assert_lines(said, parts):
    assert said.code == 2, said
    lines = said.err.splitlines()
    assert all(line.startswith("advml: ") for line in lines), said.err
    assert len(lines) == len(parts), said.err
    for part in parts:
        assert any(part in line for line in lines), (part, said.err)
    assert len(set(lines)) == len(lines)
    assert not any(line.startswith("advml: baselines") for line in lines), said.err
    assert "Traceback" not in said.err
    assert max(map(len, lines)) < 400


@pytest.mark.parametrize("name", WRONG)
def test_wrong_command(name, run_cli, inside):
    command, parts = WRONG[name]
    assert_lines(run_cli(*command.split(" ")), parts)
    assert os.listdir(inside) == []


@needs_no_cuda
def test_no_cuda_here(run_cli, inside):
    assert_lines(run_cli("run", "device=cuda"), ["device=cuda: torch finds no CUDA device"])
    assert_lines(run_cli("run", "device=cuda:3", "-m", "seed=0,1"), ["device=cuda:3: torch finds no CUDA device"])
    assert os.listdir(inside) == []


def test_there_are_enough():
    assert len(WRONG) > 25


@pytest.mark.parametrize("name", ["several unknown keys", "unknown option"])
def test_in_a_shell(name, inside):
    command, parts = WRONG[name]
    words = [sys.executable, "-m", "advml", *command.split()]
    ended = subprocess.run(words, capture_output=True, text=True, cwd=inside, check=False)
    ended.code, ended.err = ended.returncode, ended.stderr
    assert_lines(ended, parts)
    assert os.listdir(inside) == []


@pytest.mark.parametrize("width", ["1e12", "1e18"])
def test_more_memory_than_there_is(width, run_cli, inside):
    said = run_cli("run", f"model.hidden=[{width}]")
    assert said.code == 1
    assert said.err == "advml: the memory is full; use a smaller method.batch_size or model\n"
    assert os.listdir(inside) == []


def test_an_outputs_folder_that_cannot_be(run_cli, inside):
    (inside / "file").touch()
    said = run_cli("run", "dataset=iris", "outputs=file")
    assert said.code == 1
    what = "no run folder can be made below it: Not a directory; choose another with outputs=FOLDER"
    assert said.err == f"advml: file: {what}\n"


def test_configuration_files_with_mistakes(run_cli, inside, monkeypatch):
    (inside / "mine/method").mkdir(parents=True)
    file = inside / "mine/method/mine.yaml"
    file.write_text("name: supervised\n  lr: : 3\n")
    said = run_cli("run", "--config-dir", "mine", "method=mine")
    assert_lines(said, ["mine.yaml"])
    file.write_text("defaults: [nowhere]\nname: supervised\n")
    assert_lines(run_cli("run", "--config-dir=mine", "method=mine"), ["nowhere"])
    file.write_text("name: supervised\n")  # none of its keys
    said = run_cli("run", "--config-dir", "mine", "method=mine")
    assert said.code == 2
    assert "advml: method.epochs: must be given, like method.epochs=VALUE" in said.err
    file.write_text("just text\n")
    assert run_cli("run", "--config-dir", "mine", "method=mine").code == 2
    monkeypatch.setenv("ADVML_CONFIG_PATH", str(inside / "elsewhere"))
    assert_lines(run_cli("run"), ["ADVML_CONFIG_PATH: " + str(inside / "elsewhere") + ": no such folder"])


class TestSavedRuns:
    """Run folders that are damaged, old, or asked for what they cannot give."""

    def test_corrupt(self, tiny, run_cli, inside):
        folder = tiny()
        whole = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
        damages = {
            "status.json": [b"", b"{}", b"[]", b'{"state": 3}', b'{"state": "completed", "step": null, "attempt": 1}'],
            "environment.json": [b"", b"null", b"{}", b'{"device": "cpu", "threads": 1, "choices": 3}'],
            "config.yaml": [b"", b"- a\n- b\n", b"a: [", b"\xff\xfe", b"1: 2\n"],
            "result.json": [b"", b"{}", b'{"objective": {}, "metrics": {}, "budget": {}}'],
        }
        for name, contents in damages.items():
            for content in contents:
                (folder / name).write_bytes(content)
                for command in ("reproduce", "resume"):
                    said = run_cli(command, str(folder.path), *(["limits.steps=2"] if command == "resume" else []))
                    if name in ("status.json", "config.yaml") or (name, command) == ("environment.json", "reproduce"):
                        assert said.code == 2, (name, content, said)
                        assert said.err.startswith("advml: ")
                    assert "Traceback" not in said.err
                listed = run_cli("list", "runs")
                assert (listed.code, listed.err) == (0, "")
                if name in ("status.json", "result.json"):
                    assert f"corrupt     {name}: " in listed.out, (name, content, listed.out)
                said = run_cli("config", "--diff", str(folder.path))
                assert "Traceback" not in said.err
                assert said.code in (0, 2)
            (folder / name).write_bytes(whole[folder / name])

    @pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 half a file"])
    def test_a_damaged_checkpoint(self, content, tiny, run_cli):
        folder = tiny("limits.steps=2")
        (folder / "checkpoints/last.pt").write_bytes(content)
        said = run_cli("resume", str(folder.path), "limits.steps=null")
        assert said.code == 1
        (line,) = said.err.splitlines()
        assert line.startswith(f"advml: {folder.path}/checkpoints/last.pt: this checkpoint cannot be read")
        assert folder.status()["state"] == "completed"  # as it is, with its result
        assert folder.status()["step"] == 2

    @pytest.mark.parametrize("content", [{}, [1], {"total": 2, "method": {}}, "another network"])
    def test_a_checkpoint_of_something_else(self, content, tiny, run_cli):
        folder = tiny("limits.steps=2")
        file = folder / "checkpoints/last.pt"
        if content == "another network":
            content = torch.load(file, weights_only=True)
            content["method"]["network"]["head.bias"] = torch.zeros(7)
        torch.save(content, file)
        said = run_cli("resume", str(folder.path), "limits.steps=null")
        assert said.code == 1
        (line,) = said.err.splitlines()
        assert line.endswith("start the run anew")
        assert "checkpoint" in line
        assert not (folder / "error.txt").exists()

    def test_a_network_file_of_something_else(self, tiny, run_cli):
        folder = tiny()
        for content in ([1], {"recipe": {}}):
            torch.save(content, folder / "checkpoints/model.pt")
            said = run_cli("run", "model=run", f"model.path={folder.path}")
            assert_lines(said, ["model.pt: cannot be read: it holds no network of a run"])

    def test_a_device_that_torch_does_not_know(self, tiny, run_cli):
        folder = tiny("limits.steps=2")
        environment = folder.environment()
        (folder / "environment.json").write_text(json.dumps({**environment, "device": "tpu"}))
        said = run_cli("resume", str(folder.path), "limits.steps=3")
        assert_lines(said, ["was started on tpu, but here device=cpu is cpu"])

    @pytest.mark.parametrize("damage", ["shorter", "longer lines", "gone"])
    def test_damaged_records(self, damage, tiny, run_cli):
        folder = tiny("limits.steps=2")
        file = folder / "metrics.jsonl"
        if damage == "gone":
            file.unlink()
        else:
            data = file.read_bytes()
            file.write_bytes(data[:100] if damage == "shorter" else b"x" * 200 + data)
        said = run_cli("resume", str(folder.path), "limits.steps=null")
        assert said.code == 1
        (line,) = said.err.splitlines()
        assert line == f"advml: {file}: no longer holds what the checkpoint counts on; start the run anew"

    def test_a_key_from_before_this_version(self, tiny, run_cli):
        """Lacking a key that came since: today's default is taken and reported."""
        folder = tiny("limits.steps=2")
        tree = folder.tree()
        del tree["figures"], tree["method"]["momentum"]
        (folder / "config.yaml").write_text(json.dumps(tree))  # JSON is YAML
        said = run_cli("resume", str(folder.path), "limits.steps=3")
        assert said.code == 0
        assert sorted(said.err.splitlines()) == [
            "advml: figures: not in the saved configuration, taken from today's",
            "advml: method.momentum: not in the saved configuration, taken from today's",
        ]
        assert folder.tree()["method"]["momentum"] == 0.0
        assert folder.tree()["figures"] is True

    def test_a_key_that_is_gone(self, tiny, run_cli):
        folder = tiny("limits.steps=2")
        tree = folder.tree()
        tree["method"]["cleverness"] = 3
        (folder / "config.yaml").write_text(json.dumps(tree))
        for verb in ("resume", "reproduce"):
            said = run_cli(verb, str(folder.path), *(["limits.steps=3"] if verb == "resume" else []))
            assert_lines(said, ["method.cleverness: unknown key"])

    def test_what_resume_may_not_change(self, tiny, run_cli):
        folder = tiny("limits.steps=2")
        said = run_cli("resume", str(folder.path), "seed=3", "method.lr=1", "device=cpu", "limits.steps=3")
        assert_lines(said, ["seed: would make it another run", "method.lr: would", "device: would"])
        assert folder.status()["step"] == 2

    def test_words_that_saved_configurations_do_not_take(self, tiny, run_cli):
        folder = str(tiny().path)
        said = run_cli("reproduce", folder, "model=cnn", "seed=0,1", "~method.lr", "seed", "a.b=1", "method.lrr=1")
        assert_lines(said, ["model=cnn: a", "seed=0,1: a", "~method.lr: a saved", "seed: not", "a.b: unknown"])
        assert_lines(run_cli("reproduce", folder, "method.lrr=1"), ["method.lrr: unknown key; did you mean method.lr?"])

    def test_unfinished_runs_are_not_reproduced(self, forks, tree, inside, run_cli):
        died = forks.run("start", tree(), cwd=inside, fault={"kind": "die", "point": "last.pt: before", "nth": 1})
        assert died.code == 9
        (folder,) = inside.glob("outputs/*/*/*")
        assert_lines(run_cli("reproduce", str(folder)), [f"{folder}: is crashed, not completed; finish it first"])


def test_not_in_the_main_thread(run_cli, inside):
    said = []
    thread = threading.Thread(target=lambda: said.append(run_cli("run", "sed=1")))
    thread.start()
    thread.join()
    assert_lines(said[0], ["sed: unknown key"])
