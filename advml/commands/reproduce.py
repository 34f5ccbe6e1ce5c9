"""advml reproduce RUN [KEY=VALUE ...]

Runs the saved configuration of RUN again, in a new folder, and compares: the environment, the configuration and the
data key by key, the records byte by byte. Prints "identical" and exits with 0, or says what differs, by how much and
where first, and exits with 1.

  advml reproduce outputs/ewc/digits/20261120-141502-9f3a
  advml reproduce outputs/ewc/digits/20261120-141502-9f3a device=cuda    how far another device is off
  advml reproduce outputs/ewc/digits/20261120-141502-9f3a seed=1         how far another seed is off

Bits are promised for the same configuration, threads, versions and machine type; RUN's number of threads is used.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from advml.runner.observers import was_pruned


def main(arguments: Sequence[str]) -> int:
    """Run again, compare."""
    from advml.commands.saved import complete
    from advml.commands.show import show_outcome
    from advml.compose import with_overrides
    from advml.config import bind
    from advml.errors import ConfigError
    from advml.runner.environment import differences
    from advml.runner.folder import RunFolder
    from advml.runner.run import Asked, start

    if not arguments or ("=" in arguments[0] and not Path(arguments[0]).exists()):
        raise ConfigError("reproduce: name the run folder: advml reproduce RUN (see: advml list runs)")
    old = RunFolder.open(arguments[0])
    if old.status()["state"] != "completed":
        state = old.status()["state"]
        cure = f"advml resume {shlex.quote(str(old.path))}"
        raise ConfigError(f"{old.path}: is {state}, not completed; finish it first: {cure}")
    if not (expected := old.records()):
        raise ConfigError(f"{old / 'metrics.jsonl'}: missing or empty; there is nothing to compare with")
    saved, before = complete(old), old.environment()
    replayable = {**saved, "threads": before["threads"], "limits": _limits(saved["limits"], old.result())}
    tree = with_overrides(replayable, arguments[1:])
    asked = Asked(shlex.join(["advml", "reproduce", *arguments]), arguments[1:], before.get("choices", {}))
    outcome = start(bind(tree), asked)
    if outcome.state != "completed":
        show_outcome(outcome)
        return outcome.exit_code

    new = outcome.folder
    found = new.records()
    same_bytes = (old / "metrics.jsonl").read_bytes() == (new / "metrics.jsonl").read_bytes()
    if was_pruned(old.result().get("stopped_by")):  # its last tests were never made
        found = [record for record in found if record["split"] != "test" or "state" not in record]
        same_bytes = list(map(json.dumps, expected)) == list(map(json.dumps, found))
    ignored = ("variables", "choices")
    then, now = ({k: v for k, v in e.items() if k not in ignored} for e in (before, new.environment()))
    for line in differences(then, now):
        print(f"environment  {line}")
    for line in differences(saved, {**tree, "threads": saved["threads"]}):
        print(f"config       {line}")
    if (old / "data.json").exists() and (new / "data.json").exists():
        for line in differences(old.data(), new.data()):
            print(f"data         {line}")
    if same_bytes:
        print(f"identical: all {len(found)} records, byte by byte")
    else:
        for line in differing_records(expected, found):
            print(f"records      {line}")
    print(new.path)
    return 0 if same_bytes else 1


def _limits(limits: Any, result: Mapping[str, Any]) -> Any:
    """The limits of a run, but steps in the place of seconds and pruners: neither clock nor other runs come again."""
    pruned = was_pruned(result.get("stopped_by"))
    if not isinstance(limits, Mapping) or (limits.get("seconds") is None and not pruned):
        return limits
    steps = result["budget"]["steps"] if result["stopped_by"] else limits["steps"]
    return {**limits, "seconds": None, "steps": steps}


def differing_records(left: Sequence[Mapping[str, Any]], right: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Where two records part first, and for every metric its largest difference and last values."""
    if len(left) != len(right):
        yield f"{len(left)} against {len(right)} records"
    pairs = list(zip(left, right, strict=False))
    first = next(((a, b) for a, b in pairs if a != b), None)
    if first is not None:
        where = first[0]
        yield f"first difference at step {where['step']}, phase {where['phase']}, split {where['split']}"
    gaps: dict[str, tuple[float, float, float]] = {}
    for a, b in pairs:
        if (a["step"], a["split"]) != (b["step"], b["split"]):
            break
        for name in a:
            x, y = a[name], b.get(name)
            if name != "step" and isinstance(x, int | float) and isinstance(y, int | float):
                label = f"{a['split']} {name}"
                gaps[label] = (max(abs(x - y), gaps.get(label, (0.0,))[0]), x, y)
    for label, (gap, x, y) in gaps.items():
        if gap:
            yield f"{label}: differs by up to {gap:.3g}; last {x:.6g} against {y:.6g}"
