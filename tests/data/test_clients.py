"""The clients view: who has which examples and sees them how, on every kind of data set."""

import hashlib
import json
from dataclasses import replace

import pytest
import torch

from advml.compose import compose
from advml.config import bind
from advml.contracts import Classes, Nothing, Real, Spec, Split, Stream
from advml.data.clients import Clients, ClientsSettings
from advml.data.prepare import Rotate
from advml.data.source import Loaded, SplitSettings, split
from advml.errors import ConfigError
from advml.runner.randomness import KeyedRng
from advml.runner.run import load_view

CPU = torch.device("cpu")
SHAPE = (1, 5, 6)
PARTS = ("train", "valid", "test")
KINDS = ("iid", "shards", "dirichlet", "labels", "quantity", "groups")


def divided(classes=4, each=60, shape=SHAPE, seed=0, real=False):
    """Images of bytes, divided 64 : 16 : 20; the group of an example is its number modulo 7."""
    generator = torch.Generator().manual_seed(1)
    count = classes * each
    stored = torch.randint(256, (count, *shape), generator=generator, dtype=torch.uint8)
    target = torch.randn(count, 2, generator=generator) if real else torch.arange(classes).repeat(each)
    settings = SplitSettings(
        valid=0.2, test=0.2, limit=None, split_seed=None, normalise="standard", pca=None, keep_classes=None
    )
    spec = Spec({"image": shape}, Real((2,)) if real else Classes(classes))
    examples = Split({"image": stored}, target, group=torch.arange(count) % 7)
    return split(Loaded(examples, scale=255), spec, settings, KeyedRng(seed))


def settings(**changes):
    values = {
        "clients": 6,
        "partition": "iid",
        "shards": 2,
        "labels": 2,
        "alpha": 0.8,
        "least": 3,
        "balancing": False,
        "shift": "none",
        "noise": 0.5,
        "angle": 180.0,
    }
    return ClientsSettings(**values | changes)


def clients(splits=None, seed=0, **changes):
    splits, chosen = divided() if splits is None else splits, settings(**changes)
    assert Clients.view_spec(splits.spec, chosen) == splits.spec
    return Clients.of(splits, chosen, KeyedRng(seed))


def of_kind(kind, **changes):
    return clients(partition=kind, **{"clients": None} if kind == "groups" else {}, **changes)


def shares(view, name):
    return {"train": view.owned, "valid": view.owned_valid, "test": view.owned_test}[name]


def same(one, other):
    """The same examples, prepared alike?"""
    a, b = one.batch(slice(None)), other.batch(slice(None))
    return torch.equal(a.target, b.target) and all(torch.equal(a.inputs[key], b.inputs[key]) for key in a.inputs)


# --- who has what -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_training_examples_have_one_client_each(kind):
    view = of_kind(kind)
    assert len(view) == (7 if kind == "groups" else 6)
    assert len(view.owned) == len(view.owned_valid) == len(view.owned_test) == len(view.sizes) == len(view)
    assert torch.equal(torch.cat(view.owned).sort().values, torch.arange(len(view.train)))
    assert view.sizes.tolist() == [len(index) for index in view.owned]
    assert view.sizes.dtype == torch.int64
    assert view.sizes.min() >= 1
    for name in ("valid", "test"):
        index = torch.cat(shares(view, name))
        assert len(index.unique()) == len(index) == len(getattr(view, name))


@pytest.mark.parametrize("kind", KINDS)
def test_the_splits_are_the_data_set_s_own(kind):
    splits, view = divided(), of_kind(kind)
    for name in PARTS:
        assert same(getattr(view, name), getattr(splits, name))
        assert view.seen(name) is getattr(view, name)
    assert view.spec == splits.spec
    assert view.prepare == splits.train.prepare


@pytest.mark.parametrize("kind", ["iid", "shards", "dirichlet", "labels", "quantity"])
def test_a_share_of_the_test_has_the_labels_of_training(kind):
    view = of_kind(kind)
    table = view.table()
    for name in ("valid", "test"):
        part = getattr(view, name)
        totals = part.target.bincount(minlength=4)
        for client, index in enumerate(shares(view, name)):
            expected = table[client] / table.sum(0) * totals
            assert ((part.target[index].bincount(minlength=4) - expected).abs() < 1).all()
            assert set(part.target[index].tolist()) <= set(view.train.target[view.owned[client]].tolist())


