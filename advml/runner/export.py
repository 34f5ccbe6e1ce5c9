"""The network of a run for use without advml: weights, what they are and came from, and a program that runs them."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import advml
from advml.errors import AdvmlError, ConfigError
from advml.models.build import load_bundle, rebuild
from advml.runner import files
from advml.runner.folder import RunFolder
from advml.runner.identity import INDIFFERENT
from advml.runner.trained import Trained

WEIGHTS, PROGRAM, FACTS, README = "model.safetensors", "model.pt2", "export.json", "README.md"
LOCAL = tuple(key for key in INDIFFERENT if key != "threads")  # paths and addresses of this machine, and the like
CLOSE = 1e-5  # a program whose outputs are further off than this, relative to the largest, is not written


@dataclass(frozen=True)
class Exported:
    """What was written where; `problem` says why there is no program."""

    folder: Path
    names: tuple[str, ...]
    problem: str | None


def export(run: RunFolder, state: str, out: Path) -> Exported:
    """Write the network of a completed run, in its `last` or `best` state, to the folder `out`.

    Raises ConfigError where there is no such network, or where `out` holds something else.
    """
    save = _safetensors()
    bundle = load_bundle(run.path)
    if state not in bundle["states"]:
        raise ConfigError(f"state={state}: the run keeps only {', '.join(bundle['states'])}")
    if out.exists() and not (out.is_dir() and (not any(out.iterdir()) or (out / FACTS).is_file())):
        raise ConfigError(f"out={out}: is there already and holds no export; choose another folder")
    trained = Trained(rebuild(bundle["recipe"], bundle["states"][state]), bundle["prepare"])
    with _undamaged(run):
        facts = _facts(run, state, bundle, trained)
    contents: dict[str, bytes] = {}
    try:
        if "untrained" in bundle["recipe"]:
            raise AdvmlError("the network has learnt no outputs, its head is as it was drawn")
        contents[PROGRAM], difference = program(trained)
        facts["program"], problem = {"file": PROGRAM, "largest_difference": difference}, None
    except AdvmlError as error:
        facts["program"], problem = None, str(error)
    weights = _plainly(bundle["states"][state])  # safetensors takes no two names for one memory
    contents[WEIGHTS] = save(weights, metadata={"format": "pt", "advml": advml.__version__})
    with _undamaged(run):
        contents[README] = _readme(facts, problem).encode()

    try:
        out.mkdir(parents=True, exist_ok=True)
        for name in (FACTS, WEIGHTS, PROGRAM, README):
            (out / name).unlink(missing_ok=True)
        for name, content in contents.items():
            files.write_atomic(out / name, content)
        files.write_json(out / FACTS, facts)  # the last: from here on it is an export
    except OSError as error:
        raise AdvmlError(f"{out}: cannot be written: {error.strerror}; choose another with out=FOLDER") from None
    return Exported(out, (*contents, FACTS), problem)


@contextmanager
def _undamaged(run: RunFolder) -> Iterator[None]:
    """What a result lacks, or has of another kind, in one line."""
    try:
        yield
    except (KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{run / 'result.json'}: damaged ({type(error).__name__}: {error})") from None


def _plainly(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies in memory of their own, filters as others expect them and not with channels last."""
    return {name: value.clone(memory_format=torch.contiguous_format) for name, value in state.items()}


def program(trained: Trained) -> tuple[bytes, float]:
    """(a `torch.export` program for batches of any size, the largest difference of its outputs from the network's).

    Raises AdvmlError where torch cannot trace the network, or where the program would not do the same.
    """
    batch = torch.export.Dim("batch")
    trained.network.load_state_dict(_plainly(trained.network.state_dict()), assign=True)
    try:
        with torch.no_grad(), redirect_stderr(io.StringIO()):
            traced = torch.export.export(
                trained, _raw(trained, 2), dynamic_shapes={"raw": tuple({0: batch} for _ in trained.names)}
            )
            for node in traced.graph.nodes:
                node.meta.pop("stack_trace", None)  # paths and lines of this machine
            buffer = io.BytesIO()
            torch.export.save(traced, buffer)
            again = torch.export.load(io.BytesIO(buffer.getvalue())).module()
            worst = max(_difference(trained, again, _raw(trained, size)) for size in (1, 5))
    except Exception as error:  # whatever a network of anybody's does that cannot be traced
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise AdvmlError(f"torch.export cannot trace this network: {(lines or [type(error).__name__])[0]}") from None
    if not worst <= CLOSE:
        raise AdvmlError(f"the traced network differs from the trained one by {worst:.2g} of its largest output")
    return buffer.getvalue(), worst


