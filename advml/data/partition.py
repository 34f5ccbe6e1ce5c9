"""Dividing examples among the clients of federated learning.

Every function gives `owner`, int64 [N]: which client, 0 to K − 1, has each example. So no example can have two owners.
Labels are int64 [N] counted from 0. All that is drawn comes from the generator that is passed.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from advml.errors import ConfigError

ATTEMPTS = 200  # draws of a Dirichlet partition before it is given up


def iid(examples: int, clients: int, generator: torch.Generator) -> Tensor:
    """Shuffled and dealt evenly: sizes differ by at most one."""
    return _placed(torch.randperm(examples, generator=generator), even(examples, clients))


def shards(target: Tensor, clients: int, each: int, generator: torch.Generator) -> Tensor:
    """Sorted by label, cut into K · `each` shards of one size, and each client is dealt `each` of them at random.

    McMahan et al. 2017, section 3: 60,000 digits, 200 shards of 300, two for each of 100 clients. Examples of a label
    are shuffled first, so that a shard does not depend on the order of the file. A shard has one label where the size
    of the shards divides those of the classes; otherwise some have two.
    """
    # Every number modulo K comes up `each` times.
    client_of = torch.randperm(clients * each, generator=generator) % clients
    owner = torch.empty(len(target), dtype=torch.int64)
    owner[_by_label(target, generator)] = client_of.repeat_interleave(even(len(target), clients * each))
    return owner


def label_skew(
    target: Tensor, clients: int, alpha: float, least: int, balancing: bool, generator: torch.Generator
) -> Tensor:
    """For each label c the shares of the clients are drawn: p_c ~ Dirichlet(α, …, α) over K clients.

    The variant of Yurochkin et al. 2019 (section 4) and Li et al. 2022; Hsu et al. 2019 draw the other way round, for
    each client its shares of the labels. `balancing`: a client that has N / K examples or more gets none of the labels
    that follow, as in the code of Li et al. All is drawn again until each client has `least` examples; ConfigError
    where that does not come about.
    """
    totals = target.bincount()

    def drawn() -> Tensor:
        log_weights = log_gamma(alpha, len(totals), clients, generator)
        return _balanced(log_weights, totals) if balancing else cut(log_weights.softmax(1), totals)

    counts = _with_least(drawn, least, len(target), clients, alpha)
    return dealt(target, counts, generator)


def quantity_skew(examples: int, clients: int, alpha: float, least: int, generator: torch.Generator) -> Tensor:
    """The shares of the clients in all examples are drawn, p ~ Dirichlet(α, …, α); labels are mixed (Li et al. 2022).

    Drawn again until each client has `least` examples; ConfigError where that does not come about.
    """
    total = torch.tensor([examples])

    def drawn() -> Tensor:
        return cut(log_gamma(alpha, 1, clients, generator).softmax(1), total)

    sizes = _with_least(drawn, least, examples, clients, alpha)
    return _placed(torch.randperm(examples, generator=generator), sizes[0])


def fixed_labels(target: Tensor, labels: int, clients: int, each: int, generator: torch.Generator) -> Tensor:
    """Exactly `each` of `labels` C for each client; a label's examples are dealt evenly to the clients that have it.

    Li et al. 2022, "#C = c": client k has label k mod C, its other labels are drawn. Where there are fewer clients
    than labels, client k also has the labels k + K, k + 2K, …, so that each label has a client if K · `each` ≥ C.
    Raises ConfigError where a label has fewer examples than clients.
    """
    totals = target.bincount(minlength=labels)
    client, label = torch.arange(clients).unsqueeze(1), torch.arange(labels)
    must = (client % labels == label) | (label % clients == client)
    drawn = torch.rand(clients, labels, generator=generator) + must
    holds = torch.zeros(clients, labels, dtype=torch.bool)
    holds.scatter_(1, drawn.topk(each, 1).indices, True)

    holders = holds.sum(0)
    if bool((lacking := holders > totals).any()):
        first = int(lacking.nonzero()[0])
        raise ConfigError(
            f"view.clients={clients}: label {first} has {int(totals[first]):,} training examples for "
            f"{int(holders[first]):,} clients that shall have it; use fewer clients or view.labels"
        )
    place = holds.long().cumsum(0) - 1  # among the clients that have the label
    counts = (totals // holders + (place < totals % holders)) * holds
    return dealt(target, counts.T, generator)


def clients_of_groups(groups: int, clients: int | None, generator: torch.Generator) -> Tensor:
    """Which client each group is, int64 [groups]: one each, or dealt at random so that counts differ by at most one."""
    return torch.arange(groups) if clients is None else torch.randperm(groups, generator=generator) % clients


def by_group(group: Tensor, known: Tensor, client_of: Tensor) -> Tensor:
    """The client of each example by its group; −1 for a group that is not among the `known` (ascending)."""
    place = torch.searchsorted(known, group).clamp_(max=len(known) - 1)
    return torch.where(known[place] == group, client_of[place], -1)


def alike(target: Tensor, counts: Tensor, generator: torch.Generator) -> Tensor:
    """Deal held-out examples so that each client's labels resemble those that it trains on, `counts` [C, K].

    Of label c, client k gets its share counts[c, k] / Σ_k counts[c, k], to the next whole number above or below. What
    nobody trains on belongs to nobody: −1.
    """
    labels, clients = counts.shape
    totals = target.bincount(minlength=labels)
    nobody = counts.sum(1, keepdim=True) == 0
    weights = torch.cat([counts, nobody], 1).double()
    # Labels are cut at other fractions, or of many clients always the same would get the rounded shares.
    offset = (torch.randperm(labels, generator=generator) + 0.5) / labels
    owner = dealt(target, cut(weights / weights.sum(1, keepdim=True), totals, offset), generator)
    return torch.where(owner == clients, -1, owner)


def held(owner: Tensor, clients: int) -> tuple[Tensor, ...]:
    """The examples of each client, ascending; those of nobody (−1) are left out."""
    order = owner.argsort(stable=True)
    sizes = (owner + 1).bincount(minlength=clients + 1).tolist()
    return tuple(order.split(sizes)[1:])


def table(owner: Tensor, target: Tensor, clients: int, labels: int) -> Tensor:
    """How many examples of each label each client has: int64 [K, C]."""
    known = owner >= 0
    return (owner[known] * labels + target[known]).bincount(minlength=clients * labels).reshape(clients, labels)


# --- counts -------------------------------------------------------------------------------------------------------


def even(total: int, parts: int) -> Tensor:
    """`total` in parts that differ by at most one, the larger first: int64 [parts]."""
    return total // parts + (torch.arange(parts) < total % parts).long()


def log_gamma(alpha: float, rows: int, columns: int, generator: torch.Generator) -> Tensor:
    """Logarithms of Gamma(α) variables, float64 [rows, columns]: the softmax of a row is Dirichlet(α, …, α).

    By Gamma(α) = Gamma(α + 1) · U^(1/α); for a small α the variables themselves are below the smallest float.
    """
    shape = torch.full((rows, columns), alpha + 1, dtype=torch.float64)
    above = torch._standard_gamma(shape, generator=generator).log()
    minus_log_u = torch.empty_like(shape).exponential_(generator=generator)
    return above - minus_log_u / alpha


def cut(shares: Tensor, totals: Tensor, offset: Tensor | float = 0.5) -> Tensor:
    """Whole numbers near `shares` [R, K] · `totals` [R], rows of which sum to 1: int64 [R, K] with these totals.

    The sums of the first shares are rounded, by default to the nearest, so that each number is less than one away.
    `offset` [R] in (0, 1): what is added before rounding down.
    """
    offset = torch.as_tensor(offset, dtype=torch.float64).expand(len(totals)).unsqueeze(1)
    ends = (shares.cumsum(1) * totals.unsqueeze(1) + offset).floor().long().clamp_(max=totals.unsqueeze(1))
    ends[:, -1] = totals
    return ends.diff(dim=1, prepend=ends.new_zeros(len(ends), 1))


def dealt(target: Tensor, counts: Tensor, generator: torch.Generator) -> Tensor:
    """The owners of shuffled examples where client k has counts[c, k] of label c; rows sum to the label's examples."""
    labels, clients = counts.shape
    owner = torch.empty(len(target), dtype=torch.int64)
    owner[_by_label(target, generator)] = torch.arange(clients).repeat(labels).repeat_interleave(counts.flatten())
    return owner


