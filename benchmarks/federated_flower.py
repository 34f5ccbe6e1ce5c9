"""The same rounds in Flower's simulation: its own FedAvg on the server, `trained` on the clients.

python benchmarks/federated_flower.py ROUNDS DTYPE PROCESSES FILE      weights, and in FILE.json the rounds' seconds
"""

from __future__ import annotations

import json
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from federated_setting import clients, network, trained
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict  # type: ignore[import-not-found]
from flwr.clientapp import ClientApp  # type: ignore[import-not-found]
from flwr.serverapp import Grid, ServerApp  # type: ignore[import-not-found]
from flwr.serverapp.strategy import FedAvg  # type: ignore[import-not-found]
from flwr.simulation import run_simulation  # type: ignore[import-not-found]

COUNT, EXAMPLES = 20, 60

client_app = ClientApp()
server_app = ServerApp()


@client_app.train()  # type: ignore[untyped-decorator]
def train(message: Message, context: Context) -> Message:
    """One client's round."""
    torch.set_num_threads(1)
    config, client = message.content["config"], int(context.node_config["partition-id"])
    dtype = getattr(torch, config["dtype"])
    model = network(dtype)
    model.load_state_dict(message.content["arrays"].to_torch_state_dict())
    model = trained(model, clients(COUNT, EXAMPLES, dtype), int(config["server-round"]) - 1, client)
    metrics = MetricRecord({"num-examples": EXAMPLES})
    return Message(RecordDict({"arrays": ArrayRecord(model.state_dict()), "metrics": metrics}), reply_to=message)


class Timed(FedAvg):  # type: ignore[misc]
    """Notes when each round begins."""

    def configure_train(self, *given: Any, **named: Any) -> Any:
        """As it is."""
        BEGAN.append(time.perf_counter())
        return super().configure_train(*given, **named)


BEGAN: list[float] = []


@server_app.main()  # type: ignore[untyped-decorator]
def main(grid: Grid, context: Context) -> None:
    """All clients in every round; no evaluation."""
    from flwr.app import ConfigRecord  # type: ignore[import-not-found]

    rounds, dtype = int(sys.argv[1]), sys.argv[2]
    strategy = Timed(
        fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=COUNT, min_available_nodes=COUNT,
        min_evaluate_nodes=0,
    )  # fmt: skip
    start = ArrayRecord(network(getattr(torch, dtype)).state_dict())
    found = strategy.start(
        grid=grid, initial_arrays=start, num_rounds=rounds, train_config=ConfigRecord({"dtype": dtype})
    )
    BEGAN.append(time.perf_counter())
    torch.save(found.arrays.to_torch_state_dict(), sys.argv[4])


if __name__ == "__main__":
    processes = int(sys.argv[3])
    run_simulation(
        server_app=server_app, client_app=client_app, num_supernodes=COUNT,
        backend_config={"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": processes}},
    )  # fmt: skip
    seconds = [later - earlier for earlier, later in pairwise(BEGAN)]
    Path(sys.argv[4] + ".json").write_text(json.dumps(seconds))
