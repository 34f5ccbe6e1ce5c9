"""advml runs: which there are, chosen by what they say, shown, weighed, deleted, and what is never deleted."""

import itertools
import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from runs import QUIET, TINY

from advml.compose import with_overrides
from advml.errors import AdvmlError, ConfigError
from advml.runner import inventory
from advml.runner.folder import RunFolder, find
from advml.runner.inventory import Filter, amount, disk_use


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """One real run, which the others are copies of."""
    import advml

    words = (*TINY, *QUIET, f"outputs={tmp_path_factory.mktemp('original')}")
    return advml.run(*words).folder


@pytest.fixture
def made(original, inside):
    """made("seed=1", model="mlp_400"): the folder of a completed run with such values and such a chosen file."""
    count = itertools.count()

    def make(*overrides, **choices):
        path = inside / f"outputs/supervised/iris/20260101-0000{next(count):02}-aaaa"
        folder = RunFolder(shutil.copytree(original, path))
        tree = with_overrides(folder.tree(), [*overrides, "outputs=outputs"])
        (folder / "config.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
        environment = folder.environment()
        environment["choices"] |= choices
        (folder / "environment.json").write_text(json.dumps(environment))
        return folder

    return make


def copied(folder, *parts):
    """A copy of a run at another place, as another run."""
    place = Path(*parts)
    place.parent.mkdir(parents=True, exist_ok=True)
    aside = shutil.copytree(folder.path, folder.path.with_name("aside"))  # the place may lie inside the folder
    return RunFolder(aside.rename(place))


def names(said):
    """The first word of each line."""
    return [line.split()[0] for line in said.out.splitlines()]


class TestFind:
    def test_at_any_depth(self, made, run_cli, inside):
        folder = made()
        job = copied(folder, inside / "outputs/sweeps/lr/method.lr=0.1,seed=1-0a1b2c")
        inner = copied(folder, folder / "baselines/finetune")
        innermost = copied(job, inner / "baselines/joint")
        assert {one.path for one in find(inside / "outputs")} == {folder.path, job.path, inner.path, innermost.path}
        assert {one.path for one in find(folder.path)} == {folder.path, inner.path, innermost.path}
        assert run_cli("runs").out == run_cli("list", "runs").out
        assert "sweeps/lr/method.lr=0.1,seed=1-0a1b2c" in names(run_cli("runs"))

    def test_what_is_none(self, made, inside):
        folder = made()
        for place in ("configs", ".hydra", "outputs/multirun/0/.hydra"):
            (inside / place).mkdir(parents=True)
            shutil.copy(folder / "config.yaml", inside / place)
        copied(folder, inside / "outputs/.hidden/run")
        copied(folder, folder / "artifacts/run")
        elsewhere = copied(folder, inside / "elsewhere/run")
        (inside / "outputs/link").symlink_to(elsewhere.path.parent)
        assert [one.path for one in find(inside / "outputs")] == [folder.path]
        assert find(inside / "configs") == find(inside / "nowhere") == []

    def test_a_link_to_all_of_them_is_followed(self, made, inside):
        made()
        (inside / "link").symlink_to(inside / "outputs")
        assert len(find(inside / "link")) == 1

    def test_newest_last(self, made, inside):
        folder = made()
        for place, when in {"m/d/20300101-000000-aaaa": 0, "sweeps/s/job-b": 3000, "sweeps/a/job-a": 4000,
                            "m/d/19700101-000010-bbbb": 10**9}.items():  # fmt: skip
            copied(folder, inside / "runs" / place)
            os.utime(inside / "runs" / place / "command.txt", (when, when))
        assert [one.path.name for one in find(inside / "runs")] == [
            "19700101-000010-bbbb", "job-b", "job-a", "20300101-000000-aaaa"
        ]  # fmt: skip


class TestFilters:
    @pytest.fixture
    def runs(self, made, run_cli):
        """Three runs; which of them a command lists, by their letters."""
        folders = {
            "a": made("method.betas=[0.9,0.99]"),
            "b": made("model.name=mlp", "+model.hidden=[400,400]", "seed=1", "method.lr=1e-3", model="mlp_400"),
            "c": made("model.name=mlp", "seed=2", "method.optimiser=sgd", "limits.steps=2", model="mlp"),
        }
        status = json.loads((folders["c"] / "status.json").read_text())
        (folders["c"] / "status.json").write_text(json.dumps({**status, "state": "failed", "error": "no luck"}))

        def listed(*words):
            said = run_cli("runs", *words)
            assert (said.code, said.err) == (0, "")
            return "".join(letter for letter, one in folders.items() if one.path.name in said.out)

        listed.folders = folders
        return listed

    def test_choices_states_and_dotted_keys(self, runs):
        asked = {
            "outputs=outputs": "abc", "seed=1": "b", "seed=1.0": "b", "seed=0,2": "ac", "status=completed": "ab",
            "status=failed": "c", "status=failed,completed seed=0": "a", "model=linear": "a", "model=mlp": "bc",
            "model=mlp_400": "b",
            "dataset=iris": "abc", "method.lr=0.001": "b", "method.lr=1e-3": "b", "method.lr=0.05": "ac",
            "method.betas=[0.9,0.99]": "a", "method.betas=[0.9, 0.99],[1,2]": "a", "limits.steps=null": "ab",
            "limits.steps=2": "c", "method.nesterov=false": "abc", "method.nesterov=0": "", "seed=true": "",
            "method.optimiser=sgd": "c", "model.name=mlp model=mlp": "bc", "method=ewc": "", "progress=off": "abc",
            "model.hidden=[400,400]": "b",
        }  # fmt: skip
        for words, letters in asked.items():
            assert runs(*words.split(" ") if "[0.9, " not in words else [words]) == letters, words

    def test_slips_of_the_pen(self, runs, run_cli):
        for words, message in {
            "metod=ewc": "metod: no run has such a key; did you mean method?",
            "method.lrr=1": "method.lrr: no run has such a key; did you mean method.lr?",
            "state=failed": "state: no run has such a key; did you mean status?",
            "status=faild": "status=faild: unknown status; did you mean failed?; there are running, completed, failed, "
                            "interrupted, crashed, corrupt",
            "seed=": "seed=: not a filter; write key=value, or key=one,other",
            "seed=1,": "seed=1,: not a filter; write key=value, or key=one,other",
            "=1": "=1: not a filter; write key=value, or key=one,other",
            "dsk": "dsk: not a filter; did you mean disk?; write key=value, or: advml runs show dsk",
            "yes=true": "yes=true: only `advml runs delete` takes yes=true",
        }.items():  # fmt: skip
            said = run_cli("runs", words)
            assert (said.code, said.out, said.err) == (2, "", f"advml: {message}\n")

    def test_none_that_passes(self, runs, run_cli):
        assert run_cli("runs", "seed=7", "model=mlp,cnn").out == "no runs below outputs with seed=7 model=mlp,cnn\n"
        assert run_cli("runs", "seed=7", "outputs=nowhere").out == "no runs below nowhere with seed=7\n"

    def test_damaged_runs_have_a_status_only(self, runs, run_cli):
        (runs.folders["a"] / "status.json").write_text("{}")
        (runs.folders["b"] / "config.yaml").write_text("a: [")
        assert runs("status=corrupt") == "a"
        assert runs("seed=0,1,2") == "ac"
        (runs.folders["c"] / "environment.json").write_text("[]")
        assert runs("model=mlp") == "c"

    def test_words(self):
        assert Filter.parse("a.b=[1,2],{c: d,e: f},x").texts == ("[1,2]", "{c: d,e: f}", "x")
        assert Filter.parse("k=[a, b]").takes([["a", "b"]])
        assert Filter.parse("k=null").takes([None])
        assert Filter.parse("k=1").takes(["1"])
        assert not Filter.parse("k=1").takes([True])
        assert not Filter.parse("k=[1").takes([[1]])


class TestShow:
    def test_everything(self, made, run_cli, inside):
        folder = made("seed=3", model="linear_400")
        said = run_cli("runs", "show", str(folder.path))
        assert (said.code, said.err) == (0, "")
        lines = said.out.splitlines()
        assert lines[0] == str(folder.path)
        assert lines[1].split() == ["command", *(folder / "command.txt").read_text().split()]
        assert "model=linear_400" in lines[2].split()
        assert {"method=supervised", "dataset=iris", "view=plain"} <= set(lines[2].split())
        assert lines[3].startswith("  status   completed at step 4, attempt 1; ")
        assert lines[4].startswith("  machine  cpu, 1 threads, float32; advml ")
        assert "supervised on iris, seed 0" in said.out
        assert f"{folder.result()['metrics']['test']['accuracy']:.4f}" in said.out
        shown = {line.split()[0]: line for line in lines if line.startswith("  ")}
        assert {path.name + "/" * path.is_dir() for path in folder.path.iterdir()} <= set(shown)
        assert shown["checkpoints/"].endswith("3 files")
        assert lines[-1].strip() == amount(sum(disk_use(path) for path in folder.path.iterdir()))
        relative = str(folder.path.relative_to(inside / "outputs"))
        assert run_cli("runs", "show", relative).out.splitlines()[1:] == lines[1:]

    def test_a_failed_one(self, run_cli):
        run_cli("run", "dataset=iris", "method.optimiser=sgd", "method.lr=1e30", "method.epochs=3", "progress=off")
        (line,) = run_cli("runs").out.splitlines()
        said = run_cli("runs", "show", line.split()[0])
        assert said.code == 0
        assert "status   failed at step " in said.out
        assert "became" in said.out
        assert "supervised on iris" not in said.out

    def test_a_damaged_one(self, made, run_cli):
        folder = made()
        for name in ("status.json", "config.yaml", "environment.json", "result.json", "command.txt"):
            whole = (folder / name).read_bytes()
            for content in (b"", b"{}", b"[1]", b"\xff"):
                (folder / name).write_bytes(content)
                said = run_cli("runs", "show", str(folder.path))
                assert (said.code, said.err) == (0, ""), (name, content)
                if name != "command.txt" and (name, content) != ("config.yaml", b"{}"):
                    assert "corrupt" in said.out or "damaged" in said.out, (name, content)
            (folder / name).write_bytes(whole)

    def test_what_is_none(self, run_cli, inside):
        for words in ([], ["a", "b"], ["seed=1"]):
            said = run_cli("runs", "show", *words)
            assert (said.code, said.err.count("\n")) == (2, 1)
        assert run_cli("runs", "show", "nothing").err == "advml: nothing: no such folder (see: advml list runs)\n"


class TestDisk:
    def test_counts_as_du_does(self, made, inside):
        folder = made()
        (folder / "twice").hardlink_to(folder / "config.yaml")
        (folder / "link").symlink_to("/usr")
        with open(folder / "sparse", "wb") as file:
            file.truncate(10**9)
        du = ["du", "-s", "--block-size=1", folder.path]
        counted = subprocess.run(du, capture_output=True, text=True, check=True).stdout
        assert disk_use(folder.path) == int(counted.split()[0])

    def test_largest_last_and_nothing_twice(self, made, run_cli, inside):
        small, large = made(), made()
        (large / "checkpoints/last.pt").write_bytes(os.urandom(3_000_000))
        inner = copied(large, small / "baselines/other")
        said = run_cli("runs", "disk")
        lines = [line.split() for line in said.out.splitlines()]
        assert lines[0][-1] == str(small.path.relative_to(inside / "outputs"))
        assert {line[-1] for line in lines[1:3]} == {
            str(one.path.relative_to(inside / "outputs")) for one in (large, inner)
        }
        total = disk_use(small.path) + disk_use(large.path)
        assert " ".join(lines[-1]).startswith(f"{amount(total)} 3 runs: checkpoints/ ")
        assert run_cli("runs", "disk", "seed=0").out == said.out
        assert "no run has" in run_cli("runs", "disk", "sed=0").err

    @pytest.mark.parametrize(("size", "shown"), [
        (0, "0 B"), (999, "999 B"), (1000, "1 kB"), (1536, "1.54 kB"), (999_499, "999 kB"), (999_600, "1 MB"),
        (20_000_000, "20 MB"), (5.5e9, "5.5 GB"), (7e12, "7 TB"), (7e15, "7e+03 TB"),
    ])  # fmt: skip
    def test_for_a_person(self, size, shown):
        assert amount(size) == shown


class TestDelete:
    def test_what_was_chosen(self, made, run_cli):
        first, second, third = made(), made("seed=1"), made("seed=2")
        said = run_cli("runs", "delete", "seed=1,2", "yes=true")
        assert (said.code, said.err) == (0, "")
        assert said.out.splitlines()[-1] == "deleted 2 runs"
        assert [line.split()[-1].rpartition("/")[2] for line in said.out.splitlines()[:-1]] == [
            second.path.name, third.path.name
        ]  # fmt: skip
        assert [first.path.exists(), second.path.exists(), third.path.exists()] == [True, False, False]
        assert first.path.parent.is_dir()

    def test_what_was_named(self, made, run_cli, inside):
        first, second, third = made(), made(), made()
        asked = ("runs", "delete", str(first.path), str(second.path.relative_to(inside / "outputs")), str(first.path))
        said = run_cli(*asked, "yes=true")
        assert (said.code, said.out.splitlines()[-1]) == (0, "deleted 2 runs")
        assert find(inside / "outputs")[0].path == third.path

    def test_refuses_without_a_terminal(self, made, run_cli, monkeypatch, inside):
        folder = made()
        monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115
        for words in (["seed=0"], [str(folder.path)], ["seed=0", "yes=false"]):
            said = run_cli("runs", "delete", *words)
            assert said.code == 2
            assert said.err == "advml: runs delete: there is no terminal to ask on; to delete these, add yes=true\n"
            assert folder.path.name in said.out
        assert folder.status()["state"] == "completed"

    @pytest.mark.parametrize(("answer", "goes"), [("y\n", True), ("\n", False), ("yess\n", False), ("\x04", False)])
    def test_asks_on_a_terminal(self, answer, goes, made, inside):
        folder = made()
        master, slave = pty.openpty()
        process = subprocess.Popen([sys.executable, "-m", "advml", "runs", "delete", "seed=0"], stdin=slave,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=inside)  # fmt: skip
        os.write(master, answer.encode())
        out, err = process.communicate(timeout=60)
        os.close(master), os.close(slave)
        assert (process.returncode, err) == (0, "")
        assert "delete 1 run, " in out
        assert folder.path.exists() is not goes
        assert ("deleted 1 run" in out, "nothing deleted" in out) == (goes, not goes)

    def test_says_what_it_needs(self, made, run_cli):
        folder = made()
        for words in ("", "yes=true", "outputs=outputs yes=true", f"{folder.path} seed=0 yes=true", "seed=0 yes=1",
                      "sed=0 yes=true", "status=done yes=true"):  # fmt: skip
            said = run_cli("runs", "delete", *words.split())
            assert (said.code, said.out) == (2, ""), words
        assert folder.path.exists()

    def test_never_what_is_no_run(self, made, run_cli, inside):
        folder = made()
        (inside / "configs").mkdir()
        shutil.copy(folder / "config.yaml", inside / "configs")
        (inside / "link").symlink_to(folder.path)
        for word in ("configs", "outputs", str(folder.path.parent), str(folder / "checkpoints"), "link", "nothing", "/",
                     str(folder / "config.yaml"), "."):  # fmt: skip
            said = run_cli("runs", "delete", word, str(folder.path), "yes=true")
            assert (said.code, said.out) == (2, ""), word
            assert said.err.startswith(f"advml: {word}: ")
        assert (inside / "configs/config.yaml").exists()
        assert folder.status()["state"] == "completed"

    def test_links_are_removed_not_followed(self, made, run_cli, inside):
        folder = made()
        (inside / "precious").mkdir()
        (inside / "precious/file").write_text("here")
        for place in ("link", "checkpoints/link", "artifacts/link"):
            (folder / place).symlink_to(inside / "precious")
        (folder / "to_file").symlink_to(inside / "precious/file")
        assert run_cli("runs", "delete", "seed=0", "yes=true").code == 0
        assert not folder.path.exists()
        assert (inside / "precious/file").read_text() == "here"

    def test_never_one_that_a_process_works_on(self, made, run_cli, forks, tree, inside):
        idle = made()
        config = tree("method.epochs=1000000", "checkpoint_seconds=0", "seed=1")
        process = forks.start("start", config, cwd=inside)
        try:
            while not (found := [one for one in find(inside / "outputs") if one.path != idle.path]):
                time.sleep(0.02)
            (busy,) = found
            while busy.status()["step"] < 1:
                time.sleep(0.02)
            refused = f"advml: {busy.path}: not deleted, a process is working on it\n"
            for words in ([str(busy.path)], ["status=running"], ["seed=1"]):
                said = run_cli("runs", "delete", *words, "yes=true")
                assert (said.code, said.out, said.err) == (1, "", refused)
            said = run_cli("runs", "delete", "dataset=iris", "yes=true")
            assert (said.code, said.err) == (1, refused)
            assert said.out.endswith("deleted 1 run\n")
            assert not idle.path.exists()
        finally:
            process.send(signal.SIGINT)
        assert process.wait().code == 130
        assert busy.status()["state"] == "interrupted"
        assert run_cli("runs", "delete", str(busy.path), "yes=true").code == 0
        assert find(inside / "outputs") == []

    def test_nor_one_inside_which_a_process_works(self, made, run_cli, inside):
        folder = made()
        inner = copied(folder, folder / "baselines/other")
        inner.lock()
        said = run_cli("runs", "delete", str(folder.path), "yes=true")
        assert (said.code, "not deleted" in said.err) == (1, True)
        inner.unlock()
        said = run_cli("runs", "delete", "seed=0", "yes=true")
        assert said.out.splitlines()[-1] == "deleted 1 run"  # the inner one goes with the outer
        assert not folder.path.exists()

    def test_one_begun_after_it_was_listed(self, made, run_cli, monkeypatch):
        """The lock is what counts, not what was seen a moment before."""
        folder = made()
        monkeypatch.setattr(inventory, "held", lambda folder: False)
        folder.lock()
        said = run_cli("runs", "delete", "seed=0", "yes=true")
        assert (said.code, said.out.splitlines()[-1]) == (1, "deleted 0 runs")
        assert "is working on this run" in said.err
        folder.unlock()
        assert folder.result()

    def test_nobody_can_take_up_what_is_going(self, made, monkeypatch):
        folder = made()
        remove, refusals = shutil.rmtree, []

        def while_removing(path):
            with pytest.raises(AdvmlError, match="is working on this run"):
                RunFolder(folder.path).lock()
            refusals.append(path)
            remove(path)

        monkeypatch.setattr(shutil, "rmtree", while_removing)
        inventory.delete(folder)
        assert len(refusals) == 2
        assert not folder.path.exists()

    def test_cut_short_it_leaves_a_run_that_can_be_deleted_again(self, made, run_cli, monkeypatch):
        folder = made()
        remove, unlink, left = shutil.rmtree, Path.unlink, [0]

        def counted(act):
            def removing(path, *args, **kwargs):
                if left[0] == 0:
                    raise PermissionError(13, "Permission denied", str(path))
                left[0] -= 1
                return act(path, *args, **kwargs)

            return removing

        monkeypatch.setattr(shutil, "rmtree", counted(remove))
        monkeypatch.setattr(Path, "unlink", counted(unlink))
        things = len(list(folder.path.iterdir()))
        for _ in range(things - 3):  # until only status.json, .lock and config.yaml are left
            left[0] = 1
            said = run_cli("runs", "delete", str(folder.path), "yes=true")
            assert (said.code, "Permission denied" in said.err) == (1, True)
            assert len(run_cli("runs").out.splitlines()) == 1
            assert folder.path.name in run_cli("runs").out
        left[0] = -1
        assert run_cli("runs", "delete", str(folder.path), "yes=true").code == 0
        assert not folder.path.exists()

    def test_of_nothing(self, run_cli, made):
        made()
        said = run_cli("runs", "delete", "seed=5", "yes=true")
        assert (said.code, said.out) == (0, "no runs below outputs with seed=5\n")

    def test_the_function_itself_looks_again(self, tmp_path):
        (tmp_path / "config.yaml").write_text("a: 1")
        with pytest.raises(ConfigError, match="not a run folder"):
            inventory.delete(RunFolder(tmp_path))
        assert (tmp_path / "config.yaml").exists()


def test_a_folder_of_that_name_is_a_run_not_a_filter(made, run_cli, inside, monkeypatch):
    """The jobs of a sweep have such names."""
    folder = made()
    job = copied(folder, inside / "outputs/sweeps/s/seed=0")
    monkeypatch.chdir(job.path.parent)
    assert run_cli("runs", "show", "seed=0").code == 0
    said = run_cli("runs", "delete", "seed=0", "outputs=../..", "yes=true")
    assert (said.code, said.out.splitlines()[-1]) == (0, "deleted 1 run")
    assert (folder.path.exists(), job.path.exists()) == (True, False)


def test_imports_nothing_heavy(made, inside):
    made()
    commands = [["runs"], ["runs", "seed=0"], ["runs", "disk"], ["runs", "delete", "seed=0"]]
    program = (
        f"import sys\nfrom advml.cli import main\nfor words in {commands!r}: main(words)\n"
        "print([name for name in ('torch', 'numpy', 'hydra', 'rich', 'pydantic', 'omegaconf') if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=inside,
                           stdin=subprocess.DEVNULL)  # fmt: skip
    assert ended.stdout.splitlines()[-1] == "[]"
