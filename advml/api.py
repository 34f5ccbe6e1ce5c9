"""advml from Python: run an experiment, load a finished one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from advml.compose import compose
from advml.config import bind
from advml.contracts import Network
from advml.errors import AdvmlError, ConfigError
from advml.models.build import load_bundle, rebuild
from advml.nn.evaluation import BATCH
from advml.nn.losses import masked
from advml.overrides import separate
from advml.runner.baselines import carry_out, plan
from advml.runner.folder import RunFolder
from advml.runner.run import Asked, start
from advml.runner.trained import Trained


class Run:
    """A run that is over, read from its folder."""

    def __init__(self, folder: RunFolder) -> None:
        self._folder = folder

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return self._folder.path

    @property
    def config(self) -> dict[str, Any]:
        """Its configuration, complete and resolved."""
        return self._folder.tree()

    @property
    def records(self) -> list[dict[str, Any]]:
        """Every record of metrics.jsonl: step, phase, split and the numbers of that moment."""
        return self._folder.records()

    @property
    def result(self) -> dict[str, Any]:
        """result.json: final metrics, objective, budget."""
        return self._folder.result()

    @property
    def baselines(self) -> dict[str, Run]:
        """The completed runs beside it, by name."""
        found = sorted((self.folder / "baselines").glob("*/result.json"))
        return {path.parent.name: Run(RunFolder(path.parent)) for path in found}

    @property
    def model(self) -> Network:
        """The trained network as it was at the end, in evaluation mode, on the CPU. It takes prepared inputs."""
        return self.network("last")

    def network(self, state: str = "last") -> Network:
        """The trained network: `last`, or `best` on the validation split where the run kept one."""
        bundle = load_bundle(self.folder)
        if state not in bundle["states"]:
            raise ConfigError(f"{self.folder}: keeps no {state} network, only {', '.join(bundle['states'])}")
        return rebuild(bundle["recipe"], bundle["states"][state])

    def predict(self, inputs: Any, state: str = "last", task: str | None = None) -> Tensor:
        """Outputs for raw inputs, prepared as in training.

        `inputs`: an array [N, ...] as stored by the data set (pixels 0 to 255, unscaled features), or a mapping of
        names to such arrays where the data set has several inputs. `task` ("task1", "task2", …) must be named where
        each has a preparation of its own (permuted, rotated streams) or only its own outputs compete (the task
        scenario; the others are −∞).
        """
        bundle = load_bundle(self.folder)
        if "untrained" in bundle["recipe"]:
            raise ConfigError(f"{self.folder}: has learnt no outputs, its head is as it was drawn; its network embeds: "
                              f"run.model.embed(NAME, prepared inputs), or train it on with model=run")  # fmt: skip
        own = self._task(bundle, task)
        trained = Trained(self.network(state), own["prepare"])
        raw: Mapping[str, Any] = inputs if isinstance(inputs, Mapping) else {trained.names[0]: inputs}
        if missing := [name for name in trained.names if name not in raw]:
            wanted, lacking = ", ".join(trained.names), ", ".join(missing)
            raise ConfigError(f"{self.folder}: the network needs {wanted}, not given: {lacking}")
        tokens = bundle["recipe"]["spec"].get("tokens", {})
        tensors = [self._array(name, raw[name], trained.shapes[name], tokens.get(name)) for name in trained.names]
        if len({len(tensor) for tensor in tensors}) > 1:
            counts = ", ".join(f"{name} {len(tensor)}" for name, tensor in zip(trained.names, tensors, strict=True))
            raise ConfigError(f"{self.folder}: as many examples of every input are needed, not {counts}")
        with torch.no_grad():  # some at a time: a convolution's intermediate images take far more than its inputs
            parts = [trained(*part) for part in zip(*(tensor.split(BATCH) for tensor in tensors), strict=True)]
        return masked(torch.cat(parts), own.get("outputs"))

    def _array(self, name: str, given: Any, shape: tuple[int, ...], vocabulary: int | None) -> Tensor:
        """An input as a tensor [N, *shape]. Raises ConfigError for another shape, for what are no numbers, and for
        tokens beyond the `vocabulary`.
        """
        try:
            found = given if isinstance(given, Tensor) else torch.from_numpy(np.ascontiguousarray(given))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{self.folder}: {name}: is no array of numbers ({error})") from None
        if tuple(found.shape[1:]) != shape or not found.dim():
            wanted = ", ".join(map(str, ("N", *shape)))
            raise ConfigError(f"{self.folder}: {name}: expected [{wanted}], not {list(found.shape)}")
        if vocabulary is not None and len(found) and not 0 <= found.min() <= found.max() < vocabulary:
            raise ConfigError(f"{self.folder}: {name}: tokens are 0 to {vocabulary - 1} here, "
                              f"not {found.min():g} to {found.max():g}")  # fmt: skip
        return found

    def _task(self, bundle: Mapping[str, Any], task: str | None) -> Mapping[str, Any]:
        """`prepare` and `outputs` of a task; the whole bundle where tasks need not be told apart."""
        tasks: Mapping[str, Mapping[str, Any]] = bundle.get("tasks", {})
        if task is None and not tasks:
            return bundle
        if task is None or task not in tasks:
            known = f"name one with task=: {', '.join(tasks)}" if tasks else "no task is to be named"
            asked = "its tasks are prepared or masked differently" if task is None else f"task {task} is not of its own"
            raise ConfigError(f"{self.folder}: {asked}; {known}")
        return tasks[task]

    def __repr__(self) -> str:
        return f"Run({str(self.folder)!r}, {self._folder.status()['state']})"


def run(*overrides: str) -> Run:
    """`advml run` from Python: `run("method=ewc", "seed=3")`.

    Raises ConfigError for a wrong configuration, AdvmlError for a run that failed and KeyboardInterrupt for one that
    was interrupted; each says what to do.
    """
    tree, choices = compose(overrides)
    command = f"advml.run({', '.join(map(repr, overrides))})"
    bound, asked = bind(tree), Asked(command, list(overrides), choices)
    planned = plan(tree, separate(overrides)[0])
    outcome = start(bound, asked)
    if outcome.state == "interrupted":
        raise KeyboardInterrupt(outcome.message)
    if outcome.state != "completed":
        raise AdvmlError(f"{outcome.message}")
    if outcome.asked:
        done = f"the run, which is completed: {outcome.folder.path}"
        raise KeyboardInterrupt(f"{outcome.asked} came at the end of {done}")
    for end in carry_out(outcome.folder.path, planned, asked):
        if end.state != "completed":
            raise AdvmlError(f"{end.job.name}: {end.state}, {end.message}")
    return Run(outcome.folder)


def load(path: str | Path) -> Run:
    """A run from its folder. Raises ConfigError where there is none."""
    return Run(RunFolder.open(path))
