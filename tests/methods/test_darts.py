"""DARTS as a whole: updates against the original's loop written out, exact reductions, monitors, derive and retrain."""

import copy
import json

import pytest
import torch
import torch.nn.functional as F

from advml.artifacts import Graph, Json
from advml.config import bind
from advml.contracts import At
from advml.errors import ConfigError
from advml.methods.nas.darts import gumbel_choice
from advml.methods.nas.monitor import Monitor, StopSettings, jumped
from advml.methods.nas.retrain import Pace, derived_network
from advml.methods.nas.schedules import cosine, restarts
from advml.nn.augment import crop_and_flip
from advml.nn.cells.genotype import Cell, Genotype

WORDS = (
    "method=darts", "model=darts_cells", "precision=float64", "dataset=digits", "dataset.limit=150",
    "method.batch_size=24", "method.epochs=2", "method.alpha_lr=0.02", "method.retrain.epochs=2",
    "method.retrain.channels=2", "method.retrain.cells=2", "method.retrain.reductions=1", "method.retrain.auxiliary=0",
    "model.channels=2", "model.cells=2", "model.nodes=2", "model.reductions=1", "model.engine=plain",
    "model.operations=[none, skip_connect, sep_conv_3x3]",
)  # fmt: skip


def close(one, other, atol=1e-12):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-9, atol=atol)


class Original:
    """The published loop with torch's optimisers: α before w, a copy of the network for the virtual step."""

    def __init__(self, played):
        method = self.method = played.method
        self.network = copy.deepcopy(method.network).train()
        self.weights, self.alphas = self.network.weights(), self.network.architecture()
        self.sgd = torch.optim.SGD(self.weights, 0.025, 0.9, weight_decay=3e-4)
        self.adam = torch.optim.Adam(self.alphas, 0.02, (0.5, 0.999), weight_decay=1e-3)
        self.rng = played.context.rng

    def order(self, purpose, epoch, count):
        return torch.randperm(count, generator=self.rng(purpose, epoch)).split(24)

    def loss(self, batch, network=None):
        return F.cross_entropy((network or self.network)(batch.inputs), batch.target)

    def epoch(self, epoch, order):
        method = self.method
        self.lr = self.sgd.param_groups[0]["lr"] = cosine(0.025, 0.001, epoch / 2)
        train = self.order("train order", epoch, len(method.train_half))
        valid = self.order("valid order", epoch, len(method.valid_half))
        for one, other in zip(train, valid, strict=True):
            batch, judge = method.train_half.batch(one), method.valid_half.batch(other)
            gradients = self.second(batch, judge) if order == 2 else torch.autograd.grad(self.loss(judge), self.alphas)
            for alpha, gradient in zip(self.alphas, gradients, strict=True):
                alpha.grad = gradient
            self.adam.step()
            self.network.zero_grad()
            self.loss(batch).backward()
            torch.nn.utils.clip_grad_norm_(self.weights, 5.0)
            self.sgd.step()

    def second(self, batch, judge):
        """As the original: a copy of the network takes the virtual step, the network itself those to both sides."""
        gradients = torch.autograd.grad(self.loss(batch), self.weights)
        buffers = [self.sgd.state.get(w, {}).get("momentum_buffer") for w in self.weights]
        virtual = copy.deepcopy(self.network)
        with torch.no_grad():
            for w, g, b in zip(virtual.weights(), gradients, buffers, strict=True):
                w -= self.lr * (g + 3e-4 * w + (0.9 * b if b is not None else 0))
        loss = self.loss(judge, virtual)
        direct = torch.autograd.grad(loss, virtual.architecture(), retain_graph=True)
        v = torch.autograd.grad(loss, virtual.weights())
        radius = 0.01 / torch.cat([one.flatten() for one in v]).norm()
        sides = []
        for sign in (1, -2):
            with torch.no_grad():
                for w, one in zip(self.weights, v, strict=True):
                    w += sign * radius * one
            sides.append(torch.autograd.grad(self.loss(batch), self.alphas))
        with torch.no_grad():
            for w, one in zip(self.weights, v, strict=True):
                w += radius * one
        return [d - self.lr * (p - n) / (2 * radius) for d, p, n in zip(direct, *sides, strict=True)]


