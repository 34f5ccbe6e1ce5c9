"""The command line: finds the verb and hands over. Standard library only, so that help comes at once."""

import importlib
import io
import os
import sys
from collections.abc import Sequence

from advml import __version__
from advml.commands import VERBS
from advml.errors import AdvmlError, did_you_mean

HELP = f"""advml {__version__}: one command for the advanced families of machine learning

usage: advml VERB [ARGUMENTS]

{chr(10).join(f"  {verb:<12}{summary}" for verb, summary in VERBS.items())}

examples:
  advml run                                      train an MLP on 8x8 digits: a first run, in seconds
  advml run method=ewc device=cuda seed=3        elastic weight consolidation on a GPU
  advml sweep method=ewc,joint seed=0,1,2        all combinations; repeated, only what is missing
  advml list methods                             what can be run
  advml VERB --help                              more about a verb
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit code: 0 done, 1 failed, 2 wrong command or configuration, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):  # of a locale without our signs: a ? in place of ±, not a traceback
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        code = _run(list(sys.argv[1:] if arguments is None else arguments))
        sys.stdout.flush()  # here, where a full disk or a reader that has gone is told from a mistake of ours
        return code
    except AdvmlError as error:
        for line in str(error).splitlines():
            print(f"advml: {line}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:  # the reader of our output has gone, as in `advml list runs | head`
        _abandon_output()
        return 0
    except OSError as error:  # a full disk, a folder that may not be read: nothing that a traceback would explain
        _abandon_output()
        where = f"{error.filename}: " if error.filename else ""
        print(f"advml: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("advml: interrupted", file=sys.stderr)
        return 130


def _run(words: list[str]) -> int:
    if len(words) > 1 and words[0] in ("-h", "--help", "help"):
        words = [*words[1:2], "--help"]
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if words[0] == "--version":
        print(f"advml {__version__}")
        return 0
    # Read once, when torch loads OpenMP: idle threads sleep instead of spinning, which would take the cores of a shared
    # machine from other processes.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # torch asks Linux for large pages
    verb, rest = words[0], list(map(_home_spelt, words[1:]))
    if verb not in VERBS:
        print(f"advml: {verb}: unknown verb{did_you_mean(verb, VERBS)} (see: advml --help)", file=sys.stderr)
        return 2
    if "-h" in rest or "--help" in rest:
        print(_help_of(verb), end="")
        return 0
    code: int = importlib.import_module(f"advml.commands.{verb}").main(rest)
    return code


def _home_spelt(word: str) -> str:
    """KEY=~/… with the home folder in place of ~, as bash passes it on and other shells do not."""
    key, equals, value = word.partition("=")
    return key + equals + (os.path.expanduser(value) if value.split("/")[0] == "~" else value)


def _abandon_output() -> None:
    """Throw away what could not be written, before Python tries once more at its end and complains."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _help_of(verb: str) -> str:
    """The docstring of a verb's module."""
    return f"{(importlib.import_module(f'advml.commands.{verb}').__doc__ or '').strip()}\n"


def console() -> None:
    """The `advml` script."""
    sys.exit(main())
