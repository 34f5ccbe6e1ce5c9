"""The pool of child processes: real processes, started one by one and forked, but with a few lines of Python in the
place of a run, which import nothing heavy. tests/commands/test_sweep_command.py has real runs.
"""

import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import suppress
from pathlib import Path

import pytest

from advml.runner import nursery, pool
from advml.runner.folder import RunFolder
from advml.runner.jobs import Job
from advml.runner.pool import Limits, group_memory_mb, run_jobs, visible_gpus
from advml.runner.run import Asked

# Reads the job as bytes, since unpickling it would import torch, and does what stands between the marks.
CHILD = """
import sys, os, time, signal, json
from pathlib import Path
from advml.runner.worker import die_with
die_with(int(sys.argv[2]))
text = sys.stdin.buffer.read().decode(errors="replace")
folder = Path(text.partition("[[folder]]")[2].partition("[[end]]")[0])
def complete(value=0.5):
    (folder / "config.yaml").write_text("limits: {}")
    result = {"objective": {"value": value}, "metrics": {}, "budget": {}, "seconds": 1.5, "stopped_by": None}
    (folder / "result.json").write_text(json.dumps(result))
    (folder / "status.json").write_text(json.dumps({"state": "completed", "step": 1, "attempt": 1}))
    with open(folder.parent / "completed.txt", "a") as log:
        log.write(folder.name + "\\n")
exec(text.partition("[[do]]")[2].partition("[[end]]")[0])
"""
CHILD = f"import sys; sys.path.append(sys.argv[1]); exec({CHILD!r})"


class Seen:
    """A watcher that remembers, and may act."""

    def __init__(self, on_start=None, on_end=None):
        self.starts, self.ends = [], []
        self.on_start, self.on_end = on_start, on_end

    def started(self, job):
        self.starts.append(job.name)
        if self.on_start:
            self.on_start(job)

    def ended(self, ended):
        self.ends.append((ended.job.name, ended.state))
        if self.on_end:
            self.on_end(ended)


FORKED = pytest.param("forked", marks=pytest.mark.skipif(not nursery.POSSIBLE, reason="forked on Linux only"))


@pytest.fixture(params=["started", FORKED])
def make(tmp_path, monkeypatch, request):
    """make(name="what to do"): jobs."""
    monkeypatch.setattr(pool, "CHILD", CHILD)
    monkeypatch.setattr(pool, "worth_forking", lambda *_: request.param == "forked")
    monkeypatch.setattr(nursery, "PRELOAD", ())

    def jobs(**does):
        return [
            Job(name, tmp_path / name, {
                "threads": 1, "device": "cpu", "limits": {}, "folder": f"[[folder]]{tmp_path / name}[[end]]",
                "do": f"[[do]]{textwrap.dedent(text)}[[end]]",
            }, Asked("test"))
            for name, text in does.items()
        ]  # fmt: skip

    return jobs


def wait_for(path, seconds=30):
    end = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < end, f"{path} never came"
        time.sleep(0.01)


