"""advml runs delete: what was chosen or named goes, and what is never deleted."""

import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from run_copies import copied

from advml.errors import AdvmlError, ConfigError
from advml.runner import inventory
from advml.runner.folder import RunFolder, find


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
