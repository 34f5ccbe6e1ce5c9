"""advml.run and advml.load: the command line's runs from Python."""

import json

import numpy as np
import pytest
import torch
from runs import assert_same_run, load
from sklearn.datasets import load_digits

import advml
from advml.compose import compose
from advml.config import bind
from advml.errors import AdvmlError, ConfigError
from advml.nn.evaluation import BATCH
from advml.runner.run import load_view
from advml.runner.trained import Trained

QUIET = ("progress=off", "figures=false", "threads=1", "device=cpu")


class TestRun:
    def test_as_the_command_line(self, inside, run_cli):
        words = ("method=supervised", "dataset=iris", "method.epochs=2", "seed=3", *QUIET)
        run = advml.run(*words)
        said = run_cli("run", *words)
        assert_same_run(run.folder, said.last)
        assert run.config["seed"] == 3
        assert run.result["seed"] == 3
        assert (run.folder / "command.txt").read_text().startswith("advml.run('method=supervised', 'dataset=iris'")
        assert (run.folder / "overrides.txt").read_text() == "".join(f"{word}\n" for word in words)

    def test_mistakes(self, inside):
        with pytest.raises(ConfigError) as caught:
            advml.run("sed=3", "method.epcohs=1")
        assert len(caught.value.mistakes) == 2
        assert list(inside.iterdir()) == []

    def test_failures(self, inside):
        with pytest.raises(AdvmlError, match="step 1: loss"):
            advml.run("dataset=iris", "method.optimiser=sgd", "method.lr=1e30", "method.epochs=3", *QUIET)

    def test_leaves_the_process_as_it_was(self, inside):
        torch.manual_seed(7), np.random.seed(7)
        before = torch.get_rng_state(), np.random.get_state()[1].tolist()
        settings = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
        advml.run("dataset=iris", "method.epochs=1", "progress=off", "figures=false", "threads=2")
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.random.get_state()[1].tolist() == before[1]
        assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == settings


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("api") / "outputs"
    return advml.run("method.epochs=4", "model.norm=batch", "model.dropout=0.1", f"outputs={outputs}", *QUIET)


