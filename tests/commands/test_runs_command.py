"""advml runs: which there are, chosen by what they say, shown and weighed."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from run_copies import copied

from advml.runner.folder import find
from advml.runner.inventory import Filter, amount, disk_use


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
            "seed=0 seed=1": "seed: given 2 times; of several values write seed=one,other",
            "yes=true": "yes=true: only `advml runs delete` takes yes=true",
        }.items():  # fmt: skip
            said = run_cli("runs", *words.split())
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
