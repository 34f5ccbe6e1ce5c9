"""The clients view: each training example belongs to one of many clients, for federated learning (McMahan et al. 2017).

How examples are divided (`partition`): advml/data/partition.py. Validation and test examples are there as a whole, for
the common network, and dealt so that each client's share resembles what it trains on, for personal ones; by `groups` a
client's share is that of its own groups.

With `shift` the inputs differ between clients too ("feature skew", Li et al. 2022): the later a client, the more its
inputs are blurred by noise or turned. What a client sees never changes, so it is computed once and stored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from advml.config import CountFloat, PositiveInt, settings
from advml.contracts import Batch, Classes, Prepare, Real, Rng, Spec, Split, SplitName
from advml.data import partition
from advml.data.prepare import Affine, Rotate
from advml.data.source import Splits
from advml.errors import ConfigError

PARTS: tuple[SplitName, ...] = ("train", "valid", "test")
AT_ONCE = 2**12  # examples that are prepared or turned at a time
BY_LABEL = ("shards", "dirichlet", "labels")


@settings
class ClientsSettings:
    """The keys of configs/view/clients.yaml."""

    clients: Annotated[int, Interval(ge=1, le=100_000)] | None
    partition: Literal["iid", "shards", "dirichlet", "labels", "quantity", "groups"]
    shards: PositiveInt
    labels: PositiveInt
    alpha: Annotated[float, Interval(ge=1e-6, le=1e6)]
    least: PositiveInt
    balancing: bool
    shift: Literal["none", "noise", "rotation"]
    noise: CountFloat
    angle: Annotated[float, Interval(gt=0, le=360)]


@dataclass(frozen=True)
class Shares:
    """A split and who has what of it: as it is, as each example's owner sees it, and each client's indices (CPU)."""

    whole: Split
    seen: Split
    owned: tuple[Tensor, ...]

    def to(self, device: torch.device, dtype: torch.dtype) -> Shares:
        """The examples on a device."""
        whole = self.whole.to(device, dtype)
        return Shares(whole, whole if self.seen is self.whole else self.seen.to(device, dtype), self.owned)


class Clients:
    """K clients, numbered from 0. Indices into the splits are int64 on the CPU, ascending within a client.

    `train` holds what the clients see; `owned` divides it: each of its examples has exactly one client, and each client
    an example. `valid` and `test` are as the data set has them. `owned_valid` and `owned_test` divide those: an example
    has one client at the most, and a client may have none. `sizes`, int64 [K], counts `owned`.
    """

    kind: ClassVar[str] = "clients"
    settings: ClassVar[type] = ClientsSettings

    def __init__(self, shares: Mapping[SplitName, Shares], spec: Spec, record: Mapping[str, Any]) -> None:
        self.shares, self.spec, self.record = shares, spec, record
        self.train, self.valid, self.test = shares["train"].seen, shares["valid"].whole, shares["test"].whole
        self.owned, self.owned_valid, self.owned_test = (shares[name].owned for name in PARTS)
        self.sizes = torch.tensor([len(index) for index in self.owned])

    @staticmethod
    def view_spec(spec: Spec, settings: ClientsSettings) -> Spec:
        """The data set's own spec. Raises ConfigError where it cannot be divided so."""
        if not isinstance(spec.target, Classes | Real):
            raise ConfigError("view=clients: needs a data set with examples (see: advml list datasets)")
        kind, clients = settings.partition, settings.clients
        if kind in BY_LABEL and not isinstance(spec.target, Classes):
            raise ConfigError(
                f"view.partition={kind}: needs a data set with classes; use view.partition=iid or quantity"
            )
        if clients is None and kind != "groups":
            raise ConfigError(f"view.clients=null: only view.partition=groups knows how many; by {kind}, give a number")
        if kind == "labels":
            _check_labels(spec.outputs, settings)
        if settings.shift != "none" and spec.tokens:
            raise ConfigError(
                f"view.shift={settings.shift}: needs inputs that are numbers, not tokens; use view.shift=none"
            )
        if settings.shift == "rotation" and any(len(shape) != 3 for shape in spec.inputs.values()):
            raise ConfigError("view.shift=rotation: needs a data set of images, such as dataset=digits")
        return spec

    @classmethod
    def of(cls, splits: Splits, settings: ClientsSettings, rng: Rng) -> Clients:
        """The clients of divided examples; whatever is drawn is keyed like the split."""
        parts: dict[SplitName, Split] = {"train": splits.train, "valid": splits.valid, "test": splits.test}
        owners, clients = _owners(parts, splits.spec, settings, rng)
        shares: dict[SplitName, Shares] = {}
        for name, part in parts.items():
            seen = _seen(part, owners[name], clients, settings, rng, name)
            whole = seen if name == "train" else part  # training examples that nobody sees would only take memory
            shares[name] = Shares(whole, seen, partition.held(owners[name], clients))
        record = dict(splits.record) | {"clients": _described(splits, settings, shares)}
        return cls(shares, splits.spec, record)

    def __len__(self) -> int:
        return len(self.owned)

    def batch(self, clients: Sequence[int], index: Tensor) -> Batch:
        """A batch of each of R clients: inputs name → [R, B, ...], prepared, and target [R, B, ...].

        `index` int64 [R, B], into `train`; row r holds examples of `clients[r]`. Examples have one owner and `train`
        holds what it sees, so that the numbers of the clients need not be looked at.
        """
        inputs, target, _ = self.train.batch(index.flatten().to(self.train.device, non_blocking=True))
        rows = index.shape  # `unflatten` is Python, which counts where steps are short
        shaped = {name: values.reshape(*rows, *values.shape[1:]) for name, values in inputs.items()}
        return Batch(shaped, target.reshape(*rows, *target.shape[1:]))

    def examples(self, client: int, split: SplitName) -> Split:
        """A client's own examples, as it sees them."""
        shares = self.shares[split]
        return shares.seen.take(shares.owned[client])

    def seen(self, split: SplitName) -> Split:
        """The whole split, each example as its owner sees it: all clients are measured in one pass over it."""
        return self.shares[split].seen

    def table(self) -> Tensor | None:
        """How many training examples of each label each client has, int64 [K, C] on the CPU; None without classes."""
        return _table(self.train.target.cpu(), self.owned, self.spec)

    @property
    def prepare(self) -> Mapping[str, tuple[Prepare, ...]]:
        """The normalisation fitted on train, without what shifts a client's inputs."""
        return self.valid.prepare

    def to(self, device: torch.device, dtype: torch.dtype) -> Clients:
        """All examples on a device."""
        return Clients({name: part.to(device, dtype) for name, part in self.shares.items()}, self.spec, self.record)

    def describe(self) -> Mapping[str, Any]:
        """Sizes, labels and hashes of the splits, and of each client's part."""
        return self.record


