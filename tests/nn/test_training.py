"""The mini-batch loop against a loop by hand with torch.optim, bit for bit; batches, hooks, masked rows, counts."""

from itertools import islice

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from advml.contracts import Batch, Classes, Network, Spec, Split
from advml.data.prepare import Affine
from advml.models.mlp import Mlp, MlpSettings
from advml.nn.losses import cross_entropy
from advml.nn.optimisers import make_optimiser
from advml.nn.training import TrainingSettings, batches_of, minibatches, rows_kept, train, updates_per_epoch
from advml.runner.randomness import KeyedRng

DEFAULTS = {
    "batch_size": 8, "loss": "auto", "label_smoothing": 0.0, "optimiser": "adam", "lr": 0.01, "momentum": 0.0,
    "nesterov": False, "betas": (0.9, 0.999), "weight_decay": 0.0, "schedule": "constant", "warmup": 0,
    "step_every": 1000, "step_factor": 0.1, "clip_norm": None,
}  # fmt: skip
RNG = KeyedRng(0)


def settings(**changes):
    return TrainingSettings(**DEFAULTS | changes)


def network(hidden=(9,), norm="none", dropout=0.0, classes=4, seed=1):
    torch.manual_seed(seed)
    chosen = MlpSettings(hidden=hidden, activation="relu", norm=norm, dropout=dropout)
    return Mlp(Spec({"x": (5,)}, Classes(classes)), chosen)


def examples(count=30, classes=4, seed=2):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 5, generator=generator)
    return Split({"x": x}, torch.randint(classes, (count,), generator=generator))


def indices(start, stop, count=30, size=8):
    return list(minibatches(count, size, start, stop, lambda epoch: RNG("shuffle", epoch)))


@pytest.mark.parametrize(("count", "size", "sizes"), [
    (17, 8, [8, 9]), (16, 8, [8, 8]), (18, 8, [8, 8, 2]), (1, 8, [1]), (3, 2, [3]), (3, 1, [1, 1, 1]),
])  # fmt: skip
def test_a_single_example_may_join_the_batch_before(count, size, sizes):
    def drawn(start, stop, alone):
        return list(minibatches(count, size, start, stop, lambda epoch: RNG("shuffle", epoch), alone))

    per_epoch = updates_per_epoch(count, size, alone=False)
    batches = drawn(0, 2 * per_epoch, alone=False)
    assert [len(batch) for batch in batches] == 2 * sizes
    for epoch in (batches[:per_epoch], batches[per_epoch:]):
        assert sorted(torch.cat(epoch).tolist()) == list(range(count))
    plain = updates_per_epoch(count, size)
    assert plain == -(-count // size)
    assert torch.equal(torch.cat(drawn(0, plain, alone=True)), torch.cat(batches[:per_epoch]))


def fit(model, split, config, start=0, stop=20, total=None, optimiser=None, mask=None, **more):
    """(mean loss, what was counted) of training on iterations start to stop."""
    counted = {}
    optimiser = optimiser or make_optimiser(model.parameters(), config)
    loss = train(
        model,
        batches_of(split, indices(start, stop, len(split), config.batch_size), mask),
        cross_entropy,
        optimiser,
        settings=config,
        update=start,
        total=total or stop,
        count=lambda **work: counted.update(work),
        **more,
    )
    return loss, counted


def same_weights(one, other):
    left, right = one.state_dict(), other.state_dict()
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


# --- batches ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "size", "sizes"), [(30, 8, [8, 8, 8, 6]), (24, 8, [8] * 3), (5, 8, [5]), (3, 1, [1] * 3)]
)
def test_each_epoch_is_a_permutation_whose_last_batch_is_short(count, size, sizes):
    per_epoch = len(sizes)
    drawn = indices(0, 3 * per_epoch, count, size)
    assert [len(index) for index in drawn] == sizes * 3
    epochs = [torch.cat(drawn[e * per_epoch : (e + 1) * per_epoch]) for e in range(3)]
    for epoch in epochs:
        assert torch.equal(epoch.sort().values, torch.arange(count))
    if count > 5:
        assert not torch.equal(epochs[0], epochs[1])


@pytest.mark.parametrize("start", [1, 3, 4, 5, 9, 12])
def test_any_start_is_the_tail_of_a_run_from_zero(start):
    assert all(torch.equal(a, b) for a, b in zip(indices(start, 12), indices(0, 12)[start:], strict=True))


def test_epochs_before_the_start_are_not_drawn():
    asked = []

    def rng(epoch):
        asked.append(epoch)
        return RNG("shuffle", epoch)

    list(minibatches(30, 8, 4 * 1000, 4 * 1000 + 6, rng))
    assert asked == [1000, 1001]