@pytest.mark.parametrize("order", [1, 2])
def test_it_is_the_loop_of_the_original(play, order):
    played = play(*WORDS, f"method.order={order}", "dataset.limit=100")
    original = Original(played)
    for epoch in range(2):
        original.epoch(epoch, order)
    played.go(2)
    # The original comes back to its weights by adding and taking away, which rounds; ours are put back.
    ours, theirs = dict(played.method.network.named_parameters()), dict(original.network.named_parameters())
    close(ours, theirs, atol=1e-12 if order == 1 else 1e-7)


@pytest.mark.parametrize("words", [("method.alpha_lr=0",), ("method.alpha_lr=0", "method.order=2")])
def test_with_a_frozen_architecture_it_is_supervised_training_of_the_supernet(play, words):
    played = play(*WORDS, *words)
    original = Original(played)
    for epoch in range(2):
        original.sgd.param_groups[0]["lr"] = cosine(0.025, 0.001, epoch / 2)
        for index in original.order("train order", epoch, len(played.method.train_half)):
            batch = played.method.train_half.batch(index)
            original.network.zero_grad()
            original.loss(batch).backward()
            torch.nn.utils.clip_grad_norm_(original.weights, 5.0)
            original.sgd.step()
    played.go(2)
    close(played.method.network.state_dict(), original.network.state_dict())


def test_the_architecture_waits_for_the_end_of_the_warmup(play):
    played = play(*WORDS, "method.warmup=1")
    moved = []
    for _ in range(2):
        before = [alpha.detach().clone() for alpha in played.method.architecture]
        played.go(1)
        moved.append(not all(map(torch.equal, before, played.method.architecture)))
    assert moved == [False, True]


def test_the_halves_are_disjoint_and_the_validation_split_is_in_neither(play):
    method = play(*WORDS, "method.share=0.3").method
    rows = [
        {tuple(image.flatten().tolist()) for image in split.inputs["image"]}
        for split in (method.train_half, method.valid_half, method.data.valid, method.data.test)
    ]
    assert len(method.train_half) == round(0.3 * len(method.data.train))
    assert len(method.train_half) + len(method.valid_half) == len(method.data.train)
    assert all(not rows[i] & rows[j] for i in range(4) for j in range(i))


def test_a_frame_around_smaller_images_is_black(play):
    """Zero before normalising, not after, where zero is the mean."""
    method = play(*WORDS, "method.pad=2", "method.pool=2", "dataset.normalise=standard").method
    seen = method.train_half.batch(slice(5)).inputs["image"]
    black = method.data.train.prepared({"image": torch.zeros(1, 1, 1, 1)})["image"]
    assert seen.shape == (5, 1, 6, 6)
    assert float(black) < -0.1
    torch.testing.assert_close(seen[:, :, [0, -1]], black.expand(5, 1, 2, 6))
    whole = method.data.train.prepared(method.train_half.take(torch.arange(5)).inputs)["image"]
    torch.testing.assert_close(seen[:, :, 1:-1, 1:-1], F.avg_pool2d(whole, 2))


def test_search_derive_retrain_report(play):
    played = play(*WORDS).go(2)
    method = played.method
    genotype = method.network.derive()
    assert set(played.evaluate("valid")) >= {"search_accuracy"}
    assert played.evaluate("test") == {}
    before = copy.deepcopy(method.network.state_dict())
    played.go()
    close(before, method.network.state_dict(), atol=0)
    assert method.genotype == genotype == method.result().genotype
    made = method.artifacts([])
    assert Genotype.from_dict(json.loads(json.dumps(made["genotype"].value))) == genotype
    assert isinstance(made["genotype"], Json)
    assert isinstance(made["cells"], Graph)
    edges = made["cells"].edges["normal"]
    assert {(a, b, c) for a, b, c in edges if c} == {
        (edge.source, 2 + node, edge.operation) for node, of in enumerate(genotype.normal.nodes) for edge in of
    }
    summary = method.summary([])
    assert summary["derived_parameters"] == sum(p.numel() for p in method.result().parameters())
    assert "accuracy" in played.evaluate("test")


def test_retraining_is_ordinary_training_of_the_derived_network(play):
    """Without drop-path, cutout and auxiliary head: torch's SGD on the fresh network."""
    played = play(*WORDS, "method.retrain.drop_path=0").go(2)
    played.go(1)
    method = played.method
    network = derived_network(played.context, method.config.retrain, method.genotype, "retrain").train()
    sgd = torch.optim.SGD(network.parameters(), 0.025, 0.9, weight_decay=3e-4)
    indices = torch.randperm(len(method.data.train), generator=played.context.rng("retrain order", 0)).split(64)
    for update, index in enumerate(indices):
        sgd.param_groups[0]["lr"] = cosine(0.025, 0.0, update / (2 * len(indices)))
        sgd.zero_grad()
        batch = method.data.train.batch(index)
        F.cross_entropy(network(batch.inputs), batch.target).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        sgd.step()
    close(dict(method.result().named_parameters()), dict(network.named_parameters()))


