"""A federated run over Flower: the server is an ordinary run, local training happens on other machines.

    pip install "advml[flower]"
    flower-superlink --insecure --port 9091                                          the meeting point
    flower-supernode --insecure --superlink HOST:9091 --node-config 'partition-id=0'     on each machine, 0, 1, …
    flwr run APP CONNECTION --stream --run-config 'overrides="method=fedavg dataset=digits" nodes=2'

with APP the folder `advml.flower.APP`, and CONNECTION to HOST:9091 in Flower's own configuration. A round is that of
`advml run`: cohort, weights, sum and server step are the same code, and so is local training, on the node that holds
the client: number k modulo the number of nodes. The bits are those of a run in one place with method.engine=loop; with
the other engines they are to rounding.

Node and server read the same configuration, and each the data files of its own machine: a node trains on its clients'
examples only, the server measures. Compression, masks and the privacy of clients are done at the server, as in a
simulation; that of examples (privacy.kind=example) is part of local training, and so on the node. Methods that keep
models with the clients, or send more than the network, are refused.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from flwr.app import (  # type: ignore[import-not-found]
    ArrayRecord,
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
)
from flwr.clientapp import ClientApp  # type: ignore[import-not-found]
from flwr.serverapp import Grid, ServerApp  # type: ignore[import-not-found]
from torch import Tensor

from advml.compose import compose
from advml.config import Bound, bind
from advml.contracts import Method
from advml.errors import AdvmlError, ConfigError
from advml.methods.federated.common import Federated, Update
from advml.runner.budget import Budget
from advml.runner.randomness import numeric_settings
from advml.runner.run import Asked, load_view, set_up, start
from advml.runner.world import Alone

APP = Path(__file__).parent / "app"
PARTS = "deltas", "counters"

server_app = ServerApp()
client_app = ClientApp()


def configured(context: Context) -> Bound:
    """The configuration of the run, as `advml run` would be told it."""
    words = shlex.split(str(context.run_config["overrides"]))
    return bind(compose([*words, "device=cpu"])[0])


# --- the server ---------------------------------------------------------------------------------------------------


class Nodes(Alone):
    """The machines that train: a method's chunks of clients go to them as messages."""

    def __init__(self, grid: Grid, wanted: int) -> None:
        self.grid, self.wanted, self.number = grid, wanted, 0
        self.nodes: list[int] = []  # by partition

    def join(self) -> None:
        """Wait until all are there, and ask who is who."""
        while len(list(self.grid.get_node_ids())) < self.wanted:
            time.sleep(0.5)
        replies = self._ask({node: RecordDict() for node in self.grid.get_node_ids()}, "query")
        places = {int(reply.content["place"]["partition-id"]): node for node, reply in replies.items()}
        if sorted(places) != list(range(self.wanted)):
            raise AdvmlError(f"Flower: the nodes' partition-id are {sorted(places)}, not 0 to {self.wanted - 1}")
        self.nodes = [places[number] for number in range(self.wanted)]

    def lead(self, method: Method) -> Method:
        """The method with its local training elsewhere."""
        if not isinstance(method, Federated) or method.personalised or hasattr(method, "variate"):
            raise ConfigError("Flower: only what is sent is the network; use method=fedavg, fedprox or fedopt")
        method.updates = MethodType(self._updates, method)  # type: ignore[method-assign]
        return method

    def _updates(
        self, method: Federated, round: int, chunks: Sequence[tuple[list[int], list[int]]]
    ) -> Iterator[Update]:
        """One message to each node with all its clients of the round; their updates in the order of chunks."""
        jobs = [(client, count) for clients, steps in chunks for client, count in zip(clients, steps, strict=True)]
        asked: dict[int, RecordDict] = {}
        for place, node in enumerate(self.nodes):
            own = [job for job in jobs if job[0] % self.wanted == place]
            if own:
                clients, steps = (list(values) for values in zip(*own, strict=True))
                work = ConfigRecord({"round": round, "clients": clients, "steps": steps})
                asked[node] = RecordDict({"network": ArrayRecord(method.network.state_dict()), "work": work})
        replies = self._ask(asked, "train")
        for client, _ in jobs:
            yield _read(client, replies[self.nodes[client % self.wanted]].content, method.context.device)

    def _ask(self, contents: Mapping[int, RecordDict], kind: str) -> dict[int, Message]:
        """Send and wait. Raises AdvmlError where a node fails."""
        self.number += 1
        messages = [
            Message(content, message_type=kind, dst_node_id=node, group_id=str(self.number))
            for node, content in contents.items()
        ]
        replies = {reply.metadata.src_node_id: reply for reply in self.grid.send_and_receive(messages)}
        for node in contents:
            if node not in replies or replies[node].has_error():
                why = replies[node].error.reason if node in replies else "it does not answer"
                raise AdvmlError(f"Flower: node {node}: {why}")
        return replies