def test_batches_of_prepares_and_masks():
    split = Split(examples().inputs, examples().target, prepare={"x": (Affine(torch.tensor(2.0), torch.tensor(1.0)),)})
    mask = torch.tensor([True, False, True, True])
    index = torch.tensor([4, 0, 7])
    (batch,) = batches_of(split, [index], mask)
    assert torch.equal(batch.inputs["x"], 2 * split.inputs["x"][index] + 1)
    assert torch.equal(batch.target, split.target[index])
    assert torch.equal(batch.mask, mask)


# --- against a loop by hand ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "make"),
    [
        ({"optimiser": "adam"}, lambda p: torch.optim.Adam(p, 0.01, fused=True)),
        (
            {"optimiser": "adam", "weight_decay": 0.1, "betas": (0.8, 0.95)},
            lambda p: torch.optim.Adam(p, 0.01, (0.8, 0.95), weight_decay=0.1, fused=True),
        ),
        ({"optimiser": "sgd"}, lambda p: torch.optim.SGD(p, 0.01, foreach=True)),
        (
            {"optimiser": "sgd", "momentum": 0.9, "weight_decay": 0.01, "lr": 0.05},
            lambda p: torch.optim.SGD(p, 0.05, 0.9, weight_decay=0.01, foreach=True),
        ),
    ],
)
@pytest.mark.parametrize("norm", ["none", "batch"])
def test_equals_a_loop_by_hand_bit_for_bit(changes, make, norm):
    split, mine, theirs = examples(), network(norm=norm), network(norm=norm)
    loss, _ = fit(mine, split, settings(**changes))

    optimiser, total = make(theirs.parameters()), 0.0
    theirs.train()
    for index in indices(0, 20):
        value = F.cross_entropy(theirs({"x": split.inputs["x"][index]}), split.target[index])
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        total += float(value.detach()) * len(index)
    assert same_weights(mine, theirs)
    assert not same_weights(mine, network(norm=norm))
    assert float(loss) == pytest.approx(total / sum(map(len, indices(0, 20))), rel=1e-6)


@pytest.mark.parametrize("cut", [1, 7, 13])
def test_two_calls_are_one(cut):
    """Whatever is one block or many: same batches, same schedule, same memory."""
    split, config = examples(), settings(schedule="cosine", warmup=3, weight_decay=0.01)
    whole, parts = network(), network()
    fit(whole, split, config)
    optimiser = make_optimiser(parts.parameters(), config)
    for start, stop in ((0, cut), (cut, 20)):
        fit(parts, split, config, start, stop, 20, optimiser)
    assert same_weights(whole, parts)


def test_the_schedule_is_followed():
    model, split = network(), examples()
    seen, config = [], settings(optimiser="sgd", schedule="linear", warmup=2, lr=1.0)
    optimiser = make_optimiser(model.parameters(), config)
    fit(model, split, config, 0, 6, 6, optimiser, after=lambda: seen.append(optimiser.lr))
    assert seen == pytest.approx([0.5, 1.0, 1.0, 0.75, 0.5, 0.25])


# --- hooks --------------------------------------------------------------------------------------------------------


def test_transform_comes_before_clipping_and_the_update_after():
    """SGD with lr 1: the step is the gradient that was used, the transformed one, clipped; `after` sees new weights."""
    model, split = network(), examples()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    seen = {}

    def transform():
        for parameter in model.parameters():
            parameter.grad.fill_(3.0)
        seen["unmoved"] = all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))

    def after():
        seen["step"] = [b - p.detach() for p, b in zip(model.parameters(), before, strict=True)]

    fit(model, split, settings(optimiser="sgd", lr=1.0, clip_norm=0.5), 0, 1, transform=transform, after=after)
    assert seen["unmoved"]
    step = torch.cat([part.flatten() for part in seen["step"]])
    assert float(step.norm()) == pytest.approx(0.5, rel=1e-4)
    torch.testing.assert_close(step, step.mean().expand_as(step), rtol=1e-3, atol=1e-6)


def test_the_loss_is_that_before_each_update():
    model, split = network(), examples(8)
    value = cross_entropy(model(split.inputs), split.batch(slice(None)))
    loss, _ = fit(model, split, settings(), 0, 1)
    torch.testing.assert_close(loss, value.detach())
    assert not loss.requires_grad


def test_counts():
    _, counted = fit(network(), examples(), settings(), 0, 6)
    assert counted == {"samples": 8 + 8 + 8 + 6 + 8 + 8, "updates": 6, "gradients": 46}