def _raw(trained: Trained, size: int) -> tuple[Tensor, ...]:
    """A batch of arbitrary raw inputs: numbers below 100, tokens within their vocabulary, masks."""
    rng = torch.Generator().manual_seed(size)
    spec = trained.network.recipe["spec"]
    below = dict.fromkeys(trained.names, 100) | spec.get("tokens", {})
    raw = {
        name: below[name] * torch.rand((size, *trained.shapes[name]), generator=rng, dtype=trained.dtype)
        for name in trained.names
    }
    return tuple(values > 30 if name in trained.helpers else values for name, values in raw.items())


def _difference(trained: Trained, again: Any, raw: tuple[Tensor, ...]) -> float:
    ours, theirs = trained(*raw), again(*raw)
    if torch.equal(ours, theirs):
        return 0.0
    return float((ours - theirs).abs().max() / ours.abs().max())


def _safetensors() -> Callable[..., bytes]:
    try:
        from safetensors.torch import save
    except ImportError:
        raise ConfigError('export: needs safetensors: pip install "advml[export]"') from None
    return save


def _facts(run: RunFolder, state: str, bundle: Mapping[str, Any], trained: Trained) -> dict[str, Any]:
    """All that belongs to the weights, as plain data."""
    spec = bundle["recipe"]["spec"]
    result = run.result()
    target, detail = spec["target"]
    return {
        "advml": advml.__version__,
        "run": run.path.name,
        "state": state,
        "step": result["budget"]["steps"] if state == "last" else (result.get("best") or {}).get("step"),
        "inputs": [
            {"name": name, "shape": ["batch", *shape], "dtype": str(trained.dtype).removeprefix("torch.")}
            for name, shape in trained.shapes.items()
        ],
        "output": {"shape": ["batch", *_output_shape(trained)], "target": target, "detail": detail},
        "prepare": {name: [_plain(step) for step in steps] for name, steps in bundle["prepare"].items()},
        "task": next(iter(bundle.get("tasks", {})), None),
        "recipe": bundle["recipe"],
        "configuration": {key: value for key, value in run.tree().items() if key not in LOCAL},
        "result": result,
        "source": run.environment().get("source"),
    }


def _output_shape(trained: Trained) -> tuple[int, ...]:
    with torch.no_grad():
        outputs: Tensor = trained(*_raw(trained, 2))
    return tuple(outputs.shape[1:])


def _plain(step: Mapping[str, Any]) -> dict[str, Any]:
    """A preparation with its tensors as nested lists; JSON keeps every bit of a float64."""
    return {key: value.tolist() if isinstance(value, Tensor) else value for key, value in step.items()}


def _shape(of: Mapping[str, Any]) -> str:
    return f"[{', '.join(map(str, of['shape']))}]"


def _readme(facts: Mapping[str, Any], problem: str | None) -> str:
    result, recipe = facts["result"], facts["recipe"]
    inputs = "\n".join(f"- `{one['name']}`: {one['dtype']} {_shape(one)}" for one in facts["inputs"])
    steps = {name: " then ".join(step["kind"] for step in steps) for name, steps in facts["prepare"].items()}
    prepared = "; ".join(f"`{name}`: {said}" for name, said in steps.items() if said) or "nothing to do"
    if facts["task"]:
        prepared += f", as in {facts['task']} (other tasks differ from it in this, or in which outputs compete)"
    test = result["metrics"]["test"] if facts["state"] == "last" else (result.get("best") or {}).get("test", {})
    numbers = "\n".join(f"| {name} | {'–' if value is None else f'{value:.6g}'} |" for name, value in test.items())
    arguments = ", ".join(one["name"] for one in facts["inputs"])
    if problem is None:
        how = (
            f"`{PROGRAM}` needs torch only and contains the preparation:\n\n"
            f'```python\nimport torch\n\nprogram = torch.export.load("{PROGRAM}").module()\n'
            f"outputs = program({arguments})  # tensors of raw values\n```\n"
        )
    else:
        how = f"There is no `{PROGRAM}`: {problem}.\n"
    return f"""# {result["method"]} on {result["dataset"]}, {facts["state"]} state

A network (`{recipe["name"]}`, {result["parameters"]:,} parameters), trained by advml {facts["advml"]} in the run
`{facts["run"]}`.

{how}
`{WEIGHTS}` holds the weights alone, under the names of the network's own modules. `{FACTS}` says how
the network is built (`recipe`), how raw inputs are prepared for it (`prepare`), how it was trained (`configuration`)
and what came of it (`result`).

## Inputs, raw: as the data set stores them, converted to the type given here

{inputs}

Prepared by: {prepared}. Output: {_shape(facts["output"])}, {facts["output"]["target"]}.

## On the test split

| metric | value |
|---|---|
{numbers}
"""
