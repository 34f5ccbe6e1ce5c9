"""Forks of a process that has imported what they need. tests/runner/test_pool.py has what the pool makes of them."""

import os
import signal
import sys
import time

import pytest

from advml.runner import nursery
from advml.runner.nursery import Nursery
from advml.runner.pool import LIBRARY

pytestmark = pytest.mark.skipif(not nursery.POSSIBLE, reason="forked on Linux only")


@pytest.fixture
def fork(tmp_path, monkeypatch):
    """fork(program, data) → (exit code, what it printed), all of one nursery, which is fork.nursery."""
    monkeypatch.setattr(nursery, "PRELOAD", ("advml.errors", "no.such.module"))
    ours = Nursery(LIBRARY, {"FROM_THE_POOL": "7"})

    def run(program, data=b""):
        output = tmp_path / "output.txt"
        output.unlink(missing_ok=True)
        code = ours.fork(program, LIBRARY, data, output).wait()
        return code, output.read_text()

    run.nursery = ours
    yield run
    ours.close()


def test_a_fork_is_like_a_process_of_its_own(fork):
    program = (
        "import os, sys\n"
        "print(sys.stdin.buffer.read(), sys.argv == ['-c', %r, str(os.getppid())], os.environ['FROM_THE_POOL'])\n"
        "print(os.getpgid(0) == os.getpid(), os.read(0, 1), __name__)"
    )
    assert fork(program % LIBRARY, b"given") == (0, "b'given' True 7\nTrue b'' __main__\n")


def test_exit_codes(fork):
    assert fork("import sys; sys.exit(130)") == (130, "")
    assert fork("import sys; sys.exit()") == (0, "")
    assert fork("import sys; sys.exit('advml: no')") == (1, "advml: no\n")
    code, said = fork("raise KeyError(5)")
    assert (code, said.splitlines()[-1]) == (1, "KeyError: 5")
    assert fork("import os, signal; os.kill(os.getpid(), signal.SIGKILL)") == (-9, "")


def test_what_is_registered_for_the_end_happens(fork):
    assert fork("import atexit; atexit.register(print, 'at the end')") == (0, "at the end\n")


def test_what_one_had_to_import_the_next_finds(fork):
    program = "import sys; print('advml.registry' in sys.modules, 'torch' in sys.modules); import advml.registry"
    assert [fork(program)[1] for _ in range(2)] == ["False False\n", "True False\n"]
    leaves = "import sys; print(hasattr(sys, 'left')); sys.left = 1"
    assert [fork(leaves)[1] for _ in range(2)] == ["False\n", "False\n"]


def test_signals_are_as_at_the_start_of_a_process(fork):
    program = "from signal import *; print({getsignal(n) for n in (SIGCHLD, SIGTERM)} == {SIG_DFL})"
    assert fork(program) == (0, "True\n")


def test_forks_die_with_it_and_it_says_so(fork, tmp_path):
    ours = fork.nursery
    child = ours.fork("import sys, time; from advml.runner.worker import die_with; die_with(int(sys.argv[2]));"
                      "print('ready', flush=True); time.sleep(600)", LIBRARY, b"", tmp_path / "said")  # fmt: skip
    end = time.monotonic() + 30
    while "ready" not in ((tmp_path / "said").read_text() if (tmp_path / "said").exists() else ""):
        assert time.monotonic() < end
        time.sleep(0.01)
    assert child.poll() is None
    os.kill(ours._process.pid, signal.SIGKILL)
    assert child.wait() == -9
    child.terminate()  # of one that has ended: nothing
    assert not ours.alive
    with pytest.raises(BrokenPipeError):
        ours.fork("pass", LIBRARY, b"", tmp_path / "said")


def test_the_path_is_ours(fork):
    """A file beside the user's that is named like a library's is not imported: -P, as in a process of its own."""
    assert fork("import sys; print('' in sys.path, sys.path[-1] == sys.argv[1])")[1] == "False True\n"
    assert sys.executable
