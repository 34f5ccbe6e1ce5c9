"""Processes for jobs, forked from one that has imported torch already: importing takes seconds, which many short runs
would pay each.

`Nursery` starts that process and asks it for forks; `serve` is its main program. It does no work of its own, so that
forking it is safe, and what a job had to import it imports before the next fork. Everything ends with its parent.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import os
import pickle
import select
import signal
import struct
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from advml.runner.worker import die_with

POSSIBLE = sys.platform == "linux"  # elsewhere system libraries do not survive a fork, or children a parent's death
PRELOAD = ("torch", "advml.runner.jobs")
WORTH = ("advml.", "sklearn.datasets", "scipy.stats", "pennylane", "matplotlib", "networkx", "optuna", "dp_accounting")
SERVER = "import sys; sys.path.append(sys.argv[1]); from advml.runner.nursery import serve; serve(sys.argv[2:])"
HEADER = struct.Struct("<q")  # of a request: its length
ANSWER = struct.Struct("<qq")  # number of a process, and its exit code or STARTED
STARTED = 1 << 20


# --- who asks -----------------------------------------------------------------------------------------------------


class Nursery:
    """A process to be forked, in a session of its own, with `environment` on top of ours. Raises OSError."""

    def __init__(self, library: str, environment: Mapping[str, str]) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", SERVER, library, str(os.getpid()), *PRELOAD],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0, env={**os.environ, **environment},
            start_new_session=True,
        )  # fmt: skip
        self._codes: dict[int, int] = {}
        self._begun: list[int] = []
        self._open = True

    @property
    def alive(self) -> bool:
        """Can it be forked?"""
        return self._open and self._process.poll() is None

    def fork(self, program: str, library: str, data: bytes, output: Path) -> Fork:
        """A fork that runs a program as `python -c PROGRAM LIBRARY PARENT` would with `data` on stdin; what it prints
        is added to `output`. It leads a process group of its own. Raises OSError where the process is gone.
        """
        assert self._process.stdin is not None
        request = pickle.dumps((program, library, data, str(output)))
        _write(self._process.stdin, HEADER.pack(len(request)) + request)
        while self._open and not self._begun:
            self._hear(None)
        if not self._begun:
            raise OSError("the process to be forked is gone")
        return Fork(self, self._begun.pop())

    def code(self, pid: int, timeout: float | None = 0) -> int | None:
        """How a fork ended, −9 with its parent; None if it has not within `timeout` seconds (None: waits)."""
        while self._open and pid not in self._codes:
            if not self._hear(timeout):
                return None
        return self._codes.get(pid, -signal.SIGKILL)

    def _hear(self, timeout: float | None) -> bool:
        """Take an answer, if one comes in time."""
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            return False
        answer = _read(self._process.stdout, ANSWER.size)
        if answer is None:
            self._open = False
            return True
        pid, code = ANSWER.unpack(answer)
        if code == STARTED:
            self._begun.append(pid)
        else:
            self._codes[pid] = code
        return True

    def close(self) -> None:
        """End the process, and with it all forks that are left."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        self._process.wait()
        self._open = False


class Fork:
    """A forked process, with what pool.py uses of subprocess.Popen."""

    def __init__(self, nursery: Nursery, pid: int) -> None:
        self._nursery, self.pid = nursery, pid

    def poll(self) -> int | None:
        """Its exit code, if it has ended."""
        return self._nursery.code(self.pid)

    def wait(self) -> int:
        """Its exit code, when it has ended."""
        code = self._nursery.code(self.pid, None)
        assert code is not None
        return code

    def terminate(self) -> None:
        """SIGTERM, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)


# --- who is asked -------------------------------------------------------------------------------------------------


def serve(words: Sequence[str]) -> None:
    """The main program: PARENT MODULE…; requests on stdin, answers on stdout, until stdin ends."""
    parent, *preload = words
    die_with(int(parent))
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    _import(preload)
    ended, tell_ended = os.pipe()
    learnt, tell_learnt = os.pipe()
    for descriptor in (ended, tell_ended, learnt):
        os.set_blocking(descriptor, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)  # only so that the wakeup descriptor is written to
    signal.set_wakeup_fd(tell_ended, warn_on_full_buffer=False)
    requests = os.fdopen(os.dup(0), "rb", buffering=0)
    while True:
        ready = select.select([requests.fileno(), ended], [], [])[0]
        if ended in ready:
            os.read(ended, 1 << 16)
            _reap(answers)
        if requests.fileno() in ready:
            header = _read(requests, HEADER.size)
            request = None if header is None else _read(requests, HEADER.unpack(header)[0])
            if request is None:
                return
            with contextlib.suppress(BlockingIOError):
                _import(os.read(learnt, 1 << 20).decode().split())
            gc.freeze()  # a collection in the child would copy all pages
            pid = os.fork()
            if pid == 0:
                for pipe in (requests, answers):
                    pipe.close()
                sys.exit(_work(tell_learnt, *pickle.loads(request)))
            _write(answers, ANSWER.pack(pid, STARTED))


def _reap(answers: IO[bytes]) -> None:
    """Tell of every child that has ended."""
    with contextlib.suppress(ChildProcessError):
        while (found := os.waitpid(-1, os.WNOHANG))[0]:
            _write(answers, ANSWER.pack(found[0], os.waitstatus_to_exitcode(found[1])))


def _import(modules: Sequence[str]) -> None:
    """What cannot be imported is left to the job that needs it, which says so."""
    for name in modules:
        with contextlib.suppress(Exception):
            importlib.import_module(name)


def _work(tell_learnt: int, program: str, library: str, data: bytes, output: str) -> str | int | None:
    """The child: run the program, tell what had to be imported for it; its exit code."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    os.setsid()
    written = os.open(output, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for ours, theirs in ((written, 1), (written, 2), (nothing, 0)):
        os.dup2(ours, theirs)
    sys.stdin, sys.argv = io.TextIOWrapper(io.BytesIO(data)), ["-c", library, str(os.getppid())]
    before, code = frozenset(sys.modules), None
    try:
        exec(compile(program, "<job>", "exec"), {"__name__": "__main__"})
    except SystemExit as end:
        code = end.code
    imported = [name for name in sys.modules if name not in before and name.startswith(WORTH)]
    with contextlib.suppress(OSError):
        os.write(tell_learnt, ("\n".join(imported) + "\n").encode())
    return code


# --- pipes --------------------------------------------------------------------------------------------------------


def _write(pipe: IO[bytes], data: bytes) -> None:
    """All of it."""
    rest = memoryview(data)
    while rest:
        rest = rest[pipe.write(rest) :]


def _read(pipe: IO[bytes], count: int) -> bytes | None:
    """So many bytes; None where the other side has closed."""
    data = b""
    while len(data) < count:
        more = pipe.read(count - len(data))
        if not more:
            return None
        data += more
    return data