def _check_labels(classes: int, settings: ClientsSettings) -> None:
    """Can clients have so many labels each, and all labels a client?"""
    clients, labels = settings.clients, settings.labels
    assert clients is not None
    if labels > classes:
        raise ConfigError(f"view.labels={labels}: there are {classes} labels; use view.labels={classes} or fewer")
    if clients * labels < classes:
        raise ConfigError(
            f"view.labels={labels}: {clients} clients have {clients * labels} of the {classes} labels at most, and the "
            f"other examples no client; use view.labels={-(-classes // clients)} or more, or more clients"
        )


def _owners(
    parts: Mapping[SplitName, Split], spec: Spec, settings: ClientsSettings, rng: Rng
) -> tuple[dict[SplitName, Tensor], int]:
    """(of each split the owners of its examples, the number of clients)."""
    if settings.partition == "groups":
        return _owners_by_group(parts, settings, rng)
    clients = settings.clients
    assert clients is not None
    train = _owners_of_train(parts["train"], spec.outputs, clients, settings, rng)
    # Real targets are of one kind: each client gets its share of all.
    labels = spec.outputs if isinstance(spec.target, Classes) else 1
    target = {name: _labels(part.target) for name, part in parts.items()}
    counts = partition.table(train, target["train"], clients, labels).T
    held_out: dict[SplitName, Tensor] = {
        name: partition.alike(target[name], counts, rng("clients", name)) for name in PARTS[1:]
    }
    return {"train": train, **held_out}, clients


def _owners_of_train(train: Split, classes: int, clients: int, settings: ClientsSettings, rng: Rng) -> Tensor:
    generator, examples, alpha = rng("clients", "train"), len(train), settings.alpha
    if clients * (settings.shards if settings.partition == "shards" else 1) > examples:
        what = f" of {settings.shards} shards" if settings.partition == "shards" else ""
        raise ConfigError(
            f"view.clients={clients}: there are {examples:,} training examples, too few for so many clients{what}; "
            f"use fewer"
        )
    if settings.partition == "shards":
        return partition.shards(train.target, clients, settings.shards, generator)
    if settings.partition == "dirichlet":
        return partition.label_skew(train.target, clients, alpha, settings.least, settings.balancing, generator)
    if settings.partition == "labels":
        return partition.fixed_labels(train.target, classes, clients, settings.labels, generator)
    if settings.partition == "quantity":
        return partition.quantity_skew(examples, clients, alpha, settings.least, generator)
    return partition.iid(examples, clients, generator)


