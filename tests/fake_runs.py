"""Run folders made by hand: as small as a report can be given, with numbers that a test chooses."""

import copy
import json

import yaml

TREE = {
    "seed": 0,
    "device": "cpu",
    "threads": 1,
    "progress": "off",
    "outputs": "outputs",
    "dataset": {"name": "digits", "valid": 0.2, "split_seed": None},
    "view": {"name": "plain"},
    "model": {"name": "mlp", "hidden": [64]},
    "method": {"name": "supervised", "lr": 0.1, "epochs": 4},
}


def tree_with(changes):
    """TREE with dotted keys changed; a value of `...` takes the key away."""
    tree = copy.deepcopy(TREE)
    for key, value in changes.items():
        *path, leaf = key.split(".")
        block = tree
        for part in path:
            block = block.setdefault(part, {})
        if value is ...:
            block.pop(leaf, None)
        else:
            block[leaf] = value
    return tree


def make_run(folder, seed=0, accuracy=0.9, state="completed", records=(), split=None, time="2026-01-01", **extra):
    """A run folder. `extra`: dotted configuration keys with `__` for the dot; `result` and `timing` go to their files.

    `split`: (training examples, test examples, what they are), as if drawn from one table.
    """
    changed = extra.pop("result", {})
    timing = extra.pop("timing", ())
    tree = tree_with({"seed": seed, **{key.replace("__", "."): value for key, value in extra.items()}})
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))
    status = {"state": state, "step": 4, "attempt": 1, "pid": 1, "host": "here", "time": time, "error": None}
    (folder / "status.json").write_text(json.dumps(status))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    (folder / "timing.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in timing))
    if split is not None:
        train, test, which = split
        parts = {"train": train, "valid": test, "test": test}
        data = {name: {"examples": size, "index_sha256": f"{name} {which}"} for name, size in parts.items()}
        (folder / "data.json").write_text(json.dumps(data))
    if state == "completed":
        result = {
            "seed": seed,
            "objective": {"metric": "accuracy", "split": "valid", "mode": "max", "value": accuracy},
            "metrics": {
                "train": {"loss": 1 - accuracy},
                "valid": {"accuracy": accuracy, "loss": 1 - accuracy},
                "test": {"accuracy": accuracy - 0.01, "loss": 1.1 - accuracy},
            },
            "summary": {},
            "best": {"step": 3, "accuracy": accuracy, "test": {"accuracy": accuracy - 0.02}},
            "parameters": 650,
            "budget": {"steps": 4, "samples": 400, "updates": 40, "gradients": 400, "flops_estimate": 12000},
            "seconds": 1.5 + seed,
            "peak_memory_mb": {"host": 300.0},
            "stopped_by": None,
        }
        (folder / "result.json").write_text(json.dumps(result | changed))
    return folder
