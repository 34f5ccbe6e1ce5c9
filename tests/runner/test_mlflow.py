"""The tracker MLflow: it shows what metrics.jsonl holds, once each, whatever happens, and never touches the run."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace

import pytest
from tracked import At, assert_same_records, mlflow_is_here, wanted

from advml.config import bind
from advml.runner import trackers
from advml.runner.folder import RunFolder, find
from advml.runner.run import Asked, resume, start
from advml.runner.trackers import parameters, text_of


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A folder as MLflow's place, and what lies in it."""
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        monkeypatch.delenv(name)
    return MLflowPlace((tmp_path / "mlflow store").as_uri())


class MLflowPlace:
    def __init__(self, uri):
        self.uri = uri

    @property
    def client(self):
        from mlflow import MlflowClient

        with trackers._patient():
            return MlflowClient(tracking_uri=self.uri)

    def runs(self, experiment="advml"):
        client = self.client
        found = client.get_experiment_by_name(experiment)
        return [] if found is None else client.search_runs([found.experiment_id])

    def histories(self, run):
        return {name: self.client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}


def assert_in_mlflow(place, folder, also=()):
    """One run, every number once, none else, but for those `also` there; all of the configuration. The run."""
    (run,) = place.runs()
    histories = place.histories(run)
    counts = Counter((name, point.step) for name, points in histories.items() for point in points)
    assert max(counts.values()) == 1
    expected = wanted(folder)
    assert set(histories) == set(expected)
    for name, steps in expected.items():
        held = {point.step: point.value for point in histories[name]}
        assert {step: held[step] for step in steps} == steps, name
    assert set(counts) - {(name, step) for name, steps in expected.items() for step in steps} == set(also)
    assert run.data.params == {key: text_of(value) for key, value in parameters(folder.tree()).items()}
    assert run.data.tags["advml.folder"] == str(folder.path)
    assert run.info.run_name == folder.path.name
    return run


@mlflow_is_here
class TestMLflow:
    def test_holds_what_the_run_holds(self, store, tiny, run_cli, monkeypatch):
        before = dict(os.environ)
        plain = tiny()
        folder = tiny("tracker=mlflow", f"tracker_uri='{store.uri}'")
        assert dict(os.environ) == before
        assert_same_records(plain, folder)
        run = assert_in_mlflow(store, folder)
        assert (run.info.status, run.data.tags["advml.state"]) == ("FINISHED", "completed")
        assert run.data.params["method.lr"] == "0.05"
        assert not [tag for tag in run.data.tags if tag.startswith("advml.limits")]
        assert json.loads((folder / "mlflow.json").read_text()) == {"uri": store.uri, "run_id": run.info.run_id}

    def test_says_nothing(self, store, run_cli, inside):
        words = ("dataset=iris", "method.epochs=1", "progress=off", "figures=false")
        said = run_cli("run", *words, "tracker=mlflow", f"tracker_uri='{store.uri}'")
        assert (said.code, said.err) == (0, "")
        assert len(said.out.splitlines()) == len(run_cli("run", *words).out.splitlines())

    def test_a_resumed_run(self, store, tiny, run_cli):
        plain, folder = tiny(), tiny("tracker=mlflow", f"tracker_uri='{store.uri}'", "limits.steps=2")
        (run,) = store.runs()
        assert run.data.tags["advml.limits.steps"] == "2"
        ends = {(name, 2) for name in run.data.metrics if not name.startswith(("train/", "valid/"))}
        assert run_cli("resume", str(folder.path), "limits.steps=null").code == 0
        assert_same_records(plain, folder)
        run = assert_in_mlflow(store, folder, also=ends)
        assert run.info.status == "FINISHED"
        assert run.data.tags["advml.limits.steps"] == "null"

    @pytest.mark.slow
    def test_killed_and_resumed(self, store, tiny, forks, tree, inside):
        config = tree("checkpoint_seconds=0", "tracker=mlflow", f"tracker_uri='{store.uri}'")
        die = {"kind": "die", "point": "last.pt: renamed", "nth": 3}
        assert forks.run("start", config, cwd=inside, fault=die).code == 9
        (run,) = store.runs()
        assert run.info.status == "RUNNING"
        (path,) = inside.glob("outputs/*/*/*")
        assert forks.run("resume", str(path), {}, cwd=inside).code == 0
        folder = RunFolder.open(path)
        assert_same_records(tiny("checkpoint_seconds=0"), folder)
        assert assert_in_mlflow(store, folder).info.run_id == run.info.run_id

    @pytest.mark.parametrize("lost", ["the file", "the run", pytest.param("damaged", marks=pytest.mark.slow)])
    def test_resumed_where_one_side_forgot(self, lost, store, tiny, run_cli):
        folder = tiny("tracker=mlflow", f"tracker_uri='{store.uri}'", "limits.steps=2")
        (first,) = store.runs()
        if lost == "the file":
            (folder / "mlflow.json").unlink()
        elif lost == "damaged":
            (folder / "mlflow.json").write_text("[]")
        store.client.delete_run(first.info.run_id)
        said = run_cli("resume", str(folder.path), "limits.steps=null")
        assert (said.code, said.err) == (0, "")
        assert assert_in_mlflow(store, folder).info.run_id != first.info.run_id

    def test_how_runs_end(self, store, run_cli, forks, tree, inside):
        tracked = ("tracker=mlflow", f"tracker_uri='{store.uri}'", "progress=off")
        run_cli("run", "dataset=iris", "method.optimiser=sgd", "method.lr=1e30", "method.epochs=3", *tracked)
        (run,) = store.runs()
        assert (run.info.status, run.data.tags["advml.state"]) == ("FAILED", "failed")
        config = tree(*tracked, "method.epochs=1000000", "checkpoint_seconds=0")
        process = forks.start("start", config, cwd=inside)
        while not any(folder.status()["state"] == "running" and folder.status()["step"] for folder in find(inside)):
            time.sleep(0.02)
        process.send(signal.SIGINT)
        assert process.wait().code == 130
        assert {run.info.status for run in store.runs()} == {"FAILED", "KILLED"}

    def test_the_users_own_settings(self, store, tiny, monkeypatch):
        monkeypatch.setenv("MLFLOW_TRACKING_URI", store.uri)
        monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
        monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "3")
        with trackers._patient():
            assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "3"
            assert os.environ["MLFLOW_DISABLE_TELEMETRY"] == "true"
        assert "MLFLOW_DISABLE_TELEMETRY" not in os.environ
        tiny("tracker=mlflow")
        assert store.runs() == []
        assert len(store.runs("mine")) == 1

    def test_an_experiment_that_another_job_makes_first(self, store, monkeypatch):
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        from mlflow import MlflowClient

        looked = MlflowClient.get_experiment_by_name
        blind = []

        def late(client, name):
            if not blind:
                blind.append(store.client.create_experiment(name))
                return None
            return looked(client, name)

        monkeypatch.setattr(MlflowClient, "get_experiment_by_name", late)
        assert trackers.MLflow(store.uri)._experiment == blind[0]