def gone(pid, seconds=10):
    """Has a process ended within so many seconds? A zombie has."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except FileNotFoundError:
            return True
        time.sleep(0.01)
    return False


class TestEnds:
    def test_each_is_told_and_the_others_go_on(self, make):
        jobs = make(
            raises="print('at work', flush=True); raise ValueError('no good')",
            dies="os.kill(os.getpid(), signal.SIGKILL)",
            good="complete(0.75)",
            says="sys.stderr.write('advml: step 3: loss is no longer finite\\n'); sys.exit(1)",
            stops="sys.exit(130)",
            lies="sys.exit(0)",
            last="complete(None)",
        )
        seen = Seen()
        ends = run_jobs(jobs, Limits(jobs=2), seen)
        assert [end.job for end in ends] == jobs
        assert [end.state for end in ends] == [
            "failed", "killed", "completed", "failed", "interrupted", "not started", "completed"
        ]  # fmt: skip
        assert [end.objective for end in ends] == [None, None, 0.75, None, None, None, None]
        assert ends[0].message == "ValueError: no good"
        assert ends[1].message == "killed by SIGKILL; was the machine out of memory?"
        assert ends[3].message == "step 3: loss is no longer finite"
        assert ends[2].seconds == 1.5
        assert sorted(seen.ends) == sorted((end.job.name, end.state) for end in ends)
        assert seen.starts == [job.name for job in jobs]
        assert "at work\n" in (jobs[0].folder / "output.txt").read_text()

    def test_last_words_are_those_of_this_time(self, make):
        (job,) = make(quiet="sys.exit(1)")
        job.folder.mkdir()
        (job.folder / "output.txt").write_text("words of yesterday\n")
        (end,) = run_jobs([job], Limits(), Seen())
        assert end.message == f"no word why (see {job.folder / 'output.txt'})"

    def test_what_is_completed_needs_no_process(self, make):
        jobs = make(a="complete()", b="complete()")
        run_jobs(jobs, Limits(), Seen())
        seen = Seen()
        ends = run_jobs(jobs, Limits(), seen)
        assert (seen.starts, [end.state for end in ends]) == ([], ["completed", "completed"])
        assert (jobs[0].folder.parent / "completed.txt").read_text() == "a\nb\n"

    def test_a_folder_that_cannot_be_made(self, make, tmp_path):
        jobs = make(bad="complete()", good="complete()")
        (tmp_path / "bad").touch()
        ends = run_jobs(jobs, Limits(), Seen())
        assert [end.state for end in ends] == ["failed", "completed"]
        assert "cannot be launched" in ends[0].message

    def test_what_a_job_leaves_running_is_ended(self, make, tmp_path):
        (job,) = make(
            a="""
            import subprocess
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            (folder / "pid").write_text(str(child.pid))
            complete()
        """
        )
        run_jobs([job], Limits(), Seen())
        assert gone(int((job.folder / "pid").read_text()))

    def test_fail_fast(self, make):
        jobs = make(
            good="complete()",
            slow="""
                def stop(*_): (folder / "saved").touch(); sys.exit(130)
                signal.signal(signal.SIGTERM, stop)
                (folder / "ready").touch()
                time.sleep(600)
            """,
            bad="""
                while not (folder.parent / "slow/ready").exists(): time.sleep(0.01)
                sys.exit(1)
            """,
            never="complete()",
        )  # fmt: skip
        ends = run_jobs(jobs, Limits(jobs=2, fail_fast=True), Seen())
        assert [end.state for end in ends] == ["completed", "interrupted", "failed", "not started"]
        assert ends[1].message == "stopped since another job failed"
        assert (jobs[1].folder / "saved").exists()
        assert not jobs[3].folder.exists()


class TestShares:
    COUNTING = """
        here = folder.parent / "now"
        here.mkdir(exist_ok=True)
        (here / folder.name).touch()
        end = time.monotonic() + 0.5
        most = 0
        while time.monotonic() < end:
            most = max(most, len(list(here.iterdir())))
            time.sleep(0.02)
        (here / folder.name).unlink()
        complete(most)
    """

    @pytest.mark.parametrize("at_a_time", [pytest.param(1, marks=pytest.mark.slow), 3])
    def test_so_many_at_a_time(self, at_a_time, make):
        ends = run_jobs(make(**{f"job{number}": self.COUNTING for number in range(6)}), Limits(jobs=at_a_time), Seen())
        assert max(end.objective for end in ends) == at_a_time

    ENVIRONMENT = 'complete(); (folder / "env").write_text(json.dumps(dict(os.environ)))'

    def test_a_gpu_and_threads_for_each_slot(self, make, monkeypatch):
        import json

        monkeypatch.setattr(pool, "visible_gpus", lambda: ["4", "5"])
        monkeypatch.setattr(pool, "resolve_threads", lambda wanted: 7)
        wait = "while len(list(folder.parent.glob('*/env'))) < 3: time.sleep(0.01)\n"
        jobs = make(**dict.fromkeys("abc", f"{self.ENVIRONMENT}\n{wait}"))
        jobs = [Job(j.name, j.folder, {**j.tree, "threads": "auto", "device": "auto"}, j.asked) for j in jobs]
        run_jobs(jobs, Limits(jobs=3), Seen())
        found = [json.loads((job.folder / "env").read_text()) for job in jobs]
        assert [env["CUDA_VISIBLE_DEVICES"] for env in found] == ["4", "5", "4"]
        assert [env["OMP_NUM_THREADS"] for env in found] == ["2", "2", "2"]

    def test_the_job_is_told_its_threads(self, make):
        (job,) = make(a="")
        auto = Job(job.name, job.folder, {**job.tree, "threads": "auto"}, job.asked)
        for threads, expected in ((3, 3), ("auto", max(1, pool.resolve_threads("auto") // 2))):
            wanted = Job(auto.name, auto.folder, {**auto.tree, "threads": threads}, auto.asked)
            fitted, environment = pool._fitted(wanted, 0, Limits(jobs=2))
            assert (fitted.tree["threads"], environment["OMP_NUM_THREADS"]) == (expected, str(expected))

    @pytest.mark.parametrize("device", ["cpu", "cuda:1"])
    def test_who_names_a_device_keeps_it(self, device, make, monkeypatch):
        monkeypatch.setattr(pool, "visible_gpus", lambda: ["0", "1"])
        (job,) = make(a="")
        named = Job(job.name, job.folder, {**job.tree, "device": device}, job.asked)
        assert "CUDA_VISIBLE_DEVICES" not in pool._fitted(named, 1, Limits(jobs=2))[1]

    def test_visible_gpus(self):
        assert visible_gpus({"CUDA_VISIBLE_DEVICES": "2, GPU-ab"}) == ["2", "GPU-ab"]
        assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == visible_gpus({"CUDA_VISIBLE_DEVICES": "-1"}) == []


class TestLimits:
    def test_over_time_finishes_its_step(self, make):
        jobs = make(slow="""
            def stop(*_): (folder / "saved").touch(); sys.exit(130)
            signal.signal(signal.SIGTERM, stop)
            time.sleep(600)
        """, good="complete()")  # fmt: skip
        ends = run_jobs(jobs, Limits(seconds=2.5), Seen())
        assert [end.state for end in ends] == ["interrupted", "completed"]
        assert ends[0].message == "over its time, sweep.seconds=2.5"
        assert (jobs[0].folder / "saved").exists()

    def test_over_time_and_deaf(self, make, monkeypatch):
        monkeypatch.setattr(pool, "GRACE", 0.2)
        jobs = make(deaf="signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)", good="complete()")
        ends = run_jobs(jobs, Limits(seconds=2.5), Seen())
        assert [end.state for end in ends] == ["killed", "completed"]
        assert ends[0].message == "over its time, sweep.seconds=2.5"

    @pytest.mark.skipif(sys.platform != "linux", reason="memory is watched on Linux only")
    def test_over_memory_with_all_that_it_started(self, make):
        own = "hoard = bytearray(os.urandom(1024)) * (300 * 1024)\ntime.sleep(600)"
        child = f"import subprocess\nsubprocess.run([sys.executable, '-c', 'import os, time\\n' + {own!r}])"
        jobs = make(hoards=own, delegates=child, modest="hoard = bytearray(10**7); time.sleep(1.5); complete()")
        ends = run_jobs(jobs, Limits(jobs=3, memory_mb=200), Seen())
        assert [end.state for end in ends] == ["killed", "killed", "completed"]
        for end in ends[:2]:
            assert end.message.startswith("used ")
            assert end.message.endswith(" MB, over sweep.memory_mb=200")

    @pytest.mark.skipif(sys.platform != "linux", reason="memory is watched on Linux only")
    def test_memory_of_a_group(self):
        program = "hoard = bytearray(b'x' * 10**8)\nprint('ready', flush=True)\ninput()"
        with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              start_new_session=True) as process:  # fmt: skip
            process.stdout.readline()
            resident = next(line for line in Path(f"/proc/{process.pid}/status").read_text().splitlines()
                            if line.startswith("VmRSS"))  # fmt: skip
            assert group_memory_mb(process.pid) == pytest.approx(int(resident.split()[1]) / 1024, rel=0.02)
            process.communicate(b"\n")
        assert group_memory_mb(process.pid) == 0


class TestOthers:
    def test_a_run_that_another_process_holds_comes_last(self, make):
        jobs = make(held="complete()", free="complete()", other="complete()")
        jobs[0].folder.mkdir()
        holder = RunFolder(jobs[0].folder)
        holder.lock()
        seen = Seen(on_end=lambda end: holder.unlock() if end.job.name == "other" else None)
        ends = run_jobs(jobs, Limits(), seen)
        assert [end.state for end in ends] == ["completed"] * 3
        assert seen.starts == ["free", "other", "held"]

    def test_one_folder_is_worked_on_once(self, make):
        (job,) = make(a="time.sleep(0.3); complete()")
        ends = run_jobs([job, job], Limits(jobs=2), Seen())
        assert [end.state for end in ends] == ["completed", "completed"]
        assert (job.folder.parent / "completed.txt").read_text() == "a\n"


class TestNursery:
    @pytest.mark.skipif(not nursery.POSSIBLE, reason="forked on Linux only")
    def test_where_it_dies_there_is_another(self, make, monkeypatch):
        monkeypatch.setattr(pool, "worth_forking", lambda *_: True)
        jobs = make(a="os.kill(os.getppid(), signal.SIGKILL); time.sleep(600)", b="complete()")
        ends = run_jobs(jobs, Limits(), Seen())
        assert [end.state for end in ends] == ["killed", "completed"]

    def test_a_few_jobs_are_started(self):
        assert not pool.worth_forking(2, Limits(jobs=2))
        assert pool.worth_forking(3, Limits(jobs=2)) == nursery.POSSIBLE


class TestStopping:
    POLITE = """
        def stop(*_): (folder / "saved").touch(); sys.exit(130)
        signal.signal(signal.SIGTERM, stop)
        (folder / "ready").touch()
        time.sleep(600)
    """

    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_children_finish_their_step_and_save(self, number, make):
        jobs = make(a=self.POLITE, b=self.POLITE, c="complete()")

        def stop(job):
            if job.name == "b":
                for other in jobs[:2]:
                    wait_for(other.folder / "ready")
                os.kill(os.getpid(), number)

        seen = Seen(on_start=stop)
        with pytest.raises(KeyboardInterrupt):
            run_jobs(jobs, Limits(jobs=2), seen)
        assert sorted(seen.ends) == [("a", "interrupted"), ("b", "interrupted")]
        assert all((job.folder / "saved").exists() for job in jobs[:2])
        assert not jobs[2].folder.exists()

    def test_the_second_time_they_are_killed(self, make):
        (job,) = make(
            deaf="""
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            (folder / "pid").write_text(str(os.getpid()))
            time.sleep(600)
        """
        )

        def stop(job):
            wait_for(job.folder / "pid")
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

        with pytest.raises(KeyboardInterrupt):
            run_jobs([job], Limits(), Seen(on_start=stop))
        assert gone(int((job.folder / "pid").read_text()))

    def test_children_do_not_outlive_an_error_of_ours(self, make):
        (job,) = make(a='(folder / "pid").write_text(str(os.getpid())); time.sleep(600)')

        def fail(job):
            wait_for(job.folder / "pid")
            raise RuntimeError

        with pytest.raises(RuntimeError):
            run_jobs([job], Limits(), Seen(on_start=fail))
        assert gone(int((job.folder / "pid").read_text()))

    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of their parent's death")
    def test_children_die_with_their_parent(self):
        child = (
            "import sys, time; from advml.runner.worker import die_with; die_with(int(sys.argv[1]));"
            "print('ready', flush=True); time.sleep(600)"
        )
        parent = (
            "import os, subprocess, sys, time\n"
            f"child = subprocess.Popen([sys.executable, '-c', {child!r}, str(os.getpid())], stdout=subprocess.PIPE)\n"
            "child.stdout.readline(); print(child.pid, flush=True); time.sleep(600)"
        )
        with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE) as process:
            pid = int(process.stdout.readline())
            assert not gone(pid, seconds=0.05)
            process.kill()
        assert gone(pid)
        with suppress(ProcessLookupError):
            os.kill(pid, 0)

    def test_a_child_whose_parent_is_gone_already_ends(self):
        program = "from advml.runner.worker import die_with; die_with(1 << 22); print('alive')"
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert (ended.returncode, ended.stdout) == (1, "")