@server_app.main()  # type: ignore[untyped-decorator]
def serve(grid: Grid, context: Context) -> None:
    """A run, as by `advml run`, whose folder lies below `outputs` of the configuration."""
    words = shlex.split(str(context.run_config["overrides"]))
    nodes = Nodes(grid, int(context.run_config["nodes"]))
    outcome = start(configured(context), Asked(shlex.join(["flwr", "run", *words]), words), world=nodes)
    if outcome.message:
        raise AdvmlError(outcome.message)


# --- a node -------------------------------------------------------------------------------------------------------


METHODS: dict[str, Federated] = {}


def method_of(context: Context) -> Federated:
    """The method of the run, set up once in a process: view, network and engine."""
    words = str(context.run_config["overrides"])
    if words not in METHODS:
        bound = configured(context)
        view = load_view(bound, lambda text: None)
        METHODS[words] = set_up(bound, view, torch.device("cpu"), Budget(), Alone())  # type: ignore[assignment]
    return METHODS[words]


@client_app.query()  # type: ignore[untyped-decorator]
def who(message: Message, context: Context) -> Message:
    """Which part of the clients this node holds."""
    place = ConfigRecord({"partition-id": int(context.node_config["partition-id"])})
    return Message(RecordDict({"place": place}), reply_to=message)


@client_app.train()  # type: ignore[untyped-decorator]
def train(message: Message, context: Context) -> Message:
    """Local training of this node's clients in a round, one after another, from the network that was sent."""
    bound = configured(context)
    with numeric_settings(1 if bound.run.threads == "auto" else bound.run.threads, bound.run.deterministic):
        method = method_of(context)
        method.network.load_state_dict(message.content["network"].to_torch_state_dict())
        work, content = message.content["work"], RecordDict()
        for client, steps in zip(work["clients"], work["steps"], strict=True):
            _write(client, method.local(int(work["round"]), [client], [steps]), content)
    return Message(content, reply_to=message)


# --- messages -----------------------------------------------------------------------------------------------------


def _write(client: int, update: Update, content: RecordDict) -> None:
    """A client's update as records."""
    for part in PARTS:
        rows: Mapping[str, Tensor] = getattr(update, part)
        content[f"{part} {client}"] = ArrayRecord({name: value[0] for name, value in rows.items()})
    content[f"loss {client}"] = ArrayRecord({"loss": update.loss.reshape(1)})
    content[f"numbers {client}"] = MetricRecord({"samples": update.samples, "updates": update.updates})


def _read(client: int, content: RecordDict, device: torch.device) -> Update:
    """The update back from them."""
    deltas, counters = (
        {
            name: value.unsqueeze(0).to(device)
            for name, value in content[f"{part} {client}"].to_torch_state_dict().items()
        }
        for part in PARTS
    )
    loss = content[f"loss {client}"].to_torch_state_dict()["loss"][0].to(device)
    numbers: Any = content[f"numbers {client}"]
    return Update([client], deltas, loss, int(numbers["samples"]), int(numbers["updates"]), counters)
