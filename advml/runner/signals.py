"""Ctrl-C and SIGTERM: the first asks the run to stop after the step in hand, the second stops it at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class StopRequest:
    """Whether, and by which signal, the run was asked to stop."""

    def __init__(self) -> None:
        self.by: str | None = None


@contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Listen for SIGINT and SIGTERM for the length of a run (main thread only: elsewhere signals cannot be handled)."""
    request = StopRequest()

    def handle(number: int, frame: FrameType | None) -> None:
        if request.by is not None:
            raise KeyboardInterrupt
        request.by = signal.Signals(number).name

    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
