"""Adapting to a task by ordinary training on its support set: nothing is learned through it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from advml.config import Fraction, PositiveFloat, PositiveInt, settings
from advml.contracts import Batch, Network
from advml.data.episodes import Episodes, Tasks
from advml.errors import ConfigError
from advml.methods.meta.common import parts, task_losses
from advml.nn.abilities import Unsuited
from advml.nn.evaluation import evaluating
from advml.nn.optimisers import Adam, Optimiser, Sgd
from advml.nn.replica_training import start_from, train_copies
from advml.nn.replicas import Engine, Replicas, make_replicas
from advml.nn.training import minibatches

Orders = Callable[[int], torch.Generator]
"""Number of an epoch → the generator that shuffles it, for all tasks alike."""


@settings
class FinetuningSettings:
    """How a network is trained on the support set of a task, and how long in evaluation."""

    inner_optimiser: Literal["sgd", "adam"]
    inner_lr: PositiveFloat
    inner_betas: tuple[Fraction, Fraction]
    eval_steps: PositiveInt
    eval_batch_size: PositiveInt | None
    engine: Engine


def copies_of(network: Network, config: FinetuningSettings, examples: int) -> Replicas:
    """Copies of the network, by the engine asked for, for so many support examples to a copy in an update."""
    try:
        return make_replicas(network, config.engine, [examples])
    except Unsuited as error:
        raise ConfigError(f"method.{error}") from None


def tested_copies_of(network: Network, config: FinetuningSettings, view: Episodes) -> Replicas:
    """Those for evaluation tasks."""
    support = (view.ways or 1) * view.shots
    return copies_of(network, config, min(support, config.eval_batch_size or support))


def check_batches(network: Network, key: str, size: int | None, support: Mapping[str, Tensor], examples: int) -> None:
    """Refuse batches of a support set of so many examples, like those of `support`, name → [T, S, ...], if a batch norm
    would meet a single value of each channel: one row alone, or one image of 1 × 1.
    """
    size = examples if size is None else min(size, examples)
    if size > 1 and examples % size != 1:
        return
    if _normalises_one_value(network, {name: values[0, :1] for name, values in support.items()}):
        remedy = "use view.shots of at least 2" if examples == 1 else f"use method.{key}=null"
        raise ConfigError(
            f"method.{key}: leaves one of {examples} support examples alone, of which a batch norm has no statistics; "
            f"{remedy}, or model.norm=layer"
        )


def check_queries(network: Network, view: Episodes, splits: Iterable[str]) -> None:
    """Refuse tasks with one query example where a batch norm would take its statistics from it: all inputs would look
    alike to the network.
    """
    shapes = [view.config.shape(split) for split in splits]
    if all((shape.ways or 1) * shape.queries > 1 for shape in shapes):
        return
    one = {name: values[0, :1] for name, values in view.fixed("valid", 0, 1).query.inputs.items()}
    if _normalises_one_value(network, one):
        raise ConfigError(
            "view.queries: a batch norm has no statistics of one example; use more, method.transductive=false, or "
            "model.norm=layer"
        )


def _normalises_one_value(network: Network, one: Mapping[str, Tensor]) -> bool:
    """Does a batch norm meet a single value of each channel, where there is one example? A trial tells."""
    met: list[int] = []
    hooks = [
        module.register_forward_pre_hook(lambda module, given: met.append(given[0].numel() // given[0].shape[1]))
        for module in network.modules()
        if isinstance(module, _BatchNorm)
    ]
    if hooks:
        with evaluating(network):
            network(one)
    for hook in hooks:
        hook.remove()
    return 1 in met


def inner_optimiser(parameters: Iterable[nn.Parameter], config: FinetuningSettings) -> Optimiser:
    """A fresh one."""
    if config.inner_optimiser == "sgd":
        return Sgd(parameters, config.inner_lr)
    return Adam(parameters, config.inner_lr, config.inner_betas)


def support_batches(tasks: Tasks, size: int | None, steps: int, orders: Orders) -> Iterator[Batch]:
    """`steps` mini-batches [T, size, ...] of the support sets, in shuffled epochs; None = the whole sets each time."""
    support = tasks.support
    examples = support.target.shape[1]
    if size is None or size >= examples:
        for _ in range(steps):
            yield support
        return
    for index in minibatches(examples, size, 0, steps, orders):
        here = index.to(support.target.device, non_blocking=True)
        yield Batch({name: values[:, here] for name, values in support.inputs.items()}, support.target[:, here])


def moments(steps: int) -> list[int]:
    """After how many steps the query examples are asked: each of the first ten, every tenth, the last."""
    return [step for step in range(steps + 1) if step <= 10 or step % 10 == 0 or step == steps]


def fine_tuned(
    replicas: Replicas,
    values: Mapping[str, Tensor],
    tasks: Tasks,
    config: FinetuningSettings,
    orders: Orders,
    transductive: bool,
    memory: Mapping[str, Any] | None = None,
) -> Tensor:
    """Outputs [len(moments), T, Q, C] for the query examples while copies that start from `values` learn the tasks.

    Batch norm of the query examples: by all of them where `transductive`, otherwise by the support set. `memory`: the
    state of an optimiser of one copy, with which all of them start.
    """
    asked = set(moments(config.eval_steps))
    return torch.cat(
        [
            _fine_tuned(replicas, values, few, config, orders, transductive, memory, asked)
            for few in parts(tasks, replicas.at_once or len(tasks.query.target))
        ],
        1,
    )


def _fine_tuned(
    replicas: Replicas,
    values: Mapping[str, Tensor],
    tasks: Tasks,
    config: FinetuningSettings,
    orders: Orders,
    transductive: bool,
    memory: Mapping[str, Any] | None,
    asked: set[int],
) -> Tensor:
    copies = start_from(values, len(tasks.query.target))
    optimiser = inner_optimiser(copies.values(), config)
    if memory is not None:
        optimiser.load_state_dict(_for_copies(memory, len(tasks.query.target)))
    reference = None if transductive else tasks.support.inputs

    def ask() -> Tensor:
        with torch.no_grad():
            return replicas.outputs(dict(copies), tasks.query.inputs, reference)

    batches = support_batches(tasks, config.eval_batch_size, config.eval_steps, orders)
    found = [ask()]
    for step, _ in enumerate(train_copies(replicas, copies, batches, task_losses, optimiser), start=1):
        if step in asked:
            found.append(ask())
    return torch.stack(found)


def _for_copies(memory: Mapping[str, Any], copies: int) -> dict[str, Any]:
    """The state of an optimiser of one copy, [1, ...] each tensor, as that of many."""
    slots = {
        name: [None if tensor is None else tensor.expand(copies, *tensor.shape[1:]) for tensor in tensors]
        for name, tensors in memory["slots"].items()
    }
    return {**memory, "slots": slots}
