"""The end of a run: the test split read once, the summary, tables and pictures, result.json, the trained network."""

from __future__ import annotations

import io
import math
import resource
import sys
from collections.abc import Mapping
from typing import Any

import torch

from advml.config import Bound
from advml.contracts import Network
from advml.models.pertask import PerTask
from advml.nn.abilities import countable
from advml.nn.flops import FlopCounter
from advml.runner import artifacts, checkpoint, files
from advml.runner.folder import RunFolder
from advml.runner.identity import identity
from advml.runner.loop import Loop
from advml.runner.observers import was_pruned
from advml.runner.recorder import read


def finish(folder: RunFolder, bound: Bound, loop: Loop, view: Any, device: torch.device) -> None:
    """Write everything that a completed run holds beyond its records and checkpoints. result.json comes last."""
    method, progress, records = loop.method, loop.progress, loop.recorder.records
    pruned = was_pruned(progress.stopped_by)  # nobody asks how good it is: its test examples stay unread
    best_total, best_value = progress.best_total, progress.best_value
    if newest_step(records, "valid") != progress.total:  # stopped by a limit between two evaluations
        value = loop.value_of("valid", loop.measure("valid", state="last"))
        if loop.objective.better(value, best_value):  # not so in the checkpoint: whoever goes on never stopped here
            best_total, best_value = progress.total, value
    metrics: dict[str, Any] = {split: last_metrics(records, split) for split in ("train", "valid")}
    tested = {} if pruned else loop.measure("test", state="last")
    metrics["test"] = values(tested)
    network = method.result()
    states = {} if network is None else {"last": checkpoint.copied(network.state_dict())}

    best: dict[str, Any] | None = None
    if best_total is not None:
        best = {"step": best_total, loop.objective.metric: best_value}
    if best is not None and best_total == progress.total:  # one state, which need not be measured twice
        best["test"] = metrics["test"]
        if tested:
            loop.recorder.record(progress.total, tested["phase"], "test", metrics["test"], "best")
        if "last" in states:
            states["best"] = states["last"]
    elif best is not None:
        last = checkpoint.copied(method.state_dict())
        method.load_state_dict(checkpoint.load_best(folder)["method"])
        best["test"] = {} if pruned else values(loop.measure("test", state="best"))
        of_best = method.result()  # perhaps another object: an average, an ensemble
        if of_best is not None:
            states["best"] = checkpoint.copied(of_best.state_dict())
        method.load_state_dict(last)
    loop.recorder.sync()

    if network is not None:
        save_network(folder, network, states, view)
    summary = {name: finite(value) for name, value in read(method.summary(records)).items()}
    drawn = {} if network is None else network.artifacts()
    made = {**artifacts.learning_curves(records, loop.objective), **drawn, **method.artifacts(records)}
    artifacts.write(folder, made, draw=bound.run.figures)

    objective = loop.objective
    counts = {} if getattr(method, "several_networks", False) else loop.budget.counts
    source = {**metrics[objective.split], **(summary if objective.metric in summary else {})}
    result = {
        "method": bound.method.name,
        "dataset": bound.dataset.name,
        "view": bound.view.name,
        "model": bound.model.name,
        "seed": bound.run.seed,
        "objective": {
            "metric": objective.metric,
            "split": objective.split,
            "mode": objective.mode,
            "value": source.get(objective.metric),
        },
        "metrics": metrics,
        "summary": summary,
        "best": best,
        "parameters": None if network is None else sum(parameter.numel() for parameter in network.parameters()),
        "budget": {
            "steps": progress.total,
            **loop.budget.counts,
            "flops_estimate": flops_estimate(network, counts.get("samples"), counts.get("gradients", 0)),
        },
        "seconds": round(progress.seconds, 3),
        "peak_memory_mb": peak_memory_mb(device),
        "stopped_by": progress.stopped_by,
        "identity": identity(bound.tree),
    }
    files.write_json(folder / "result.json", result)


def values(record: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of a record, without where it stands."""
    return {name: value for name, value in record.items() if name not in ("step", "phase", "split", "state")}


def finite(value: float | None) -> float | None:
    """A value that JSON can hold: NaN and infinities are undefined."""
    return value if value is not None and math.isfinite(value) else None


def newest_step(records: list[dict[str, Any]], split: str) -> int | None:
    """The step at which a split was last measured."""
    return next((record["step"] for record in reversed(records) if record["split"] == split), None)


def last_metrics(records: list[dict[str, Any]], split: str) -> dict[str, Any]:
    """The metrics of the newest record of a split; empty if there is none."""
    return next((values(record) for record in reversed(records) if record["split"] == split), {})


def save_network(folder: RunFolder, network: Network, states: Mapping[str, Any], view: Any) -> None:
    """checkpoints/model.pt: recipe, weights (last and best), preparation of raw inputs, and of each task its own."""
    prepare = {} if view is None else view.prepare
    bundle = {
        "recipe": dict(network.recipe),
        "states": dict(states),
        "prepare": {name: [step.state() for step in steps] for name, steps in prepare.items()},
        "tasks": view.each() if hasattr(view, "each") else {},
    }
    buffer = io.BytesIO()
    torch.save(bundle, buffer)
    files.write_atomic(folder / "checkpoints/model.pt", buffer.getvalue())


def flops_estimate(network: Network | None, samples: int | None, gradients: int = 0) -> int | None:
    """Forward FLOPs of one example × (samples + 2 · gradients), a backward pass costing about two forward ones; None if
    unknown.

    None too where not all that the network computes can be counted.
    """
    if network is None or samples is None or not countable(network):
        return None
    if isinstance(network, PerTask):
        network = network.of(network.tasks - 1)  # training computes one task's outputs, not all tasks' one by one
    first = next(iter(network.parameters()), torch.zeros(()))
    shapes: Mapping[str, Any] = network.recipe["spec"]["inputs"]
    inputs = {name: torch.zeros((1, *shape), device=first.device, dtype=first.dtype) for name, shape in shapes.items()}
    training, counter = network.training, FlopCounter()
    try:
        with counter, torch.no_grad():
            network.eval()(inputs)
    except Exception:  # a network with inputs of another kind: no estimate is better than no run
        return None
    finally:
        network.train(training)
    return counter.total * (samples + 2 * gradients)


def peak_memory_mb(device: torch.device) -> dict[str, float]:
    """The most memory this process has held on the host, and on the run's GPU since the attempt began, in MB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10  # bytes on macOS, kilobytes elsewhere
    peak = {"host": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)}
    if device.type == "cuda":
        peak["gpu"] = round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    return peak
