"""Runs in processes of their own that can be killed, starved of disk and signalled, without importing torch each time.

A server (this file as a script) imports everything once and has done no work, so that forking it is safe; each run is
a fork of it. `Forks` is the client. A child that is told to replaces `advml.runner.files.reached`, which the runner
calls at every write point.
"""

import contextlib
import errno
import importlib
import json
import os
import pkgutil
import signal
import subprocess
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

# --- client -------------------------------------------------------------------------------------------------------


@dataclass
class Ended:
    """How a process ended: exit code (−9: killed) and what it printed."""

    code: int
    out: str
    err: str


class Process:
    """A fork at work."""

    def __init__(self, server, pid, out, err):
        self._server, self.pid, self._out, self._err = server, pid, out, err

    def send(self, number):
        os.kill(self.pid, number)

    def kill_after(self, seconds):
        """SIGKILL after so long, unless it has ended by itself."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._server.ask(ended=self.pid)["ended"]:
            time.sleep(min(0.005, max(0.0, end - time.monotonic())))
        self.send(signal.SIGKILL)
        return self.wait()

    def wait(self):
        code = self._server.ask(wait=self.pid)["code"]
        return Ended(code, Path(self._out).read_text(), Path(self._err).read_text())


class Forks:
    """The server's client. `start(...)` gives a Process, `run(...)` waits for its end."""

    def __init__(self, scratch):
        self._scratch, self._started = Path(scratch), 0
        environment = os.environ | {"OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"}
        self._process = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment,
            start_new_session=True,
        )  # fmt: skip

    def ask(self, **request):
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, do, *args, cwd, fault=None):
        """Call a function of DO in a new process, in the folder `cwd`."""
        self._started += 1
        out, err = (str(self._scratch / f"{self._started}.{stream}") for stream in ("out", "err"))
        Path(out).touch(), Path(err).touch()  # it may be killed before it gets that far
        answer = self.ask(do=do, args=args, cwd=str(cwd), fault=fault, out=out, err=err)
        return Process(self, answer["pid"], out, err)

    def run(self, do, *args, cwd, fault=None):
        return self.start(do, *args, cwd=cwd, fault=fault).wait()

    def close(self):
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


# --- what a child can do ------------------------------------------------------------------------------------------


def do_cli(*words):
    from advml.cli import main

    return main(words)


def do_start(tree):
    """`advml run` without Hydra, which takes longer than a tiny run itself."""
    from advml.commands.show import show_outcome
    from advml.config import bind
    from advml.runner.run import Asked, start

    return _shown(lambda: start(bind(tree), Asked("advml run")), show_outcome)


def do_resume(path, changes):
    """`advml resume` without Hydra."""
    from advml.commands.show import show_outcome
    from advml.config import bind
    from advml.runner.folder import RunFolder
    from advml.runner.run import resume

    def go_on():
        folder = RunFolder.open(path)
        return resume(folder, bind({**folder.tree(), **changes}))

    return _shown(go_on, show_outcome)


def do_ensure(path, tree):
    """A job in its fixed folder."""
    from advml.commands.show import show_outcome
    from advml.config import bind
    from advml.runner.jobs import ensure
    from advml.runner.run import Asked

    return _shown(lambda: ensure(Path(path), bind(tree), Asked("advml sweep")), show_outcome)


def do_create(root, count, go):
    """Make run folders as soon as the file `go` is there."""
    from advml.runner.folder import RunFolder

    while not os.path.exists(go):
        time.sleep(0.001)
    for _ in range(count):
        print(RunFolder.create(Path(root), "method", "dataset").path)
    return 0


def _shown(act, show):
    from advml.errors import AdvmlError

    try:
        outcome = act()
    except AdvmlError as error:
        for line in str(error).splitlines():
            print(f"advml: {line}", file=sys.stderr)
        return error.exit_code
    show(outcome)
    return outcome.exit_code


DO = {"cli": do_cli, "start": do_start, "resume": do_resume, "create": do_create, "ensure": do_ensure}


# --- faults -------------------------------------------------------------------------------------------------------


def inject(fault):
    """Break the write points of this process.

    kind "none": none, but pictures are stubs as with all the others, since drawing them takes longer than all the rest.
    kind "slow": sleep for fault["seconds"] at each, so that a signal finds the run still at work.
    kind "record": write each name to fault["log"]. kind "die": end at the `nth` time `point` is reached, as by SIGKILL.
    kind "full": from then on every write fails for want of space. kind "small": no file may grow beyond `bytes`.
    """
    from advml.runner import figures, files

    if fault["kind"] == "small":
        import resource

        resource.setrlimit(resource.RLIMIT_FSIZE, (fault["bytes"], fault["bytes"]))
        return
    figures.draw = lambda picture: {"png": b"a picture", "svg": b"<svg/>"}
    seen = {"count": 0, "full": False}

    def reached(point):
        if fault["kind"] in ("none", "slow"):
            time.sleep(fault.get("seconds", 0))
            return
        if fault["kind"] == "record":
            with open(fault["log"], "a") as log:
                log.write(point + "\n")
            return
        if point == fault["point"]:
            seen["count"] += 1
            if seen["count"] == fault["nth"]:
                if fault["kind"] == "die":
                    os._exit(9)
                seen["full"] = True
        if seen["full"]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    files.reached = reached


# --- server -------------------------------------------------------------------------------------------------------


def preload():
    import sklearn.datasets  # noqa: F401
    import torch

    torch.set_num_threads(1)
    for package in ("advml.commands", "advml.runner", "advml.data", "advml.models", "advml.nn", "advml.methods"):
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            try:
                importlib.import_module(module.name)
            except Exception:  # not needed by every run: whoever needs it will see its error
                traceback.print_exc()


def child(request):
    for stream, name in ((1, "out"), (2, "err")):
        descriptor = os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(descriptor, stream)
        os.close(descriptor)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    code = 1
    try:
        os.chdir(request["cwd"])
        if request["fault"]:
            inject(request["fault"])
        code = DO[request["do"]](*request["args"])
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(code)


def serve():
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    preload()
    for line in sys.stdin:
        request = json.loads(line)
        if "ended" in request:  # it stays a zombie, so that its number is not given to another
            found = os.waitid(os.P_PID, request["ended"], os.WEXITED | os.WNOHANG | os.WNOWAIT)
            answer = {"ended": found is not None}
        elif "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            answer = {"code": os.waitstatus_to_exitcode(status)}
        else:
            pid = os.fork()
            if pid == 0:
                child(request)
            answer = {"pid": pid}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    serve()
