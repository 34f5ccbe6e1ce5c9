"""Model-agnostic meta-learning (Finn, Abbeel, Levine 2017, ICML) and its kin that differ in what is adapted, and how.

First-order MAML drops second derivatives (their section 5.2); ANIL adapts the head alone (Raghu et al. 2020); Meta-SGD
learns a rate for each parameter (Li et al. 2017); MAML++ learns one for each layer and step, minimises the query loss
after every step, and gives batch norms a scale and a shift for each step (Antoniou, Edwards, Storkey 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _BatchNorm

from advml.config import CountFloat, CountInt, settings
from advml.contracts import Batch, Classes, Context, Network
from advml.data.episodes import Tasks
from advml.errors import ConfigError
from advml.methods.meta.common import MetaLearner, MetaSettings, examples_of, parts, task_losses
from advml.methods.meta.finetuning import check_queries
from advml.nn.abilities import Unsuited, twice_differentiable
from advml.nn.chain_unrolled import Unrolled, layers_of
from advml.nn.optimisers import OptimiserSettings, make_optimiser
from advml.nn.replicas import Batched, Engine, Parameters, Replicas, expand, make_replicas


@settings
class Settings(MetaSettings):
    """How a task is adapted to, and how much of that is differentiated."""

    order: Literal[1, 2]
    first_order: CountInt
    steps: CountInt
    eval_steps: CountInt
    inner_lr: CountFloat
    inner_rates: Literal["fixed", "per_parameter", "per_step"]
    inner_loss: Literal["mean", "per_shot"]
    adapt: Literal["all", "head"]
    multi_step: CountInt
    norm_per_step: bool
    engine: Engine
    compile: bool

    def __post_init__(self) -> None:
        OptimiserSettings.__post_init__(self)
        if self.inner_rates != "fixed" and not self.steps:
            raise ValueError(f"inner_rates={self.inner_rates}: without a step no rate is learned; use fixed")
        if self.multi_step and self.steps < 2:
            raise ValueError("multi_step: needs method.steps of at least 2; use 0")
        if self.norm_per_step and self.steps < 2:
            raise ValueError("norm_per_step: needs method.steps of at least 2; use false")
        if self.first_order and self.order == 1:
            raise ValueError("first_order: method.order=1 is of first order throughout; use 0")
        if self.first_order >= self.iterations:
            raise ValueError(
                f"first_order: order 2 would never be reached in {self.iterations} meta-iterations; use method.order=1"
            )
        if self.compile and self.multi_step:
            raise ValueError("compile: the weights of method.multi_step change each time; use 0")


class Start(NamedTuple):
    """All that is learned, by the names of the network's parameters: what adaptation starts from, and its rates.

    `network`: θ. `rates`: α of what is adapted, [*shape] or [steps]; empty where it is fixed. `norms`: the scales and
    shifts of batch norms in later steps, [steps − 1, C]; empty where they have the same in each.
    """

    network: Mapping[str, Tensor]
    rates: Mapping[str, Tensor]
    norms: Mapping[str, Tensor]


class Maml(MetaLearner):
    """Algorithm 1: min over θ of Σ_i L_i^query(θ'_i), where θ'_i = θ − α ∇_θ L_i^support(θ), `steps` times over.

    All tasks are adapted to side by side: a parameter of T tasks is one tensor [T, *shape].
    """

    settings = Settings

    def setup(self, context: Context) -> None:
        """The network θ, the names of what its copies adapt, and what else is learned: rates α, norms by step."""
        self.compiled: Callable[..., tuple[Start, Tensor]] | None = None
        self.rates: dict[str, nn.Parameter] = {}
        self.norms: dict[str, nn.Parameter] = {}
        super().setup(context)
        config, get = self.config, self.network.get_parameter
        self.trained_steps = config.steps
        self.theta: dict[str, Tensor] = dict(self.network.named_parameters())
        self._check()
        # The mean over N · K support examples, or their sum / K: N times as much.
        self.scale = float(self.view.ways or 1) if config.inner_loss == "per_shot" else 1.0
        of_norms = norm_parameters(self.network) if config.norm_per_step else []
        self.adapts = [
            name
            for name, parameter in self.theta.items()
            if parameter.requires_grad and name not in of_norms and (config.adapt == "all" or name.startswith("head."))
        ]
        if not self.adapts:
            raise ConfigError("method.adapt=head: this network's head has nothing that could be adapted; use all")
        if config.inner_rates != "fixed":
            by_step = torch.empty(config.steps) if config.inner_rates == "per_step" else None
            for name in self.adapts:
                like = get(name).detach() if by_step is None else by_step.to(get(name))
                self.rates[name] = nn.Parameter(torch.full_like(like, config.inner_lr))
        for name in of_norms:
            self.norms[name] = nn.Parameter(get(name).detach().repeat(config.steps - 1, 1))
        self.optimiser = make_optimiser(self.learned(), config)  # θ, and now the rest with it
        self.replicas = self._replicas()
        self.at_once = self.replicas.at_once
        self.unrolled = self._unrolled()
        if config.compile and self.replicas.engine != "batched":
            raise ConfigError("method.compile: only what engine batched computes is compiled (mlp, linear); use false")

    def learned(self) -> list[nn.Parameter]:
        """θ; with it α and what norms have for each later step, where these are learned."""
        return [*super().learned(), *self.rates.values(), *self.norms.values()]

    def start(self) -> Start:
        """The same by name."""
        return Start(self.theta, self.rates, self.norms)

    # --- the algorithm ---

    def loss(self, tasks: Tasks) -> Tensor:
        """The mean over tasks of L^query(θ'), or of its weighted sum over the steps (MAML++, eq. 4)."""
        return self.loss_from(self.start(), tasks, self.is_second(), self.weights())

    def loss_from(self, start: Start, tasks: Tasks, second: bool, weights: Sequence[float]) -> Tensor:
        """The same, as a function of all that is learned. `weights`: of the query losses after 0, 1, … steps."""
        learning = self.adaptation(start, tasks.support, self.config.steps, second=second, dropout=True)
        losses = []
        for parameters, weight in zip(learning, weights, strict=True):
            if weight:
                outputs = self.query_outputs(parameters, tasks, dropout=True)
                losses.append(weight * task_losses(outputs, tasks.query.target).mean())
        return torch.stack(losses).sum()

    def adaptation(
        self, start: Start, support: Batch, steps: int, *, second: bool, dropout: bool
    ) -> Iterator[Parameters]:
        """θ'_0 = θ, θ'_{k+1} = θ'_k − α ∇ L^support(θ'_k), each task its own (eq. 1).

        `second`: α ∇ L is a function of θ itself; otherwise a constant that is taken off.
        """
        parameters = expand(start.network, len(support.target))
        yield parameters

        # A fixed α goes into the loss, where it costs one number's product; learned ones multiply gradients.
        scale = self.scale if start.rates else -float(self.config.inner_lr) * self.scale

        def loss(outputs: Tensor) -> Tensor:
            return scale * task_losses(outputs, support.target).sum()

        def loss_at(moving: Parameters) -> Tensor:
            return loss(self.replicas.outputs({**parameters, **moving}, support.inputs, dropout=dropout))

        for step in range(steps):
            # Batch norms have a scale and a shift of step 0 (θ's own), 1, …, the last of which goes on.
            if start.norms and 0 < step < self.config.steps:
                rows = {name: rows[step - 1].expand_as(parameters[name]) for name, rows in start.norms.items()}
                parameters = {**parameters, **rows}
            moving = {name: parameters[name] for name in self.adapts}
            gradients: Sequence[Tensor]
            if step == 0 and not self.config.compile:
                gradients = self.replicas.gradients_at(
                    start.network, self.adapts, support.inputs, loss, second=second, dropout=dropout
                )
            else:
                gradients = self.gradients(loss_at, moving, second)
            parameters = {**parameters, **self.moved(moving, gradients, start.rates, step)}
            yield parameters

    def gradients(self, loss: Callable[[Parameters], Tensor], moving: Parameters, second: bool) -> Sequence[Tensor]:
        """∇ of the sum of the tasks' losses, of [T, *shape] each: a task's own, since its loss reads no other copy."""
        if self.config.compile:  # the compiler sees through this form, which is slower without it
            found = tuple(torch.func.grad(loss)(moving).values())
            return found if second else [gradient.detach() for gradient in found]
        return torch.autograd.grad(loss(moving), list(moving.values()), create_graph=second, materialize_grads=True)

    def moved(
        self, moving: Parameters, gradients: Sequence[Tensor], rates: Mapping[str, Tensor], step: int
    ) -> Parameters:
        """θ' − α g, of [T, *shape] each; α is [*shape] (Meta-SGD), one a step (MAML++), or in g, with its sign."""
        values = list(moving.values())
        if not rates:
            return dict(zip(moving, torch._foreach_add(values, list(gradients)), strict=True))
        now: list[Tensor] = list(rates.values())
        if self.config.inner_rates == "per_step":
            now = [rate[min(step, self.config.steps - 1)] for rate in now]
        return {
            name: value - rate * gradient
            for name, value, rate, gradient in zip(moving, values, now, gradients, strict=True)
        }

    def query_outputs(self, parameters: Parameters, tasks: Tasks, dropout: bool = False) -> Tensor:
        """Outputs [T, Q, C], normalised by the query set or by the support set."""
        reference = None if self.config.transductive else tasks.support.inputs
        return self.replicas.outputs(parameters, tasks.query.inputs, reference, dropout)

    def is_second(self) -> bool:
        """Are second derivatives taken in the meta-iteration at hand?"""
        return bool(self.config.order == 2 and self.iteration >= self.config.first_order)

    def weights(self) -> list[float]:
        """Of the query losses after 0, 1, …, `steps` steps, in the meta-iteration at hand."""
        fading = self.config.multi_step
        return step_weights(self.config.steps, self.iteration / fading if fading else 1.0)

    def predictions(self, tasks: Tasks) -> Tensor:
        """Outputs [eval_steps + 1, T, Q, C] for the query examples after each step."""
        portions = parts(tasks, self.at_once or len(tasks.query.target))
        return torch.cat([torch.stack(list(self._outputs_after_each(few))) for few in portions], 1)

    def _outputs_after_each(self, tasks: Tasks) -> Iterator[Tensor]:
        steps = self.config.eval_steps
        for parameters in self.adaptation(self.start(), tasks.support, steps, second=False, dropout=False):
            with torch.no_grad():
                yield self.query_outputs(parameters, tasks)

    # --- the same faster ---

    def differentiate(self, tasks: Tasks) -> Tensor:
        """As ever; or without a graph; or compiled, as one function from all that is learned to its gradient."""
        if self.unrolled is not None:
            rate = float(self.config.inner_lr) * self.scale
            loss, found = self.unrolled.gradient(
                self.theta, tasks.support, tasks.query, self.config.steps, rate, self.is_second()
            )
            self._add(self.theta.values(), (found[name] for name in self.theta))
            return loss
        if not self.config.compile:
            with sdpa_kernel(SDPBackend.MATH) if self.is_second() else nullcontext():  # the fused have one derivative
                return super().differentiate(tasks)
        if self.compiled is None:
            self.compiled = torch.compile(torch.func.grad_and_value(self.loss_from), dynamic=False)
        start = Start(*({name: value.detach() for name, value in values.items()} for values in self.start()))
        gradients, loss = self.compiled(start, tasks, self.is_second(), self.weights())
        self._add(self.learned(), (gradient for values in gradients for gradient in values.values()))
        return loss

    def _unrolled(self) -> Unrolled | None:
        """For chains without norms and dropout, of which every parameter is adapted at a fixed rate."""
        config, replicas = self.config, self.replicas
        plain = config.inner_rates == "fixed" and not (config.multi_step or config.compile)
        if not (plain and isinstance(replicas, Batched) and set(self.adapts) == set(self.theta)):
            return None
        layers = layers_of(replicas.chain)
        return None if layers is None else Unrolled(layers)

    @staticmethod
    def _add(parameters: Iterable[Tensor], gradients: Iterable[Tensor]) -> None:
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient

    # --- the rest ---

    def gradients_of(self, tasks: Tasks) -> int:
        """Those of the support examples in each step, and of the query examples for each loss: together with the
        support examples, once more, where batch norms go by these.
        """
        losses = sum(weight > 0 for weight in self.weights())
        again = 0 if self.config.transductive or not self.replicas.normalises else losses
        return int((self.config.steps + again) * examples_of(tasks.support) + losses * examples_of(tasks.query))

    def state_dict(self) -> dict[str, Any]:
        """Adds rates and norms."""
        extra = {"rates": dict(self.rates), "norms": dict(self.norms)}
        return {**super().state_dict(), **{key: _detached(values) for key, values in extra.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore all of it."""
        super().load_state_dict(state)
        with torch.no_grad():
            for key, values in (("rates", self.rates), ("norms", self.norms)):
                for name, value in values.items():
                    value.copy_(state[key][name])

    def result(self) -> Network:
        """θ, with running averages, which adaptation has no use for."""
        return self.with_averages()

    def _replicas(self) -> Replicas:
        """Copies of the network, for tasks of the size that training has."""
        shape = self.view.config.shape("train")
        examples = [(shape.ways or 1) * each for each in (shape.shots, shape.queries)]
        try:
            return make_replicas(self.network, self.config.engine, examples)
        except Unsuited as error:
            raise ConfigError(f"method.{error}") from None

    def _check(self) -> None:
        """Refuse what has no meaning with this network or these tasks."""
        config, view = self.config, self.view
        train = view.config.shape("train")
        mistakes = []
        if train.ways != view.ways:
            mistakes.append("view.train_ways: this method has an output for each class of a task; use null")
        if config.inner_loss == "per_shot" and not isinstance(view.spec.target, Classes):
            mistakes.append("method.inner_loss=per_shot: needs classes; use mean")
        if config.order == 2 and not twice_differentiable(self.network):
            mistakes.append("method.order=2: PennyLane differentiates this circuit once only; use method.order=1")
        recurrent = any(isinstance(module, nn.RNNBase) for module in self.network.modules())
        if config.order == 2 and recurrent and next(self.network.parameters()).is_cuda:
            mistakes.append("method.order=2: cuDNN differentiates recurrent layers once only; use method.order=1")
        alone = [name for name, module in self.network.named_modules() if isinstance(module, nn.BatchNorm1d)]
        if alone and (view.ways or 1) * min(view.shots, train.shots) == 1:
            mistakes.append("view.shots: a batch norm has no statistics of one example; use more, or model.norm=layer")
        if mistakes:
            raise ConfigError(mistakes)
        if config.transductive:
            check_queries(self.network, view, ["train", "test"])


def step_weights(steps: int, progress: float) -> list[float]:
    """Weights of the query losses after 0, 1, …, `steps` steps (Antoniou, Edwards, Storkey 2019, section 4).

    At `progress` 0 all steps but the 0th count alike; they fall on a line until, from 1 on, only the last counts.
    """
    if not steps:
        return [1.0]
    even = max(0.0, 1 - progress) / steps
    return [0.0] + [even] * (steps - 1) + [1 - even * (steps - 1)]


def norm_parameters(network: nn.Module) -> list[str]:
    """The names of the scales and shifts of batch norms."""
    norms = [(name, module) for name, module in network.named_modules() if isinstance(module, _BatchNorm)]
    return [f"{name}.{own}" for name, module in norms for own, _ in module.named_parameters()]


def _detached(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in values.items()}
