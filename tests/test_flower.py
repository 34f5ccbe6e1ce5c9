"""A SuperLink and two SuperNodes on the loopback address carry out a federated run: the bits of a run in one place."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest
from runs import assert_same_state, load, only_run

import advml

BIN = Path(sys.executable).parent
RUN = (
    "method=fedavg", "dataset.limit=300", "view.clients=10", "method.fraction=0.5", "method.rounds=2", "model=linear",
    "method.engine=loop", "threads=1", "device=cpu", "progress=off", "figures=false", "baselines=off",
)  # fmt: skip
CONFIG = '[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'
PATIENCE = 500  # seconds: every message starts a process that imports torch


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def wait_for(port):
    limit = time.monotonic() + 120
    while True:
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert time.monotonic() < limit
        time.sleep(0.5)


@pytest.mark.slow
@pytest.mark.skipif(not (BIN / "flower-superlink").exists(), reason="Flower is not installed (extra: flower)")
def test_two_supernodes_train_the_bits_of_one_process(run_cli, tmp_path):
    assert run_cli("run", *RUN, f"outputs={tmp_path / 'alone'}").code == 0
    home, link, ports = tmp_path / "home", free_port(), [free_port(), free_port()]
    home.mkdir()
    (home / "config.toml").write_text(CONFIG.format(port=link))
    app = shutil.copytree(Path(advml.__file__).parent / "flower" / "app", tmp_path / "app")
    environment = {
        **os.environ, "FLWR_HOME": str(home), "HOME": str(home), "FLWR_TELEMETRY_ENABLED": "0", "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(advml.__file__).parents[1]), "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip

    with ExitStack() as stack:

        def started(program, *words):
            log = stack.enter_context(open(tmp_path / f"{program}.log", "ab"))
            command = [str(BIN / program), "--insecure", *words]
            process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
            stack.callback(process.wait)
            stack.callback(process.terminate)

        where = ("--host", "127.0.0.1", "--port", str(link))
        started("flower-superlink", *where, "--disable-runtime-dependency-installation")
        wait_for(link)
        for number, port in enumerate(ports):
            words = ("--superlink", f"127.0.0.1:{link}", "--port", str(port), "--node-config", f"partition-id={number}")
            started("flower-supernode", *words)
        overrides = " ".join((*RUN, f"outputs={tmp_path / 'together'}"))
        told = f'overrides="{overrides}" nodes=2'
        done = subprocess.run(
            [str(BIN / "flwr"), "run", str(app), "here", "--stream", "--run-config", told],
            capture_output=True, text=True, timeout=PATIENCE, env=environment,
        )  # fmt: skip
    assert list((tmp_path / "together").glob("*/*/*/result.json")), done.stdout[-2000:]
    one, other = only_run(tmp_path / "alone"), only_run(tmp_path / "together")
    assert (one / "metrics.jsonl").read_bytes() == (other / "metrics.jsonl").read_bytes()
    assert_same_state(load(one / "checkpoints/last.pt")["method"], load(other / "checkpoints/last.pt")["method"])
    assert json.loads((other / "status.json").read_text())["state"] == "completed"
