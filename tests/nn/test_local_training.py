"""Clients trained side by side are clients trained alone, whatever their sizes."""

import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from advml.contracts import Batch, Classes, Spec
from advml.models.build import build
from advml.models.char_lstm import CharLstmSettings
from advml.models.conv4 import Conv4Settings
from advml.models.mlp import MlpSettings
from advml.nn.example_losses import example_losses
from advml.nn.local_training import (
    LocalTraining,
    Pull,
    batch_sizes,
    clip_rows,
    copies_at_once,
    local_batches,
    local_replicas,
    side_by_side,
)
from advml.nn.optimisers import OptimiserSettings
from advml.nn.replicas import Unsuited

SPEC = Spec({"image": (1, 4, 4)}, Classes(3))
PLAIN = OptimiserSettings(
    optimiser="sgd", lr=0.1, momentum=0.0, nesterov=False, betas=(0.9, 0.999), weight_decay=0.0, schedule="constant",
    warmup=0, step_every=1, step_factor=0.1, clip_norm=None,
)  # fmt: skip


def settings(**words):
    return replace(PLAIN, **words)


def network(norm="none", kind="mlp", activation="relu"):
    if kind == "conv4":
        chosen = Conv4Settings(
            channels=4, blocks=1, norm=norm, groups=1, downsample="pool", dropout=0.0, readout="flatten"
        )
    else:
        chosen = MlpSettings(hidden=(6, 5), activation=activation, norm=norm, dropout=0.0)
    return build(kind, chosen, SPEC, seed=1).double()


def examples(count=40):
    generator = torch.Generator().manual_seed(4)
    images = torch.randn(count, 1, 4, 4, generator=generator, dtype=torch.float64)
    return images, torch.randint(3, (count,), generator=generator)


IMAGES, LABELS = examples()


def fetch(index):
    return Batch({"image": IMAGES[index.flatten()].unflatten(0, index.shape)}, LABELS[index])


def orders(sizes, batch_size, epochs, alone=True):
    """Batches of clients with so many examples each."""
    generator, at, found = torch.Generator().manual_seed(8), 0, []
    for size in sizes:
        steps = epochs * len(batch_sizes(size, batch_size, alone))
        found.append(local_batches(torch.arange(at, at + size), batch_size, steps, generator, alone))
        at += size
    return found


def by_torch(start, batches, chosen, pull_to=None, mu=0.0, offset=None):
    """One client in an ordinary loop with torch's own optimiser."""
    model = copy.deepcopy(start).train()
    kinds = {"sgd": lambda p: torch.optim.SGD(p, chosen.lr, chosen.momentum, weight_decay=chosen.weight_decay),
             "adam": lambda p: torch.optim.Adam(p, chosen.lr, chosen.betas)}  # fmt: skip
    optimiser, total = kinds[chosen.optimiser](model.parameters()), 0.0
    for index in batches:
        optimiser.zero_grad()
        loss = F.cross_entropy(model({"image": IMAGES[index]}), LABELS[index])
        total += loss.item() * len(index)
        objective = loss
        if mu:
            pairs = zip(model.parameters(), pull_to.parameters(), strict=True)
            objective = loss + mu / 2 * sum((p - q.detach()).square().sum() for p, q in pairs)
        objective.backward()
        for name, parameter in model.named_parameters():
            if offset is not None:
                parameter.grad += offset[name]
        if chosen.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), chosen.clip_norm)
        optimiser.step()
    return model.state_dict(), total


def ours(start, batches, chosen, engine, pull=None):
    replicas = local_replicas(start, engine)
    state = {name: value.detach() for name, value in start.state_dict().items()}
    rows = {name: torch.stack([value] * len(batches)) for name, value in state.items()}
    plan = LocalTraining(replicas, example_losses("auto", SPEC.target), chosen)
    loss = plan.train(rows, [name for name, _ in start.named_parameters()], batches, fetch, chosen.lr, pull)
    return rows, float(loss)


def assert_alike(start, batches, chosen, engine, pull=None, **theirs):
    rows, loss = ours(start, batches, chosen, engine, pull)
    total = 0.0
    for row, one in enumerate(batches):
        extra = dict(theirs)
        if "offset" in extra:
            extra["offset"] = {name: value[row] for name, value in extra["offset"].items()}
        expected, part = by_torch(start, one, chosen, **extra)
        total += part
        for name, value in expected.items():
            torch.testing.assert_close(rows[name][row], value, rtol=1e-9, atol=1e-11)
    assert loss == pytest.approx(total, rel=1e-12)


ENGINES = ["loop", "batched", "vmap", "auto"]
OPTIMISERS = {
    "plain": {},
    "momentum": {"momentum": 0.9},
    "decay": {"weight_decay": 0.1},
    "clip": {"clip_norm": 0.3},
    "adam": {"optimiser": "adam", "lr": 0.01},
}


@pytest.mark.parametrize("words", OPTIMISERS.values(), ids=OPTIMISERS)
@pytest.mark.parametrize("engine", ENGINES)
def test_unequal_clients_with_partial_batches(engine, words):
    """17, 9, 3 and 1 examples, three at a time: others finish earlier, and short batches come at other steps."""
    assert_alike(network(), orders([17, 9, 3, 1], 3, 2), settings(**words), engine)