class TestLoad:
    def test_configuration_and_records(self, run):
        loaded = advml.load(run.folder)
        assert loaded.config == run.config
        assert loaded.config["method"]["epochs"] == 4
        assert loaded.records == run.records
        lines = (run.folder / "metrics.jsonl").read_text().splitlines()
        assert loaded.records == [json.loads(line) for line in lines]
        assert [record["step"] for record in loaded.records if record["split"] == "train"] == [1, 2, 3, 4]
        assert repr(loaded) == f"Run('{run.folder}', completed)"

    def test_the_model_is_ready(self, run):
        model = advml.load(str(run.folder)).model
        assert not model.training
        with torch.no_grad():
            assert model({"image": torch.zeros(3, 1, 8, 8)}).shape == (3, 10)
        assert sum(parameter.numel() for parameter in model.parameters()) == run.result["parameters"]

    @pytest.mark.parametrize("state", ["last", "best"])
    def test_predicting_raw_digits_gives_the_accuracy_of_the_run(self, run, state):
        """The test split is rebuilt from the saved configuration; the inputs are pixels as scikit-learn has them."""
        bound = bind(run.config)
        view = load_view(bound, print)
        raw = view.test.inputs["image"]
        assert raw.dtype == torch.uint8
        predicted = run.predict(raw.numpy(), state).argmax(1)
        accuracy = (predicted == view.test.target).double().mean().item()
        reported = run.result["metrics"]["test"] if state == "last" else run.result["best"]["test"]
        assert accuracy == pytest.approx(reported["accuracy"], abs=1e-12)

        digits = load_digits()
        everything = run.predict({"image": digits.images[:, None]}, state).argmax(1).numpy()
        assert (everything == digits.target).mean() > 0.5

    def test_float64_regression(self, inside):
        run = advml.run("dataset=diabetes", "precision=float64", "method.epochs=2", *QUIET)
        assert next(run.model.parameters()).dtype == torch.float64
        view = load_view(bind(run.config), print)
        predicted = run.predict(view.test.inputs["features"])
        mse = (predicted - view.test.target).square().mean().item()
        assert mse == pytest.approx(run.result["metrics"]["test"]["mse"], rel=1e-12)

    def test_what_predict_needs(self, run, inside):
        with pytest.raises(ConfigError, match="the network needs image, not given: image"):
            run.predict({"picture": np.zeros((1, 1, 8, 8))})

    def test_inputs_that_belong_together(self, inside):
        words = ("method=fusion", "dataset=shapes_captions", "dataset.limit=60", "method.epochs=1", "baselines=off")
        run = advml.run(*words, *QUIET)
        raw = {name: values[:3] for name, values in load_view(bind(run.config), print).test.inputs.items()}
        assert run.predict(raw).shape == (3, 2)
        with pytest.raises(ConfigError, match=r"as many examples of every input are needed, not .*image 1\b"):
            run.predict({**raw, "image": raw["image"][:1]})
        with pytest.raises(ConfigError, match=r"text: tokens are 0 to \d+ here, not 200 to 200"):
            run.predict({**raw, "text": raw["text"] * 0 + 200})

    @pytest.mark.parametrize(
        ("view", "asks"),
        [("stream_permuted", True), ("stream_rotated", True), ("stream", True), ("stream_class", False)],
    )
    def test_predicting_each_task_of_a_stream_gives_its_accuracy(self, view, asks, inside):
        words = (f"view={view}", "view.tasks=3", "method.iterations=20", "baselines=off", *QUIET)
        run = advml.run("method=finetune", *words)
        stream = load_view(bind(run.config), print)
        for task in stream:
            raw = task.test.inputs["image"]
            predicted = run.predict(raw, task=task.name if asks else None)
            assert predicted.shape == (len(raw), 10)
            accuracy = (predicted.argmax(1) == task.test.target).double().mean().item()
            assert accuracy == pytest.approx(run.result["metrics"]["test"][f"accuracy/{task.name}"], abs=1e-12)
        wrong = [None, "task4"] if asks else ["task1"]
        for name in wrong:
            with pytest.raises(ConfigError, match="task1, task2, task3$" if asks else "no task is to be named"):
                run.predict(raw, task=name)

    def test_predicting_many_takes_some_at_a_time(self, run, monkeypatch):
        sizes = []
        forward = Trained.forward
        monkeypatch.setattr(Trained, "forward", lambda self, *raw: (sizes.append(len(raw[0])), forward(self, *raw))[1])
        raw = np.arange(2500 * 64, dtype=np.float64).reshape(2500, 1, 8, 8) % 17
        predicted = run.predict(raw)
        assert sum(sizes) == len(predicted) == 2500
        assert max(sizes) <= BATCH
        assert torch.allclose(predicted[-3:], run.predict(raw[-3:]), atol=1e-5)
        assert run.predict(raw[:0]).shape == (0, 10)

    def test_states(self, run):
        assert set(load(run.folder / "checkpoints/model.pt")["states"]) == {"last", "best"}
        with pytest.raises(ConfigError, match="keeps no average network, only last, best"):
            run.network("average")

    def test_what_is_no_run(self, inside):
        with pytest.raises(ConfigError, match="no such folder"):
            advml.load("nothing")
        (inside / "folder").mkdir()
        with pytest.raises(ConfigError, match="not a run folder"):
            advml.load("folder")

    def test_what_is_not_finished(self, forks, tree, inside):
        config = tree("checkpoint_seconds=0")
        died = forks.run("start", config, cwd=inside, fault={"kind": "die", "point": "last.pt: before", "nth": 3})
        assert died.code == 9
        (folder,) = inside.glob("outputs/*/*/*")
        run = advml.load(folder)
        assert len(run.records) > 2
        assert "crashed" in repr(run)
        with pytest.raises(ConfigError, match=r"result\.json: cannot be read"):
            _ = run.result
        with pytest.raises(ConfigError, match="holds no trained network"):
            _ = run.model


def test_the_package_offers_nothing_else():
    assert advml.__all__ == ["load", "run"]
    with pytest.raises(AttributeError, match="module 'advml' has no attribute 'train'"):
        _ = advml.train


def test_inside_a_hydra_application(inside):
    """Someone else's Hydra may already be at work in the process."""
    import hydra

    with hydra.initialize_config_dir(str(inside), version_base="1.3"):
        assert compose(["dataset=iris"])[0]["dataset"]["name"] == "iris"
        (inside / "theirs.yaml").write_text("a: 1\n")
        assert hydra.compose("theirs").a == 1
