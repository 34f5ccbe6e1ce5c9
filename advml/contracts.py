"""The types every room speaks: where a run stands, what data looks like, what a method and a network promise.

A method advances one step at a time and owns mathematics only: it opens no file, prints nothing, reads no clock
and keeps no generator. The runner owns the rest. See docs/design.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from advml.artifacts import Artifact
from advml.spec import Classes as Classes
from advml.spec import Nothing as Nothing
from advml.spec import Real as Real
from advml.spec import Spec as Spec
from advml.spec import Stream as Stream
from advml.spec import Target as Target
from advml.spec import Tokens as Tokens

# --- where a run stands -------------------------------------------------------------------------------------------

Metrics = Mapping[str, "float | Tensor | None"]
"""Name → number. 0-d tensors are read only when recorded, so that a loop never waits for the device."""

SplitName = Literal["train", "valid", "test"]


@dataclass(frozen=True)
class Phase:
    """A named stretch of steps, known before the first of them: ("search", "epoch", 50), ("task 3", "block", 20)."""

    name: str
    unit: str
    steps: int


@dataclass(frozen=True)
class At:
    """Where the run stands: phase number, step in the phase, steps done in the whole run, last step of the phase?"""

    phase: int
    index: int
    total: int
    last: bool


@dataclass(frozen=True)
class Step:
    """What a step reports. `end_phase` leaves the phase early: early stopping, collapse, convergence."""

    metrics: Metrics
    end_phase: bool = False


@dataclass(frozen=True)
class Objective:
    """The number that ranks runs: a metric of a split, and whether more of it is better.

    `keep_best`: the state with the best value so far is kept beside the last one and tested too. Continual methods
    say no, since an average over the tasks seen so far is not comparable between two moments of a run.
    """

    metric: str
    split: SplitName
    mode: Literal["max", "min"]
    keep_best: bool = True

    def better(self, new: float | None, old: float | None) -> bool:
        """Is `new` a strict improvement over `old`? An undefined value never is."""
        if new is None or new != new:
            return False
        return old is None or (new > old if self.mode == "max" else new < old)


# --- what data looks like -----------------------------------------------------------------------------------------


class Prepare(Protocol):
    """Turns stored values (uint8 pixels, raw features) into network input, one batch at a time."""

    def __call__(self, values: Tensor) -> Tensor: ...

    def to(self, device: torch.device, dtype: torch.dtype) -> Prepare:
        """The same preparation with its constants on a device."""
        ...

    def state(self) -> dict[str, Any]:
        """Tensors and primitives from which `advml.data.prepare.restore` rebuilds it."""
        ...


class Batch(NamedTuple):
    """What a network is trained on: inputs name → [B, ...] floating or tokens, target [B] int64 or [B, ...] floating.

    `mask`: which outputs are active, bool [C] or, where examples differ, [B, C]; None = all.
    """

    inputs: Mapping[str, Tensor]
    target: Tensor
    mask: Tensor | None = None


@dataclass(frozen=True)
class Split:
    """Examples that live on one device as whole tensors; a batch is an index into them.

    `inputs` hold what is stored (uint8 where the source is); `prepare` runs on each batch. `group` names the author,
    role or speaker of each example, where there is one; `meaning` what its modalities are about, where they may match
    and the target does not tell: those of two examples with equal meanings belong together too.
    """

    inputs: Mapping[str, Tensor]
    target: Tensor
    group: Tensor | None = None
    prepare: Mapping[str, tuple[Prepare, ...]] = field(default_factory=dict)
    meaning: Tensor | None = None

    def __len__(self) -> int:
        return len(self.target)

    @property
    def device(self) -> torch.device:
        """Where the examples live."""
        return self.target.device

    def batch(self, index: Tensor | slice) -> Batch:
        """The examples at `index` (int64 [B] on the split's device, or a slice), prepared for a network."""
        inputs = {name: _rows(values, index) for name, values in self.inputs.items()}
        return Batch(self.prepared(inputs), _rows(self.target, index))

    def prepared(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Stored values → network input."""
        ready = {}
        for name, values in inputs.items():
            for step in self.prepare.get(name, ()):
                values = step(values)
            ready[name] = values
        return ready

    def take(self, index: Tensor) -> Self:
        """A new split of the examples at `index`, in that order."""
        index = index.to(self.device)
        group, meaning = (None if values is None else values[index] for values in (self.group, self.meaning))
        inputs = {name: values[index] for name, values in self.inputs.items()}
        return replace(self, inputs=inputs, target=self.target[index], group=group, meaning=meaning)

    def to(self, device: torch.device, dtype: torch.dtype) -> Self:
        """Move to a device; floating targets and the constants of `prepare` take `dtype`, stored inputs keep theirs."""
        target = self.target.to(device, dtype if self.target.is_floating_point() else None)
        group, meaning = (None if values is None else values.to(device) for values in (self.group, self.meaning))
        inputs = {name: values.to(device) for name, values in self.inputs.items()}
        prepare = {name: tuple(step.to(device, dtype) for step in steps) for name, steps in self.prepare.items()}
        return replace(self, inputs=inputs, target=target, group=group, prepare=prepare, meaning=meaning)


def _rows(values: Tensor, index: Tensor | slice) -> Tensor:
    """values[index]; for numbers several times as fast on a CPU."""
    return values[index] if isinstance(index, slice) else values.index_select(0, index)


class Rng(Protocol):
    """Keyed randomness: the same (seed, purpose, key) gives the same CPU generator, wherever and whenever asked."""

    def __call__(self, purpose: str, *key: int | str) -> torch.Generator: ...


class World(Protocol):
    """The processes that carry out a run together: this one's number, how many there are; one alone, as a rule."""

    rank: int
    size: int

    def exchange(self, mine: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Called by all with what each has: what every rank gave, in the order of ranks, bit for bit."""
        ...


class View(Protocol):
    """What a method sees of a data set: split as the family needs it (plain, a stream of tasks, clients, …)."""

    kind: ClassVar[str]
    spec: Spec

    @property
    def prepare(self) -> Mapping[str, tuple[Prepare, ...]]:
        """How raw inputs become network inputs; of several tasks with their own preparations, that of the first."""
        ...

    def to(self, device: torch.device, dtype: torch.dtype) -> View:
        """The view with all its examples on a device."""
        ...

    def describe(self) -> Mapping[str, Any]:
        """What was split how, as plain data for the run folder's data.json."""


# --- networks -----------------------------------------------------------------------------------------------------


class Network(nn.Module):
    """A model: `features` maps named inputs to [B, F], `head` maps those to outputs [B, spec.outputs].

    Subclasses declare `settings` (a frozen dataclass) and set `head`; `check` says why a spec cannot be served.
    `recipe` is what rebuilds the network: its settings and spec as plain data, set by whoever builds it.
    """

    settings: ClassVar[type]
    reads_tokens: ClassVar[bool] = False  # if not, data sets with tokens are refused without asking `check`
    space: ClassVar[str] = ""  # the space of architectures that it holds all at once, to be searched
    head: nn.Module
    recipe: Mapping[str, Any]

    @classmethod
    def check(cls, spec: Spec, settings: Any) -> str | None:
        """None if the network can serve the spec; otherwise what it needs, to be shown to the user."""
        return None

    @classmethod
    def make(cls, spec: Spec, settings: Any) -> Network:
        """A freshly initialised network for the spec, on the CPU."""
        return cls(spec, settings)

    def features(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """The representation [B, F] that the head reads."""
        raise NotImplementedError

    def artifacts(self) -> Mapping[str, Artifact]:
        """What shows how the network is built, for the run folder: a drawn circuit."""
        return {}

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Outputs [B, spec.outputs]: logits for classes, values for real targets."""
        outputs: Tensor = self.head(self.features(inputs))
        return outputs


# --- methods ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Needs:
    """What a method asks of the other choices, as data: compared before any work starts.

    `model`: does it train a network? A tuple of views: any of these; of a table of results no network is trained.
    `scenarios`: of a stream, those that it serves; () = all. `spaces`: of architectures, those that it searches, of
    which its network has to hold one; () = it searches none.
    """

    view: str | tuple[str, ...] = "plain"
    targets: tuple[type, ...] = (Classes, Real)
    model: bool = True
    precisions: tuple[str, ...] = ("float32", "float64", "bf16")
    scenarios: tuple[str, ...] = ()
    spaces: tuple[str, ...] = ()


Record = Mapping[str, Any]
"""One line of metrics.jsonl: step, phase, split and the metrics of that moment."""


class Context(Protocol):
    """All that a method may touch outside its own mathematics; given to `setup`."""

    settings: Any
    data: Any
    device: torch.device
    dtype: torch.dtype
    world: World

    def autocast(self) -> AbstractContextManager[Any]:
        """bf16 regions under `precision=bf16`, nothing otherwise."""
        ...

    def build(self, spec: Spec | None = None, purpose: str = "model") -> Network:
        """The chosen model for `spec` (default: the view's): a pure function of (seed, purpose, spec)."""
        ...

    def rng(self, purpose: str, *key: int | str) -> torch.Generator:
        """A CPU generator keyed by (seed, purpose, key)."""
        ...

    def count(self, **work: int) -> None:
        """Add to the budget; the counters are listed in advml.runner.budget."""


@runtime_checkable
class Method(Protocol):
    """An algorithm. Subclass it, or write a class of the same shape.

    `tests_each_phase`: the test split is evaluated at step 0 and at the end of every phase (accuracy matrices), not
    only once at the end. Such evaluations select nothing. `several_networks`: the examples that the budget counts went
    through more networks than the one that `result` gives, so that FLOPs cannot be told from it.
    """

    settings: ClassVar[type]
    needs: ClassVar[Needs]
    objective: Objective
    tests_each_phase: ClassVar[bool] = False
    several_networks: bool = False

    def setup(self, context: Context) -> None:
        """Build networks and optimisers. Draws no random number of its own except through `context`."""

    def phases(self) -> Sequence[Phase]:
        """The whole plan, known from settings and data before the first step."""
        ...

    def step(self, at: At) -> Step:
        """Advance: an epoch, a round, a block of iterations. Aim at 0.05 to 5 seconds."""
        ...

    def evaluate(self, split: SplitName) -> Metrics:
        """Measure the current state. Pure: it never changes what training does."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything the next step depends on, as tensors and primitives."""
        ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave, into a freshly set-up method."""

    def result(self) -> Network | None:
        """The trained network, for export, teachers and ensembles; None if there is none."""
        return None

    def summary(self, records: Sequence[Record]) -> Metrics:
        """Numbers that need the whole record (forgetting, rounds to a target); joined to the final metrics."""
        return {}

    def artifacts(self, records: Sequence[Record]) -> Mapping[str, Artifact]:
        """Tables, matrices and curves for the run folder; the runner writes and draws them."""
        return {}
