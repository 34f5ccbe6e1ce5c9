"""What a tracker must hold: what a run's folder says, written down independently of the module under test."""

import json

import pytest
from runs import assert_same_state, load

mlflow_is_here = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def wanted(folder):
    """{name: {step: value}} of the records and of the result, written down independently of the module under test."""
    found = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        step, split, state = record.pop("step"), record.pop("split"), record.pop("state", None)
        del record["phase"]
        for name, value in record.items():
            if value is not None:
                found.setdefault(f"{split}_{state}/{name}" if state else f"{split}/{name}", {})[step] = value
    if (folder / "result.json").exists():
        result = json.loads((folder / "result.json").read_text())
        step = result["budget"]["steps"]
        found |= {f"budget/{name}": {step: value} for name, value in result["budget"].items() if value is not None}
        found |= {f"summary/{name}": {step: value} for name, value in result["summary"].items() if value is not None}
        found["budget/seconds"] = {step: result["seconds"]}
        found["parameters"] = {step: result["parameters"]}
        found["objective"] = {step: result["objective"]["value"]}
    return found


def assert_same_records(left, right):
    """Records byte by byte, weights by torch.equal, one identity."""
    assert (left / "metrics.jsonl").read_bytes() == (right / "metrics.jsonl").read_bytes()
    assert_same_state(load(left / "checkpoints/model.pt"), load(right / "checkpoints/model.pt"))
    assert left.result()["identity"] == right.result()["identity"]
    assert left.result()["metrics"] == right.result()["metrics"]


class At:
    """An observer that acts before a tracker sees the record of a training step."""

    def __init__(self, acts):
        self.acts = acts

    def start(self, phases, done): ...
    def note(self, text): ...
    def finish(self): ...

    def record(self, record):
        if record["split"] == "train" and record["step"] in self.acts:
            self.acts[record["step"]]()