def test_filters_of_a_derived_network_lie_as_those_of_any_other(play):
    played = play(*WORDS)
    method, context = played.method, played.context
    for device, layout in (("cpu", torch.channels_last), ("meta", torch.contiguous_format)):
        context.device = torch.device(device)
        network = derived_network(context, method.config.retrain, method.derive(), "retrain")
        filters = [p for p in network.parameters() if p.dim() == 4]
        assert len(filters) > 4
        assert all(p.stride() == torch.empty(p.shape, memory_format=layout).stride() for p in filters)


def test_the_auxiliary_head_and_drop_path_take_part(play):
    words = ("method.retrain.auxiliary=0.4", "method.retrain.drop_path=0.5", "method.retrain.cutout=3")
    method = play(*WORDS, *words).go(4).method
    network = method.result()
    assert network.drop_path == 0.25  # of the second of two epochs
    fresh = [p.detach().clone() for p in network.auxiliary.parameters()]
    method.retraining.step(At(1, 1, 0, True))
    assert all(not torch.equal(a, b) for a, b in zip(fresh, network.auxiliary.parameters(), strict=True))
    without = sum(p.numel() for n, p in network.named_parameters() if not n.startswith("auxiliary"))
    assert method.summary([])["derived_parameters"] == without


def test_gumbel_chooses_one_operation_with_the_gradient_of_the_soft_choice():
    rng = torch.Generator().manual_seed(0)
    alpha = torch.randn(5, 4, generator=rng, dtype=torch.float64, requires_grad=True)
    noise = torch.randn(5, 4, generator=rng, dtype=torch.float64)
    mixture, active = gumbel_choice(alpha, noise, 0.7)
    soft = ((alpha.log_softmax(1) + noise) / 0.7).softmax(1)
    assert active == tuple((int(k),) for k in (alpha + noise).argmax(1))
    torch.testing.assert_close(mixture.detach(), F.one_hot((alpha + noise).argmax(1), 4).double())
    seed = torch.randn(5, 4, generator=rng, dtype=torch.float64)
    ours, theirs = (torch.autograd.grad((one * seed).sum(), alpha, retain_graph=True)[0] for one in (mixture, soft))
    torch.testing.assert_close(ours, theirs)


def test_the_eigenvalue_leaves_the_network_alone(play):
    one, other = (play(*WORDS, f"method.eigenvalue={n}").go(2) for n in (0, 2))
    close(one.method.network.state_dict(), other.method.network.state_dict(), atol=0)
    assert all("eigenvalue" in step for step in other.steps)
    # Two epochs, two products with the Hessian each, two gradients of a batch for each of these.
    for done in ("samples", "gradients"):
        assert other.budget.counts[done] - one.budget.counts[done] == 2 * 2 * 2 * 24


@pytest.mark.parametrize(("order", "passes"), [(1, 1), (2, 4)])
def test_steps_of_alpha_are_work_too(play, order, passes):
    """Second order: the gradient after the virtual step, and three of the weights' loss."""
    said = (*WORDS, f"method.order={order}")
    frozen, searched = (play(*said, f"method.alpha_lr={lr}").go(1).budget.counts for lr in (0, 0.01))
    assert searched["updates"] == 2 * frozen["updates"]
    for done in ("samples", "gradients"):
        assert searched[done] == (1 + passes) * frozen[done]


def test_the_jump_of_the_eigenvalue():
    flat = [1.0] * 10
    assert jumped(flat, window=5, ratio=1.3, delta=4) is None
    assert jumped([*flat, 1.2, 1.2], 5, 1.3, 4) is None
    rising = [*flat, 2.0, 3.0]  # the mean of the last five is 1.6, four epochs before it was 1
    assert jumped(rising, 5, 1.3, 4) == len(rising) - 1 - 4
    assert jumped([1.0, 9.0], 5, 1.3, 4) is None  # too early to compare


