"""The variational quantum eigensolver (Peruzzo et al. 2014), beside exact diagonalisation of the same Hamiltonian."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from advml.artifacts import Artifact, Curve, Table
from advml.config import CountFloat, PositiveInt, settings
from advml.contracts import At, Context, Method, Metrics, Needs, Nothing, Objective, Phase, Record, SplitName, Step
from advml.errors import ConfigError
from advml.nn.optimisers import OptimiserSettings, clip_gradients, learning_rate, make_optimiser
from advml.nn.quantum.ansatz import AnsatzName, make_ansatz, ramp
from advml.nn.quantum.engines import EngineName, make_engine
from advml.nn.quantum.hamiltonians import LARGEST, Hamiltonian, ground_energy, ising_chain
from advml.nn.quantum.observables import check_word


@settings
class ListedSettings:
    """A Hamiltonian written out: Pauli words and their coefficients; `at` is where its energy stands on the curve."""

    at: float
    words: Mapping[str, float]


@settings
class IsingSettings:
    """Transverse-field Ising chains: every length with every field."""

    qubits: tuple[PositiveInt, ...]
    fields: tuple[CountFloat, ...]
    coupling: float
    periodic: bool


@settings
class Settings(OptimiserSettings):
    """What is to be solved, with which trial state, and how long it is optimised."""

    problem: Literal["listed", "ising"]
    hamiltonians: tuple[ListedSettings, ...]
    ising: IsingSettings
    ansatz: AnsatzName
    layers: PositiveInt
    engine: EngineName
    iterations: PositiveInt
    block: PositiveInt
    spread: CountFloat
    warm_start: bool
    tolerance: CountFloat


@dataclass(frozen=True)
class Problem:
    """A Hamiltonian with a name, a place on the curve it belongs to, and its exact smallest energy."""

    name: str
    curve: str
    at: float
    hamiltonian: Hamiltonian
    exact: float


class Vqe(Method):
    """Minimise E(θ) = ⟨ψ(θ)|H|ψ(θ)⟩ ≥ E₀, a Hamiltonian after the other; a step is a block of iterations.

    States are float64 or complex128 whatever the precision: 1e-6 of an energy of order one is beyond float32. The
    exact energies are only compared with: training never sees them.
    """

    settings = Settings
    needs = Needs(view="none", targets=(Nothing,), model=False, precisions=("float32", "float64"))
    objective = Objective("error", "valid", "min", keep_best=False)

    def setup(self, context: Context) -> None:
        """Exact energies, circuits, and the parameters of all problems, each drawn by the problem's number."""
        self.context, self.config = context, context.settings
        self.problems = problems_of(self.config)
        config, self.circuits, self.engines = self.config, [], []
        for problem in self.problems:
            qubits = len(next(iter(problem.hamiltonian)))
            try:
                circuit = make_ansatz(config.ansatz, qubits, config.layers, config.ising.periodic)
            except ValueError as error:
                raise ConfigError(f"method.ansatz={error}") from None
            engine = make_engine(circuit, [problem.hamiltonian], config.engine)
            self.circuits.append(circuit)
            self.engines.append(engine.to(context.device))
        self.parameters = [self._drawn(number) for number in range(len(self.problems))]
        everything = [value for weights in self.parameters for value in weights.values()]
        self.optimiser = make_optimiser(everything, config)
        self.energy_before: float | None = None

    def _drawn(self, number: int) -> nn.ParameterDict:
        """Angles of problem `number`: where its circuit begins, ± spread, uniform."""
        generator, spread = self.context.rng("angles", number), self.config.spread
        angles = {
            name: centre + (2 * torch.rand(centre.shape, generator=generator, dtype=torch.float64) - 1) * spread
            for name, centre in ramp(self.circuits[number]).items()
        }
        return nn.ParameterDict({name: nn.Parameter(value.to(self.context.device)) for name, value in angles.items()})

    def phases(self) -> Sequence[Phase]:
        """A phase for each Hamiltonian."""
        blocks = -(-self.config.iterations // self.config.block)
        return [Phase(problem.name, "block", blocks) for problem in self.problems]

    def energy(self, number: int) -> Tensor:
        """⟨ψ(θ)|H|ψ(θ)⟩ of a problem at its present angles, 0-d."""
        values: Tensor = self.engines[number](None, dict(self.parameters[number].items()))
        return values[0, 0]

    def step(self, at: At) -> Step:
        """A block of iterations on one Hamiltonian; with `warm_start` the first begins where the last one ended."""
        config = self.config
        if at.index == 0:
            self.energy_before = None
            if at.phase and config.warm_start:
                self._take_over(at.phase)
        start = at.index * config.block
        stop = min(start + config.block, config.iterations)
        own = list(self.parameters[at.phase].values())
        for iteration in range(start, stop):
            self.optimiser.lr = learning_rate(config, iteration, config.iterations)
            self.optimiser.zero_grad()
            self.energy(at.phase).backward()
            if config.clip_norm is not None:
                clip_gradients(own, config.clip_norm)
            self.optimiser.step()
        self.optimiser.zero_grad()
        self.context.count(updates=stop - start, circuits=stop - start)
        with torch.no_grad():
            energy = self.energy(at.phase)
        now = float(energy)
        settled = self.energy_before is not None and abs(now - self.energy_before) < config.tolerance
        self.energy_before = now
        return Step({"energy": energy, "error": now - self.problems[at.phase].exact}, end_phase=settled)

    @torch.no_grad()
    def _take_over(self, number: int) -> None:
        before, now = self.parameters[number - 1], self.parameters[number]
        for name, value in now.items():
            if before[name].shape == value.shape:
                value.copy_(before[name])

    def evaluate(self, split: SplitName) -> Metrics:
        """The energy of each problem and how far it lies above the exact one; `error`: the largest of these."""
        if split != "valid":
            return {}
        with torch.no_grad():
            energies = [float(self.energy(number)) for number in range(len(self.problems))]
        errors = [energy - problem.exact for energy, problem in zip(energies, self.problems, strict=True)]
        found = {"error": max(errors)}
        for problem, energy, error in zip(self.problems, energies, errors, strict=True):
            found |= {f"energy/{problem.name}": energy, f"error/{problem.name}": error}
        return found

    def state_dict(self) -> dict[str, Any]:
        """All angles, the optimiser, and the energy that convergence is judged by."""
        angles = [{name: value.detach() for name, value in weights.items()} for weights in self.parameters]
        return {"angles": angles, "optimiser": self.optimiser.state_dict(), "energy_before": self.energy_before}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore all of it."""
        with torch.no_grad():
            for weights, saved in zip(self.parameters, state["angles"], strict=True):
                for name, value in saved.items():
                    weights[name].copy_(value)
        self.optimiser.load_state_dict(state["optimiser"])
        self.energy_before = state["energy_before"]

    def artifacts(self, records: Sequence[Record]) -> Mapping[str, Artifact]:
        """A table of all energies, and of problems that form a curve their energies beside the exact ones."""
        with torch.no_grad():
            energies = [float(self.energy(number)) for number in range(len(self.problems))]
        rows = [
            [problem.name, problem.at, energy, problem.exact, energy - problem.exact]
            for problem, energy in zip(self.problems, energies, strict=True)
        ]
        made: dict[str, Artifact] = {"energies": Table(["problem", "at", "energy", "exact", "error"], rows)}
        for curve in dict.fromkeys(problem.curve for problem in self.problems):
            both = zip(self.problems, energies, strict=True)
            of = sorted((problem.at, energy, problem.exact) for problem, energy in both if problem.curve == curve)
            if len(of) > 1:
                x, found, exact = (list(column) for column in zip(*of, strict=True))
                lines = {"exact": exact, "VQE": found}
                title = "field" if self.config.problem == "ising" else "at"
                made[f"energies_{curve}"] = Curve(x, lines, title, "energy", f"Ground state, {curve}", points=["VQE"])
        return made


def problems_of(config: Settings) -> list[Problem]:
    """The Hamiltonians that are asked for, diagonalised. Raises ConfigError where one is not well formed."""
    if config.problem == "ising":
        ising = config.ising
        if not ising.qubits or not ising.fields:
            raise ConfigError("method.ising: give at least one length and one field, like qubits: [4], fields: [1.0]")
        for key, values in (("qubits", ising.qubits), ("fields", [f"{field:g}" for field in ising.fields])):
            if len(set(values)) != len(values):
                raise ConfigError(f"method.ising.{key}: one is given twice; give each once")
        found = []
        for qubits in ising.qubits:
            if not 2 <= qubits <= LARGEST:
                raise ConfigError(f"method.ising.qubits: {qubits}; chains of 2 to {LARGEST} are diagonalised")
            for field in ising.fields:
                chain = ising_chain(qubits, ising.coupling, field, ising.periodic)
                found.append(Problem(f"{qubits}q_h{field:g}", f"{qubits}_qubits", field, chain, ground_energy(chain)))
        return found
    if not config.hamiltonians:
        raise ConfigError("method.hamiltonians: give at least one, or use method.problem=ising")
    found = []
    for listed in config.hamiltonians:
        lengths = {len(word) for word in listed.words}
        if len(lengths) != 1:
            raise ConfigError(f"method.hamiltonians: at {listed.at:g}: give words of one length, like IZ and XX")
        (qubits,) = lengths
        if qubits > LARGEST:
            raise ConfigError(f"method.hamiltonians: {qubits} qubits; at most {LARGEST} are diagonalised")
        for word in listed.words:
            if wrong := check_word(word, qubits):
                raise ConfigError(f"method.hamiltonians: at {listed.at:g}: {wrong}")
        found.append(Problem(f"{listed.at:g}", "listed", listed.at, listed.words, ground_energy(listed.words)))
    if len({problem.name for problem in found}) != len(found):
        raise ConfigError("method.hamiltonians: two have the same `at`")
    return found
