"""Several processes, one run: messages keep their bits, and the others are told of every step before it is taken."""


import pytest
import torch

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


def test_the_gpus_are_taken_in_turn(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    gpu = torch.device("cuda", 0)
    assert [own_device(gpu, "auto", rank).index for rank in range(4)] == [0, 1, 0, 1]
    assert own_device(torch.device("cuda", 1), "cuda:1", 0).index == 1
    assert own_device(CPU, "auto", 3) == CPU