@pytest.mark.slow
@mlflow_is_here
class TestMLflowServer:
    """A real server on this machine; it takes many seconds to start."""

    @pytest.fixture
    def serve(self, tmp_path, store):
        try:
            version("mlflow")
        except PackageNotFoundError:
            pytest.skip("the server needs the whole of MLflow: pip install mlflow")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        store.uri = f"http://127.0.0.1:{port}"
        words = ["--backend-store-uri", f"sqlite:///{tmp_path}/mlflow.db", "--host", "127.0.0.1", "--port", str(port),
                 "--workers", "1"]  # fmt: skip
        running = []

        def begin():
            log = open(tmp_path / "server.txt", "a")  # noqa: SIM115  (the server's until it ends)
            quiet = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true"}
            running.append(subprocess.Popen([sys.executable, "-m", "mlflow", "server", *words], stdout=log, stderr=log,
                                            cwd=tmp_path, env=quiet, start_new_session=True))  # fmt: skip
            log.close()
            until = time.monotonic() + 180
            while time.monotonic() < until and running[-1].poll() is None:
                try:
                    with urllib.request.urlopen(f"{store.uri}/health", timeout=5):
                        return
                except OSError:
                    time.sleep(0.2)
            pytest.fail((tmp_path / "server.txt").read_text())

        def end():
            os.killpg(running[-1].pid, signal.SIGKILL)
            running.pop().wait()

        yield SimpleNamespace(begin=begin, end=end)
        while running:
            end()

    def test_a_run_whose_server_goes_away_and_comes_back(self, serve, store, tiny, tree, capsys, run_cli):
        plain = tiny()
        serve.begin()
        whole = tiny("tracker=mlflow", f"tracker_uri={store.uri}")
        assert_same_records(plain, whole)
        assert assert_in_mlflow(store, whole).info.status == "FINISHED"
        store.client.delete_run(store.runs()[0].info.run_id)

        capsys.readouterr()
        config = tree("tracker=mlflow", f"tracker_uri={store.uri}", "limits.steps=3")
        outcome = start(bind(config), Asked("advml run"), [At({2: serve.end})])
        said = capsys.readouterr()
        assert outcome.state == "completed"
        assert (said.err.count("\n"), said.out) == (1, "")
        assert said.err.startswith("advml: tracker=mlflow: fails (API request to")
        serve.begin()
        (cut,) = store.runs()
        assert cut.info.status == "RUNNING"
        again = resume(outcome.folder, bind({**config, "limits": {**config["limits"], "steps": None}}))
        assert again.state == "completed"
        assert_same_records(plain, outcome.folder)
        run = assert_in_mlflow(store, outcome.folder)
        assert (run.info.run_id, run.info.status) == (cut.info.run_id, "FINISHED")
