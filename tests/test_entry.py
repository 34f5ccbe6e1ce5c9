"""The command's own floor: help and lists come without the heavy packages; the script is found in every way."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from advml import __version__
from advml.cli import VERBS, main

HEAVY = ("torch", "numpy", "pennylane", "hydra", "rich", "omegaconf", "pydantic", "matplotlib", "sklearn", "scipy")


def imported_by(*words):
    """Which of the heavy packages a command imports, in a fresh interpreter; and its output."""
    program = (
        "import sys\n"
        "from advml.cli import main\n"
        f"code = main({list(words)!r})\n"
        f"print(code, [name for name in {HEAVY!r} if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    *output, last = ended.stdout.splitlines()
    return last, output


@pytest.mark.parametrize("words", [("--help",), ("--version",), ("help", "run"), ("run", "--help"), ("list",),
                                   ("list", "methods"), ("list", "experiments"), ("list", "runs"),
                                   ("completion", "bash"), ("nonsense",)])  # fmt: skip
def test_imports_nothing_heavy(words):
    last, _ = imported_by(*words)
    assert last == f"{2 if words == ('nonsense',) else 0} []"


@pytest.mark.parametrize("words", [("run", "method=nonesuch"), ("run", "lr"), ("run", "--nonsense")])
def test_simple_mistakes_are_told_before_torch_is_imported(words):
    last, _ = imported_by(*words)
    assert last.startswith("2 ")
    assert "torch" not in last


def test_importing_the_package_imports_nothing_heavy():
    program = f"import sys, advml, advml.registry, advml.roots; print([n for n in {HEAVY!r} if n in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout == "[]\n"


class TestHelp:
    @pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
    def test_names_every_verb(self, words, run_cli):
        said = run_cli(*words)
        assert (said.code, said.err) == (0, "")
        for verb, summary in VERBS.items():
            assert f"  {verb}" in said.out
            assert summary in said.out

    @pytest.mark.parametrize("verb", VERBS)
    def test_every_verb_explains_itself_with_examples(self, verb, run_cli):
        said = run_cli(verb, "--help")
        assert said.code == 0
        assert said.out.startswith(f"advml {verb}")
        assert said.out.count(f"advml {verb}") >= 2
        assert run_cli("help", verb).out == run_cli(verb, "-h").out == said.out
        assert max(map(len, said.out.splitlines())) <= 120

    def test_version(self, run_cli):
        assert run_cli("--version").out == f"advml {__version__}\n"


@pytest.mark.parametrize("words", [["-m", "advml"], [str(Path(__file__).parents[1] / "cli.py")]])
def test_other_ways_in(words):
    ended = subprocess.run([sys.executable, *words, "--version"], capture_output=True, text=True, check=True)
    assert ended.stdout == f"advml {__version__}\n"


def test_a_reader_that_goes_away(inside):
    program = f"{sys.executable} -m advml --help | head -1; echo ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "0"
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", ["--help", "list methods", "list --help"])
def test_a_reader_that_was_never_there(words, unbuffered, inside):
    program = f"{sys.executable} -m advml {words} | true; echo ${{PIPESTATUS[0]}}"
    env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    ended = subprocess.run(["bash", "-c", program], capture_output=True, text=True, check=True, env=env)
    assert (ended.stdout, ended.stderr) == ("0\n", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this machine")
@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("words", ["--help", "--version", "list methods"])
def test_nowhere_to_print(words, unbuffered, inside):
    """A short text stays in Python's buffer until the end: the failure must be noticed all the same."""
    env = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        ended = subprocess.run([sys.executable, "-m", "advml", *words.split()], stdout=full, stderr=subprocess.PIPE,
                               text=True, check=False, env=env)  # fmt: skip
    assert (ended.returncode, ended.stderr) == (1, "advml: No space left on device\n")


def test_a_terminal_without_our_signs(inside):
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    (inside / "method").mkdir()
    (inside / "method/mine.yaml").write_text("# Mean ± spread.\n")
    program = [sys.executable, "-m", "advml", "list", "methods"]
    ended = subprocess.run(program, capture_output=True, text=True, check=False, env={**env, "ADVML_CONFIG_PATH": "."})
    assert (ended.returncode, ended.stderr) == (0, "")
    assert "Mean ? spread." in ended.stdout


def test_ctrl_c_outside_a_run(monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("advml.commands.list.main", interrupted)
    assert main(["list"]) == 130
    assert capsys.readouterr().err == "advml: interrupted\n"


def test_a_failing_disk_outside_a_run(monkeypatch, capsys):
    def refused(arguments):
        raise PermissionError(13, "Permission denied", "/somewhere")

    monkeypatch.setattr("advml.commands.list.main", refused)
    assert main(["list"]) == 1
    assert capsys.readouterr().err == "advml: /somewhere: Permission denied\n"