def test_groups_are_clients():
    view = of_kind("groups")
    for name in PARTS:
        for client, index in enumerate(shares(view, name)):
            assert getattr(view, name).group[index].unique().tolist() == [client]
    fewer = clients(partition="groups", clients=3)
    held = [fewer.train.group[index].unique().tolist() for index in fewer.owned]
    assert sorted(group for groups in held for group in groups) == list(range(7))
    assert sorted(map(len, held)) == [2, 2, 3]
    for client, index in enumerate(fewer.owned_test):
        assert fewer.test.group[index].unique().tolist() == held[client]


def test_a_group_without_training_examples_has_no_client():
    splits = divided()
    splits = replace(splits, train=splits.train.take((splits.train.group != 4).nonzero().flatten()))
    view = clients(splits, partition="groups", clients=None)
    assert len(view) == 6
    assert not any((view.test.group[index] == 4).any() for index in view.owned_test)
    assert sum(map(len, view.owned_test)) == (view.test.group != 4).sum()


def test_test_examples_without_a_group_have_no_client():
    splits = divided()
    view = clients(replace(splits, test=replace(splits.test, group=None)), partition="groups", clients=None)
    assert [len(index) for index in view.owned_test] == [0] * 7
    assert len(view.examples(0, "test")) == 0


@pytest.mark.parametrize("kind", ["iid", "quantity", "groups"])
def test_real_targets(kind):
    splits = divided(real=True)
    view = clients(splits, partition=kind, clients=None if kind == "groups" else 6)
    assert torch.equal(torch.cat(view.owned).sort().values, torch.arange(len(view.train)))
    assert view.table() is None
    assert "labels" not in view.describe()["clients"]
    if kind != "groups":
        expected = view.sizes / len(view.train) * len(view.test)
        assert all(abs(len(index) - share) < 1 for index, share in zip(view.owned_test, expected, strict=True))


def test_one_client_has_all():
    for kind in ("iid", "shards", "dirichlet", "quantity"):
        view = clients(clients=1, partition=kind)
        assert view.owned[0].tolist() == list(range(len(view.train)))
        assert view.owned_test[0].tolist() == list(range(len(view.test)))
    assert same(clients(clients=1, shift="rotation").train, view.train)
    assert torch.allclose(clients(clients=1, shift="noise").train.batch(slice(None)).inputs["image"].double(),
                          view.train.batch(slice(None)).inputs["image"].double(), atol=1e-6)  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_keyed_and_repeatable(kind):
    chosen = {"partition": kind, "clients": 3 if kind == "groups" else 6, "shift": "noise"}
    splits = divided()
    once, again, other = (clients(splits, seed=seed, **chosen) for seed in (1, 1, 2))
    assert once.describe() == again.describe()
    assert same(once.train, again.train)
    assert all(torch.equal(*pair) for pair in zip(once.owned_test, again.owned_test, strict=True))
    assert once.describe()["clients"]["index_sha256"] != other.describe()["clients"]["index_sha256"]
    assert not same(once.train, other.train)


# --- batches ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", ["none", "noise", "rotation"])
def test_a_batch_has_a_row_for_each_client(shift):
    view = clients(shift=shift)
    chosen = [4, 0, 4]
    index = torch.stack([view.owned[client][row : row + 5] for row, client in enumerate(chosen)])
    batch = view.batch(chosen, index)
    assert batch.inputs["image"].shape == (3, 5, *SHAPE)
    assert batch.target.shape == (3, 5)
    assert batch.mask is None
    for row, client in enumerate(chosen):
        alone = view.examples(client, "train").batch(slice(row, row + 5))
        assert torch.equal(batch.inputs["image"][row], alone.inputs["image"])
        assert torch.equal(batch.target[row], alone.target)


def test_a_batch_of_real_targets_keeps_their_shape():
    view = clients(divided(real=True))
    assert view.batch([0, 1], torch.arange(6).reshape(2, 3)).target.shape == (2, 3, 2)


