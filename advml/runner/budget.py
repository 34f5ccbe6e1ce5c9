"""The one budget meter: counters of work, added by whoever does the work, and the limits that stop a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict

from advml.config import Limits

COUNTERS = {
    "samples": "training examples processed, each pass counted",
    "updates": "optimiser updates",
    "gradients": "gradients: one example through one copy of the network",
    "evaluations": "candidate solutions scored by a search",
    "circuits": "quantum circuits run",
    "bytes_up": "bytes sent from clients to the server",
    "bytes_down": "bytes sent from the server to clients",
}


class Budget:
    """Counts work; part of every checkpoint."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}

    def add(self, **work: int) -> None:
        """Add to counters by name. Raises KeyError for a name that COUNTERS does not define."""
        for name, amount in work.items():
            if name not in COUNTERS:
                raise KeyError(f"no such counter: {name}; advml.runner.budget.COUNTERS lists them")
            self.counts[name] = self.counts.get(name, 0) + int(amount)


def uncounted(limits: Limits, counts: Mapping[str, int]) -> list[str]:
    """The counters that have a limit and that nothing was added to."""
    return [name for name in COUNTERS if getattr(limits, name) is not None and not counts.get(name)]


def used_up(limits: Limits, steps: int, seconds: float, counts: Mapping[str, int]) -> str | None:
    """The first limit that has been reached, as `limits.samples=1000 reached (1024)`; None if none has."""
    done: Mapping[str, float] = {"steps": steps, "seconds": seconds, **counts}
    for name, limit in asdict(limits).items():
        if limit is not None and done.get(name, 0) >= limit:
            shown = f"{done[name]:.1f}" if name == "seconds" else str(done[name])
            return f"limits.{name}={limit} reached ({shown})"
    return None