def _owners_by_group(
    parts: Mapping[SplitName, Split], settings: ClientsSettings, rng: Rng
) -> tuple[dict[SplitName, Tensor], int]:
    """A client for each group, or groups dealt to fewer clients. A group without training examples has none."""
    group = parts["train"].group
    if group is None:
        raise ConfigError(
            "view.partition=groups: needs a data set that says whose each example is, such as shakespeare, omniglot, "
            "leaf or series"
        )
    known = group.unique()
    if settings.clients is not None and settings.clients > len(known):
        raise ConfigError(
            f"view.clients={settings.clients}: the training examples are of {len(known)} groups; use that many, or "
            f"fewer, or view.clients=null for a client each"
        )
    client_of = partition.clients_of_groups(len(known), settings.clients, rng("clients", "groups"))
    nobody = {name: torch.full((len(part),), -1) for name, part in parts.items() if part.group is None}
    owners = {
        name: partition.by_group(part.group, known, client_of) for name, part in parts.items() if part.group is not None
    }
    return owners | nobody, len(known) if settings.clients is None else settings.clients


def _labels(target: Tensor) -> Tensor:
    """What examples are told apart by, int64 [N]: their class; nothing where targets are real numbers."""
    return torch.zeros(len(target), dtype=torch.int64) if target.is_floating_point() else target


# --- what a client sees -------------------------------------------------------------------------------------------


def _seen(part: Split, owner: Tensor, clients: int, settings: ClientsSettings, rng: Rng, name: SplitName) -> Split:
    """The split as the owners of its examples see it; those of nobody are as they are. The same split without shift.

    `noise`: x̂ = x + σ_k ε with ε ~ N(0, 1) for every prepared number, σ_k = noise · k / (K − 1) for client k; after
    Li et al. 2022, whose noise is drawn anew each time. Masks stay. `rotation`: turned by angle · k / K degrees before
    preparation.
    """
    if settings.shift == "none" or not len(part):
        return part
    if settings.shift == "rotation":
        turned = {name: _turned(values, owner, clients, settings.angle) for name, values in part.inputs.items()}
        return replace(part, inputs=turned)
    deviation = settings.noise * owner.clamp(min=0) / max(1, clients - 1)
    inputs, prepare = {}, {}
    for key, stored in part.inputs.items():
        if stored.dtype == torch.bool:  # says what of another input is there
            inputs[key] = stored
            continue
        generator = rng("clients", "noise", name, key)
        chunks = []
        for at in range(0, len(part), AT_ONCE):
            values = part.batch(slice(at, at + AT_ONCE)).inputs[key].float()
            noise = torch.randn(values.shape, generator=generator)
            scale = deviation[at : at + AT_ONCE].reshape(-1, *[1] * (values.dim() - 1))
            chunks.append(torch.addcmul(values, noise, scale))
        inputs[key] = torch.cat(chunks)
        prepare[key] = (Affine(torch.ones(()), torch.zeros(())),)  # gives them the type of the run's numbers
    return replace(part, inputs=inputs, prepare=prepare)


def _turned(values: Tensor, owner: Tensor, clients: int, angle: float) -> Tensor:
    """Images [N, C, H, W], those of client k turned by angle · k / K degrees: float32."""
    turned = values.float()
    for client, index in enumerate(partition.held(owner, clients)):
        for chunk in index.split(AT_ONCE) if client and len(index) else ():
            turned[chunk] = Rotate(angle * client / clients)(turned[chunk])
    return turned


# --- the record ---------------------------------------------------------------------------------------------------


def _table(target: Tensor, owned: Sequence[Tensor], spec: Spec) -> Tensor | None:
    if not isinstance(spec.target, Classes):
        return None
    owner = torch.empty(len(target), dtype=torch.int64)
    owner[torch.cat(list(owned))] = torch.arange(len(owned)).repeat_interleave(torch.tensor(list(map(len, owned))))
    return partition.table(owner, target, len(owned), spec.target.count)


def _described(splits: Splits, settings: ClientsSettings, shares: Mapping[SplitName, Shares]) -> dict[str, Any]:
    """The settings that matter, and of each client: how many examples, of which labels, and a hash of which they are.

    A client's labels are a text, "3:270 7:270": a line of data.json each, however many there are.
    """
    used = {
        "shards": ["shards"], "labels": ["labels"], "dirichlet": ["alpha", "least", "balancing"],
        "quantity": ["alpha", "least"], "noise": ["noise"], "rotation": ["angle"],
    }  # fmt: skip
    keys = [*used.get(settings.partition, []), *used.get(settings.shift, [])]
    chosen = {"partition": settings.partition, "shift": settings.shift} | {key: getattr(settings, key) for key in keys}
    owned = shares["train"].owned
    counts = _table(splits.train.target, owned, splits.spec)
    described: dict[str, Any] = {"count": len(owned), "settings": chosen}
    described |= {name: [len(index) for index in part.owned] for name, part in shares.items()}
    if counts is not None:
        described["labels"] = [
            " ".join(f"{label}:{count}" for label, count in enumerate(row) if count) for row in counts.tolist()
        ]
    described["index_sha256"] = [hashlib.sha256(index.numpy().tobytes()).hexdigest()[:16] for index in owned]
    return described
