"""Several processes, one run: messages keep their bits, and the others are told of every step before it is taken."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from runs import QUIET, assert_same_state, load, only_run

import advml
from advml.contracts import At
from advml.runner.world import Alone, World, _packed, _unpacked, own_device, under_torchrun

CPU = torch.device("cpu")


def test_messages_keep_their_bits():
    values = {
        "a": torch.randn(3, 5), "b": torch.tensor(7), "c": torch.randn(2, 3).double().T, "d": torch.empty(0, 4),
        "e": torch.tensor([True, False, True]), "f": torch.tensor([float("nan"), -0.0]),
    }  # fmt: skip
    header = [(name, value.shape, value.dtype) for name, value in values.items()]
    found = _unpacked(_packed(values, CPU), header, CPU)
    assert list(found) == list(values)
    for name, value in values.items():
        assert found[name].dtype == value.dtype
        assert found[name].shape == value.shape
        assert found[name].numpy().tobytes() == value.contiguous().numpy().tobytes()


def test_alone_there_is_nobody_else():
    mine = {"x": torch.ones(2)}
    assert Alone().exchange(mine) == [mine]
    method = object()
    assert Alone().lead(method) is method


def test_a_led_method_tells_the_others_first():
    class Recorded(World):
        def __init__(self):
            super().__init__(0, 2, CPU)
            self.orders = []

        def tell(self, order):
            self.orders.append(order)

    class Method:
        network = "a network"

        def step(self, at):
            return at.index

        def load_state_dict(self, state):
            self.state = state

    world, method = Recorded(), Method()
    led, at = world.lead(method), At(0, 3, 3, False)
    assert led.network == "a network"
    assert led.step(at) == 3
    led.load_state_dict({"a": 1})
    assert method.state == {"a": 1}
    assert world.orders == [("step", at), ("load", {"a": 1})]


@pytest.mark.parametrize(
    ("variables", "placed"),
    [
        ({}, None),
        ({"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "localhost"}, None),
        ({"WORLD_SIZE": "4", "RANK": "2"}, None),
        ({"WORLD_SIZE": "4", "RANK": "2", "MASTER_ADDR": "localhost"}, (2, 4)),
    ],
)
def test_where_torchrun_has_put_us(variables, placed, monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "MASTER_ADDR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert under_torchrun() == placed


@pytest.mark.parametrize(("named", "backend"), [(False, "nccl"), (True, "gloo")])
def test_processes_on_one_gpu_do_not_meet_by_nccl(named, backend, monkeypatch):
    """NCCL refuses two processes on one GPU, and `device=cuda:1` puts all there."""
    chosen = []
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend, **_: chosen.append(backend))
    World(0, 2, torch.device("cuda", 1), named=named).join()
    assert chosen == [backend]


def test_the_gpus_are_taken_in_turn(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    gpu = torch.device("cuda", 0)
    assert [own_device(gpu, "auto", rank).index for rank in range(4)] == [0, 1, 0, 1]
    assert own_device(torch.device("cuda", 1), "cuda:1", 0).index == 1
    assert own_device(CPU, "auto", 3) == CPU


# --- whole runs, by hand: `pytest -m slow` --------------------------------------------------------------------------

RUN = (
    "method=fedavg", "dataset.limit=300", "view.clients=10", "method.fraction=0.5", "method.rounds=6",
    "model.hidden=[8]", "model.dropout=0.2", "method.engine=loop", "baselines=off", *QUIET,
)  # fmt: skip


def states(folder):
    """What must not depend on the number of processes: records, and the last and best state."""
    networks = {name: load(folder / "checkpoints" / f"{name}.pt") for name in ("last", "best")}
    return (folder / "metrics.jsonl").read_bytes(), {name: state["method"] for name, state in networks.items()}


def assert_same_bits(one, other):
    (records, network), (other_records, other_network) = states(one), states(other)
    assert records == other_records
    assert_same_state(network, other_network)


@pytest.mark.slow
def test_two_and_four_processes_give_the_bits_of_one(run_cli, tmp_path):
    folders = {}
    for workers in (1, 2, 4):
        said = run_cli("run", *RUN, f"method.workers={workers}", f"outputs={tmp_path / str(workers)}")
        assert said.code == 0, said.err
        folders[workers] = only_run(tmp_path / str(workers))
    for workers in (2, 4):
        assert_same_bits(folders[workers], folders[1])
        budgets = [json.loads((folders[number] / "result.json").read_text())["budget"] for number in (1, workers)]
        assert budgets[0] == budgets[1]


@pytest.mark.slow
def test_a_run_of_two_processes_may_be_stopped_and_gone_on_with(run_cli, tmp_path):
    assert run_cli("run", *RUN, f"outputs={tmp_path / 'whole'}").code == 0
    whole = only_run(tmp_path / "whole")
    stopped = tmp_path / "stopped"
    assert run_cli("run", *RUN, "method.workers=2", "limits.steps=3", f"outputs={stopped}").code == 0
    said = run_cli("resume", str(only_run(stopped)), "limits.steps=null")
    assert said.code == 0, said.err
    assert_same_state(states(only_run(stopped))[1]["last"], states(whole)[1]["last"])


@pytest.mark.slow
def test_under_torchrun_one_folder_is_made_with_the_same_bits(run_cli, tmp_path):
    assert run_cli("run", *RUN, f"outputs={tmp_path / 'alone'}").code == 0
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "advml", "run", *RUN,
        f"outputs={tmp_path / 'together'}",
    ]  # fmt: skip
    root = str(Path(advml.__file__).parents[1])
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=240, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert_same_bits(only_run(tmp_path / "together"), only_run(tmp_path / "alone"))


@pytest.mark.slow
def test_a_worker_that_dies_fails_the_run_in_one_line(inside, tmp_path):
    """It is killed in the middle; the run stops, says why, and can be gone on with."""
    root = str(Path(advml.__file__).parents[1])
    words = [*RUN, "method.workers=2", "method.rounds=100000", "checkpoint_seconds=0", f"outputs={tmp_path / 'out'}"]
    run = subprocess.Popen(
        [sys.executable, "-m", "advml", "run", *words], stderr=subprocess.PIPE, text=True, cwd=inside,
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    limit = time.monotonic() + 120
    while not list((tmp_path / "out").glob("*/*/*/checkpoints/last.pt")):
        assert time.monotonic() < limit
        assert run.poll() is None
        time.sleep(0.2)
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
    (worker,) = [int(pid) for pid in children if b"follower" in Path(f"/proc/{pid}/cmdline").read_bytes()]
    os.kill(worker, signal.SIGKILL)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 1
    assert "a worker of the run is gone" in said
    assert "Traceback" not in said
    status = json.loads((only_run(tmp_path / "out") / "status.json").read_text())
    assert status["state"] == "failed"
