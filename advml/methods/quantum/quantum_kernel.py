"""Quantum kernels (Havlíček et al. 2019; Huang et al. 2021) in a support vector machine of scikit-learn."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from advml.artifacts import Artifact, Heatmap, Table
from advml.config import CountInt, PositiveFloat, PositiveInt, settings
from advml.contracts import (
    At,
    Classes,
    Context,
    Method,
    Metrics,
    Needs,
    Objective,
    Phase,
    Record,
    Split,
    SplitName,
    Step,
)
from advml.errors import ConfigError
from advml.models.mlp import flat, flat_size
from advml.nn.metrics import macro_f1
from advml.nn.optimisers import OptimiserSettings, clip_gradients, learning_rate, make_optimiser
from advml.nn.quantum import kernels
from advml.nn.quantum.circuits import CircuitName, largest, make_circuit
from advml.nn.quantum.engines import Engine, EngineName, make_engine
from advml.nn.quantum.observables import pauli_each

AT_ONCE = 512  # examples whose states are computed together
QUBITS = 16  # at most: 65,536 amplitudes an example
DRAWN = 60  # training examples in the picture of the kernel


@settings
class Settings(OptimiserSettings):
    """The kernel, how it is aligned with the labels, and how strictly the machine fits."""

    kernel: Literal["fidelity", "projected", "rbf"]
    circuit: CircuitName
    layers: CountInt
    entangle: bool
    bandwidth: PositiveFloat
    gamma: PositiveFloat | None
    engine: EngineName
    penalties: tuple[PositiveFloat, ...]
    align: CountInt
    align_batch_size: PositiveInt
    block: PositiveInt


class QuantumKernel(Method):
    """An SVM on k(x, y) between circuits' states; of the penalties C the one with the best validation accuracy.

    First, with `align`, the circuit's weights climb the kernel's alignment with the labels of random training
    batches; then a step fits an SVM for each C. `kernel=rbf` uses the angles themselves, as a classical counterpart.
    """

    settings = Settings
    needs = Needs(view="plain", targets=(Classes,), model=False, precisions=("float32", "float64"))
    objective = Objective("accuracy", "valid", "max", keep_best=False)

    def setup(self, context: Context) -> None:
        """The circuit and its weights, drawn uniformly."""
        self.context, self.config, self.data = context, context.settings, context.data
        config = self.config
        if not config.penalties:
            raise ConfigError("method.penalties: give at least one, like [1.0]")
        if len(self.data.train.target.unique()) < 2:
            raise ConfigError("dataset.limit: all training examples are of one class, the machine needs two; use more")
        features = flat_size(self.data.spec)
        qubits = max(1, (features - 1).bit_length()) if config.circuit == "amplitude" else features
        self.weights = nn.ParameterDict()
        self.engine: Engine | None = None
        if config.kernel != "rbf":
            if qubits > QUBITS:
                raise ConfigError(f"dataset.pca: the circuit would have {qubits} qubits; use at most {QUBITS}")
            assert features <= largest(config.circuit, qubits)
            entangle = config.entangle
            circuit = make_circuit(config.circuit, qubits, config.layers, entangle=entangle, features=features)
            self.engine = make_engine(circuit, pauli_each(qubits), config.engine).to(context.device)
            self.weights = nn.ParameterDict({name: nn.Parameter(self._drawn(name, shape))
                                             for name, shape in circuit.weights.items()})  # fmt: skip
        self._check_alignment(qubits)
        config = self.config
        self.optimiser = make_optimiser(self.weights.values(), config)
        self.tried = torch.zeros(len(config.penalties), 2, dtype=torch.float64)  # accuracy, support vectors of each C
        self.fitted = 0
        self._forget()

    def _drawn(self, name: str, shape: tuple[int, ...]) -> Tensor:
        """Angles uniform in ±π; factors of inputs 1."""
        if name == "scaling":
            drawn = torch.ones(shape, dtype=torch.float64)
        else:
            drawn = (2 * torch.rand(shape, generator=self.context.rng(name), dtype=torch.float64) - 1) * torch.pi
        return drawn.to(self.context.device, self.context.dtype)

    def _check_alignment(self, qubits: int) -> None:
        """Weights after the last input turn all states alike, and leave every overlap as it is."""
        config = self.config
        if not config.align:
            return
        if config.align_batch_size < 2:
            raise ConfigError("method.align_batch_size=1: one example has no kernel to align; use 2 or more")
        if config.kernel == "fidelity" and config.circuit != "data_reuploading":
            raise ConfigError(
                f"method.align: {config.circuit} has its weights after the inputs, where overlaps do not see them; "
                f"use method.circuit=data_reuploading, method.kernel=projected or method.align=0"
            )
        if config.kernel == "rbf" or not sum(value.numel() for value in self.weights.values()):
            raise ConfigError("method.align: this kernel has no weights to be aligned; use method.align=0")
        if config.circuit != "data_reuploading" and not (config.entangle and qubits > 1):
            # Not refused: what an aligned run is compared with may be the same circuit without these gates.
            warnings.warn(
                f"method.align: {config.circuit} without gates on two qubits turns all qubits' states alike, "
                "which no kernel sees; nothing is aligned",
                stacklevel=2,
            )
            self.config = replace(config, align=0)

    def phases(self) -> Sequence[Phase]:
        """Blocks of alignment, where it is asked for; then a step for each penalty."""
        align = [Phase("align", "block", -(-self.config.align // self.config.block))] if self.config.align else []
        return [*align, Phase("fit", "penalty", len(self.config.penalties))]

    # --- the kernel ---

    def embedded(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """What the kernel compares, a row an example: states, expectation values, or for rbf the angles."""
        angles: Tensor = flat(inputs) * self.config.bandwidth
        if self.engine is None:
            return angles
        weights = dict(self.weights.items())
        states = self.config.kernel == "fidelity"
        rows: Tensor = self.engine.states(angles, weights) if states else self.engine(angles, weights)
        return rows

    def between(self, first: Tensor, second: Tensor) -> Tensor:
        """The kernel of all pairs of such rows; the same row twice gives 1."""
        gamma = self.config.gamma
        if self.config.kernel == "fidelity":
            return kernels.fidelity(first, second)
        if self.config.kernel == "projected":
            return kernels.projected(first, second, 1.0 if gamma is None else gamma)
        return kernels.gaussian(first, second, 1 / first.shape[1] if gamma is None else gamma)

    @torch.no_grad()
    def _rows(self, split: Split) -> Tensor:
        parts = [self.embedded(split.batch(slice(at, at + AT_ONCE)).inputs) for at in range(0, len(split), AT_ONCE)]
        return torch.cat(parts)

    def _forget(self) -> None:
        """The kernel of the training examples and the fitted machine belong to the weights as they were."""
        self.rows: Tensor | None = None
        self.machine: Any = None

    def _trained_rows(self) -> Tensor:
        if self.rows is None:
            self.rows = self._rows(self.data.train)
        return self.rows

    def _fit(self, penalty: float) -> Any:
        """scikit-learn's SVC, one against one, which has no randomness of its own here."""
        from sklearn.svm import SVC

        rows = self._trained_rows()
        kernel = self.between(rows, rows).double().cpu().numpy()
        return SVC(C=penalty, kernel="precomputed").fit(kernel, self.data.train.target.cpu().numpy())

    def _accuracy(self, machine: Any, split: Split) -> tuple[Tensor, Tensor]:
        """Accuracy and macro-F1."""
        assert isinstance(self.data.spec.target, Classes)
        kernel = self.between(self._rows(split), self._trained_rows()).double().cpu().numpy()
        predicted = torch.from_numpy(machine.predict(kernel)).to(split.target)
        f1 = macro_f1(predicted, split.target, self.data.spec.target.count)
        return (predicted == split.target).double().mean(), f1

    # --- training ---

    def step(self, at: At) -> Step:
        """A block of alignment, or the machine of one penalty."""
        if self.config.align and at.phase == 0:
            return self._align(at)
        penalty = self.config.penalties[at.index]
        machine = self._fit(penalty)
        judged = self.data.valid if len(self.data.valid) else self.data.train
        score = float(self._accuracy(machine, judged)[0])
        vectors = int(machine.n_support_.sum())
        self.tried[at.index] = torch.tensor([score, vectors], dtype=torch.float64)
        self.fitted = at.index + 1
        if self.penalty == penalty:
            self.machine = machine
        circuits = len(self.data.train) if at.index == 0 and self.engine is not None else 0
        self.context.count(samples=len(self.data.train), circuits=circuits)
        return Step({"penalty": penalty, "support_vectors": vectors})

    @property
    def penalty(self) -> float | None:
        """The C with the best accuracy so far, the first of equals; None before the first."""
        if not self.fitted:
            return None
        return float(self.config.penalties[int(self.tried[: self.fitted, 0].argmax())])

    def _align(self, at: At) -> Step:
        config, train = self.config, self.data.train
        self._forget()
        start = at.index * config.block
        stop = min(start + config.block, config.align)
        values = []
        for iteration in range(start, stop):
            drawn = torch.randperm(len(train), generator=self.context.rng("batch", iteration)).to(train.device)
            inputs, target, _ = train.batch(of_two_classes(drawn, train.target, config.align_batch_size))
            self.optimiser.lr = learning_rate(config, iteration, config.align)
            self.optimiser.zero_grad()
            rows = self.embedded(inputs)
            value = kernels.alignment(self.between(rows, rows), target)
            (-value).backward()
            if config.clip_norm is not None:
                clip_gradients(list(self.weights.values()), config.clip_norm)
            self.optimiser.step()
            self.context.count(samples=len(target), updates=1, circuits=len(target))
            values.append(value.detach())
        self.optimiser.zero_grad()
        return Step({"alignment": torch.stack(values).mean()})

    def evaluate(self, split: SplitName) -> Metrics:
        """Accuracy and macro-F1 of the chosen machine, undefined until one is fitted; its support vectors."""
        examples = self.data.split(split)
        if split == "train" or not len(examples):
            return {}
        if self.penalty is None:
            return {"accuracy": None}
        if self.machine is None:
            self.machine = self._fit(self.penalty)
        accuracy, f1 = self._accuracy(self.machine, examples)
        return {"accuracy": accuracy, "macro_f1": f1, "support_vectors": int(self.machine.n_support_.sum())}

    # --- the rest of a run ---

    def state_dict(self) -> dict[str, Any]:
        """Weights, optimiser, what each penalty gave; the machine follows from them."""
        weights = {name: value.detach() for name, value in self.weights.items()}
        tried = {"tried": self.tried, "fitted": self.fitted}
        return {"weights": weights, "optimiser": self.optimiser.state_dict(), **tried}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore them."""
        with torch.no_grad():
            for name, value in state["weights"].items():
                self.weights[name].copy_(value)
        self.optimiser.load_state_dict(state["optimiser"])
        self.tried, self.fitted = state["tried"].clone(), state["fitted"]
        self._forget()

    @torch.no_grad()
    def summary(self, records: Sequence[Record]) -> Metrics:
        """The chosen penalty, and the alignment of the whole training kernel with its labels."""
        rows = self._trained_rows()
        aligned = kernels.alignment(self.between(rows, rows).double(), self.data.train.target)
        return {"penalty": self.penalty, "alignment": aligned}

    @torch.no_grad()
    def artifacts(self, records: Sequence[Record]) -> Mapping[str, Artifact]:
        """What each penalty gave, and the kernel between the first training examples, class by class."""
        target = self.data.train.target[:DRAWN]
        order = target.argsort(stable=True)
        rows = self._trained_rows()[:DRAWN][order]
        values = self.between(rows, rows).double().cpu().tolist()
        names = [str(int(label)) for label in target[order]]
        title, limits = "Kernel between training examples", (0.0, 1.0)
        picture = Heatmap(values, names, names, "class", "class", title, "k(x, y)", 2, limits)
        table = [[penalty, *row] for penalty, row in zip(self.config.penalties, self.tried.tolist(), strict=True)]
        return {"penalties": Table(["C", "accuracy", "support vectors"], table[: self.fitted]), "kernel": picture}


def of_two_classes(order: Tensor, target: Tensor, size: int) -> Tensor:
    """The first `size` of an order of all examples [N]; the last is replaced if all of them are of one class.

    The first example of another class takes its place: of one class alone the alignment is 0/0.
    """
    batch, others = order[:size], order[target[order] != target[order[0]]]
    alone = bool((target[batch] == target[order[0]]).all())
    return torch.cat([batch[:-1], others[:1]]) if alone else batch