@pytest.mark.parametrize("shift", ["none", "noise", "rotation"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_on_a_device_in_a_type(shift, dtype):
    view = clients(shift=shift)
    moved = view.to(CPU, dtype)
    assert moved.batch([0], view.owned[0][None]).inputs["image"].dtype == dtype
    for name in PARTS:
        assert moved.examples(1, name).batch(slice(None)).inputs["image"].dtype == dtype
        assert torch.allclose(
            moved.examples(1, name).batch(slice(None)).inputs["image"].double(),
            view.examples(1, name).batch(slice(None)).inputs["image"].double(), atol=1e-5,
        )  # fmt: skip
    assert moved.describe() is view.describe()
    assert moved.prepare["image"][0].factor.dtype == dtype
    if shift == "none":
        assert moved.seen("test") is moved.test


# --- shift --------------------------------------------------------------------------------------------------------


def prepared(part):
    return part.batch(slice(None)).inputs["image"].double()


@pytest.mark.parametrize("shift", ["noise", "rotation"])
def test_a_shift_changes_inputs_alone(shift):
    plain, shifted = clients(), clients(shift=shift)
    for name in PARTS:
        assert all(torch.equal(*pair) for pair in zip(shares(plain, name), shares(shifted, name), strict=True))
        assert torch.equal(getattr(shifted, name).target, getattr(plain, name).target)
        assert torch.equal(getattr(shifted, name).group, getattr(plain, name).group)
        assert torch.allclose(prepared(shifted.examples(0, name)), prepared(plain.examples(0, name)), atol=1e-6)
        assert not torch.allclose(prepared(shifted.examples(3, name)), prepared(plain.examples(3, name)), atol=0.05)
    for name in ("valid", "test"):  # those of the common network
        assert same(getattr(shifted, name), getattr(plain, name))
    assert shifted.prepare is shifted.valid.prepare


def test_noise_grows_with_the_number_of_the_client():
    splits = divided(each=500)
    plain, noisy = (clients(splits, shift=shift, noise=0.4) for shift in ("none", "noise"))
    for name in ("train", "test"):
        added = [prepared(noisy.examples(client, name)) - prepared(plain.examples(client, name)) for client in range(6)]
        for client, noise in enumerate(added):
            assert abs(noise.mean()) < 0.02
            assert float(noise.std()) == pytest.approx(0.4 * client / 5, rel=0.1, abs=1e-6)
    assert prepared(noisy.train).shape == prepared(plain.train).shape
    again = clients(splits, shift="noise", noise=0.8)
    first, second = (prepared(view.examples(5, "train")) - prepared(plain.examples(5, "train"))
                     for view in (noisy, again))  # fmt: skip
    assert torch.allclose(2 * first, second, atol=1e-5)


def test_noise_leaves_masks_and_padding_alone():
    there = torch.arange(8) < torch.randint(1, 9, (60, 1), generator=torch.Generator().manual_seed(1))
    sound = torch.randn(60, 8, 3, generator=torch.Generator().manual_seed(2))
    spec = Spec({"sound": (8, 3), "mask": (8,)}, Classes(2), streams={"sound": Stream("frames", "mask")})
    chosen = SplitSettings(
        valid=0.2, test=0.2, limit=None, split_seed=None, normalise="standard", pca=None, keep_classes=None
    )
    examples = Split({"sound": sound, "mask": there}, torch.arange(60) % 2)
    splits = split(Loaded(examples), spec, chosen, KeyedRng(0))
    plain, noisy = (clients(splits, shift=shift).train.batch(slice(None)).inputs for shift in ("none", "noise"))
    assert torch.equal(noisy["mask"], plain["mask"])
    assert not noisy["sound"][~plain["mask"]].any()
    assert not torch.allclose(noisy["sound"], plain["sound"].float(), atol=0.05)


def test_each_client_turns_its_images():
    plain, turned = clients(), clients(shift="rotation", angle=90.0)
    for name in PARTS:
        for client in range(6):
            stored = plain.examples(client, name).inputs["image"]
            expected = Rotate(90.0 * client / 6)(stored) if client else stored.float()
            assert torch.allclose(turned.examples(client, name).inputs["image"], expected, atol=1e-4)


# --- the record ---------------------------------------------------------------------------------------------------


def test_the_record_says_who_has_what():
    view = clients(partition="shards")
    record = view.describe()
    assert record["train"]["examples"] == len(view.train)
    described = record["clients"]
    assert json.loads(json.dumps(described)) == described
    assert described["count"] == 6
    assert described["settings"] == {"partition": "shards", "shift": "none", "shards": 2}
    for name in PARTS:
        assert described[name] == [len(index) for index in shares(view, name)]
    rows = [dict(map(int, entry.split(":")) for entry in row.split()) for row in described["labels"]]
    for index, row in zip(view.owned, rows, strict=True):
        counts = view.train.target[index].bincount(minlength=4).tolist()
        assert row == {label: count for label, count in enumerate(counts) if count}
    assert described["index_sha256"] == [
        hashlib.sha256(index.numpy().tobytes()).hexdigest()[:16] for index in view.owned
    ]
    assert torch.equal(view.table(), torch.stack([view.train.target[i].bincount(minlength=4) for i in view.owned]))


@pytest.mark.parametrize(
    ("changes", "keys"),
    [
        ({"partition": "dirichlet"}, {"alpha", "least", "balancing"}),
        ({"partition": "labels"}, {"labels"}),
        ({"partition": "quantity", "shift": "noise"}, {"alpha", "least", "noise"}),
        ({"shift": "rotation"}, {"angle"}),
    ],
)
def test_the_record_holds_the_settings_that_matter(changes, keys):
    assert set(clients(**changes).describe()["clients"]["settings"]) == {"partition", "shift", *keys}


# --- refusals -----------------------------------------------------------------------------------------------------


IMAGES, TABLE = Spec({"image": SHAPE}, Classes(4)), Spec({"features": (3,)}, Classes(4))
NUMBERS, TEXT = Spec({"image": SHAPE}, Real((1,))), Spec({"text": (8,)}, Classes(9), tokens={"text": 9})


@pytest.mark.parametrize(
    ("spec", "changes", "message"),
    [
        (Spec({}, Nothing()), {}, "view=clients: needs a data set with examples"),
        (NUMBERS, {"partition": "shards"}, "view.partition=shards: needs a data set with classes"),
        (NUMBERS, {"partition": "dirichlet"}, "use view.partition=iid or quantity"),
        (NUMBERS, {"partition": "labels"}, "view.partition=labels: needs a data set with classes"),
        (IMAGES, {"clients": None}, "view.clients=null: only view.partition=groups knows how many"),
        (IMAGES, {"partition": "labels", "labels": 5}, "view.labels=5: there are 4 labels; use view.labels=4 or fewer"),
        (IMAGES, {"partition": "labels", "labels": 1, "clients": 3}, "3 of the 4 labels at most.*view.labels=2 or mo"),
        (TABLE, {"shift": "rotation"}, "view.shift=rotation: needs a data set of images"),
        (TEXT, {"shift": "noise"}, "view.shift=noise: needs inputs that are numbers, not tokens"),
    ],
)
def test_what_cannot_be_is_refused_before_a_file_is_read(spec, changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        Clients.view_spec(spec, settings(**changes))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"clients": 200}, "view.clients=200: there are 152 training examples, too few for so many clients; use fewer"),
        ({"clients": 80, "partition": "shards"}, "too few for so many clients of 2 shards"),
        ({"clients": 60, "partition": "quantity"}, "view.least=3: 60 clients with so many would need 180"),
        ({"clients": 50, "partition": "dirichlet", "alpha": 0.01}, "view.least=3: in 200 draws"),
        ({"clients": 100, "partition": "labels"}, "label 0 has 38 training examples for"),
        ({"clients": 8, "partition": "groups"}, "view.clients=8: the training examples are of 7 groups"),
    ],
)
def test_what_the_examples_do_not_suffice_for(changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        clients(**changes)
    assert "\n" not in str(caught.value)


def test_groups_that_there_are_not():
    splits = divided()
    splits = replace(splits, train=replace(splits.train, group=None))
    with pytest.raises(ConfigError, match=r"view.partition=groups: needs a data set that says whose each"):
        clients(splits, partition="groups", clients=None)


# --- shipped presets ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "count"),
    [
        (["dataset=digits", "view=clients"], 100),
        (["dataset=digits", "view=clients_shards"], 100),
        (["dataset=digits", "view=clients_dirichlet"], 10),
        (["dataset=series", "view=clients_groups"], 2),
        (["dataset=diabetes", "view=clients", "view.partition=quantity", "view.clients=5"], 5),
        (["dataset=digits", "view=clients", "view.shift=rotation", "view.partition=labels"], 100),
    ],
)
def test_presets_give_clients(words, count):
    bound = bind(compose(words)[0])
    spec = bound.dataset.cls(bound.dataset.settings).spec()
    assert bound.view.cls.view_spec(spec, bound.view.settings) == spec
    view = load_view(bound, pytest.fail)
    assert len(view) == count
    assert torch.equal(torch.cat(view.owned).sort().values, torch.arange(len(view.train)))