def _placed(order: Tensor, sizes: Tensor) -> Tensor:
    """The first sizes[0] examples in the order are client 0's, and so on."""
    owner = torch.empty_like(order)
    owner[order] = torch.arange(len(sizes)).repeat_interleave(sizes)
    return owner


def _by_label(target: Tensor, generator: torch.Generator) -> Tensor:
    """The indices of all examples by label, those of a label shuffled."""
    shuffled = torch.randperm(len(target), generator=generator)
    return shuffled[target[shuffled].argsort(stable=True)]


def _balanced(log_weights: Tensor, totals: Tensor) -> Tensor:
    """Label after label, cut by the shares of those clients alone that have fewer than N / K examples so far."""
    clients, examples = log_weights.shape[1], int(totals.sum())
    counts = torch.zeros(log_weights.shape, dtype=torch.int64)
    for label, total in enumerate(totals):
        if total:  # otherwise all may be full, and there is nothing to deal
            full = counts.sum(0) * clients >= examples
            shares = log_weights[label].masked_fill(full, float("-inf")).softmax(0)
            counts[label] = cut(shares.unsqueeze(0), total.unsqueeze(0))[0]
    return counts


def _with_least(drawn: Callable[[], Tensor], least: int, examples: int, clients: int, alpha: float) -> Tensor:
    """The first draw of counts [R, K] in which each client has `least` examples."""
    if least * clients > examples:
        raise ConfigError(
            f"view.least={least}: {clients:,} clients with so many would need {least * clients:,} training examples, "
            f"and there are {examples:,}; use view.clients={max(1, examples // least)} or fewer"
        )
    for _ in range(ATTEMPTS):
        counts = drawn()
        if int(counts.sum(0).min()) >= least:
            return counts
    raise ConfigError(
        f"view.least={least}: in {ATTEMPTS} draws with view.alpha={alpha:g} some of the {clients:,} clients always had "
        f"fewer training examples; use a larger view.alpha, a smaller view.least or fewer clients"
    )