@pytest.mark.parametrize("activation", ["tanh", "gelu", "softplus"])
def test_every_activation_in_the_batched_engine(activation):
    assert_alike(network(activation=activation), orders([5, 4], 3, 2), PLAIN, "batched")


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_norms_and_their_running_averages(engine, norm):
    """The last single example joins the batch before it."""
    assert_alike(network(norm), orders([7, 7, 7], 3, 2, alone=False), PLAIN, engine)


@pytest.mark.parametrize("engine", ["batched", "auto"])
@pytest.mark.parametrize("words", [{}, {"momentum": 0.9}], ids=["plain", "momentum"])
def test_batch_norms_leave_padding_out_of_their_statistics(engine, words):
    """Batches of 4, 3 and 2 examples side by side, and others that are done."""
    assert_alike(network("batch"), orders([17, 9, 4, 2], 3, 2, alone=False), settings(**words), engine)


@pytest.mark.parametrize("engine", ["loop", "vmap"])
def test_convolutions(engine):
    assert_alike(network("batch", "conv4"), orders([6, 6], 3, 1), PLAIN, engine)
    assert_alike(network("group", "conv4"), orders([7, 4, 2], 3, 1), PLAIN, engine)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("words", [{}, {"momentum": 0.5}, {"weight_decay": 0.2}], ids=["plain", "momentum", "decay"])
def test_the_pull_of_fedprox(engine, words):
    start = network()
    centre = {name: value.detach().unsqueeze(0) * -0.7 for name, value in start.named_parameters()}
    assert_alike(start, orders([7, 4], 3, 2), settings(**words), engine, Pull(0.7, centre), pull_to=start, mu=0.7)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_offset_for_each_client(engine):
    start, generator = network(), torch.Generator().manual_seed(2)
    offset = {
        name: torch.randn(2, *value.shape, generator=generator, dtype=torch.float64) / 10
        for name, value in start.named_parameters()
    }
    assert_alike(start, orders([7, 4], 3, 2), PLAIN, engine, Pull(0.0, offset), offset=offset)


class TestBatches:
    @pytest.mark.parametrize(
        ("examples", "size", "alone", "expected"),
        [(10, 4, True, [4, 4, 2]), (9, 4, True, [4, 4, 1]), (9, 4, False, [4, 5]), (3, None, True, [3]),
         (3, 10, True, [3]), (8, 4, True, [4, 4]), (1, 1, False, [1])],
    )  # fmt: skip
    def test_sizes(self, examples, size, alone, expected):
        assert batch_sizes(examples, size, alone) == expected

    def test_each_epoch_is_every_example_once_in_another_order(self):
        owned = torch.tensor([3, 5, 8, 13, 21])
        batches = local_batches(owned, 2, 6, torch.Generator().manual_seed(1))
        assert [len(batch) for batch in batches] == [2, 2, 1, 2, 2, 1]
        epochs = [torch.cat(batches[:3]), torch.cat(batches[3:])]
        assert all(torch.equal(epoch.sort().values, owned) for epoch in epochs)
        assert not torch.equal(*epochs)
        again = local_batches(owned, 2, 4, torch.Generator().manual_seed(1))
        assert all(map(torch.equal, again, batches))

    def test_one_batch_of_all(self):
        owned = torch.tensor([3, 5, 8])
        assert [batch.tolist() for batch in local_batches(owned, None, 2, torch.Generator())] == [[3, 5, 8]] * 2

    def test_side_by_side(self):
        index, weight = side_by_side([torch.tensor([4, 5, 6]), torch.tensor([7])])
        assert index.tolist() == [[4, 5, 6], [7, 7, 7]]
        assert weight.tolist() == [[1 / 3] * 3, [1.0, 0.0, 0.0]]
        assert side_by_side([torch.tensor([4, 5]), torch.tensor([7, 8])])[1] is None


def test_clipping_is_by_client():
    gradients = [torch.tensor([[3.0], [0.3]]), torch.tensor([[4.0], [0.4]]), None]
    clip_rows(gradients, 1.0)
    torch.testing.assert_close(torch.cat(gradients[:2], 1), torch.tensor([[0.6, 0.8], [0.3, 0.4]]))


def test_chunks_stay_in_the_cache():
    small, wide = network(), build("mlp", MlpSettings(hidden=(200, 200), activation="relu", norm="none", dropout=0.0),
                                   Spec({"image": (784,)}, Classes(10)), seed=0)  # fmt: skip
    assert copies_at_once(small, local_replicas(small, "batched")) == 64
    assert copies_at_once(wide, local_replicas(wide, "batched")) == 5  # 4 MiB / 796,840 bytes
    assert copies_at_once(wide, local_replicas(wide, "loop")) == 1


def test_recurrent_networks_one_by_one():
    spec = Spec({"text": (5,)}, Classes(7), tokens={"text": 7})
    lstm = build("char_lstm", CharLstmSettings(embedding=3, hidden=4, layers=1, dropout=0.0), spec, seed=0)
    assert local_replicas(lstm, "auto").engine == "loop"
    with pytest.raises(Unsuited, match="use loop"):
        local_replicas(lstm, "vmap")