def test_too_many_skips_end_the_search_and_are_taken_back():
    def genotype(skips):
        names = ["skip_connect"] * skips + ["sep_conv_3x3"] * (4 - skips)
        cell = Cell.of([(name, number % 2) for number, name in enumerate(names)])
        return Genotype("darts_cells", cell, cell)

    class Fake:
        alphas = {"normal": None}  # noqa: RUF012

        def __init__(self, skips):
            self.skips = skips

        def mixing(self):
            return {"normal": torch.ones(4, 2) / 2}

        def derive(self):
            return genotype(self.skips)

    monitor = Monitor(StopSettings(kind="skips", start=2, window=1, ratio=1.3, delta=1, skips=2), ["a", "b"])
    ended = [monitor.epoch(Fake(skips), None)[1] for skips in (3, 1, 0, 1, 2)]
    assert ended == [False, False, False, False, True]
    assert monitor.kept == genotype(1)
    again = Monitor(monitor.config, ["a", "b"])
    again.load_state_dict(monitor.state_dict())
    assert again.kept == genotype(1)


def test_paces_and_schedules():
    pace = Pace(3, 10, 4)
    spans = [pace.updates(index) for index in range(pace.phase("x").steps)]
    assert spans == [(e, 10 * e + a, 10 * e + b) for e in range(3) for a, b in ((0, 4), (4, 8), (8, 10))]
    assert [pace.ends_epoch(index) for index in range(6)] == [False, False, True] * 2
    assert pace.phase("x").unit == "block"
    assert Pace(3, 10, None).phase("x") == Pace(3, 10, 99).phase("x")
    rates = [restarts(0.05, 0.0005, epoch, 10, 2) for epoch in range(70)]
    assert [epoch for epoch, rate in enumerate(rates) if rate == 0.05] == [0, 10, 30]
    assert min(rates) > 0.0005


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["method.retrain.reductions=4"], "method.retrain"),
        (["method.batch_size=1"], "method.batch_size"),
        (["method.stop.kind=eigenvalue"], "method.eigenvalue"),
        (["method.share=0.001"], "method.share"),
        (["method.warmup=2"], r"method.warmup: 2 epochs leave none of 2 .* use fewer"),
        (["method.stop.kind=skips"], r"method.stop.start: 10 epochs leave none of 2 .* use method.stop.start=1"),
        (
            ["method.stop.kind=eigenvalue", "method.eigenvalue=2", "method.stop.start=1"],
            r"method.stop.delta: 2 epochs have none that lies 4 .* use method.stop.delta=1",
        ),
        (["method.skip_decay=true"], "method.skip_decay: .* use model.auxiliary_skip=true"),
        (["precision=bf16", "method.order=2"], "precision=bf16: .* use precision=float32"),
        (["precision=bf16", "method.eigenvalue=2"], "precision=bf16: .* method.eigenvalue=0"),
    ],
)
def test_one_clear_line(play, words, line):
    with pytest.raises(ConfigError, match=line) as caught:
        play(*WORDS, *words)
    assert len(str(caught.value).splitlines()) == 1


def test_bf16_serves_the_first_order(play):
    assert play(*WORDS, "precision=bf16").go(1).steps[0]["loss"] > 0


def test_the_shipped_file_binds():
    from advml.compose import compose

    assert bind(compose(["method=darts"])[0]).model.name == "darts_cells"


class TestAugment:
    def test_both_halves_are_shifted_and_mirrored_by_the_update(self, play, monkeypatch):
        """As the authors' code does on CIFAR-10, whose two queues read one augmented data set."""
        played = play(*WORDS, "method.augment=crop_flip")
        method, seen = played.method, []
        monkeypatch.setattr(method, "_move_architecture", lambda batch, judge, mix: seen.append((batch, judge)))
        played.go(1)
        of_weights = torch.randperm(len(method.train_half), generator=played.context.rng("train order", 0)).split(24)
        of_alpha = torch.randperm(len(method.valid_half), generator=played.context.rng("valid order", 0)).split(24)
        for update, (batch, judge) in enumerate(seen):
            for half, index, purpose, got in (
                (method.train_half, of_weights[update], "augment weights", batch),
                (method.valid_half, of_alpha[update], "augment architecture", judge),
            ):
                raw = half.inputs["image"][index]
                moved = crop_and_flip(raw, 4, played.context.rng(purpose, update))
                assert torch.equal(got.inputs["image"], half.prepared({"image": moved})["image"])
                assert torch.equal(got.target, half.target[index])
        assert len(seen) == 3

    def test_without_it_nothing_is_drawn(self, play, same):
        assert same(play(*WORDS).go(1).weights(), play(*WORDS, "method.augment=none").go(1).weights())
        assert not same(play(*WORDS).go(1).weights(), play(*WORDS, "method.augment=crop_flip").go(1).weights())