def test_no_gradient_is_left_behind():
    model = network()
    fit(model, examples(), settings(), 0, 3)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_trains_in_training_mode():
    """Dropout drops and batch norm follows the batches, even if the network came in evaluation mode."""
    split = examples()
    results = []
    for seed in (0, 0, 1):
        model = network(hidden=(9,), norm="batch", dropout=0.5).eval()
        torch.manual_seed(seed)
        fit(model, split, settings(), 0, 4)
        assert model.training
        assert model.state_dict()["body.1.num_batches_tracked"] == 4
        results.append(model)
    assert same_weights(results[0], results[1])
    assert not same_weights(results[0], results[2])


def test_autocast_covers_forward_and_loss():
    class Probe(Network):
        def __init__(self):
            super().__init__()
            self.head, self.seen = nn.Linear(5, 4), []

        def features(self, inputs):
            self.seen.append((torch.is_autocast_enabled("cpu"), self.head(inputs["x"]).dtype))
            return inputs["x"]

    model = Probe()
    loss, _ = fit(model, examples(), settings(), 0, 2, autocast=lambda: torch.autocast("cpu", torch.bfloat16))
    assert model.seen == [(True, torch.bfloat16)] * 2
    assert model.head.weight.dtype == loss.dtype == torch.float32
    assert not torch.is_autocast_enabled("cpu")


# --- rows of inactive outputs -------------------------------------------------------------------------------------

ACTIVE = torch.tensor([True, False, True, False])


def in_active_classes(count=30):
    split = examples(count)
    return Split(split.inputs, split.target % 2 * 2)


@pytest.mark.parametrize(
    "changes",
    [
        {"optimiser": "sgd", "momentum": 0.9, "weight_decay": 0.1},
        {"optimiser": "adam", "weight_decay": 0.1},
        {"optimiser": "adamw", "weight_decay": 0.1},
        {"optimiser": "rmsprop", "momentum": 0.9, "weight_decay": 0.1},
    ],
)
def test_inactive_rows_never_move(changes):
    """Not even within a block: neither by weight decay nor by momentum from an earlier task."""
    model, split, config = network(), in_active_classes(), settings(**changes)
    optimiser = make_optimiser(model.parameters(), config)
    fit(model, examples(), config, 0, 5, 25, optimiser)  # all rows: the optimiser remembers them
    before = {name: value.clone() for name, value in model.head.state_dict().items()}
    put_back, moves = rows_kept(model.head, ACTIVE), []

    def after():
        put_back()
        moves.append(any(not torch.equal(p[~ACTIVE], before[n][~ACTIVE]) for n, p in model.head.named_parameters()))

    fit(model, split, config, 5, 25, 25, optimiser, ACTIVE, after=after)
    assert moves == [False] * 20
    for name, value in model.head.state_dict().items():
        assert bool((value[ACTIVE] != before[name][ACTIVE]).all())

    free = network()
    optimiser = make_optimiser(free.parameters(), config)
    fit(free, examples(), config, 0, 5, 25, optimiser)
    fit(free, split, config, 5, 25, 25, optimiser, ACTIVE)
    assert not torch.equal(free.head.weight[~ACTIVE], before["weight"][~ACTIVE])  # what would happen otherwise


def test_keeping_rows_changes_nothing_else():
    """Masked rows do not enter the loss: body and active rows go the same way with and without them."""
    kept, free, split = network(), network(), in_active_classes()
    config = settings(weight_decay=0.1)
    fit(kept, split, config, mask=ACTIVE, after=rows_kept(kept.head, ACTIVE))
    fit(free, split, config, mask=ACTIVE)
    with torch.no_grad():
        for one, other in zip(kept.head.parameters(), free.head.parameters(), strict=True):
            assert not torch.equal(one, other)
            other[~ACTIVE] = one[~ACTIVE]
    assert same_weights(kept, free)


def test_all_rows_active_is_nothing_to_do():
    model = network()
    put_back = rows_kept(model.head, torch.ones(4, dtype=torch.bool))
    with torch.no_grad():
        model.head.weight += 1
    moved = model.head.weight.detach().clone()
    put_back()
    assert torch.equal(model.head.weight, moved)


def test_a_generator_of_batches_is_read_one_at_a_time():
    """The loop asks for a batch only when it needs it: an endless source is fine."""
    split, taken = examples(), []

    def endless():
        while True:
            taken.append(len(taken))
            yield Batch({"x": split.inputs["x"][:4]}, split.target[:4])

    config, model = settings(), network()
    train(
        model, islice(endless(), 3), cross_entropy, make_optimiser(model.parameters(), config),
        settings=config, update=0, total=3, count=lambda **work: None,
    )  # fmt: skip
    assert taken == [0, 1, 2]
