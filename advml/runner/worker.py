"""One job in a process of its own, as runner/pool.py starts it: the job comes pickled on stdin, the exit code tells
how it ended, and the last line on stderr why.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: int) -> None:
    """Bring one job to its end; exit code 0 completed, 1 failed, 2 wrong configuration, 130 interrupted."""
    die_with(parent)
    job = pickle.load(sys.stdin.buffer)
    from advml.config import bind  # only now: importing torch takes seconds, and the parent may be gone by then
    from advml.errors import AdvmlError
    from advml.runner.jobs import ensure

    try:
        outcome = ensure(job.folder, bind(job.tree), job.asked, job.observers())
    except AdvmlError as error:
        sys.stderr.write("".join(f"advml: {line}\n" for line in str(error).splitlines()))
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    if outcome.message:
        sys.stderr.write(f"advml: {outcome.message}\n")
    sys.exit(outcome.exit_code)


def die_with(parent: int) -> None:
    """Let Linux kill this process as soon as its parent dies, however that dies. Elsewhere there is no such thing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked
        sys.exit(1)
